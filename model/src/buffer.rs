//! Block-aligned memory that one owner fills and many may then read: from the socket to the device without a copy.
//!
//! Each thread keeps what it has freed of the usual sizes, up to a limit, for its next buffers: the data plane then asks
//! the system for none in steady state, and touches no page for the first time.

mod pool;

use crate::units::BLOCK_BYTES;
use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Zeroed memory, aligned to [`BLOCK_BYTES`] as direct I/O wants it. Its length is a multiple of [`BLOCK_BYTES`].
pub struct AlignedBuffer {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its memory exclusively; sharing follows the usual rules of `&` and `&mut`.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// A zeroed buffer of `bytes`, rounded up to whole blocks, at least one.
    pub fn zeroed(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        match pool::take(bytes) {
            Some(pointer) => {
                let mut buffer = Self { pointer, bytes };
                buffer.fill(0);
                buffer
            }
            None => Self::allocated(bytes),
        }
    }

    /// A buffer of `bytes`, rounded up to whole blocks, at least one, with bytes of earlier use in it: for those who write
    /// all of it before anybody else sees it.
    pub fn recycled(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        match pool::take(bytes) {
            Some(pointer) => {
                let mut buffer = Self { pointer, bytes };
                if cfg!(debug_assertions) {
                    buffer.fill(0xa5); // so that tests see who does not
                }
                buffer
            }
            None => Self::allocated(bytes),
        }
    }

    fn allocated(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a non-zero size.
        let pointer = unsafe { alloc_zeroed(layout) };
        match NonNull::new(pointer) {
            Some(pointer) => Self { pointer, bytes },
            None => handle_alloc_error(layout),
        }
    }

    /// A buffer with these bytes, padded with zeroes to whole blocks.
    pub fn copied_from(data: &[u8]) -> Self {
        let mut buffer = Self::recycled(data.len());
        let (head, rest) = buffer.split_at_mut(data.len());
        head.copy_from_slice(data);
        rest.fill(0);
        buffer
    }

    /// Makes the buffer readable by many.
    pub fn freeze(self) -> Payload {
        let bytes = self.bytes;
        Payload { buffer: Arc::new(self), offset: 0, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, BLOCK_BYTES).expect("buffer sizes are far below isize::MAX")
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if pool::keep(self.pointer, self.bytes) {
            return;
        }
        // SAFETY: allocated in `allocated` with the same layout, and nobody else has it: the pool did not take it.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.bytes)) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is initialised (zeroed when it was allocated), owned, and `bytes` long.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.bytes)
    }
}

/// Payloads that are written one after the other; one needs no list of its own.
pub type Pieces = SmallVec<[Payload; 1]>;

/// A shared, immutable part of an [`AlignedBuffer`]. Cloning shares the memory. Offset and length are whole blocks.
#[derive(Clone)]
pub struct Payload {
    buffer: Arc<AlignedBuffer>,
    offset: usize,
    bytes: usize,
}

impl Payload {
    /// A payload with a copy of `data`, padded with zeroes to whole blocks.
    pub fn copied_from(data: &[u8]) -> Self {
        AlignedBuffer::copied_from(data).freeze()
    }

    /// The part of `bytes` from `offset`, both whole blocks, sharing the memory. Panics when out of range.
    pub fn slice(&self, offset: usize, bytes: usize) -> Self {
        assert!(offset.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES), "payloads are whole blocks");
        assert!(offset + bytes <= self.bytes, "slice {offset}+{bytes} of a payload of {}", self.bytes);
        Self { buffer: Arc::clone(&self.buffer), offset: self.offset + offset, bytes }
    }

    /// Number of whole blocks.
    pub fn block_count(&self) -> u32 {
        (self.bytes / BLOCK_BYTES) as u32
    }

    /// The bytes of block `i` of this payload.
    pub fn block(&self, i: usize) -> &[u8] {
        &self[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES]
    }

    /// Takes the buffer back if this is its only user, for reuse.
    pub fn into_buffer(self) -> Option<AlignedBuffer> {
        Arc::into_inner(self.buffer)
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.offset..self.offset + self.bytes]
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} blocks)", self.block_count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_whole_blocks() {
        let buffer = AlignedBuffer::zeroed(5000);
        assert_eq!(buffer.len(), 2 * BLOCK_BYTES);
        assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_was_used_before_is_used_again_and_zeroed_when_asked() {
        let mut buffer = AlignedBuffer::zeroed(4 * BLOCK_BYTES);
        buffer.fill(7);
        let place = buffer.as_ptr();
        drop(buffer);
        let buffer = AlignedBuffer::zeroed(4 * BLOCK_BYTES);
        assert_eq!(buffer.as_ptr(), place, "the last one freed is the next one used");
        assert!(buffer.iter().all(|byte| *byte == 0));
        drop(buffer);
        let buffer = AlignedBuffer::copied_from(&[7; 3 * BLOCK_BYTES + 1]);
        assert_eq!(buffer.as_ptr(), place);
        assert!(buffer[..3 * BLOCK_BYTES + 1].iter().all(|byte| *byte == 7));
        assert!(buffer[3 * BLOCK_BYTES + 1..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn slices_share_memory_and_the_last_user_gets_it_back() {
        let mut buffer = AlignedBuffer::zeroed(4 * BLOCK_BYTES);
        buffer[BLOCK_BYTES] = 9;
        let payload = buffer.freeze();
        let slice = payload.slice(BLOCK_BYTES, 2 * BLOCK_BYTES);
        assert_eq!(slice[0], 9);
        assert_eq!(slice.block(0).as_ptr(), payload.block(1).as_ptr());
        assert!(payload.into_buffer().is_none());
        assert!(slice.into_buffer().is_some());
    }
}
