//! The shard's event loop: one io_uring for sockets and devices, buffers owned by the operation that uses them.
//!
//! It knows no protocol: it moves bytes and says what happened. An operation owns its memory until the kernel has
//! answered, so nothing that the kernel may still touch is ever freed.

#[cfg(test)]
mod device_tests;
mod expecting;
#[cfg(test)]
mod handover_tests;
mod operation;
mod outbox;
pub mod socket;

pub use outbox::{Outbox, Segment};

use ashlar_model::{AlignedBuffer, Pieces};
use expecting::Expecting;
use io_uring::{IoUring, opcode, types};
use operation::{Operation, Slab};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Entries of the submission queue; a full queue is submitted and goes on.
const RING_ENTRIES: u32 = 1024;
/// Device operations that are handed over before the round ends, while the device has little to do: idle while a round
/// goes on it costs more than the calls (reads at depth 32: 0.70 of what the device can, against 0.95). Three at least: the
/// kernel gathers block requests of a call with more than two entries (io_uring's `IO_PLUG_THRESHOLD`), and rings the
/// device once for all of them.
const DEVICE_ENTRIES: usize = 3;
/// The same while it has enough: fewer calls, and each rings the device once.
const DEVICE_ENTRIES_BUSY: usize = 16;
/// Device operations in flight that are enough.
const DEVICE_BUSY: usize = 3;

/// Segments of one send.
const SEND_SEGMENTS_MAX: usize = 512;

/// Run what is due, and post completions (linux/io_uring.h: `IORING_ENTER_GETEVENTS`).
const ENTER_GETEVENTS: u32 = 1;
/// Discard by io_uring (linux/blkdev.h: `_IO(0x12, 0)`), since Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

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
        let operations = Slab::default();
        let mut reactor = Self {
            ring,
            operations,
            bell,
            enters: 0,
            spin,
            expecting: Expecting::default(),
            device_operations: 0,
            device_entries: 0,
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

    /// Reads a device.
    pub fn read(&mut self, key: u64, fd: RawFd, offset: u64, buffer: AlignedBuffer) {
        self.start_on_device(Operation::Read { key, buffer }, |operation| {
            let Operation::Read { buffer, .. } = operation else { unreachable!("just made") };
            opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32).offset(offset).build()
        });
    }

    /// Writes a device: the parts one after the other; `durable`: completes when they are durable.
    pub fn write(&mut self, key: u64, fd: RawFd, offset: u64, parts: Pieces, durable: bool) {
        let mut write = operation::VectoredWrite::new(parts);
        write.link();
        self.start_on_device(Operation::Write { key, write }, |operation| {
            let Operation::Write { write, .. } = operation else { unreachable!("just made") };
            let (fd, flags) = (types::Fd(fd), if durable { libc::RWF_DSYNC } else { 0 });
            if let Some((bytes, count)) = write.whole() {
                return opcode::Write::new(fd, bytes, count).offset(offset).rw_flags(flags).build();
            }
            let (vectors, count) = write.vectors();
            opcode::Writev::new(fd, vectors, count).offset(offset).rw_flags(flags).build()
        });
    }

    /// Flushes a device's cache.
    pub fn flush(&mut self, key: u64, fd: RawFd) {
        self.start_on_device(Operation::Flush { key }, |_| {
            opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build()
        });
    }

    /// Tells a device that the bytes are of no use any more; until they are written again they read as anything.
    ///
    /// In a file the bytes become zeroes and their space stays the file's, as in `BlockingDevice::discard`. The file
    /// must be as long as that: the kernel would allocate space behind its end. A block device needs Linux 6.12.
    pub fn discard(&mut self, key: u64, fd: RawFd, offset: u64, bytes: u64, block_device: bool) {
        self.start(Operation::Discard { key }, |_| {
            if block_device {
                // The kernel reads the offset from `addr` and the length from `addr3`, where the command's bytes begin.
                let mut command = [0; 16];
                command[..8].copy_from_slice(&bytes.to_ne_bytes());
                let entry = opcode::UringCmd16::new(types::Fd(fd), BLOCK_URING_CMD_DISCARD);
                entry.addr(Some(offset)).cmd(command).build()
            } else {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(types::Fd(fd), bytes).offset(offset).mode(mode).build()
            }
        });
    }

    /// Expires once after a while.
    pub fn timer(&mut self, after_us: u64) {
        let time = types::Timespec::new().sec(after_us / 1_000_000).nsec((after_us % 1_000_000) as u32 * 1000);
        self.start(Operation::Timer { time: Box::new(time) }, |operation| {
            let Operation::Timer { time } = operation else { unreachable!("just made") };
            opcode::Timeout::new(std::ptr::from_ref(&**time)).build()
        });
    }

    /// Starts a device operation, and hands over what has gathered of them: the device works while the round goes on.
    fn start_on_device(&mut self, operation: Operation, build: impl FnOnce(&mut Operation) -> io_uring::squeue::Entry) {
        self.start(operation, build);
        self.device_operations += 1;
        self.device_entries += 1;
        let busy = self.device_operations - self.device_entries >= DEVICE_BUSY;
        if self.device_entries >= if busy { DEVICE_ENTRIES_BUSY } else { DEVICE_ENTRIES } {
            self.hand_over();
        }
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
