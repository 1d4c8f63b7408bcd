//! Versions of recent writes: those that a lane's list names, per chunk.
//!
//! It must never know what the writes wrote.

use super::block_of_chunk;
use ashlar_model::lane::ListEntry;
use ashlar_model::{BlockRange, Stamp, VolumeId};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

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
pub struct Versions(FxHashMap<(VolumeId, u64), Vec<Generation>>);

/// What one generation wrote of a chunk.
#[derive(Debug)]
struct Generation {
    generation: u32,
    /// Runs of blocks with one version each, none empty, none overlapping: first block of the chunk, one past the last, and
    /// version.
    segments: BTreeMap<u16, (u16, Stamp)>,
}

impl Versions {
    /// Remembers a listed version.
    pub fn add(&mut self, volume: VolumeId, stamp: Stamp, range: BlockRange, generation: u32) {
        let chunk = self.0.entry((volume, range.chunk())).or_default();
        let at = chunk.iter().position(|one| one.generation == generation).unwrap_or_else(|| {
            chunk.push(Generation { generation, segments: BTreeMap::new() });
            chunk.len() - 1
        });
        chunk[at].add(stamp, blocks(range));
    }

    /// An entry left its list.
    pub fn remove(&mut self, volume: VolumeId, entry: &ListEntry) {
        let place = (volume, entry.range.chunk());
        let Some(chunk) = self.0.get_mut(&place) else { return };
        let Some(at) = chunk.iter().position(|one| one.generation == entry.generation) else { return };
        chunk[at].remove(entry.stamp, blocks(entry.range));
        if chunk[at].segments.is_empty() {
            chunk.swap_remove(at);
        }
        if chunk.is_empty() {
            self.0.remove(&place);
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
        let chunk = self.0.get(&(volume, range.chunk())).into_iter().flatten();
        for one in chunk.filter(|one| one.generation <= generation) {
            for (start, end, newest) in one.overlapping(from, to) {
                let common = start.max(from) - from..end.min(to) - from;
                for stamp in &mut stamps[usize::from(common.start)..usize::from(common.end)] {
                    *stamp = (*stamp).max(newest);
                }
            }
        }
        stamps
    }
}

impl Generation {
    /// Segments that share a block with `from..to`, last first.
    fn overlapping(&self, from: u16, to: u16) -> impl Iterator<Item = (u16, u16, Stamp)> + '_ {
        let before = self.segments.range(..to).rev();
        before.map(|(start, (end, stamp))| (*start, *end, *stamp)).take_while(move |(_, end, _)| *end > from)
    }

    /// A version of `from..to`: shows wherever nothing as new is.
    fn add(&mut self, stamp: Stamp, (from, to): (u16, u16)) {
        // From the last block to the first: what begins at `left_to` is settled.
        let mut left_to = to;
        while from < left_to {
            let last = self.overlapping(from, left_to).next();
            let Some((start, end, other)) = last else { break };
            if other >= stamp {
                self.insert(end, left_to, stamp);
                left_to = start.max(from);
            } else {
                self.segments.remove(&start);
                self.insert(start, from, other);
                self.insert(left_to, end, other);
            }
        }
        self.insert(from, left_to, stamp);
    }

    /// The version is gone from `from..to`.
    fn remove(&mut self, stamp: Stamp, (from, to): (u16, u16)) {
        let gone: Vec<(u16, u16, Stamp)> = self.overlapping(from, to).filter(|(_, _, other)| *other == stamp).collect();
        for (start, end, stamp) in gone {
            self.segments.remove(&start);
            self.insert(start, from, stamp);
            self.insert(to, end, stamp);
        }
    }

    fn insert(&mut self, start: u16, end: u16, stamp: Stamp) {
        if start < end {
            self.segments.insert(start, (end, stamp));
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
            let all = self.0.values().flatten();
            all.map(|one| {
                let ends = one.segments.iter().map(|(start, (end, _))| (*start, *end));
                assert!(!one.segments.is_empty() && ends.clone().all(|(start, end)| start < end));
                assert!(ends.clone().zip(ends.skip(1)).all(|((_, end), (start, _))| end <= start), "no overlap");
                one.segments.len()
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
