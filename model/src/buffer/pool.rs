//! Freed buffers of a thread, by size. It must never hand out the same memory twice, nor keep more than its limit.

use super::Memory;
use crate::units::BLOCK_BYTES;
use std::cell::RefCell;
use std::sync::Arc;

/// Sizes that are kept: one block, two, four, up to 1 MiB, the largest usual request.
const CLASSES: usize = 9;
/// Bytes that a thread keeps at most: what a busy shard has in flight.
const KEPT_BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
struct Pool {
    free: [Vec<Arc<Memory>>; CLASSES],
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// The class of a size, if it is one that is kept.
fn class(bytes: usize) -> Option<usize> {
    let blocks = bytes / BLOCK_BYTES;
    let class = blocks.trailing_zeros() as usize;
    (blocks.is_power_of_two() && class < CLASSES).then_some(class)
}

/// Memory of exactly `bytes`, initialised, which the caller alone holds now.
pub(super) fn take(bytes: usize) -> Option<Arc<Memory>> {
    let class = class(bytes)?;
    POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let memory = pool.free[class].pop()?;
        pool.bytes -= bytes;
        Some(memory)
    })
    .ok()?
}

/// Keeps memory that only the caller holds, if there is room for it.
pub(super) fn keep(memory: Arc<Memory>) {
    let Some(class) = class(memory.bytes) else { return };
    // A thread that is ending has no pool any more.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.make_room(class) {
            pool.bytes += memory.bytes;
            pool.free[class].push(memory);
        }
    });
}

impl Pool {
    /// True if there is room for a buffer of the class. What is kept of the class with the most bytes gives way, unless it
    /// is this one: what the load was before must not keep out what it is now.
    fn make_room(&mut self, class: usize) -> bool {
        while self.bytes + (BLOCK_BYTES << class) > KEPT_BYTES_MAX {
            let largest = (0..CLASSES).max_by_key(|one| self.free[*one].len() << one).filter(|one| *one != class);
            let Some(memory) = largest.and_then(|one| self.free[one].pop()) else { return false };
            self.bytes -= memory.bytes;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlignedBuffer;
    use super::*;

    #[test]
    fn only_usual_sizes_are_kept_and_no_more_than_the_limit() {
        assert_eq!([1, 2, 4, 256].map(|blocks| class(blocks * BLOCK_BYTES)), [Some(0), Some(1), Some(2), Some(8)]);
        assert_eq!([3, 255, 512].map(|blocks| class(blocks * BLOCK_BYTES)), [None; 3]);
        let mib = 1 << 20;
        let count = KEPT_BYTES_MAX / mib;
        let buffers: Vec<AlignedBuffer> = (0..count + 3).map(|_| AlignedBuffer::zeroed(mib)).collect();
        drop(buffers);
        let kept = POOL.with(|pool| (pool.borrow().bytes, pool.borrow().free[8].len()));
        assert_eq!(kept, (KEPT_BYTES_MAX, count));
        let taken: Vec<_> = (0..count).map(|_| take(mib).expect("kept")).collect();
        assert!(take(mib).is_none());
        taken.into_iter().for_each(keep);
        assert_eq!(POOL.with(|pool| pool.borrow().bytes), KEPT_BYTES_MAX);
    }

    #[test]
    fn buffers_of_another_load_give_way() {
        let mib = 1 << 20;
        drop((0..KEPT_BYTES_MAX / mib).map(|_| AlignedBuffer::zeroed(mib)).collect::<Vec<_>>());
        drop((0..300).map(|_| AlignedBuffer::zeroed(BLOCK_BYTES)).collect::<Vec<_>>());
        let kept = POOL.with(|pool| [0, 8].map(|class| pool.borrow().free[class].len()));
        assert_eq!(
            kept,
            [300, KEPT_BYTES_MAX / mib - 2],
            "the first one and the 257th of them took the place of a large one"
        );
        drop((0..3).map(|_| AlignedBuffer::zeroed(mib)).collect::<Vec<_>>());
        let kept = POOL.with(|pool| pool.borrow().bytes);
        assert!(kept <= KEPT_BYTES_MAX, "{kept}");
    }
}
