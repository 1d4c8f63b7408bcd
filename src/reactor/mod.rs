//! The shard's event loop: one io_uring for sockets and devices, buffers owned by the operation that uses them.
//!
//! It knows no protocol: it moves bytes and says what happened. An operation owns its memory until the kernel has
//! answered, so nothing that the kernel may still touch is ever freed.

mod device;
#[cfg(test)]
mod device_tests;
mod expecting;
#[cfg(test)]
mod handover_tests;
mod operation;
mod outbox;
pub mod socket;

pub use outbox::{Outbox, Segment};

use ashlar_model::{AlignedBuffer, Arena};
use expecting::Expecting;
use io_uring::{IoUring, opcode, types};
use operation::{Operation, Slab};
use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the submission queue; a full queue is submitted and goes on.
const RING_ENTRIES: u32 = 1024;
/// Segments of one send.
const SEND_SEGMENTS_MAX: usize = 512;

/// Run what is due, and post completions (linux/io_uring.h: `IORING_ENTER_GETEVENTS`).
const ENTER_GETEVENTS: u32 = 1;

/// What an operation came to. `key` is the caller's.
#[derive(Debug)]
pub enum Completion {
    /// A connection was accepted.
    Accepted {
        /// The listener's key.
        key: u64,
        /// The connection.
        result: io::Result<OwnedFd>,
    },
    /// A connection was made, or not.
    Connected {
        /// The connection's key.
        key: u64,
        /// Outcome.
        result: io::Result<()>,
    },
    /// Bytes arrived: the first `result` of the buffer; zero at the end of the stream.
    Received {
        /// The connection's key.
        key: u64,
        /// The buffer that was given.
        buffer: Vec<u8>,
        /// Bytes received.
        result: io::Result<usize>,
    },
    /// All segments were handed to the kernel.
    Sent {
        /// The connection's key.
        key: u64,
        /// Bytes sent; fewer than given means that the connection is ending.
        result: io::Result<usize>,
    },
    /// A device read.
    Read {
        /// The caller's key.
        key: u64,
        /// The buffer, filled if the result is its length.
        buffer: AlignedBuffer,
        /// Bytes read.
        result: io::Result<usize>,
    },
    /// A device write.
    Written {
        /// The caller's key.
        key: u64,
        /// `Ok(true)`: every byte.
        result: io::Result<bool>,
    },
    /// A device flush.
    Flushed {
        /// The caller's key.
        key: u64,
        /// Outcome.
        result: io::Result<()>,
    },
    /// A discard on a device.
    Discarded {
        /// The caller's key.
        key: u64,
        /// `Ok(false)`: the device, or this kernel, cannot discard, and nothing has happened.
        result: io::Result<bool>,
    },
    /// Another thread rang.
    Rung,
    /// The timer expired.
    Expired,
}

/// One ring and everything in flight on it. Made and used by one thread.
pub struct Reactor {
    ring: IoUring,
    operations: Slab,
    bell: OwnedFd,
    enters: u64,
    spin: Duration,
    expecting: Expecting,
    /// Device operations that are not complete.
    device_operations: usize,
    /// Those of them that the kernel has not been given.
    device_entries: usize,
    /// Memory that the ring knows; asked for with the first device operation.
    arena: OnceCell<Option<Arc<Arena>>>,
}

impl Reactor {
    /// A reactor for the calling thread. Before it sleeps it looks for completions for as long as `spin`, while messages
    /// come one after the other.
    ///
    /// # Errors
    /// The kernel refuses io_uring (older than 6.1, or forbidden by a sandbox).
    pub fn new(spin: Duration) -> io::Result<Self> {
        Self::with_bell(spin, socket::bell()?)
    }

    /// The same, woken by this bell ([`socket::bell`]).
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_bell(spin: Duration, bell: OwnedFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(RING_ENTRIES)
            .or_else(|_| IoUring::new(RING_ENTRIES))?;
        let mut reactor = Self {
            ring,
            operations: Slab::default(),
            bell,
            enters: 0,
            spin,
            expecting: Expecting::default(),
            device_operations: 0,
            device_entries: 0,
            arena: OnceCell::new(),
        };
        reactor.listen_for_bell();
        Ok(reactor)
    }

    /// Wakes itself: the next wait returns at once.
    pub fn ring(&self) {
        socket::ring(&self.bell);
    }

    /// Calls of `io_uring_enter`.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Operations that the kernel has not answered.
    pub fn in_flight(&self) -> usize {
        self.operations.len()
    }

    fn listen_for_bell(&mut self) {
        let fd = self.bell.as_raw_fd();
        self.start(Operation::Bell { buffer: Box::new([0; 8]) }, |operation| {
            let Operation::Bell { buffer } = operation else { unreachable!("just made") };
            opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), 8).build()
        });
    }

    /// Accepts one connection.
    pub fn accept(&mut self, key: u64, listener: RawFd) {
        self.start(Operation::Accept { key }, |_| {
            let null = std::ptr::null_mut();
            opcode::Accept::new(types::Fd(listener), null, std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build()
        });
    }

    /// Connects a socket.
    pub fn connect(&mut self, key: u64, fd: RawFd, address: std::net::SocketAddr) {
        let (address, bytes) = socket::raw_address(address);
        self.start(Operation::Connect { key, address: Box::new(address) }, |operation| {
            let Operation::Connect { address, .. } = operation else { unreachable!("just made") };
            opcode::Connect::new(types::Fd(fd), std::ptr::from_ref(&**address).cast(), bytes).build()
        });
    }

    /// Receives into the buffer's whole length.
    pub fn receive(&mut self, key: u64, fd: RawFd, buffer: Vec<u8>) {
        self.start(Operation::Receive { key, buffer }, |operation| {
            let Operation::Receive { buffer, .. } = operation else { unreachable!("just made") };
            opcode::Recv::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32).build()
        });
    }

    /// Sends what the outbox holds, up to the limit of one call. Nothing happens if it is empty.
    pub fn send(&mut self, key: u64, fd: RawFd, outbox: &mut Outbox) -> bool {
        let segments = outbox.take(SEND_SEGMENTS_MAX);
        if segments.is_empty() {
            return false;
        }
        let mut message = Box::new(operation::SendMessage::new(segments));
        message.link();
        self.start(Operation::Send { key, message }, |operation| {
            let Operation::Send { message, .. } = operation else { unreachable!("just made") };
            // The kernel goes on by itself after a short send.
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(types::Fd(fd), message.header()).flags(flags).build()
        });
        true
    }

    /// Expires once after a while.
    pub fn timer(&mut self, after_us: u64) {
        let time = types::Timespec::new().sec(after_us / 1_000_000).nsec((after_us % 1_000_000) as u32 * 1000);
        self.start(Operation::Timer { time: Box::new(time) }, |operation| {
            let Operation::Timer { time } = operation else { unreachable!("just made") };
            opcode::Timeout::new(std::ptr::from_ref(&**time)).build()
        });
    }

    /// Gives the kernel all that is queued. Errors here show up again on the next wait.
    fn hand_over(&mut self) {
        self.enters += 1;
        self.device_entries = 0;
        let _ = self.ring.submit();
    }

    fn start(&mut self, operation: Operation, build: impl FnOnce(&mut Operation) -> io_uring::squeue::Entry) {
        let (slot, operation) = self.operations.insert(operation);
        let entry = build(operation).user_data(slot);
        loop {
            // SAFETY: the entry points only into memory that the operation owns (boxed or heap), which stays in the
            // slab until its completion has been taken.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // A full queue.
            self.hand_over();
        }
    }

    /// True if the next message is likely to come before a thread could be put to sleep and woken. A device is slower, and
    /// a virtual one needs the processor: looking for its completion made reads at depth 1 a third slower.
    fn is_expecting(&self) -> bool {
        !self.spin.is_zero() && self.device_operations == 0 && self.expecting.is_expecting(Instant::now())
    }

    /// Submits everything and looks for completions for a while; others who want the processor get it meanwhile. True if
    /// there are some.
    fn look(&mut self) -> bool {
        let started = Instant::now();
        loop {
            self.enters += 1;
            let queued = self.ring.submission().len() as u32;
            // SAFETY: no argument is passed, and nothing is asked of the ring but to submit and to run what is due.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) };
            if !self.ring.completion().is_empty() {
                return true;
            }
            // An error shows up again on the wait that follows.
            if entered.is_err() || started.elapsed() >= self.spin {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Submits everything and waits for at least one completion; appends what has completed.
    ///
    /// # Errors
    /// The ring itself is broken.
    pub fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.device_entries = 0;
        let found = self.is_expecting() && self.look();
        self.enters += u64::from(!found);
        match if found { Ok(0) } else { self.ring.submit_and_wait(1) } {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        let (mut rung, mut received) = (false, false);
        for entry in self.ring.completion() {
            let operation = self.operations.remove(entry.user_data());
            self.device_operations -= usize::from(operation.is_on_device());
            let completion = operation.complete(entry.result());
            rung |= matches!(completion, Completion::Rung);
            received |= matches!(completion, Completion::Received { result: Ok(1..), .. });
            completions.push(completion);
        }
        if received && !self.spin.is_zero() {
            self.expecting.received(Instant::now());
        }
        if rung {
            self.listen_for_bell();
        }
        Ok(())
    }
}

impl Drop for Reactor {
    /// Waits for the kernel to let go of every buffer; what never ends by itself (accepts, receives on open sockets)
    /// is cancelled.
    fn drop(&mut self) {
        // What is only queued must reach the kernel before it can be cancelled.
        let _ = self.ring.submit();
        let cancel = types::CancelBuilder::any();
        let _ = self.ring.submitter().register_sync_cancel(None, cancel);
        for _ in 0..1000 {
            let pause = types::Timespec::new().nsec(100_000_000);
            let wait = types::SubmitArgs::new().timespec(&pause);
            if self.operations.len() == 0 || self.ring.submitter().submit_with_args(1, &wait).is_err() {
                break;
            }
            for entry in self.ring.completion() {
                drop(self.operations.remove(entry.user_data()).complete(entry.result()));
            }
        }
        // Better to leak than to free what the kernel may still write to.
        std::mem::take(&mut self.operations).leak_rest();
    }
}
