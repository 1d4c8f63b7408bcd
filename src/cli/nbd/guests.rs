//! Who is connected, so that what a client left behind does not run after what its successor wrote.
//!
//! Each connection has a thread. A new one begins only when those whose clients have hung up are through with what these
//! sent, or have been cut off; and with others connected, one whose client hung up without a goodbye carries out nothing
//! more: the client may have sent it again on another connection.

use ashlar_nbd::export::{ExportInfo, Extent};
use ashlar_nbd::hangup;
use ashlar_nbd::server::Backend;
use ashlar_nbd::wire::ErrorNumber;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A new connection waits so long for what those before it left to be done; then they are cut off.
const PATIENCE: Duration = Duration::from_secs(1);

/// All connections that have an export open.
#[derive(Debug, Default)]
pub struct Guests {
    seated: Mutex<Seated>,
    /// How many there are; for those who have the turn and must not wait for the list.
    count: AtomicUsize,
    /// One has left.
    left: Condvar,
    /// Held for reading while a request is carried out, for writing while connections are cut off.
    turn: RwLock<()>,
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
    /// Nothing of it is carried out any more.
    cut_off: AtomicBool,
    /// It said goodbye: what it sent is not sent again elsewhere.
    said_goodbye: AtomicBool,
}

impl Guest {
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
        let goodbye = hangup::left_with_goodbye(self.socket.as_fd(), &[]);
        self.said_goodbye.store(goodbye, Ordering::Release);
        self.cut_off.store(!goodbye, Ordering::Release);
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
        let guest = Arc::new(Guest { socket, cut_off: AtomicBool::new(false), said_goodbye: AtomicBool::new(false) });
        // Before the turn: whoever has it after this one counts on company.
        self.count.fetch_add(1, Ordering::AcqRel);
        {
            // Whatever is being carried out ends first.
            let _alone = self.turn.write().unwrap_or_else(PoisonError::into_inner);
            for late in seated.all.values().filter(|guest| guest.has_hung_up()) {
                late.cut_off.store(true, Ordering::Release);
            }
        }
        seated.all.insert(number, guest.clone());
        Seat { guests: self.clone(), number, guest }
    }
}

impl Seat {
    /// The client has said goodbye; requests before that are still to be carried out.
    pub fn goodbye_heard(&self) {
        self.guest.said_goodbye.store(true, Ordering::Release);
    }

    /// Carries out a request, unless it comes too late.
    ///
    /// # Errors
    /// The client has hung up, and others may be ahead of it: nothing was done.
    fn carry_out<T>(&self, work: impl FnOnce() -> Result<T, ErrorNumber>) -> Result<T, ErrorNumber> {
        let _turn = self.guests.turn.read().unwrap_or_else(PoisonError::into_inner);
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
        self.seat.carry_out(|| self.device.trim(offset_bytes, length_bytes, fua))
    }

    fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool, fua: bool) -> Result<(), ErrorNumber> {
        self.seat.carry_out(|| self.device.zero(offset_bytes, length_bytes, no_hole, fua))
    }

    fn extents(&self, offset_bytes: u64, length_bytes: u64, out: &mut Vec<Extent>) -> Result<(), ErrorNumber> {
        self.device.extents(offset_bytes, length_bytes, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    fn client(guests: &Arc<Guests>) -> (UnixStream, Seat) {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        let seat = guests.seat_within(server.into(), Duration::ZERO);
        (client, seat)
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
        going.goodbye_heard();
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
        let mut goodbye = ashlar_nbd::wire::MAGIC_REQUEST.to_be_bytes().to_vec();
        goodbye.extend([0, 0, 0, 2]);
        goodbye.resize(28, 0);
        (&two).write_all(&goodbye).expect("a goodbye");
        drop((one, two));
        assert!(!goes_on(&lost) && !goes_on(&lost));
        assert!(goes_on(&ended) && goes_on(&alive));
    }
}
