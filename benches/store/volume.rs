//! The caller's side of one volume with one lane: indices, settles, payloads and checksums.

use anyhow::{Result, ensure};
use ashlar_model::checksum::{Checksums, block_checksums};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::limits::{WRITE_BLOCKS_MAX, WRITE_BYTES_MAX};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{AlignedBuffer, BlockRange, Epoch, LaneKey, Payload, Stamp, VolumeId};
use ashlar_store::StoreEngine;
use ashlar_store::api::{Body, Request, Write};

/// Different contents.
const CONTENTS: usize = 64;
/// Configuration version.
const CONFIG: u64 = 1;

/// Deterministic pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// Contents of the largest write, made once.
pub struct Contents(Vec<Payload>);

impl Contents {
    /// Random bytes.
    pub fn new(random: &mut Random) -> Self {
        let content = |_| {
            let mut buffer = AlignedBuffer::zeroed(WRITE_BYTES_MAX);
            buffer.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.next().to_le_bytes()));
            buffer.freeze()
        };
        Self((0..CONTENTS).map(content).collect())
    }

    fn pick(&self, number: u64, blocks: u32) -> Payload {
        let whole = &self.0[number as usize % CONTENTS];
        let places = u64::from(WRITE_BLOCKS_MAX / blocks);
        let first = number / CONTENTS as u64 % places * u64::from(blocks);
        whole.slice(first as usize * BLOCK_BYTES, blocks as usize * BLOCK_BYTES)
    }
}

/// One volume, as its only writer sees it.
pub struct Volume {
    /// Its lane.
    pub key: LaneKey,
    /// Length.
    pub blocks: u64,
    epoch: u64,
    index: u64,
    settle_every: u64,
    unsettled: u64,
}

impl Volume {
    /// A volume that the store does not know yet.
    pub fn new(id: u128, bytes: u64, settle_every: u64) -> Self {
        let key = LaneKey { volume: VolumeId::from_u128(id), lane: 0 };
        Self { key, blocks: bytes / BLOCK_BYTES as u64, epoch: 0, index: 0, settle_every, unsettled: 0 }
    }

    /// Begins the next epoch after everything that was written.
    pub fn start(&mut self) -> Request {
        self.epoch += 1;
        self.unsettled = 0;
        Request::Start { key: self.key, epoch: Epoch(self.epoch), config: CONFIG, base: self.index }
    }

    /// A live write with the next index.
    pub fn write(&mut self, contents: &Contents, range: BlockRange) -> Request {
        self.index += 1;
        let payload = contents.pick(self.index, range.count);
        let checksums: Checksums = block_checksums(self.key.volume, range.start, &payload).collect();
        Request::Write(Write {
            key: self.key,
            stamp: Stamp { epoch: Epoch(self.epoch), index: self.index },
            range,
            body: Body::Data { payload, checksums },
            origin: EntryOrigin::Live,
            listed: true,
            generation: 0,
        })
    }

    /// Counts acknowledgements; a settle when there were enough.
    pub fn acknowledged(&mut self, count: u64, engine: &StoreEngine) -> Option<Request> {
        self.unsettled += count;
        if self.unsettled < self.settle_every.max(1) {
            return None;
        }
        self.unsettled = 0;
        let (_, lane) = engine.lanes().find(|(key, _)| *key == self.key)?;
        Some(Request::Settle { key: self.key, index: lane.prefix, config: CONFIG, member: true })
    }

    /// Everything that was acknowledged is in the lane's prefix.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, engine: &StoreEngine) -> Result<()> {
        let lane = engine.lanes().find(|(key, _)| *key == self.key);
        let prefix = lane.map_or(0, |(_, lane)| lane.prefix);
        ensure!(prefix == self.index, "the lane's prefix is {prefix} after {} acknowledged writes", self.index);
        Ok(())
    }
}
