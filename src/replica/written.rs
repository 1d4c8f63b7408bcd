//! Which blocks were written since a join began: a bit each, by chunk.

use ashlar_model::BlockRange;
use ashlar_model::units::CHUNK_BLOCKS;
use std::collections::BTreeMap;

const WORDS: usize = CHUNK_BLOCKS / 64;

/// A set of blocks: 128 bytes per chunk of which any block is in it.
#[derive(Clone, Debug, Default)]
pub(super) struct WrittenBlocks(BTreeMap<u64, Box<[u64; WORDS]>>);

impl WrittenBlocks {
    /// Adds every block of a range.
    pub fn insert(&mut self, range: BlockRange) {
        for block in range.blocks() {
            let (chunk, at) = place(block);
            let words = self.0.entry(chunk).or_insert_with(|| Box::new([0; WORDS]));
            words[at / 64] |= 1 << (at % 64);
        }
    }

    /// True if the block was added.
    pub fn contains(&self, block: u64) -> bool {
        let (chunk, at) = place(block);
        self.0.get(&chunk).is_some_and(|words| words[at / 64] >> (at % 64) & 1 == 1)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn place(block: u64) -> (u64, usize) {
    (block / CHUNK_BLOCKS as u64, (block % CHUNK_BLOCKS as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_exactly_what_was_added() {
        let mut written = WrittenBlocks::default();
        let ranges = [BlockRange::new(0, 1), BlockRange::new(1022, 4), BlockRange::new(5000, 64)];
        ranges.iter().for_each(|range| written.insert(*range));
        for block in 0..6000 {
            assert_eq!(written.contains(block), ranges.iter().any(|range| range.contains(block)), "{block}");
        }
        written.clear();
        assert!(!written.contains(0));
    }
}
