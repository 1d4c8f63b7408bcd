//! Accepting writes: choosing granules and classes, and what happens when an operation is durable.
//!
//! It must never compare stamps: the caller decides what is newer.

use super::types::Purpose;
use super::{Pin, StoreEngine};
use crate::api::{Body, Reply, Request, StoreError, Token, Write};
use crate::disk::NO_GRANULE;
use crate::layout::PAGE_BYTES;
use crate::map::{block_of_chunk, part_mask};
use crate::record::{Class, Content, NO_SLOT, Record, Segment, WriteRecord, granule_parts};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS, GRANULE_BYTES};
use ashlar_model::{BlockRange, LaneKey, Payload, VolumeId};

/// An accepted, unanswered operation.
#[derive(Debug)]
pub(super) struct Op {
    pub token: Option<Token>,
    pub volume: VolumeId,
    pub kind: OpKind,
    /// Data writes in flight.
    pub data_left: u32,
    /// Its group, zero while it has none.
    pub lsn: u64,
    pub granules_freed: Vec<u32>,
    pub slots_freed: Vec<u32>,
    /// Durable, but waits for earlier operations.
    pub durable: bool,
    /// Reads that wait for it.
    pub readers: Vec<u64>,
}

/// What an operation is.
#[derive(Debug)]
pub(super) enum OpKind {
    Write { range: BlockRange, payload: Option<Payload>, live: Option<(LaneKey, ashlar_model::Stamp)>, slot: u32 },
    Promise,
    Other,
}

impl Op {
    /// Blocks of a write.
    pub fn range(&self) -> Option<BlockRange> {
        match &self.kind {
            OpKind::Write { range, .. } => Some(*range),
            _ => None,
        }
    }

    /// A block's bytes, if the operation wrote them.
    pub fn block(&self, block: u64) -> Option<Payload> {
        match &self.kind {
            OpKind::Write { range, payload: Some(payload), .. } if range.contains(block) => {
                Some(payload.slice((block - range.start) as usize * BLOCK_BYTES, BLOCK_BYTES))
            }
            _ => None,
        }
    }
}

impl StoreEngine {
    pub(super) fn new_op(&mut self, token: Option<Token>, volume: VolumeId, kind: OpKind) -> u64 {
        let id = self.next_op;
        self.next_op += 1;
        self.outstanding.entry(volume).or_default().insert(id);
        let op = Op {
            token,
            volume,
            kind,
            data_left: 0,
            lsn: 0,
            granules_freed: vec![],
            slots_freed: vec![],
            durable: false,
            readers: vec![],
        };
        self.ops.insert(id, op);
        id
    }

    fn check_write(&self, write: &Write) -> Result<(), StoreError> {
        let refuse = |text: String| Err(StoreError::Refused(text));
        let long = matches!(write.body, Body::Data { .. }) && write.range.count > WRITE_BLOCKS_MAX;
        if !write.range.is_within_chunk() || long {
            return refuse(format!("{:?} is not within one chunk and {WRITE_BLOCKS_MAX} blocks", write.range));
        }
        if self.table.lane(write.key).is_none() {
            return refuse(format!("{:?} is not kept here", write.key));
        }
        if let Body::Data { payload, checksums } = &write.body
            && (payload.block_count() != write.range.count || checksums.len() != write.range.count as usize)
        {
            return refuse(format!("{} blocks, {} checksums", payload.block_count(), checksums.len()));
        }
        Ok(())
    }

    /// Space for an allocating write.
    fn check_space(&self, write: &Write, slot: Option<u32>) -> Result<(), StoreError> {
        let (used, count) = (u64::from(self.granules.used()), u64::from(self.granules.count()));
        let full =
            StoreError::Full { used_bytes: used * GRANULE_BYTES as u64, total_bytes: count * GRANULE_BYTES as u64 };
        let held = matches!(write.body, Body::Held);
        let no_slot = !held && slot.is_none() && self.slots.used() == self.slots.count();
        let table = self.table.bytes(self.map.chunk_count() + 2) + 256;
        if no_slot || (write.listed && table as u64 > self.layout().table[0].bytes) {
            return Err(full);
        }
        if matches!(write.body, Body::Data { .. }) {
            let chunk = slot.and_then(|slot| self.map.chunk(slot));
            let empty = |granule: usize| chunk.is_none_or(|chunk| chunk.entries[granule].granule == NO_GRANULE);
            let new = granule_parts(write.range).filter(|(granule, _)| empty(*granule)).count() as u64;
            if new > 0 && (used + new) * 100 > count * 95 {
                return Err(full);
            }
        }
        Ok(())
    }

    pub(super) fn accept_write(&mut self, token: Token, write: Write) -> Result<(), Request> {
        let slot = self.map.slot_of(write.key.volume, write.range.chunk());
        if let Err(error) = self.check_write(&write).and_then(|()| self.check_space(&write, slot)) {
            self.reply(token, Reply::Error(error));
            return Ok(());
        }
        let blocks = if matches!(write.body, Body::Data { .. }) { u64::from(write.range.count) } else { 0 };
        let dirties = usize::from(slot.is_none_or(|slot| !self.dirty.contains(&slot)));
        if !self.has_room(PAGE_BYTES * (1 + blocks), dirties) {
            return Err(Request::Write(write));
        }
        let held = matches!(write.body, Body::Held);
        let slot = slot.unwrap_or_else(|| match held {
            true => NO_SLOT,
            false => self.slots.take(None).expect("the space check found one"),
        });
        let (content, payload) = match write.body {
            Body::Data { payload, checksums } => {
                let segments = self.plan(write.key.volume, slot, write.range);
                (Content::Data { segments, checksums }, Some(payload))
            }
            Body::Tombstone => (Content::Tombstone, None),
            Body::Held => (Content::Held, None),
        };
        let (key, stamp, range) = (write.key, write.stamp, write.range);
        let (origin, listed, generation) = (write.origin, write.listed, write.generation);
        let live = (origin == EntryOrigin::Live).then_some((key, stamp));
        let record = WriteRecord { key, stamp, range, origin, listed, generation, slot, content };
        self.enter_write(token, record, payload, live);
        Ok(())
    }

    /// Chooses granule and class for each part of a data write.
    fn plan(&mut self, volume: VolumeId, slot: u32, range: BlockRange) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for (granule, part) in granule_parts(range) {
            let chunk = self.map.chunk(slot);
            let old = chunk.map(|chunk| chunk.entries[granule]).filter(|entry| entry.granule != NO_GRANULE);
            let before = chunk.and_then(|chunk| chunk.entries.get(granule.wrapping_sub(1))).map(|entry| entry.granule);
            segments.push(match old {
                Some(entry) => {
                    let busy = self.busy.get(&entry.granule).copied().unwrap_or(0);
                    let fresh = (entry.valid | busy) & part_mask(part) == 0 && !self.being_cleared(volume, part);
                    Segment { granule: entry.granule, class: if fresh { Class::Fresh } else { Class::Logged } }
                }
                None => {
                    let before = segments.last().map(|segment| segment.granule).or(before);
                    let hint = before.filter(|granule| *granule != NO_GRANULE).map(|granule| granule + 1);
                    let granule = self.granules.take(hint).expect("the space check found enough");
                    Segment { granule, class: Class::Fresh }
                }
            });
        }
        segments
    }

    /// True if a tombstone on the part is not durable: what it clears may still come back.
    fn being_cleared(&self, volume: VolumeId, part: BlockRange) -> bool {
        self.inflight
            .get(&(volume, part.chunk()))
            .into_iter()
            .flatten()
            .any(|op| matches!(self.ops[op].kind, OpKind::Write { range, payload: None, .. } if range.overlaps(part)))
    }

    fn enter_write(
        &mut self,
        token: Token,
        record: WriteRecord,
        payload: Option<Payload>,
        live: Option<(LaneKey, ashlar_model::Stamp)>,
    ) {
        let (volume, range, slot) = (record.key.volume, record.range, record.slot);
        let kind = OpKind::Write { range, payload: payload.clone(), live, slot };
        let id = self.new_op(Some(token), volume, kind);
        self.inflight.entry((volume, range.chunk())).or_default().push(id);
        if let Some((key, stamp)) = live {
            *self.live.entry((key, stamp.index)).or_default() += 1;
        }
        let freed = self.map.apply(&record);
        self.ops.get_mut(&id).expect("just made").granules_freed = freed;
        if record.listed {
            self.table.add_entry(&record);
            self.map.list(volume, record.stamp, range);
        }
        let mut logged = Vec::new();
        if slot != NO_SLOT {
            self.dirty.insert(slot);
            self.unpin(slot, &record);
        }
        if let (Some(payload), Content::Data { segments, checksums }) = (&payload, &record.content) {
            self.stats.accepted_bytes += payload.len() as u64;
            self.write_fresh(id, range, segments, payload);
            for ((_, part), _) in record.parts().zip(segments).filter(|(_, one)| one.class == Class::Logged) {
                let first = (part.start - range.start) as usize;
                logged.push(payload.slice(first * BLOCK_BYTES, part.bytes()));
                for block in part.blocks() {
                    let i = (block - range.start) as usize;
                    let payload = payload.slice(i * BLOCK_BYTES, BLOCK_BYTES);
                    let pin = Pin { payload, checksum: checksums[i], op: id, lsn: u64::MAX };
                    self.pins.insert((slot, block_of_chunk(block) as u16), pin);
                }
            }
        }
        self.append(Record::Write(record), logged, Some(id));
    }

    /// The write's blocks are no longer what their pins hold.
    fn unpin(&mut self, slot: u32, record: &WriteRecord) {
        if matches!(record.content, Content::Held) || self.pins.is_empty() {
            return;
        }
        for block in record.range.blocks() {
            self.pins.remove(&(slot, block_of_chunk(block) as u16));
        }
    }

    /// Starts the data writes of the fresh parts, neighbours on the device in one.
    fn write_fresh(&mut self, op: u64, range: BlockRange, segments: &[Segment], payload: &Payload) {
        let mut runs: Vec<(BlockRange, Vec<(u32, u16)>)> = Vec::new();
        for ((_, part), segment) in granule_parts(range).zip(segments) {
            if segment.class == Class::Logged {
                continue;
            }
            let place = (segment.granule, part_mask(part));
            self.set_busy(place.0, place.1);
            match runs.last_mut() {
                Some((run, places))
                    if run.end() == part.start && places.last().expect("never empty").0 + 1 == place.0 =>
                {
                    *run = BlockRange::new(run.start, run.count + part.count);
                    places.push(place);
                }
                _ => runs.push((part, vec![place])),
            }
        }
        self.ops.get_mut(&op).expect("just made").data_left = runs.len() as u32;
        for (run, places) in runs {
            let offset = self.layout().block_offset(places[0].0, (run.start % GRANULE_BLOCKS as u64) as usize);
            let bytes = payload.slice((run.start - range.start) as usize * BLOCK_BYTES, run.bytes());
            self.issue_write(Purpose::Data { op, places }, offset, vec![bytes]);
        }
    }

    pub(super) fn data_written(&mut self, op: u64) {
        let one = self.ops.get_mut(&op).expect("an operation waits for its data");
        one.data_left -= 1;
        if one.data_left == 0 && one.lsn != 0 {
            let lsn = one.lsn;
            self.group_data_done(lsn);
        }
    }

    /// An operation got its group; true if its data is still in flight.
    pub(super) fn op_grouped(&mut self, id: u64, lsn: u64) -> bool {
        let op = self.ops.get_mut(&id).expect("its record was waiting");
        op.lsn = lsn;
        if let OpKind::Write { range, payload: Some(_), slot, .. } = op.kind {
            for block in range.blocks() {
                if let Some(pin) = self.pins.get_mut(&(slot, block_of_chunk(block) as u16))
                    && pin.op == id
                {
                    pin.lsn = lsn;
                }
            }
        }
        op.data_left > 0
    }

    /// An operation is durable: answers it, and whatever waited only for it.
    pub(super) fn op_durable(&mut self, id: u64) {
        let op = self.ops.get_mut(&id).expect("durable once");
        op.durable = true;
        if matches!(op.kind, OpKind::Promise) {
            let volume = op.volume;
            self.answer_promises(volume);
            return;
        }
        let op = self.ops.remove(&id).expect("just seen");
        self.limbo.extend(op.granules_freed);
        for slot in op.slots_freed {
            self.slots.release(slot);
        }
        if let OpKind::Write { range, live, .. } = op.kind {
            let place = (op.volume, range.chunk());
            let inflight = self.inflight.get_mut(&place).expect("it was in flight");
            inflight.retain(|one| *one != id);
            if inflight.is_empty() {
                self.inflight.remove(&place);
            }
            if let Some((key, stamp)) = live {
                self.live_write_done(key, stamp);
            }
        }
        if let Some(token) = op.token {
            self.reply(token, Reply::Done);
        }
        self.op_gone(op.volume, id);
        for read in op.readers {
            self.read_unblocked(read);
        }
    }

    fn live_write_done(&mut self, key: LaneKey, stamp: ashlar_model::Stamp) {
        let left = self.live.get_mut(&(key, stamp.index)).expect("it was in flight");
        *left -= 1;
        if *left == 0 {
            self.live.remove(&(key, stamp.index));
            self.table.live_done(key, stamp);
        }
    }

    /// An operation was answered: a promise may have waited for it.
    pub(super) fn op_gone(&mut self, volume: VolumeId, id: u64) {
        let outstanding = self.outstanding.get_mut(&volume).expect("it was outstanding");
        outstanding.remove(&id);
        if outstanding.is_empty() {
            self.outstanding.remove(&volume);
        } else {
            self.answer_promises(volume);
        }
    }

    fn answer_promises(&mut self, volume: VolumeId) {
        while let Some(first) = self.outstanding.get(&volume).and_then(|ids| ids.first().copied()) {
            let ready = self.ops.get(&first).is_some_and(|op| matches!(op.kind, OpKind::Promise) && op.durable);
            if !ready {
                return;
            }
            let op = self.ops.remove(&first).expect("just seen");
            let reply = Reply::Sealed { promised: self.table.promised(volume), lanes: self.table.lanes_of(volume) };
            self.reply(op.token.expect("a promise is asked for"), reply);
            let outstanding = self.outstanding.get_mut(&volume).expect("just seen");
            outstanding.remove(&first);
            if outstanding.is_empty() {
                self.outstanding.remove(&volume);
            }
        }
    }
}
