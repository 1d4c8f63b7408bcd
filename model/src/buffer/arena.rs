//! Memory for a thread's buffers of one block that lies in one piece, so that it can be made known to the kernel once.
//!
//! It must outlive each of its blocks, whichever thread drops them.

use super::Memory;
use crate::units::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Blocks of an arena: what a busy shard has in flight. 2 MiB, and aligned to that: one huge page, if there are some.
const ARENA_BLOCKS: usize = 512;
/// Bytes of an arena.
const ARENA_BYTES: usize = ARENA_BLOCKS * BLOCK_BYTES;

/// The memory of a thread's buffers of one block, as long as there are some free in it.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
}

// SAFETY: it owns what it points to, which any thread may free.
unsafe impl Send for Arena {}
// SAFETY: by itself it gives no access to the memory, and who may use a block is up to its one holder.
unsafe impl Sync for Arena {}

impl Arena {
    const LAYOUT: Layout = match Layout::from_size_align(ARENA_BYTES, ARENA_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two far below isize::MAX"),
    };

    /// An arena, and its blocks; none if there is no memory for it.
    pub(super) fn new() -> Option<(Arc<Self>, Vec<Arc<Memory>>)> {
        // SAFETY: the layout has a non-zero size.
        let start = NonNull::new(unsafe { alloc_zeroed(Self::LAYOUT) })?;
        let arena = Arc::new(Self { start });
        let block = |i: usize| {
            // SAFETY: the block lies inside the allocation.
            let pointer = unsafe { start.add(i * BLOCK_BYTES) };
            Arc::new(Memory { pointer, bytes: BLOCK_BYTES, arena: Some(arena.clone()) })
        };
        // Those in front are used first.
        let blocks = (0..ARENA_BLOCKS).rev().map(block).collect();
        Some((arena, blocks))
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        ARENA_BYTES
    }

    /// True if these bytes lie in it.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let (start, from) = (self.start.as_ptr() as usize, bytes.as_ptr() as usize);
        from >= start && from + bytes.len() <= start + ARENA_BYTES
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; each block holds the arena, so none is left.
        unsafe { dealloc(self.start.as_ptr(), Self::LAYOUT) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AlignedBuffer, FOR_READS, arena};
    use super::*;

    fn reads(count: usize) -> Vec<AlignedBuffer> {
        (0..count).map(|_| AlignedBuffer::for_read(BLOCK_BYTES)).collect()
    }

    #[test]
    fn blocks_come_from_the_arena_while_there_are_some_and_are_all_different() {
        drop(AlignedBuffer::zeroed(BLOCK_BYTES));
        let arena = arena().expect("memory");
        assert_eq!(arena.start(), super::super::arena().expect("the same").start());
        let mut buffers: Vec<_> = (0..ARENA_BLOCKS).map(|_| AlignedBuffer::zeroed(BLOCK_BYTES)).collect();
        buffers.append(&mut reads(FOR_READS + 2));
        let inside: Vec<_> = buffers.iter().map(|buffer| arena.contains(buffer)).collect();
        let last = ARENA_BLOCKS - FOR_READS;
        assert!(inside[..last].iter().all(|inside| *inside) && !inside[last], "some are left for reads");
        assert_eq!(inside.iter().filter(|inside| **inside).count(), ARENA_BLOCKS, "{inside:?}");
        assert!(!arena.contains(&AlignedBuffer::zeroed(2 * BLOCK_BYTES)));
        for (i, buffer) in buffers.iter_mut().enumerate() {
            buffer.fill(i as u8);
        }
        assert!(buffers.iter().enumerate().all(|(i, buffer)| buffer.iter().all(|byte| *byte == i as u8)));
        drop(buffers);
        assert!(reads(ARENA_BLOCKS).iter().all(|buffer| arena.contains(buffer)), "what was freed comes first");
        let again: Vec<_> = (0..9).map(|_| AlignedBuffer::zeroed(BLOCK_BYTES)).collect();
        assert!(again.iter().all(|buffer| arena.contains(buffer) && buffer.iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn what_is_settled_is_the_same_and_holds_no_block() {
        let elsewhere = AlignedBuffer::copied_from(&[5; BLOCK_BYTES]).freeze();
        assert_eq!(elsewhere.settled().as_ptr(), elsewhere.as_ptr(), "nothing is to be copied");
        let arena = arena().expect("memory");
        let payload = AlignedBuffer::copied_from(&[6; BLOCK_BYTES]).freeze();
        let settled = payload.settled();
        assert!(arena.contains(&payload) && !arena.contains(&settled) && payload == settled);
    }

    #[test]
    fn a_block_may_outlive_its_thread_and_be_dropped_on_another() {
        let (buffer, weak) = std::thread::spawn(|| {
            let arena = arena().expect("memory");
            let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
            assert!(arena.contains(&buffer));
            buffer.fill(7);
            (buffer.freeze(), Arc::downgrade(&arena))
        })
        .join()
        .expect("no panic");
        assert!(weak.upgrade().is_some_and(|arena| arena.contains(&buffer)), "the block holds it");
        assert!(buffer.iter().all(|byte| *byte == 7));
        std::thread::spawn(move || drop(buffer)).join().expect("no panic");
        assert!(weak.upgrade().is_none(), "the last block's thread has ended");
    }
}
