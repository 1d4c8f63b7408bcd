//! Operations on devices. Buffers of one block lie in memory that the ring knows, so that the kernel pins no pages for them.

use super::Reactor;
use super::operation::{self, Operation};
use ashlar_model::{AlignedBuffer, Arena, Pieces, buffer};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use std::os::fd::RawFd;
use std::sync::Arc;

/// Device operations that are handed over before the round ends, while the device has little to do: idle while a round
/// goes on it costs more than the calls (reads at depth 32: 0.70 of what the device can, against 0.95). Three at least: the
/// kernel gathers block requests of a call with more than two entries (io_uring's `IO_PLUG_THRESHOLD`), and rings the
/// device once for all of them.
const DEVICE_ENTRIES: usize = 3;
/// The same while it has enough: fewer calls, and each rings the device once.
const DEVICE_ENTRIES_BUSY: usize = 16;
/// Device operations in flight that are enough.
const DEVICE_BUSY: usize = 3;

/// Discard by io_uring (linux/blkdev.h: `_IO(0x12, 0)`), since Linux 6.12.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// The number of the arena among the ring's buffers.
const ARENA: u16 = 0;
/// The memory of the thread's buffers of one block, made known to the ring; none if the kernel refuses (old, or the process
/// may lock no memory). It is held as long as the ring, which knows it by its addresses.
fn known_memory(ring: &IoUring) -> Option<Arc<Arena>> {
    let arena = buffer::arena()?;
    let vector = libc::iovec { iov_base: arena.start().cast(), iov_len: arena.bytes() };
    // SAFETY: the memory is allocated, and the caller keeps the arena until the ring is gone.
    unsafe { ring.submitter().register_buffers(&[vector]) }.ok()?;
    Some(arena)
}

impl Reactor {
    /// Reads a device.
    pub fn read(&mut self, key: u64, fd: RawFd, offset: u64, buffer: AlignedBuffer) {
        let known = self.knows(&buffer);
        self.start_on_device(Operation::Read { key, buffer }, |operation| {
            let Operation::Read { buffer, .. } = operation else { unreachable!("just made") };
            if known {
                let read = opcode::ReadFixed::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32, ARENA);
                return read.offset(offset).build();
            }
            opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32).offset(offset).build()
        });
    }

    /// Writes a device: the parts one after the other; `durable`: completes when they are durable.
    pub fn write(&mut self, key: u64, fd: RawFd, offset: u64, parts: Pieces, durable: bool) {
        let known = matches!(&parts[..], [part] if self.knows(part));
        let mut write = operation::VectoredWrite::new(parts);
        write.link();
        self.start_on_device(Operation::Write { key, write }, |operation| {
            let Operation::Write { write, .. } = operation else { unreachable!("just made") };
            let (fd, flags) = (types::Fd(fd), if durable { libc::RWF_DSYNC } else { 0 });
            if let Some((bytes, count)) = write.whole() {
                if known {
                    return opcode::WriteFixed::new(fd, bytes, count, ARENA).offset(offset).rw_flags(flags).build();
                }
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

    /// True if the ring knows the memory of these bytes; it gets to know it when it is asked first.
    pub(super) fn knows(&self, bytes: &[u8]) -> bool {
        self.arena.get_or_init(|| known_memory(&self.ring)).as_ref().is_some_and(|arena| arena.contains(bytes))
    }

    /// Starts a device operation, and hands over what has gathered of them: the device works while the round goes on.
    fn start_on_device(&mut self, operation: Operation, build: impl FnOnce(&mut Operation) -> Entry) {
        self.start(operation, build);
        self.device_operations += 1;
        self.device_entries += 1;
        let busy = self.device_operations - self.device_entries >= DEVICE_BUSY;
        if self.device_entries >= if busy { DEVICE_ENTRIES_BUSY } else { DEVICE_ENTRIES } {
            self.hand_over();
        }
    }
}
