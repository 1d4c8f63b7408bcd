//! Accepting everything but writes and reads: lanes, promises, settles, repairs, deletions; and the queue of what waits.
//!
//! It must never decide who may write.

use super::ops::OpKind;
use super::read::LIVE;
use super::types::{Place, Purpose};
use super::{Mutation, Phase, StoreEngine};
use crate::api::{Reply, Request, StoreError, Token};
use crate::disk::NO_GRANULE;
use crate::layout::{PAGE_BYTES, physical_block};
use crate::map::{block_of_chunk, chunk_of};
use crate::record::{Record, granule_parts};
use crate::table::listed_up_to;
use ashlar_model::lane::ListEntry;
use ashlar_model::units::GRANULE_BLOCKS;
use ashlar_model::{BlockRange, LaneKey, Payload, Pieces, VolumeId};
use smallvec::smallvec;

impl StoreEngine {
    /// Takes a request, or lets it wait its turn.
    pub(super) fn take(&mut self, token: Token, request: Request) {
        let open = matches!(self.phase, Phase::Open);
        let queue = !open || !self.waiting.is_empty() && self.must_queue(&request);
        let request = if queue { Err(request) } else { self.accept(token, request) };
        if let Err(request) = request {
            if open {
                self.prefetch(&request);
            }
            self.waiting.push_back((token, request));
        }
    }

    /// True if a request must not pass those that wait: a read passes, unless it must see the effect of one of them.
    fn must_queue(&self, request: &Request) -> bool {
        match request {
            Request::Read { volume, .. } | Request::ReadSnapshot { volume, .. } | Request::Map { volume, .. } => {
                self.waiting.iter().any(|(_, other)| volume_of(other) == *volume)
            }
            _ => true,
        }
    }

    /// Starts to read the pages that a waiting request will want.
    fn prefetch(&mut self, request: &Request) {
        if let Request::Write(write) = request {
            self.chunk_ready(write.key.volume, write.range.chunk());
        } else if let Request::Read { volume, range }
        | Request::ReadSnapshot { volume, range, .. }
        | Request::Map { volume, range } = request
        {
            self.chunk_ready(*volume, range.chunk());
        }
    }

    /// Takes what waits, in order, as far as there is room. True if it took some.
    pub(super) fn take_waiting(&mut self) -> bool {
        let mut taken = false;
        while let Some((token, request)) = self.waiting.pop_front() {
            if let Err(request) = self.accept(token, request) {
                self.waiting.push_front((token, request));
                break;
            }
            taken = true;
        }
        taken
    }

    /// Takes a request; gives it back if there is no room for it now, or its chunk's pages are still to be read.
    fn accept(&mut self, token: Token, request: Request) -> Result<(), Request> {
        match request {
            Request::Write(write) => return self.accept_write(token, write),
            Request::Read { volume, range }
            | Request::Map { volume, range }
            | Request::ReadSnapshot { volume, range, .. } => {
                if range.is_within_chunk() && !self.chunk_ready(volume, range.chunk()) {
                    return Err(request);
                }
                let data = !matches!(request, Request::Map { .. });
                let newest = if let Request::ReadSnapshot { generation, .. } = request { generation } else { LIVE };
                self.accept_read(token, volume, range, data, newest);
            }
            Request::DropGeneration { volume, generation, into } => {
                self.accept_drop(token, volume, generation, into);
            }
            Request::Settle { key, index, config, member } => return self.accept_settle(key, index, config, member),
            Request::Repair { volume, block, checksum, payload } => {
                return self.accept_repair(token, volume, block, checksum, payload);
            }
            Request::Forget { .. } | Request::Release { .. } => return self.accept_forget(token, request),
            _ if !self.has_room(PAGE_BYTES) => return Err(request),
            _ if !self.table_room(self.table_growth(&request)) => {
                let full = self.full();
                self.reply(token, Reply::Error(full));
            }
            Request::Promise { volume, epoch } => {
                self.table.promise(volume, epoch);
                let op = self.new_promise(token, volume);
                self.append(Record::Promise(volume, epoch), Pieces::new(), Some(op));
            }
            Request::Start { key, epoch, config, base } => {
                let op = self.new_op(Some(token), key.volume, OpKind::Other);
                self.table.start(key, epoch, config, base);
                self.append(Record::Start(key, epoch, config, base), Pieces::new(), Some(op));
            }
            Request::JoinStart { key, epoch, config, join, base } => {
                let op = self.new_op(Some(token), key.volume, OpKind::Other);
                let gone = self.table.join_start(key, epoch, config, join, base);
                for entry in &gone {
                    self.map.unlist(key.volume, entry);
                }
                self.append(Record::JoinStart(key, epoch, config, join, base), Pieces::new(), Some(op));
            }
        }
        Ok(())
    }

    /// Bytes that a promise or a lane adds to the volume table.
    fn table_growth(&self, request: &Request) -> usize {
        match request {
            Request::Promise { volume, .. } | Request::Release { volume, .. } => self.table.promise_bytes(*volume),
            Request::Start { key, .. } | Request::JoinStart { key, .. } => self.table.start_bytes(*key),
            _ => 0,
        }
    }

    /// The versions of the entries that leave the list move into their granules.
    fn accept_settle(&mut self, key: LaneKey, index: u64, config: u64, member: bool) -> Result<(), Request> {
        if !self.listed_chunks_ready(key, index) || !self.has_room(PAGE_BYTES) {
            return Err(Request::Settle { key, index, config, member });
        }
        let mut gone = std::mem::take(&mut self.gone);
        self.table.settle(key, index, config, member, &mut gone);
        self.keep_versions(key.volume, &gone);
        gone.clear();
        self.gone = gone;
        self.append_lazy(Record::Settle(key, index, config, member));
        Ok(())
    }

    /// True if all pages are here of the chunks that entries up to `index` are of; starts to read them if not.
    fn listed_chunks_ready(&mut self, key: LaneKey, index: u64) -> bool {
        if self.all_pages_read() {
            return true;
        }
        let list = self.table.lane(key).map_or(&[][..], |lane| &lane.list);
        let mut chunks: Vec<u64> = listed_up_to(list, index).iter().map(|entry| entry.range.chunk()).collect();
        chunks.dedup();
        // All of them, so that their pages are read at the same time.
        chunks.into_iter().filter(|chunk| !self.chunk_ready(key.volume, *chunk)).count() == 0
    }

    /// Entries left a list: their granules know their versions from now on.
    pub(super) fn keep_versions(&mut self, volume: VolumeId, gone: &[ListEntry]) {
        for entry in gone {
            self.map.unlist(volume, entry);
            let slot = self.map.slot_of_entry(volume, entry);
            let Some(slot) = slot.filter(|_| !self.broken(Mutation::NoVersions)) else { continue };
            self.modify(slot);
            let chunk = self.map.chunk_mut(slot).expect("its page was read before");
            for (granule, _) in granule_parts(entry.range) {
                chunk.raise(granule, entry.stamp);
            }
        }
    }

    fn accept_forget(&mut self, token: Token, request: Request) -> Result<(), Request> {
        let volume = volume_of(&request);
        // Its writes complete first, so that nothing of it is in flight when its granules become free.
        let busy = self.is_merging_volume(volume) || self.inflight.keys().any(|(owner, _)| *owner == volume);
        if !self.volume_ready(volume) || busy || !self.has_room(PAGE_BYTES) {
            return Err(request);
        }
        if !self.table_room(self.table_growth(&request)) {
            let full = self.full();
            self.reply(token, Reply::Error(full));
            return Ok(());
        }
        self.cancel_drops(volume);
        let slots = self.map.slots_of_volume(volume);
        let op = self.new_op(Some(token), volume, OpKind::Other);
        let record = if let Request::Release { epoch, .. } = request {
            self.table.release(volume, epoch);
            Record::Release(volume, epoch)
        } else {
            self.table.forget(volume);
            Record::Forget(volume)
        };
        let mut granules = Vec::new();
        for slot in &slots {
            granules.extend(self.remove_layer(*slot).granules());
        }
        self.map.unlist_all(volume);
        let one = self.ops.get_mut(op).expect("just made");
        (one.granules_freed, one.slots_freed) = (granules, slots);
        self.append(record, Pieces::new(), Some(op));
        Ok(())
    }

    /// Takes a layer out of the map. A running checkpoint gets its page first.
    pub(super) fn remove_layer(&mut self, slot: u32) -> Box<crate::map::Chunk> {
        self.unpin_slot(slot);
        self.freeze_page(slot);
        let chunk = self.map.remove(slot);
        if chunk.has_sums() {
            self.loads.cached -= 1;
        }
        chunk
    }

    fn accept_repair(
        &mut self,
        token: Token,
        volume: VolumeId,
        block: u64,
        checksum: u32,
        payload: Payload,
    ) -> Result<(), Request> {
        let i = block_of_chunk(block);
        let one = BlockRange::new(block, 1);
        if !self.chunk_ready(volume, chunk_of(block)) || self.is_merging(volume, one) {
            return Err(Request::Repair { volume, block, checksum, payload });
        }
        let slot = self.slot_with_data(volume, block);
        if slot.is_some_and(|slot| !self.sum_ready(slot, i)) {
            return Err(Request::Repair { volume, block, checksum, payload });
        }
        let place = slot.and_then(|slot| {
            let chunk = self.map.chunk(slot)?;
            let (granule, order) = (chunk.granule(i / GRANULE_BLOCKS), chunk.order(i / GRANULE_BLOCKS));
            let found = (slot, granule, order.place(i % GRANULE_BLOCKS));
            (chunk.sum(i) == Some(checksum) && granule != NO_GRANULE).then_some(found)
        });
        let Some((slot, granule, place)) = place.filter(|_| payload.block_count() == 1) else {
            let text = format!("block {block} does not have checksum {checksum:#010x}");
            self.reply(token, Reply::Error(StoreError::Refused(text)));
            return Ok(());
        };
        if self.is_busy(granule, 1 << place) {
            return Err(Request::Repair { volume, block, checksum, payload });
        }
        if self.pins.contains_key(&(slot, i as u16)) {
            self.reply(token, Reply::Done);
            return Ok(());
        }
        let op = self.new_op(Some(token), volume, OpKind::Other);
        let first = physical_block(granule, place);
        let place = Place { first, count: 1 };
        self.set_busy(place);
        self.touch(slot);
        let offset = self.layout().physical_offset(first);
        self.issue_write(Purpose::Repair { op, place, slot }, offset, smallvec![payload]);
        Ok(())
    }

    pub(super) fn repair_written(&mut self, op: u64, slot: u32) {
        self.touch(slot);
        self.stats.repaired_blocks += 1;
        if self.flush_needed() {
            self.issue_flush(Purpose::RepairFlush { op });
        } else {
            self.op_durable(op);
        }
    }
}

fn volume_of(request: &Request) -> VolumeId {
    match request {
        Request::Write(write) => write.key.volume,
        Request::Read { volume, .. }
        | Request::ReadSnapshot { volume, .. }
        | Request::DropGeneration { volume, .. }
        | Request::Map { volume, .. }
        | Request::Promise { volume, .. }
        | Request::Repair { volume, .. }
        | Request::Release { volume, .. }
        | Request::Forget { volume } => *volume,
        Request::Start { key, .. } | Request::Settle { key, .. } | Request::JoinStart { key, .. } => key.volume,
    }
}
