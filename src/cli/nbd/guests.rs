//! Who is connected, so that what a client left behind does not run after what its successor wrote.
//!
//! Each connection has a thread. A new one begins only when those whose clients have hung up are through with what these
//! sent, or have been cut off; and with others connected, one whose client hung up without a goodbye carries out nothing
//! more: the client may have sent it again on another connection. Nobody waits for one whose client is there.

use ashlar_nbd::export::{ExportInfo, Extent};
use ashlar_nbd::hangup;
use ashlar_nbd::server::Backend;
use ashlar_nbd::wire::ErrorNumber;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A new connection waits so long for what those before it left to be done; then they are cut off.
const PATIENCE: Duration = Duration::from_secs(1);
/// Zeroing and trimming go in steps of this length: who is cut off ends with the one that is under way.
const STEP_BYTES: u64 = 64 << 20;

/// All connections that have an export open.
#[derive(Debug, Default)]
pub struct Guests {
    seated: Mutex<Seated>,
    /// How many there are; for those who have their turn and must not wait for the list.
    count: AtomicUsize,
    /// One has left.
    left: Condvar,
}

#[derive(Debug, Default)]
struct Seated {
    next: u64,
    all: BTreeMap<u64, Arc<Guest>>,
}

/// One connection.
#[derive(Debug)]
struct Guest {
    socket: OwnedFd,
    /// Held while a request of it is carried out.
    turn: Mutex<()>,
    /// The last bytes that were received, where a goodbye may begin whose end is still in the socket.
    received: Mutex<Vec<u8>>,
    /// Nothing of it is carried out any more.
    cut_off: AtomicBool,
    /// It said goodbye: what it sent is not sent again elsewhere.
    said_goodbye: AtomicBool,
}

impl Guest {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            turn: Mutex::default(),
            received: Mutex::default(),
            cut_off: AtomicBool::new(false),
            said_goodbye: AtomicBool::new(false),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self) -> MutexGuard<'_, Vec<u8>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner) // it is replaced as a whole
    }

    /// From now on nothing of it begins, and its thread ends: a client that takes no replies would keep it for ever.
    fn cut_off(&self) {
        self.cut_off.store(true, Ordering::Release);
        // SAFETY: the descriptor is open as long as `self`; that the connection is gone already is no failure.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    fn has_hung_up(&self) -> bool {
        hangup::has_hung_up(self.socket.as_fd())
    }

    /// Whether a request of it may be carried out; `alone`: there is no other connection.
    fn may_go_on(&self, alone: bool) -> bool {
        if self.cut_off.load(Ordering::Acquire) {
            return false;
        }
        if alone || self.said_goodbye.load(Ordering::Acquire) || !self.has_hung_up() {
            return true;
        }
        // Only its own thread receives from it, and that is here.
        let goodbye = hangup::left_with_goodbye(self.socket.as_fd(), &self.received());
        if goodbye {
            self.said_goodbye.store(true, Ordering::Release);
        } else {
            self.cut_off();
        }
        goodbye
    }
}

/// A connection's place among the others; dropping it leaves.
#[derive(Debug)]
pub struct Seat {
    guests: Arc<Guests>,
    number: u64,
    guest: Arc<Guest>,
}

impl Guests {
    fn seated(&self) -> MutexGuard<'_, Seated> {
        self.seated.lock().unwrap_or_else(PoisonError::into_inner) // nothing in there is ever half done
    }

    /// Takes a connection in, once nothing that others left can run after its requests.
    pub fn seat(self: &Arc<Self>, socket: OwnedFd) -> Seat {
        self.seat_within(socket, PATIENCE)
    }

    fn seat_within(self: &Arc<Self>, socket: OwnedFd, patience: Duration) -> Seat {
        let deadline = Instant::now() + patience;
        let mut seated = self.seated();
        while seated.all.values().any(|guest| guest.has_hung_up()) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            seated = self.left.wait_timeout(seated, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let number = seated.next;
        seated.next += 1;
        let guest = Arc::new(Guest::new(socket));
        // Before the turns: whoever takes one after this counts on company.
        self.count.fetch_add(1, Ordering::AcqRel);
        for late in seated.all.values().filter(|guest| guest.has_hung_up()) {
            late.cut_off();
            drop(late.turn()); // what is being carried out of it ends first
        }
        seated.all.insert(number, guest.clone());
        Seat { guests: self.clone(), number, guest }
    }
}

impl Seat {
    /// The last that was received, at most as much as a goodbye. After one, requests before it are still to be carried out.
    pub fn received(&self, last: &[u8]) {
        self.guest.said_goodbye.store(hangup::ends_with_goodbye(last), Ordering::Release);
        let mut received = self.guest.received();
        received.clear();
        received.extend_from_slice(last);
    }

    /// Carries out a request, unless it comes too late.
    ///
    /// # Errors
    /// The client has hung up, and others may be ahead of it: nothing was done.
    fn carry_out<T>(&self, work: impl FnOnce() -> Result<T, ErrorNumber>) -> Result<T, ErrorNumber> {
        let _turn = self.guest.turn();
        let alone = self.guests.count.load(Ordering::Acquire) <= 1;
        if self.guest.may_go_on(alone) { work() } else { Err(ErrorNumber::ShuttingDown) }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.guests.seated().all.remove(&self.number);
        self.guests.count.fetch_sub(1, Ordering::AcqRel);
        self.guests.left.notify_all();
    }
}

/// A device as one connection has it.
pub struct SeatedDevice<D> {
    device: Arc<D>,
    seat: Arc<Seat>,
}

impl<D> SeatedDevice<D> {
    /// The device, for the connection that has the seat.
    pub fn new(device: Arc<D>, seat: Arc<Seat>) -> Self {
        Self { device, seat }
    }
}

/// The steps of a long request, as offset and length: all but the first begin at a multiple of [`STEP_BYTES`].
fn steps(offset_bytes: u64, length_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset_bytes + length_bytes;
    let mut at = offset_bytes;
    std::iter::from_fn(move || {
        let start = at;
        at = (start - start % STEP_BYTES + STEP_BYTES).min(end);
        (start < end).then(|| (start, at - start))
    })
}

impl<D: Backend> SeatedDevice<D> {
    /// Carries out a long request; `work`: of a step, and whether it is to be durable.
    fn in_steps(
        &self,
        (offset_bytes, length_bytes): (u64, u64),
        fua: bool,
        work: impl Fn(u64, u64, bool) -> Result<(), ErrorNumber>,
    ) -> Result<(), ErrorNumber> {
        let single = steps(offset_bytes, length_bytes).nth(1).is_none();
        for (offset, length) in steps(offset_bytes, length_bytes) {
            self.seat.carry_out(|| work(offset, length, fua && single))?;
        }
        // Once, not for each step.
        if fua && !single { self.device.flush() } else { Ok(()) }
    }
}

impl<D: Backend> Backend for SeatedDevice<D> {
    fn info(&self) -> ExportInfo {
        self.device.info()
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), ErrorNumber> {
        self.device.read(offset_bytes, buffer)
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), ErrorNumber> {
        self.seat.carry_out(|| self.device.write(offset_bytes, data, fua))
    }

    fn flush(&self) -> Result<(), ErrorNumber> {
        self.device.flush()
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), ErrorNumber> {
        self.in_steps((offset_bytes, length_bytes), fua, |offset, length, fua| self.device.trim(offset, length, fua))
    }

    fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool, fua: bool) -> Result<(), ErrorNumber> {
        self.in_steps((offset_bytes, length_bytes), fua, |offset, length, fua| {
            self.device.zero(offset, length, no_hole, fua)
        })
    }

    fn extents(&self, offset_bytes: u64, length_bytes: u64, out: &mut Vec<Extent>) -> Result<(), ErrorNumber> {
        self.device.extents(offset_bytes, length_bytes, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    fn client(guests: &Arc<Guests>) -> (UnixStream, Seat) {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        let seat = guests.seat_within(server.into(), Duration::ZERO);
        (client, seat)
    }

    fn goodbye() -> Vec<u8> {
        let mut goodbye = ashlar_nbd::wire::MAGIC_REQUEST.to_be_bytes().to_vec();
        goodbye.extend([0, 0, 0, 2]);
        goodbye.resize(28, 0);
        goodbye
    }

    fn goes_on(seat: &Seat) -> bool {
        seat.carry_out(|| Ok(())).is_ok()
    }

    #[test]
    fn a_successor_cuts_off_who_hung_up_and_nobody_else() {
        let guests = Arc::new(Guests::default());
        let (first, late) = client(&guests);
        drop(first);
        assert!(goes_on(&late), "nobody else is there");
        let (_second, alive) = client(&guests);
        assert!(!goes_on(&late));
        let (_third, newest) = client(&guests);
        assert!(goes_on(&alive) && goes_on(&newest));
    }

    /// Requests before a goodbye are to be done, in their order: before the next client's.
    #[test]
    fn a_successor_waits_for_who_said_goodbye() {
        let guests = Arc::new(Guests::default());
        let (first, going) = client(&guests);
        going.received(&goodbye());
        drop(first);
        let (said, says) = mpsc::sync_channel(1);
        let waiting = {
            let guests = guests.clone();
            std::thread::spawn(move || {
                let (_client, server) = UnixStream::pair().expect("a pair of sockets");
                let seat = guests.seat_within(server.into(), Duration::from_secs(60));
                said.send("the next").expect("a listener");
                drop(seat);
            })
        };
        assert!(goes_on(&going));
        assert!(says.try_recv().is_err(), "it has begun before the one that is going");
        drop(going);
        assert_eq!(says.recv_timeout(Duration::from_secs(10)), Ok("the next"));
        waiting.join().expect("no panic");
    }

    /// A client with several connections sends again on one that lives what it had sent on one that is lost.
    #[test]
    fn beside_others_who_hangs_up_without_a_goodbye_is_done() {
        let guests = Arc::new(Guests::default());
        let (one, lost) = client(&guests);
        let (two, ended) = client(&guests);
        let (_three, alive) = client(&guests);
        assert!(goes_on(&lost) && goes_on(&ended));
        (&two).write_all(&goodbye()).expect("a goodbye");
        drop((one, two));
        assert!(!goes_on(&lost) && !goes_on(&lost));
        assert!(goes_on(&ended) && goes_on(&alive));
    }

    #[test]
    fn a_goodbye_of_which_a_part_was_received_is_one() {
        let guests = Arc::new(Guests::default());
        let ((one, ending), (two, lost), _three) = (client(&guests), client(&guests), client(&guests));
        for (mut stream, seat, first) in [(one, &ending, &goodbye()[..20]), (two, &lost, &[0; 20][..])] {
            seat.received(first);
            stream.write_all(&goodbye()[20..]).expect("the rest of a goodbye");
        }
        assert!(goes_on(&ending) && !goes_on(&lost));
    }

    /// A client may half close and take no replies: its thread would wait for it for ever.
    #[test]
    fn who_is_cut_off_is_disconnected() {
        let guests = Arc::new(Guests::default());
        let ((first, late), (second, lost)) = (client(&guests), client(&guests));
        for stream in [&first, &second] {
            stream.set_nonblocking(true).expect("a mode");
        }
        let is_disconnected = |mut stream: &UnixStream| stream.read(&mut [0]).is_ok_and(|bytes| bytes == 0);
        first.shutdown(Shutdown::Write).expect("half of it closed");
        assert!(!is_disconnected(&first));
        let (_third, _alive) = client(&guests);
        assert!(is_disconnected(&first) && !is_disconnected(&second) && !goes_on(&late));
        second.shutdown(Shutdown::Write).expect("half of it closed");
        assert!(!goes_on(&lost));
        assert!(is_disconnected(&second));
    }

    #[test]
    fn nobody_waits_for_what_another_has_under_way() {
        let guests = Arc::new(Guests::default());
        let (_first, busy) = client(&guests);
        let (said, says) = mpsc::sync_channel(1);
        let done = busy.carry_out(|| {
            let guests = guests.clone();
            let next = std::thread::spawn(move || {
                let (_client, seat) = client(&guests);
                said.send(goes_on(&seat)).expect("a listener");
            });
            let went_on = says.recv_timeout(Duration::from_secs(10));
            Ok((next, went_on))
        });
        let (next, went_on) = done.expect("it is connected");
        assert_eq!(went_on, Ok(true));
        next.join().expect("no panic");
    }

    #[test]
    fn long_requests_go_in_steps() {
        let all = |offset, length| steps(offset, length).collect::<Vec<_>>();
        assert_eq!(all(512, 0), []);
        assert_eq!(all(512, STEP_BYTES - 512), [(512, STEP_BYTES - 512)]);
        assert_eq!(all(512, STEP_BYTES), [(512, STEP_BYTES - 512), (STEP_BYTES, 512)]);
        let last = u64::MAX / 2;
        assert_eq!(all(last - 1, 1), [(last - 1, 1)]);
    }
}
