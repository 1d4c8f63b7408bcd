//! From byte offsets to blocks, chunks and lanes.

use crate::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use serde::{Deserialize, Serialize};

/// A non-empty run of blocks of one volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct BlockRange {
    /// First block, counted from the start of the volume.
    pub start: u64,
    /// Number of blocks, at least one.
    pub count: u32,
}

impl BlockRange {
    /// The run of `count` blocks from `start`. Panics on zero: an empty run is a bug of the caller.
    pub fn new(start: u64, count: u32) -> Self {
        assert!(count > 0, "a block range is never empty");
        Self { start, count }
    }

    /// First block after the run.
    pub fn end(self) -> u64 {
        self.start + u64::from(self.count)
    }

    /// True if the two runs share a block.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// True if `block` is in the run.
    pub fn contains(self, block: u64) -> bool {
        self.start <= block && block < self.end()
    }

    /// The shared part of two runs.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self::new(start, (end - start) as u32))
    }

    /// Bytes of the run.
    pub fn bytes(self) -> usize {
        self.count as usize * BLOCK_BYTES
    }

    /// Number of the chunk in which the run starts.
    pub fn chunk(self) -> u64 {
        self.start / CHUNK_BLOCKS as u64
    }

    /// True if the whole run lies in one chunk, as every write to a replica does.
    pub fn is_within_chunk(self) -> bool {
        self.chunk() == (self.end() - 1) / CHUNK_BLOCKS as u64
    }

    /// The block numbers of the run.
    pub fn blocks(self) -> impl Iterator<Item = u64> {
        self.start..self.end()
    }

    /// Splits at chunk borders and so that no piece has more than `piece_blocks_max` blocks.
    pub fn pieces(self, piece_blocks_max: u32) -> impl Iterator<Item = BlockRange> {
        assert!(piece_blocks_max > 0, "a piece has at least one block");
        let mut start = self.start;
        std::iter::from_fn(move || {
            if start >= self.end() {
                return None;
            }
            let chunk_end = (start / CHUNK_BLOCKS as u64 + 1) * CHUNK_BLOCKS as u64;
            let end = self.end().min(chunk_end).min(start + u64::from(piece_blocks_max));
            let piece = BlockRange::new(start, (end - start) as u32);
            start = end;
            Some(piece)
        })
    }
}

/// Size and striping of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeGeometry {
    /// Size in bytes, a multiple of [`BLOCK_BYTES`].
    pub size_bytes: u64,
    /// Number of lanes, 1 to [`crate::limits::LANES_MAX`].
    pub lane_count: u16,
}

impl VolumeGeometry {
    /// Blocks of the volume.
    pub fn block_count(self) -> u64 {
        self.size_bytes / BLOCK_BYTES as u64
    }

    /// Chunks of the volume, the last one possibly short.
    pub fn chunk_count(self) -> u64 {
        self.block_count().div_ceil(CHUNK_BLOCKS as u64)
    }

    /// The lane that a block belongs to: chunk number modulo lane count.
    pub fn lane_of_block(self, block: u64) -> u16 {
        (block / CHUNK_BLOCKS as u64 % u64::from(self.lane_count)) as u16
    }

    /// True if the run lies inside the volume.
    pub fn contains(self, range: BlockRange) -> bool {
        range.end() <= self.block_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_run_in_order_and_stay_in_chunks(
            start in 0u64..1 << 40, count in 1u32..100_000, max in 1u32..2048
        ) {
            let run = BlockRange::new(start, count);
            let mut next = start;
            for piece in run.pieces(max) {
                prop_assert_eq!(piece.start, next);
                prop_assert!(piece.count <= max && piece.is_within_chunk());
                next = piece.end();
            }
            prop_assert_eq!(next, run.end());
        }
    }

    #[test]
    fn intersection_is_the_shared_part() {
        let run = |start, count| BlockRange::new(start, count);
        assert_eq!(run(0, 4).intersection(run(2, 4)), Some(run(2, 2)));
        assert_eq!(run(0, 4).intersection(run(4, 4)), None);
        assert!(!run(0, 4).overlaps(run(4, 1)));
        assert!(run(1020, 4).is_within_chunk());
        assert!(!run(1020, 5).is_within_chunk());
    }

    #[test]
    fn chunks_go_round_the_lanes() {
        let geometry = VolumeGeometry { size_bytes: 1 << 30, lane_count: 3 };
        assert_eq!(geometry.lane_of_block(0), 0);
        assert_eq!(geometry.lane_of_block(1024), 1);
        assert_eq!(geometry.lane_of_block(3 * 1024 + 7), 0);
        assert_eq!(geometry.chunk_count(), 256);
    }
}
