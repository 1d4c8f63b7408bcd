//! Accepting everything but writes and reads: lanes, promises, settles, repairs, deletions; and the queue of what waits.
//!
//! It must never decide who may write.

use super::types::Purpose;
use super::write::OpKind;
use super::{Phase, StoreEngine};
use crate::api::{Reply, Request, StoreError, Token};
use crate::disk::NO_GRANULE;
use crate::layout::PAGE_BYTES;
use crate::map::block_of_chunk;
use crate::record::Record;
use ashlar_model::lane::ListEntry;
use ashlar_model::units::{CHUNK_BLOCKS, GRANULE_BLOCKS};
use ashlar_model::{LaneKey, Payload, VolumeId};
use std::collections::BTreeSet;

/// Slots that one step of a settle may make dirty.
const SETTLE_SLOTS_MAX: usize = 4;

impl StoreEngine {
    /// True if a request must queue behind those that wait.
    pub(super) fn must_wait(&self, request: &Request) -> bool {
        if !matches!(self.phase, Phase::Open) {
            return true;
        }
        match request {
            // A read passes what waits for room, unless it must see its effect.
            Request::Read { volume, .. } | Request::Map { volume, .. } => {
                self.waiting.iter().any(|(_, other)| volume_of(other) == *volume)
            }
            _ => !self.accepting || !self.waiting.is_empty(),
        }
    }

    /// Takes what waits, in order, as far as there is room. True if it took some.
    pub(super) fn accept_waiting(&mut self) -> bool {
        let mut taken = false;
        while self.accepting && matches!(self.phase, Phase::Open) {
            let Some((token, request)) = self.waiting.pop_front() else { break };
            if let Err(request) = self.accept(token, request) {
                self.waiting.push_front((token, request));
                break;
            }
            taken = true;
        }
        taken
    }

    /// Takes a request; gives it back if there is no room for it now.
    pub(super) fn accept(&mut self, token: Token, request: Request) -> Result<(), Request> {
        match request {
            Request::Write(write) => return self.accept_write(token, write),
            Request::Read { volume, range } => self.accept_read(token, volume, range, true),
            Request::Map { volume, range } => self.accept_read(token, volume, range, false),
            Request::Settle { key, index, config, member } => return self.accept_settle(key, index, config, member),
            Request::Repair { volume, block, checksum, payload } => {
                return self.accept_repair(token, volume, block, checksum, payload);
            }
            Request::Forget { volume } => return self.accept_forget(token, volume),
            _ if !self.has_room(PAGE_BYTES, 0) => return Err(request),
            Request::Promise { volume, epoch } => {
                let op = self.new_op(Some(token), volume, OpKind::Promise);
                self.table.promise(volume, epoch);
                self.append(Record::Promise(volume, epoch), vec![], Some(op));
            }
            Request::Start { key, epoch, config, base } => {
                let op = self.new_op(Some(token), key.volume, OpKind::Other);
                self.table.start(key, epoch, config, base);
                self.append(Record::Start(key, epoch, config, base), vec![], Some(op));
            }
            Request::JoinStart { key, epoch, config, join, base } => {
                let op = self.new_op(Some(token), key.volume, OpKind::Other);
                let gone = self.table.join_start(key, epoch, config, join, base);
                self.map.unlist(key.volume, &gone, false);
                self.append(Record::JoinStart(key, epoch, config, join, base), vec![], Some(op));
            }
        }
        Ok(())
    }

    /// Settles in steps, so that the pages that each makes dirty fit the log's reserve.
    fn accept_settle(&mut self, key: LaneKey, index: u64, config: u64, member: bool) -> Result<(), Request> {
        loop {
            let (step, dirties) = self.settle_step(key, index);
            if !self.has_room(PAGE_BYTES, dirties) {
                return Err(Request::Settle { key, index, config, member });
            }
            let gone = self.table.settle(key, step, config, member);
            let changed = self.map.unlist(key.volume, &gone, true);
            self.dirty.extend(changed);
            self.append_lazy(Record::Settle(key, step, config, member));
            if step >= index {
                return Ok(());
            }
        }
    }

    /// How far the next step of a settle goes, and how many more slots it makes dirty.
    fn settle_step(&self, key: LaneKey, index: u64) -> (u64, usize) {
        let list = self.table.lane(key).map_or(&[][..], |lane| &lane.list);
        let clean = |entry: &ListEntry| {
            let slot = self.map.slot_of(key.volume, entry.range.chunk())?;
            (!self.dirty.contains(&slot)).then_some((entry.stamp.index, slot))
        };
        let mut gone: Vec<_> = list.iter().filter(|entry| entry.stamp.index <= index).filter_map(clean).collect();
        gone.sort_unstable();
        let mut slots = BTreeSet::new();
        let first = gone.first().map(|(index, _)| *index);
        for (i, slot) in gone {
            // Entries of one index go together.
            if !slots.contains(&slot) && slots.len() >= SETTLE_SLOTS_MAX && Some(i) > first {
                return (i - 1, slots.len());
            }
            slots.insert(slot);
        }
        (index, slots.len())
    }

    fn accept_forget(&mut self, token: Token, volume: VolumeId) -> Result<(), Request> {
        // Its writes complete first, so that nothing of it is in flight when its granules become free.
        if !self.has_room(PAGE_BYTES, 0) || self.inflight.keys().any(|(owner, _)| *owner == volume) {
            return Err(Request::Forget { volume });
        }
        let op = self.new_op(Some(token), volume, OpKind::Other);
        self.table.forget(volume);
        let (granules, slots) = self.map.forget(volume);
        for slot in &slots {
            let keys: Vec<_> = self.pins.range((*slot, 0)..=(*slot, u16::MAX)).map(|(key, _)| *key).collect();
            for key in keys {
                self.pins.remove(&key);
            }
            // The directory no longer names the slot: its pages need no image, and nobody reads them.
            self.dirty.remove(slot);
        }
        let one = self.ops.get_mut(&op).expect("just made");
        (one.granules_freed, one.slots_freed) = (granules, slots);
        self.append(Record::Forget(volume), vec![], Some(op));
        Ok(())
    }

    fn accept_repair(
        &mut self,
        token: Token,
        volume: VolumeId,
        block: u64,
        checksum: u32,
        payload: Payload,
    ) -> Result<(), Request> {
        let (i, bit) = (block_of_chunk(block), 1u16 << (block % GRANULE_BLOCKS as u64));
        let slot = self.map.slot_of(volume, block / CHUNK_BLOCKS as u64);
        let place = slot.and_then(|slot| {
            let chunk = self.map.chunk(slot)?;
            let entry = chunk.entries[i / GRANULE_BLOCKS];
            let same = entry.valid & bit != 0 && chunk.sums[i] == checksum && entry.granule != NO_GRANULE;
            same.then_some((slot, entry.granule))
        });
        let Some((slot, granule)) = place.filter(|_| payload.block_count() == 1) else {
            let text = format!("block {block} does not have checksum {checksum:#010x}");
            self.reply(token, Reply::Error(StoreError::Refused(text)));
            return Ok(());
        };
        if self.busy.get(&granule).is_some_and(|busy| busy & bit != 0) {
            return Err(Request::Repair { volume, block, checksum, payload });
        }
        if self.pins.contains_key(&(slot, i as u16)) {
            self.reply(token, Reply::Done);
            return Ok(());
        }
        let op = self.new_op(Some(token), volume, OpKind::Other);
        self.set_busy(granule, bit);
        self.touch(slot, i / GRANULE_BLOCKS);
        let offset = self.layout().block_offset(granule, i % GRANULE_BLOCKS);
        self.issue_write(Purpose::Repair { op, place: (granule, bit), slot }, offset, vec![payload]);
        Ok(())
    }

    pub(super) fn repair_written(&mut self, op: u64, place: (u32, u16), slot: u32) {
        if let Some(chunk) = self.map.chunk(slot)
            && let Some(granule) = chunk.entries.iter().position(|entry| entry.granule == place.0)
        {
            self.touch(slot, granule);
        }
        self.stats.repaired_blocks += 1;
        if self.flush_needed() {
            self.issue_flush(Purpose::RepairFlush { op });
        } else {
            self.op_durable(op);
        }
    }

    /// Tells readers of a granule that they raced with a device write.
    pub(super) fn touch(&mut self, slot: u32, granule: usize) {
        let entry = &mut self.map.chunk_mut(slot).expect("a slot in use").entries[granule];
        entry.touched = entry.touched.wrapping_add(1);
    }
}

fn volume_of(request: &Request) -> VolumeId {
    match request {
        Request::Write(write) => write.key.volume,
        Request::Read { volume, .. }
        | Request::Map { volume, .. }
        | Request::Promise { volume, .. }
        | Request::Repair { volume, .. }
        | Request::Forget { volume } => *volume,
        Request::Start { key, .. } | Request::Settle { key, .. } | Request::JoinStart { key, .. } => key.volume,
    }
}
