//! Dropping a snapshot generation: each of its layers is merged into the next newer one, granule by granule.
//!
//! What is seen through the newer layer moves there, or is copied if both have the granule. It must never change what a
//! surviving generation sees.

use super::StoreEngine;
use super::ops::OpKind;
use super::read::{Reader, View};
use super::types::{Place, Purpose};
use crate::api::{Reply, Request, StoreError, Token};
use crate::disk::NO_GRANULE;
use crate::layout::{PAGE_BYTES, physical_block};
use crate::map::{Absorbed, Moved};
use crate::record::Record;
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, BlockRange, Payload, Pieces, VolumeId};
use smallvec::smallvec;

/// A generation that is being dropped.
#[derive(Debug)]
pub(super) struct Drop {
    pub token: Token,
    volume: VolumeId,
    generation: u32,
    into: u32,
    /// Chunks that may still have the layer.
    chunks: Vec<u64>,
    granule: usize,
    step: Step,
}

/// Blocks that the newer layer takes over, and their checksums.
#[derive(Default, Debug)]
struct Taken {
    mask: u16,
    sums: Vec<u32>,
}

#[derive(Debug)]
enum Step {
    /// Others are before it.
    Queued,
    /// What was written before has to be complete: a torn write would take its layer with it.
    Starting {
        records: u64,
    },
    /// The next granule may be taken.
    Next,
    /// Writes on the granule that were accepted before it was locked have to complete: records up to this one.
    Locked {
        records: u64,
    },
    Reading,
    /// Copies are on their way, and what was written back before has to be durable.
    Writing {
        taken: Taken,
        left: usize,
    },
    Flushing {
        taken: Taken,
    },
    /// The layer has nothing any more; the one that takes its versions has to be durable.
    Last {
        records: u64,
    },
    /// Records up to this one have to become durable.
    Ending {
        records: u64,
    },
}

impl StoreEngine {
    pub(super) fn accept_drop(&mut self, token: Token, volume: VolumeId, generation: u32, into: u32) {
        if into <= generation {
            let text = format!("generation {generation} cannot go into {into}, which is not newer");
            return self.reply(token, Reply::Error(StoreError::Refused(text)));
        }
        self.drops.push_back(Drop { token, volume, generation, into, chunks: vec![], granule: 0, step: Step::Queued });
    }

    /// True if a write has to wait for the granule that is being merged.
    pub(super) fn is_merging(&self, volume: VolumeId, range: BlockRange) -> bool {
        self.drops.front().is_some_and(|drop| {
            drop.is_locked() && drop.volume == volume && drop.range().is_some_and(|granule| granule.overlaps(range))
        })
    }

    /// True while device operations of a merge of the volume's layers are in flight.
    pub(super) fn is_merging_volume(&self, volume: VolumeId) -> bool {
        self.drops.front().is_some_and(|drop| drop.is_moving() && drop.volume == volume)
    }

    /// A volume is deleted: its drops have nothing left to merge, and none may touch what is written under its name later.
    pub(super) fn cancel_drops(&mut self, volume: VolumeId) {
        assert!(!self.is_merging_volume(volume), "a deletion waits for the copies of a merge");
        for drop in self.drops.iter_mut().filter(|drop| drop.volume == volume) {
            drop.chunks.clear();
            (drop.granule, drop.step) = (0, Step::Next);
        }
    }

    /// True while a merge waits for records, lazy ones too, to become durable.
    pub(super) fn drop_waits_for_log(&self) -> bool {
        self.drops.front().is_some_and(|drop| drop.waits_for().is_some())
    }

    /// Merges on. True if it went further.
    pub(super) fn drop_step(&mut self) -> bool {
        let Some(mut drop) = self.drops.pop_front() else { return false };
        let (moved, ended) = self.drop_advance(&mut drop);
        if !ended {
            self.drops.push_front(drop);
        }
        moved
    }

    /// One step: whether it went further, and whether it has ended.
    fn drop_advance(&mut self, drop: &mut Drop) -> (bool, bool) {
        if drop.waits_for().is_some_and(|records| self.log.completed_records() < records) {
            return (false, false);
        }
        match drop.step {
            Step::Queued => {
                self.drop_start(drop);
                return (true, false);
            }
            Step::Starting { .. } => drop.step = Step::Next,
            _ => {}
        }
        // A deletion of the volume does not wait for a merge that it makes pointless.
        let forget = |(_, request): &(Token, Request)| match request {
            Request::Forget { volume } | Request::Release { volume, .. } => *volume == drop.volume,
            _ => false,
        };
        if !drop.chunks.is_empty() && self.waiting.front().is_some_and(forget) {
            return (false, false);
        }
        let Some((volume, chunk)) = drop.chunks.last().map(|chunk| (drop.volume, *chunk)) else {
            return self.drop_end(drop);
        };
        if !self.chunk_ready(volume, chunk) || !self.has_room(2 * PAGE_BYTES) {
            return (false, false);
        }
        let Some(from) = self.map.layer(volume, chunk, drop.generation) else {
            (drop.granule, drop.step) = (0, Step::Next);
            drop.chunks.pop();
            return (true, false);
        };
        let above = self.map.above(volume, chunk, from).filter(|slot| self.map.generation(*slot) <= drop.into);
        match (&drop.step, above) {
            (Step::Next, None) => {
                self.relabel(from, drop.into);
                (true, false)
            }
            (Step::Next, Some(_)) if drop.granule == CHUNK_GRANULES => {
                drop.step = Step::Last { records: self.log.appended() };
                (true, false)
            }
            // There is no merge into a layer that has gone, nor out of one that was written meanwhile.
            (Step::Last { .. }, above) if above.is_none() || !self.is_empty(from) => {
                (drop.granule, drop.step) = (0, Step::Next);
                (true, false)
            }
            (Step::Last { .. }, Some(into)) => {
                self.drop_layer(volume, from, into);
                (true, false)
            }
            (Step::Next, Some(into)) if !self.may_change(Some(from)) || !self.may_change(Some(into)) => (false, false),
            (Step::Next, Some(_)) if self.nothing_there(from, drop.granule) => {
                drop.granule += 1;
                (true, false)
            }
            (Step::Next, Some(_)) => {
                drop.step = Step::Locked { records: self.log.appended() };
                (true, false)
            }
            (Step::Locked { .. }, Some(into)) => (self.drop_locked(drop, from, into), false),
            _ => (false, false),
        }
    }

    /// Its turn has come: the drops before it have given the generation all the layers that they had for it.
    fn drop_start(&mut self, drop: &mut Drop) {
        drop.chunks = self.map.chunks_of_volume(drop.volume);
        drop.chunks.retain(|chunk| self.map.layer(drop.volume, *chunk, drop.generation).is_some());
        drop.step = Step::Starting { records: self.log.appended() };
    }

    fn nothing_there(&self, slot: u32, granule: usize) -> bool {
        let chunk = self.map.chunk(slot).expect("its page was read");
        chunk.granule(granule) == NO_GRANULE && chunk.holes(granule) == 0 && chunk.unknown(granule) == 0
    }

    fn is_empty(&self, slot: u32) -> bool {
        (0..CHUNK_GRANULES).all(|granule| self.nothing_there(slot, granule))
    }

    /// Everything before the lock is complete, and at its place: takes what is needed. True if it went further.
    fn drop_locked(&mut self, drop: &mut Drop, from: u32, into: u32) -> bool {
        let first = (drop.granule * GRANULE_BLOCKS) as u16;
        let pinned = self.pins.range((from, first)..(from, first + GRANULE_BLOCKS as u16)).next().is_some();
        if pinned {
            // The checkpoint that writes them back has yet to begin: that is a step.
            let begins = self.checkpoint.is_none() && !self.checkpoint_wanted;
            self.checkpoint_wanted |= begins;
            return begins;
        }
        // A repair has no record: its device write is waited for, or the damage would be copied under the right checksum.
        let granule = self.map.chunk(from).expect("its page was read").granule(drop.granule);
        if self.is_busy(granule, u32::MAX) {
            return false;
        }
        let need = self.map.needed(from, into, drop.granule);
        if need == 0 {
            self.absorb(from, into, drop.granule, Taken::default());
            (drop.granule, drop.step) = (drop.granule + 1, Step::Next);
            return true;
        }
        let range = drop.range().expect("it has a chunk");
        drop.step = Step::Reading;
        self.internal_read(Reader::Drop, drop.volume, range, View::Layer(from));
        false
    }

    /// The granule's data is here: writes what is needed into the newer layer's granule, or gives it the older one's.
    pub(super) fn drop_read(&mut self, payload: Option<Payload>, sums: &[Option<u32>]) {
        let Some(drop) = self.drops.front_mut() else { return };
        let (volume, generation, granule) = (drop.volume, drop.generation, drop.granule);
        let Some(chunk) = drop.chunks.last().copied() else { return };
        let from = self.map.layer(volume, chunk, generation).expect("it is locked");
        let into = self.map.above(volume, chunk, from).expect("it is locked");
        let need = self.map.needed(from, into, granule);
        let needed: Vec<usize> = (0..GRANULE_BLOCKS).filter(|bit| need & 1 << bit != 0).collect();
        let sums: Vec<u32> = needed.iter().map(|bit| sums[*bit].expect("a valid block has a checksum")).collect();
        let taken = Taken { mask: need, sums };
        let newer = self.map.chunk(into).expect("its page was read");
        let (target, order) = (newer.granule(granule), newer.order(granule));
        let copied = if target == NO_GRANULE { vec![] } else { needed };
        for bit in &copied {
            // What could not be read keeps its checksum and so stays damaged, to be repaired.
            let bytes = payload.as_ref().map_or_else(
                || AlignedBuffer::zeroed(BLOCK_BYTES).freeze(),
                |payload| payload.slice(bit * BLOCK_BYTES, BLOCK_BYTES),
            );
            let place = Place { first: physical_block(target, order.place(*bit)), count: 1 };
            self.set_busy(place);
            let offset = self.layout().physical_offset(place.first);
            self.issue_write(Purpose::DropCopy { place }, offset, smallvec![bytes]);
        }
        let drop = self.drops.front_mut().expect("just seen");
        drop.step = Step::Writing { taken, left: copied.len() };
        if copied.is_empty() {
            self.drop_written();
        }
    }

    /// A copied block is at its new place.
    pub(super) fn drop_copied(&mut self, place: Place) {
        self.unbusy(place);
        let Some(Step::Writing { left, .. }) = self.drops.front_mut().map(|drop| &mut drop.step) else { return };
        *left -= 1;
        if *left == 0 {
            self.drop_written();
        }
    }

    /// The record may only say what is durable: copies, and what was written back just before.
    fn drop_written(&mut self) {
        let flush = self.flush_needed();
        let Some(drop) = self.drops.front_mut() else { return };
        let Step::Writing { taken, .. } = &mut drop.step else { return };
        drop.step = Step::Flushing { taken: std::mem::take(taken) };
        if flush {
            self.issue_flush(Purpose::DropFlush);
        } else {
            self.drop_flushed();
        }
    }

    /// The newer layer takes over.
    pub(super) fn drop_flushed(&mut self) {
        let Some(drop) = self.drops.front_mut() else { return };
        let Step::Flushing { taken } = &mut drop.step else { return };
        let taken = std::mem::take(taken);
        let (volume, generation, granule) = (drop.volume, drop.generation, drop.granule);
        let chunk = drop.chunks.last().copied().expect("it is locked");
        (drop.granule, drop.step) = (granule + 1, Step::Next);
        let from = self.map.layer(volume, chunk, generation).expect("it is locked");
        let into = self.map.above(volume, chunk, from).expect("it is locked");
        self.absorb(from, into, granule, taken);
    }

    fn absorb(&mut self, from: u32, into: u32, granule: usize, Taken { mask, sums }: Taken) {
        let volume = self.map.chunk(from).expect("its page was read").volume;
        self.modify(from);
        self.modify(into);
        let mut moved = Moved::default();
        let before = self.map.chunk(into).map(|chunk| chunk.granule(granule));
        let moves = mask != 0 && before == Some(NO_GRANULE);
        self.map.absorb(from, into, granule, Absorbed { mask, moves, sums: &sums }, &mut moved);
        let after = self.map.chunk(into).map(|chunk| chunk.granule(granule));
        let op = self.new_op(None, volume, OpKind::Other);
        let one = self.ops.get_mut(op).expect("just made");
        one.granules_freed = moved.freed;
        if let Some(moved) = after.filter(|_| before != after) {
            // Until this is durable the granule may turn out to be the older layer's: nothing goes there in place.
            one.redirected.push(moved);
            self.young.insert(moved, op);
        }
        self.append(Record::Absorb { from, into, granule: granule as u8, moves, mask, sums }, Pieces::new(), Some(op));
    }

    fn relabel(&mut self, slot: u32, generation: u32) {
        let volume = self.map.chunk(slot).expect("its page was read").volume;
        self.modify(slot);
        self.map.relabel(slot, generation);
        let op = self.new_op(None, volume, OpKind::Other);
        self.append(Record::Relabel { slot, generation }, Pieces::new(), Some(op));
    }

    fn drop_layer(&mut self, volume: VolumeId, slot: u32, into: u32) {
        self.modify(into);
        self.map.keep_stamps(slot, into);
        self.remove_layer(slot);
        let op = self.new_op(None, volume, OpKind::Other);
        self.ops.get_mut(op).expect("just made").slots_freed = vec![slot];
        self.append(Record::DropLayer { slot, into }, Pieces::new(), Some(op));
    }

    fn drop_end(&mut self, drop: &mut Drop) -> (bool, bool) {
        if !matches!(drop.step, Step::Ending { .. }) {
            drop.step = Step::Ending { records: self.log.appended() };
            return (true, false);
        }
        self.reply(drop.token, Reply::Done);
        (true, true)
    }
}

impl Drop {
    /// True while nobody else may write the granule.
    fn is_locked(&self) -> bool {
        matches!(self.step, Step::Locked { .. }) || self.is_moving()
    }

    /// True while the data of a granule is on its way.
    fn is_moving(&self) -> bool {
        matches!(self.step, Step::Reading | Step::Writing { .. } | Step::Flushing { .. })
    }

    /// The last record that has to be complete before it goes on.
    fn waits_for(&self) -> Option<u64> {
        match self.step {
            Step::Starting { records }
            | Step::Locked { records }
            | Step::Last { records }
            | Step::Ending { records } => Some(records),
            _ => None,
        }
    }

    /// Blocks of the granule that is being merged.
    fn range(&self) -> Option<BlockRange> {
        let first = self.chunks.last()? * CHUNK_BLOCKS as u64 + (self.granule * GRANULE_BLOCKS) as u64;
        (self.granule < CHUNK_GRANULES).then(|| BlockRange::new(first, GRANULE_BLOCKS as u32))
    }
}
