//! Damaged blocks, merged into ranges as they come.
//!
//! It must never know what damaged them.

use ashlar_model::VolumeId;
use std::collections::BTreeMap;

/// Blocks of a volume in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedRange {
    /// Volume.
    pub volume: VolumeId,
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// Numbers of each volume, as ranges that neither overlap nor touch: start and end (exclusive).
#[derive(Clone, Default, Debug)]
pub struct Ranges(BTreeMap<VolumeId, BTreeMap<u64, u64>>);

impl Ranges {
    /// Adds a block.
    pub fn insert(&mut self, volume: VolumeId, block: u64) {
        let ranges = self.0.entry(volume).or_default();
        let (mut start, mut end) = (block, block + 1);
        if let Some((before, its_end)) = ranges.range(..=block).next_back().map(|(start, end)| (*start, *end)) {
            if its_end > block {
                return;
            }
            if its_end == block {
                start = before;
            }
        }
        if let Some(its_end) = ranges.remove(&end) {
            end = its_end;
        }
        ranges.insert(start, end);
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = DamagedRange> + '_ {
        let of = |volume: VolumeId, start: u64, end: u64| DamagedRange { volume, start, blocks: end - start };
        self.0.iter().flat_map(move |(volume, ranges)| ranges.iter().map(move |(start, end)| of(*volume, *start, *end)))
    }

    /// Blocks in all.
    pub fn blocks(&self) -> u64 {
        self.iter().map(|range| range.blocks).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_any_order_become_the_fewest_ranges() {
        let (one, other) = (VolumeId::from_u128(1), VolumeId::from_u128(2));
        let mut ranges = Ranges::default();
        for block in [7, 3, 5, 4, 4, 6, 9, 0] {
            ranges.insert(one, block);
        }
        ranges.insert(other, 1);
        let found: Vec<_> = ranges.iter().map(|range| (range.volume, range.start, range.blocks)).collect();
        assert_eq!(found, [(one, 0, 1), (one, 3, 5), (one, 9, 1), (other, 1, 1)]);
        assert_eq!(ranges.blocks(), 8);
    }
}
