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

/// Memory of whole blocks. Who may write it is up to those who hold it.
struct Memory {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns what it points to, which any thread may use and free.
unsafe impl Send for Memory {}
// SAFETY: by itself it gives no access; an `AlignedBuffer` is its only holder, and a `Payload` only reads.
unsafe impl Sync for Memory {}

impl Memory {
    fn allocated(bytes: usize) -> Arc<Self> {
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a non-zero size.
        let pointer = unsafe { alloc_zeroed(layout) };
        match NonNull::new(pointer) {
            Some(pointer) => Arc::new(Self { pointer, bytes }),
            None => handle_alloc_error(layout),
        }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, BLOCK_BYTES).expect("buffer sizes are far below isize::MAX")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocated` with the same layout, and the last holder is gone.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// A holder of memory, which goes back to the thread's pool with the last one, count and all.
struct Held(Option<Arc<Memory>>);

impl Held {
    /// Memory of `bytes`, whole blocks, that nobody else holds; true if it was used before.
    fn new(bytes: usize) -> (Self, bool) {
        let kept = pool::take(bytes);
        let used = kept.is_some();
        (Self(Some(kept.unwrap_or_else(|| Memory::allocated(bytes)))), used)
    }

    fn memory(&self) -> &Memory {
        self.0.as_ref().expect("there until it is dropped")
    }

    fn share(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut memory) = self.0.take() else { return };
        // The count alone says no when there are others, and costs least.
        if Arc::strong_count(&memory) == 1 && Arc::get_mut(&mut memory).is_some() {
            pool::keep(memory);
        }
    }
}

/// Zeroed memory, aligned to [`BLOCK_BYTES`] as direct I/O wants it. Its length is a multiple of [`BLOCK_BYTES`].
pub struct AlignedBuffer(Held);

impl AlignedBuffer {
    /// A zeroed buffer of `bytes`, rounded up to whole blocks, at least one.
    pub fn zeroed(bytes: usize) -> Self {
        let (held, used) = Held::new(bytes.max(1).next_multiple_of(BLOCK_BYTES));
        let mut buffer = Self(held);
        if used {
            buffer.fill(0);
        }
        buffer
    }

    /// A buffer of `bytes`, rounded up to whole blocks, at least one, with bytes of earlier use in it: for those who write
    /// all of it before anybody else sees it.
    pub fn recycled(bytes: usize) -> Self {
        let (held, used) = Held::new(bytes.max(1).next_multiple_of(BLOCK_BYTES));
        let mut buffer = Self(held);
        if used && cfg!(debug_assertions) {
            buffer.fill(0xa5); // so that tests see who does not
        }
        buffer
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
        let bytes = self.len();
        Payload { held: self.0, offset: 0, bytes }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let memory = self.0.memory();
        // SAFETY: the memory is initialised (zeroed when it was allocated), held, and `bytes` long.
        unsafe { std::slice::from_raw_parts(memory.pointer.as_ptr(), memory.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.0.memory();
        // SAFETY: as in `deref`; a buffer is the only holder of its memory, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.pointer.as_ptr(), memory.bytes) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len())
    }
}

/// Payloads that are written one after the other; one needs no list of its own.
pub type Pieces = SmallVec<[Payload; 1]>;

/// A shared, immutable part of an [`AlignedBuffer`]. Cloning shares the memory. Offset and length are whole blocks.
pub struct Payload {
    held: Held,
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
        Self { held: self.held.share(), offset: self.offset + offset, bytes }
    }

    /// Number of whole blocks.
    pub fn block_count(&self) -> u32 {
        (self.bytes / BLOCK_BYTES) as u32
    }

    /// The bytes of block `i` of this payload.
    pub fn block(&self, i: usize) -> &[u8] {
        &self[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES]
    }
}

impl Clone for Payload {
    fn clone(&self) -> Self {
        Self { held: self.held.share(), ..*self }
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let memory = self.held.memory();
        debug_assert!(self.offset + self.bytes <= memory.bytes, "a payload lies in its memory");
        // SAFETY: offset and length were checked against the memory when the payload was made; it is initialised, and nobody
        // writes it while a payload holds it.
        unsafe { std::slice::from_raw_parts(memory.pointer.as_ptr().add(self.offset), self.bytes) }
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
    fn slices_share_memory_and_the_last_one_gives_it_back() {
        let mut buffer = AlignedBuffer::zeroed(4 * BLOCK_BYTES);
        buffer[BLOCK_BYTES] = 9;
        let place = buffer.as_ptr();
        let payload = buffer.freeze();
        let slice = payload.slice(BLOCK_BYTES, 2 * BLOCK_BYTES);
        assert_eq!(slice[0], 9);
        assert_eq!(slice.block(0).as_ptr(), payload.block(1).as_ptr());
        drop(payload);
        let other = AlignedBuffer::zeroed(4 * BLOCK_BYTES);
        assert_ne!(other.as_ptr(), place, "a slice has it");
        drop(slice);
        assert_eq!(AlignedBuffer::zeroed(4 * BLOCK_BYTES).as_ptr(), place);
    }
}
