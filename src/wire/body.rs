//! Variable parts of frames: lists, ranges, checksums. Little-endian, counted, bounded by the body they are in.

use ashlar_model::lane::{EntryOrigin, LaneState, ListEntry};
use ashlar_model::{BlockRange, Epoch, Stamp};

/// Appends values to a body.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub fn text(&mut self, text: &str) {
        let bytes = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }
    pub fn stamp(&mut self, stamp: Stamp) {
        self.u64(stamp.epoch.0);
        self.u64(stamp.index);
    }
    pub fn range(&mut self, range: BlockRange) {
        self.u64(range.start);
        self.u32(range.count);
    }
    pub fn ranges(&mut self, ranges: &[BlockRange]) {
        self.u32(ranges.len() as u32);
        for range in ranges {
            self.range(*range);
        }
    }
    /// Version and digest of each block.
    pub fn digests(&mut self, blocks: &[(Stamp, u128)]) {
        for (stamp, digest) in blocks {
            self.stamp(*stamp);
            self.u128(*digest);
        }
    }
    pub fn lane_state(&mut self, state: &LaneState) {
        // Taken apart completely: a new field stops the build here.
        let LaneState { current, config, prefix, settled, list, suspect, join } = state;
        for value in [current.0, *config, *prefix, *settled, *join] {
            self.u64(value);
        }
        self.u32(list.len() as u32);
        for entry in list {
            let ListEntry { stamp, range, tombstone, origin, generation } = *entry;
            self.stamp(stamp);
            self.range(range);
            self.u32(generation);
            self.u8(u8::from(tombstone) | u8::from(origin == EntryOrigin::Copy) << 1);
        }
        self.ranges(suspect);
    }
}

/// Longest text in a frame.
const TEXT_BYTES_MAX: usize = 4096;
/// Bytes of one list entry.
const ENTRY_BYTES: usize = 16 + 12 + 4 + 1;

/// Takes values from a body; `None` when it ends too early or makes no sense.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    pub fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_le_bytes(b.try_into().expect("two bytes")))
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
    }
    /// An epoch or index: far below overflow, whoever sends it.
    pub fn number(&mut self) -> Option<u64> {
        self.u64().filter(|number| *number < 1 << 62)
    }
    pub fn u128(&mut self) -> Option<u128> {
        self.take(16).map(|b| u128::from_le_bytes(b.try_into().expect("sixteen bytes")))
    }
    pub fn text(&mut self) -> Option<String> {
        let bytes = self.u32()? as usize;
        Some(String::from_utf8_lossy(self.take(bytes)?).into_owned())
    }
    pub fn stamp(&mut self) -> Option<Stamp> {
        Some(Stamp { epoch: Epoch(self.number()?), index: self.number()? })
    }
    pub fn range(&mut self) -> Option<BlockRange> {
        let (start, count) = (self.u64()?, self.u32()?);
        (count > 0 && start < 1 << 52).then(|| BlockRange::new(start, count))
    }
    pub fn ranges(&mut self) -> Option<Vec<BlockRange>> {
        let count = self.u32()? as usize;
        // Memory is only reserved for what the body can hold.
        let mut ranges = Vec::with_capacity(count.min(self.0.len() / 12));
        for _ in 0..count {
            ranges.push(self.range()?);
        }
        Some(ranges)
    }
    /// So many versions and digests, and nothing behind them.
    pub fn digests(&mut self, count: u32) -> Option<Vec<(Stamp, u128)>> {
        let blocks: Option<Vec<_>> = (0..count).map(|_| Some((self.stamp()?, self.u128()?))).collect();
        blocks.filter(|_| self.is_empty())
    }
    pub fn lane_state(&mut self) -> Option<LaneState> {
        let mut state = LaneState {
            current: Epoch(self.number()?),
            config: self.number()?,
            prefix: self.number()?,
            settled: self.number()?,
            join: self.number()?,
            ..LaneState::default()
        };
        let count = self.u32()? as usize;
        state.list.reserve(count.min(self.0.len() / ENTRY_BYTES));
        for _ in 0..count {
            let (stamp, range, generation, bits) = (self.stamp()?, self.range()?, self.u32()?, self.u8()?);
            let origin = if bits & 2 == 0 { EntryOrigin::Live } else { EntryOrigin::Copy };
            state.list.push(ListEntry { stamp, range, tombstone: bits & 1 == 1, origin, generation });
        }
        state.suspect = self.ranges()?;
        Some(state)
    }
    /// True at the end of the body.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
