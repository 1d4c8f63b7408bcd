//! Devices as the store's drivers see them: what a device promises, the operations on it, and one small trait.
//!
//! Implemented by a blocking file or block device ([`BlockingQueue`]), by the simulated device of `testing`, and by
//! io_uring in the daemon; `testing::contract` checks them all alike. It must never know what the bytes mean.

mod blocking;
mod sysfs;
#[cfg(test)]
mod tests;

pub use blocking::{BlockingDevice, BlockingDriver, BlockingQueue};
pub use sysfs::{BlockPromises, block_promises};

use crate::engine::{Effect, IoError, IoId};
use crate::layout::PAGE_BYTES;
use ashlar_model::{AlignedBuffer, Pieces};
use std::ops::Range;

/// Bytes that every device keeps together in a power cut: the sector of the oldest of them.
pub const SECTOR_BYTES: u32 = 512;
/// Largest [`DeviceProperties::atomic_write_bytes`]: more is of no use here.
pub const ATOMIC_WRITE_BYTES_MAX: u32 = 64 << 10;
/// Parts of one write: what `writev` takes (`IOV_MAX`).
pub const WRITE_PARTS_MAX: usize = 1024;

/// What a device is and promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceProperties {
    /// Bytes that can be used, whole pages. An operation beyond them fails.
    pub size_bytes: u64,
    /// A completed write may be lost in a power cut until a flush has completed that was issued after it.
    pub volatile_cache: bool,
    /// Bytes that a power cut does not tear: a write that lies inside one aligned unit of this length is there as a
    /// whole or not at all. A power of two from [`SECTOR_BYTES`] (no promise) to [`ATOMIC_WRITE_BYTES_MAX`]. Above
    /// 4096 it holds only for writes that reach the device as one command (`RWF_ATOMIC`).
    pub atomic_write_bytes: u32,
    /// A block device; otherwise a file, which has a file system's cache and journal below it.
    pub block_device: bool,
}

/// One operation on a device. Offsets and lengths are whole pages ([`PAGE_BYTES`]), and lengths are not zero.
///
/// Operations in flight together may be carried out in any order; what overlaps must be issued one after the other's
/// completion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceOp {
    /// Read into a new buffer.
    Read {
        /// Name.
        io: IoId,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: usize,
    },
    /// Write the parts one after the other.
    Write {
        /// Name.
        io: IoId,
        /// First byte.
        offset: u64,
        /// Bytes, at most [`WRITE_PARTS_MAX`] pieces.
        parts: Pieces,
        /// Completes only when it is durable, it alone: nothing is said of writes before it.
        durable: bool,
    },
    /// Make every write that completed before this was issued durable.
    Flush {
        /// Name.
        io: IoId,
    },
    /// The bytes are of no use any more. Until they are written again they read as anything: what was there, zeroes,
    /// or neither, and not the same after a restart. A device that cannot discard does nothing and calls it success.
    Discard {
        /// Name.
        io: IoId,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
    },
}

/// What an operation came to: a read's buffer, of exactly the length asked for, or `None`.
pub type IoResult = Result<Option<AlignedBuffer>, IoError>;

impl DeviceOp {
    /// The device's part of what an engine wants; the rest is for the engine's caller.
    ///
    /// # Errors
    /// The effect, if it is not for the device.
    pub fn from_effect(effect: Effect) -> Result<Self, Effect> {
        match effect {
            Effect::Read { io, offset, bytes } => Ok(Self::Read { io, offset, bytes }),
            Effect::Write { io, offset, parts, durable } => Ok(Self::Write { io, offset, parts, durable }),
            Effect::Flush { io } => Ok(Self::Flush { io }),
            other => Err(other),
        }
    }

    /// Its name.
    pub fn io(&self) -> IoId {
        match self {
            Self::Read { io, .. } | Self::Write { io, .. } | Self::Flush { io } | Self::Discard { io, .. } => *io,
        }
    }

    /// The bytes of the device that it touches; none for a flush.
    pub fn range(&self) -> Option<Range<u64>> {
        let (offset, bytes) = match self {
            Self::Read { offset, bytes, .. } => (*offset, *bytes as u64),
            Self::Write { offset, parts, .. } => (*offset, parts.iter().map(|part| part.len() as u64).sum()),
            Self::Discard { offset, bytes, .. } => (*offset, *bytes),
            Self::Flush { .. } => return None,
        };
        // A sum that overflows is beyond the end of every device, as `u64::MAX` is.
        Some(offset..offset.saturating_add(bytes))
    }

    /// Whether a device of `size_bytes` can carry it out. Kernels differ here: a write beyond the end of a file makes
    /// it longer, a discard there takes space. So every implementation asks this first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, size_bytes: u64) -> Result<(), IoError> {
        let Some(range) = self.range() else { return Ok(()) };
        let (what, parts) = match self {
            Self::Write { parts, .. } => ("write", parts.len()),
            Self::Read { .. } => ("read", 1),
            _ => ("discard", 1),
        };
        let fault = if range.end > size_bytes {
            format!("is beyond the end of the device ({size_bytes} bytes)")
        } else if range.is_empty() {
            "is empty".to_owned()
        } else if !range.start.is_multiple_of(PAGE_BYTES) || !range.end.is_multiple_of(PAGE_BYTES) {
            format!("is not whole pages of {PAGE_BYTES} bytes")
        } else if parts > WRITE_PARTS_MAX {
            format!("has {parts} parts, {WRITE_PARTS_MAX} are the limit")
        } else {
            return Ok(());
        };
        Err(IoError(format!("{what} of bytes {}..{} {fault}", range.start, range.end)))
    }
}

/// A device. Each operation that is submitted completes once, in any order, with its own name.
pub trait Device {
    /// What it is and promises. Does not change while it is open.
    fn properties(&self) -> DeviceProperties;

    /// Takes an operation. An operation that [`DeviceOp::check`] refuses completes with that error and does nothing.
    fn submit(&mut self, op: DeviceOp);

    /// Operations that have been submitted and whose completion has not been given out.
    fn in_flight(&self) -> usize;

    /// Appends what has completed; waits for at least one completion if anything is in flight. Only a simulated device
    /// comes back with none then: when everything in flight is stuck.
    fn complete(&mut self, out: &mut Vec<(IoId, IoResult)>);
}
