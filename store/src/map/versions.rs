//! Versions of recent writes: those that a lane's list names, per chunk.
//!
//! It must never know what the writes wrote.

use super::block_of_chunk;
use ashlar_model::lane::ListEntry;
use ashlar_model::{BlockRange, Stamp, VolumeId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::hash_map::Entry;

/// Listed versions per chunk: of each block the newest one only, in each generation. However long a list is, a chunk has no
/// more segments than blocks, so neither a read nor a settle depends on the list's length.
///
/// A version that a newer one covers is forgotten, though it may stay listed after the newer one has left. This is right,
/// because an entry that leaves by a settle gives its version to its granules: the covered blocks then have a version that is
/// too new at most, and that of what they hold, where the covered one's would be too old. It does not matter whether one of
/// the two is a copy: a copy that is older than a live write on the same blocks covers nothing of it, and is covered by it. A
/// join's start lets the entries go without giving their versions to granules, but those of the whole lane at once, and all
/// entries of a chunk are of one lane: nothing that was covered is left behind. For the same reasons, entries with the same
/// index leave together, so it does not matter which of them a shared block is counted for.
#[derive(Debug, Default)]
pub struct Versions(FxHashMap<(VolumeId, u64), Listed>);

/// What is listed of one chunk. Most chunks have a write or two that are not settled: those need no memory of their own.
#[derive(Debug, Default)]
struct Listed(SmallVec<[Segment; 2]>);

/// A run of blocks with one version. Those of a chunk are in order of generation and place; none is empty, and none overlaps
/// another one of its generation.
#[derive(Clone, Copy, Debug)]
struct Segment {
    generation: u32,
    /// First block of the chunk, and one past the last.
    start: u16,
    end: u16,
    stamp: Stamp,
}

impl Versions {
    /// Remembers a listed version.
    pub fn add(&mut self, volume: VolumeId, stamp: Stamp, range: BlockRange, generation: u32) {
        let (start, end) = blocks(range);
        let listed = self.0.entry((volume, range.chunk())).or_default();
        listed.add(Segment { generation, start, end, stamp });
    }

    /// An entry left its list.
    pub fn remove(&mut self, volume: VolumeId, entry: &ListEntry) {
        let Entry::Occupied(mut listed) = self.0.entry((volume, entry.range.chunk())) else { return };
        let (start, end) = blocks(entry.range);
        listed.get_mut().remove(Segment { generation: entry.generation, start, end, stamp: entry.stamp });
        if listed.get().0.is_empty() {
            listed.remove();
        }
    }

    /// Forgets a volume.
    pub fn forget(&mut self, volume: VolumeId) {
        self.0.retain(|(owner, _), _| *owner != volume);
    }

    /// The newest version listed for each block of a range within a chunk, up to a generation; zero if there is none.
    pub fn newest(&self, volume: VolumeId, range: BlockRange, generation: u32) -> Vec<Stamp> {
        let mut stamps = vec![Stamp::default(); range.count as usize];
        let (from, to) = blocks(range);
        let listed = self.0.get(&(volume, range.chunk())).map_or(&[][..], |listed| &listed.0);
        let generations = listed.chunk_by(|one, next| one.generation == next.generation);
        for segments in generations.take_while(|segments| segments[0].generation <= generation) {
            let before = &segments[..segments.partition_point(|one| one.start < to)];
            for one in before.iter().rev().take_while(|one| one.end > from) {
                for block in one.start.max(from)..one.end.min(to) {
                    let stamp = &mut stamps[usize::from(block - from)];
                    *stamp = (*stamp).max(one.stamp);
                }
            }
        }
        stamps
    }
}

impl Listed {
    /// Where a segment of a generation that starts there is, or belongs.
    fn position(&self, generation: u32, start: u16) -> usize {
        self.0.partition_point(|one| (one.generation, one.start) < (generation, start))
    }

    /// The last segment of a generation that shares a block with `from..to`.
    fn last_overlapping(&self, generation: u32, from: u16, to: u16) -> Option<usize> {
        let at = self.position(generation, to).checked_sub(1)?;
        (self.0[at].generation == generation && self.0[at].end > from).then_some(at)
    }

    /// A version of some blocks: shows wherever nothing as new is.
    fn add(&mut self, new: Segment) {
        let Segment { generation, start: from, end: to, stamp } = new;
        // From the last block to the first: what begins at `left_to` is settled.
        let mut left_to = to;
        while from < left_to {
            let Some(at) = self.last_overlapping(generation, from, left_to) else { break };
            let other = self.0[at];
            if other.stamp >= stamp {
                self.insert(Segment { start: other.end, end: left_to, ..new });
                left_to = other.start.max(from);
            } else {
                self.0.remove(at);
                self.insert(Segment { end: from, ..other });
                self.insert(Segment { start: left_to, ..other });
            }
        }
        self.insert(Segment { end: left_to, ..new });
    }

    /// The version is gone from some blocks.
    fn remove(&mut self, gone: Segment) {
        let Segment { generation, start: from, end: to, stamp } = gone;
        let mut left_to = to;
        while from < left_to {
            let Some(at) = self.last_overlapping(generation, from, left_to) else { break };
            let other = self.0[at];
            left_to = other.start.max(from);
            if other.stamp == stamp {
                self.0.remove(at);
                self.insert(Segment { end: from, ..other });
                self.insert(Segment { start: to, ..other });
            }
        }
    }

    /// Adds a segment, unless it has no blocks.
    fn insert(&mut self, segment: Segment) {
        if segment.start < segment.end {
            let at = self.position(segment.generation, segment.start);
            self.0.insert(at, segment);
        }
    }
}

/// Blocks of the chunk: the first one, and one past the last.
fn blocks(range: BlockRange) -> (u16, u16) {
    let first = block_of_chunk(range.start) as u16;
    (first, first + range.count as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::Epoch;
    use ashlar_model::lane::EntryOrigin;
    use proptest::prelude::*;

    const BLOCKS: u32 = 64;

    /// All that is listed, one by one.
    #[derive(Default)]
    struct Naive {
        listed: Vec<ListEntry>,
        /// What has left by a settle.
        settled: Vec<ListEntry>,
    }

    fn volume() -> VolumeId {
        VolumeId::from_u128(1)
    }

    fn entry(epoch: u64, index: u64, range: BlockRange, generation: u32) -> ListEntry {
        let stamp = Stamp { epoch: Epoch(epoch), index };
        ListEntry { stamp, range, tombstone: false, origin: EntryOrigin::Live, generation }
    }

    fn newest(entries: &[ListEntry], block: u64, generation: u32) -> Stamp {
        let seen = entries.iter().filter(|one| one.generation <= generation && one.range.contains(block));
        seen.map(|one| one.stamp).max().unwrap_or_default()
    }

    impl Versions {
        fn list(&mut self, naive: &mut Naive, entry: ListEntry) {
            self.add(volume(), entry.stamp, entry.range, entry.generation);
            naive.listed.push(entry);
        }

        fn settle(&mut self, naive: &mut Naive, index: u64) {
            let gone: Vec<ListEntry> = naive.listed.extract_if(.., |one| one.stamp.index <= index).collect();
            gone.iter().for_each(|one| self.remove(volume(), one));
            naive.settled.extend(gone);
        }

        fn join(&mut self, naive: &mut Naive) {
            naive.listed.drain(..).for_each(|one| self.remove(volume(), &one));
        }

        /// The number of segments, which are as they should be.
        fn check(&self) -> usize {
            let all = self.0.values().map(|listed| &listed.0);
            all.map(|segments| {
                assert!(!segments.is_empty() && segments.iter().all(|one| one.start < one.end));
                let ordered = |one: &Segment, next: &Segment| {
                    (one.generation, one.end) <= (next.generation, next.start) || one.generation < next.generation
                };
                assert!(segments.windows(2).all(|pair| ordered(&pair[0], &pair[1])), "in order, no overlap");
                segments.len()
            })
            .sum()
        }
    }

    /// What to do, index, epoch, first block, blocks, generation.
    type Step = (u8, u64, u64, u64, u32, u32);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0u8..12, 1u64..60, 1u64..4, 0u64..u64::from(BLOCKS) - 20, 1u32..20, 0u32..3);
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        /// Newer writes have larger indices, as in a lane: the same versions as those of the whole list, always.
        #[test]
        fn the_newest_of_each_block_is_what_the_whole_list_says(steps in steps()) {
            let (mut versions, mut naive, mut top) = (Versions::default(), Naive::default(), 0);
            for (what, index, _, start, count, generation) in steps {
                match what {
                    0 => versions.join(&mut naive),
                    1 | 2 => versions.settle(&mut naive, top.max(index) - index),
                    // An older one, or another part of the same one.
                    3 | 4 if top > 0 => {
                        let range = BlockRange::new(start, count);
                        versions.list(&mut naive, entry(1, 1 + index % top, range, generation));
                    }
                    _ => {
                        top += 1;
                        versions.list(&mut naive, entry(1, top, BlockRange::new(start, count), generation));
                    }
                }
                prop_assert!(versions.check() <= naive.listed.len() * 2);
                for generation in 0..3 {
                    let found = versions.newest(volume(), BlockRange::new(0, BLOCKS), generation);
                    for (block, stamp) in found.into_iter().enumerate() {
                        prop_assert_eq!(stamp, newest(&naive.listed, block as u64, generation));
                    }
                }
            }
        }

        /// Versions in any order: another one than the list's only where that would be too old, because a newer one has
        /// left it, and the granules know that one.
        #[test]
        fn a_version_is_forgotten_only_under_a_newer_one(steps in steps()) {
            let (mut versions, mut naive) = (Versions::default(), Naive::default());
            for (what, index, epoch, start, count, generation) in steps {
                match what {
                    0 => versions.join(&mut naive),
                    1 | 2 => versions.settle(&mut naive, index),
                    _ => versions.list(&mut naive, entry(epoch, index, BlockRange::new(start, count), generation)),
                }
                versions.check();
                for generation in 0..3 {
                    let found = versions.newest(volume(), BlockRange::new(3, BLOCKS - 3), generation);
                    for (block, stamp) in (3..).zip(found) {
                        let listed = newest(&naive.listed, block, generation);
                        let settled = newest(&naive.settled, block, generation);
                        prop_assert!(stamp == listed || (stamp < listed && listed < settled), "block {}", block);
                    }
                }
            }
        }
    }

    #[test]
    fn an_overwrite_that_waits_for_its_settle_costs_nothing_more() {
        let (mut versions, block) = (Versions::default(), BlockRange::new(5, 1));
        let entries: Vec<ListEntry> = (1..=50_000).map(|index| entry(1, index, block, 0)).collect();
        for one in &entries {
            versions.add(volume(), one.stamp, one.range, one.generation);
            assert_eq!(versions.newest(volume(), block, 0), [one.stamp]);
            assert_eq!(versions.check(), 1);
        }
        for (i, one) in entries.iter().enumerate() {
            assert_eq!(versions.newest(volume(), block, 0), [entries[49_999].stamp], "after {i}");
            versions.remove(volume(), one);
        }
        assert_eq!((versions.newest(volume(), block, 0), versions.0.len()), (vec![Stamp::default()], 0));
    }
}
