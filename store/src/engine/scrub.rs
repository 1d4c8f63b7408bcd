//! Scrub: reads everything in the order of slots, at the pace that the caller grants, and says what is damaged.
//!
//! Where it is goes into the superblock with each checkpoint, so a restart goes on about there. It must never decide the
//! pace, nor repair.

use super::read::{LIVE, ReadOp, Reader, View};
use super::types::Effect;
use super::{Phase, StoreEngine};
use crate::api::BlockState;
use crate::disk::NO_GRANULE;
use ashlar_model::BlockRange;
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS, GRANULE_BYTES};

/// Reads of the scrub in flight.
const READS_MAX: usize = 2;
/// Bytes that may be granted ahead.
const GRANT_MAX: u64 = 32 << 20;
/// Slots without data that one step passes.
const STEPS_MAX: usize = 4096;

/// Where the scrub is.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    pub slot: u32,
    granule: usize,
    granted_bytes: u64,
    reading: usize,
    /// Reads are being started: one that is answered at once must not start more.
    stepping: bool,
}

impl StoreEngine {
    /// Lets the scrub read `bytes` more (no more than a few MiB are saved up). Damage comes as [`Effect::Damaged`].
    pub fn scrub(&mut self, bytes: u64) {
        self.scrub.granted_bytes = (self.scrub.granted_bytes + bytes).min(GRANT_MAX);
        self.scrub_step();
    }

    /// Operations of callers that are not answered: what a scrub should yield to.
    pub fn foreground(&self) -> usize {
        self.ops.len() + self.reads.len().saturating_sub(self.scrub.reading) + self.waiting.len()
    }

    fn scrub_step(&mut self) {
        if !matches!(self.phase, Phase::Open) || self.failed.is_some() || self.scrub.stepping {
            return;
        }
        self.scrub.stepping = true;
        let (mut steps, passes) = (0, self.stats.scrub_passes);
        // At most one pass at a time, however little there is to read.
        while self.scrub.reading < READS_MAX
            && self.scrub.granted_bytes >= GRANULE_BYTES as u64
            && steps < STEPS_MAX
            && self.stats.scrub_passes == passes
        {
            steps += 1;
            if !self.scrub_one() {
                break;
            }
        }
        self.scrub.stepping = false;
    }

    /// Looks at the next granule; false if its map page has to be read first.
    fn scrub_one(&mut self) -> bool {
        let (slot, granule) = (self.scrub.slot, self.scrub.granule);
        if self.map.unread_entry(slot).is_some() && !self.slot_ready(slot) {
            return false;
        }
        let Some(chunk) = self.map.chunk(slot) else {
            self.scrub_next_slot();
            return true;
        };
        let something = chunk.granule(granule) != NO_GRANULE || chunk.unknown(granule) != 0;
        let first = chunk.chunk * CHUNK_BLOCKS as u64 + (granule * GRANULE_BLOCKS) as u64;
        let (volume, range) = (chunk.volume, BlockRange::new(first, GRANULE_BLOCKS as u32));
        let reader = Reader::Scrub { generation: chunk.generation };
        // What a newer layer hides is known only when that has been read.
        if !self.chunk_ready(volume, range.chunk()) {
            return false;
        }
        self.scrub.granule += 1;
        if self.scrub.granule == CHUNK_GRANULES {
            self.scrub_next_slot();
        }
        if something {
            self.scrub.granted_bytes -= GRANULE_BYTES as u64;
            self.scrub.reading += 1;
            self.internal_read(reader, volume, range, View::Layer(slot));
        }
        true
    }

    fn scrub_next_slot(&mut self) {
        self.scrub.granule = 0;
        self.scrub.slot += 1;
        if self.scrub.slot >= self.layout().slot_count {
            self.scrub.slot = 0;
            self.stats.scrub_passes += 1;
        }
    }

    /// A granule was read.
    pub(super) fn scrub_read(&mut self, read: &ReadOp, generation: u32, states: &[BlockState]) {
        self.scrub.reading -= 1;
        let volume = read.volume;
        for (block, state) in read.range.blocks().zip(states) {
            match state {
                BlockState::Bad(_) | BlockState::Unknown => {
                    self.stats.scrub_bad_blocks += 1;
                    let live = self.slot_with(volume, block, View::Generation(LIVE));
                    if live.map(View::Layer) == Some(read.view) {
                        self.effects.push(Effect::Damaged { volume, block, generation });
                    } else {
                        self.stats.snapshot_bad_blocks += 1;
                    }
                }
                BlockState::Data(_) => self.stats.scrubbed_bytes += ashlar_model::units::BLOCK_BYTES as u64,
                BlockState::Zero => {}
            }
        }
        self.scrub_step();
    }
}
