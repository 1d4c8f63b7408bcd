//! Which blocks have a write that is not acknowledged. Overlapping writes wait their turn, first come first served.

use ashlar_model::BlockRange;
use std::collections::{BTreeMap, VecDeque};

/// Locks by range; the owner is a number that the caller chooses.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    /// Start block to (range, owner); ranges do not overlap.
    active: BTreeMap<u64, (BlockRange, u64)>,
    waiting: VecDeque<(BlockRange, u64)>,
}

impl RangeLock {
    /// Takes the range, or queues for it. True if taken.
    pub fn acquire(&mut self, range: BlockRange, owner: u64) -> bool {
        let free = !self.is_locked(range, None) && !self.waiting.iter().any(|(waiting, _)| waiting.overlaps(range));
        if free {
            self.active.insert(range.start, (range, owner));
        } else {
            self.waiting.push_back((range, owner));
        }
        free
    }

    /// Gives the range back; returns the owners that now have theirs.
    pub fn release(&mut self, range: BlockRange, owner: u64) -> Vec<u64> {
        let removed = self.active.remove(&range.start);
        assert_eq!(removed, Some((range, owner)), "a range is released by the one that holds it");
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut granted = Vec::new();
        let mut still: VecDeque<(BlockRange, u64)> = VecDeque::new();
        for (range, owner) in std::mem::take(&mut self.waiting) {
            if self.is_locked(range, None) || still.iter().any(|(earlier, _)| earlier.overlaps(range)) {
                still.push_back((range, owner));
            } else {
                self.active.insert(range.start, (range, owner));
                granted.push(owner);
            }
        }
        self.waiting = still;
        granted
    }

    /// True if any of these blocks is locked by somebody else than `except`.
    pub fn is_locked(&self, range: BlockRange, except: Option<u64>) -> bool {
        // Ranges do not overlap, so besides those that start inside only the last one before can reach in.
        self.active.range(..range.end()).next_back().is_some_and(|(_, (last, _))| last.overlaps(range))
            && self
                .active
                .range(..range.end())
                .rev()
                .take_while(|(_, (active, _))| active.overlaps(range))
                .any(|(_, (_, owner))| Some(*owner) != except)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(start: u64, count: u32) -> BlockRange {
        BlockRange::new(start, count)
    }

    #[test]
    fn overlapping_writes_go_in_order_of_arrival() {
        let mut lock = RangeLock::default();
        assert!(lock.acquire(run(0, 4), 1));
        assert!(!lock.acquire(run(3, 4), 2));
        // Behind 2, although the range itself is free: else 2 could starve.
        assert!(!lock.acquire(run(5, 4), 3));
        assert!(lock.acquire(run(100, 1), 4));
        assert_eq!(lock.release(run(0, 4), 1), vec![2]);
        assert_eq!(lock.release(run(3, 4), 2), vec![3]);
        assert!(lock.is_locked(run(8, 1), None));
        assert!(!lock.is_locked(run(8, 1), Some(3)));
        assert!(!lock.is_locked(run(4, 1), None));
    }

    proptest! {
        /// Against a naive list of held ranges.
        #[test]
        fn agrees_with_a_naive_list(ops in prop::collection::vec((0u64..40, 1u32..8, any::<bool>()), 1..200)) {
            let mut lock = RangeLock::default();
            let mut held: Vec<(BlockRange, u64)> = Vec::new();
            let mut queued: Vec<(BlockRange, u64)> = Vec::new();
            for (owner, (start, count, release)) in ops.into_iter().enumerate() {
                let range = run(start, count);
                if release && !held.is_empty() {
                    let (range, owner) = held.remove(start as usize % held.len());
                    let granted = lock.release(range, owner);
                    let (now, later): (Vec<_>, Vec<_>) = queued.into_iter().partition(|(_, o)| granted.contains(o));
                    held.extend(now);
                    queued = later;
                } else if lock.acquire(range, owner as u64) {
                    held.push((range, owner as u64));
                } else {
                    queued.push((range, owner as u64));
                }
                for (i, (a, _)) in held.iter().enumerate() {
                    prop_assert!(held[i + 1..].iter().all(|(b, _)| !a.overlaps(*b)));
                }
                prop_assert_eq!(lock.is_locked(range, None), held.iter().any(|(a, _)| a.overlaps(range)));
            }
        }
    }
}
