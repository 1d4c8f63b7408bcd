//! Accepting writes: is there room, which layer, which granules, which class; and the data writes they start.
//!
//! It must never compare stamps: the caller decides what is newer.

use super::ops::OpKind;
use super::pins::{Pin, pin_key};
use super::types::{Place, Purpose};
use super::{Mutation, StoreEngine};
use crate::api::{Body, Reply, Request, StoreError, Token, Write};
use crate::disk::NO_GRANULE;
use crate::layout::{CHUNKS_MAX, PAGE_BYTES, SPARE, physical_block};
use crate::map::{Chunk, EPOCH_MAX, Order, part_mask};
use crate::record::{Class, Content, NO_SLOT, Record, Segment, Segments, WriteRecord, granule_parts};
use crate::table::{DIRECTORY_BYTES, ENTRY_BYTES};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::mutation::mark;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS, GRANULE_BYTES};
use ashlar_model::{BlockRange, LaneKey, Payload, Pieces, Stamp, VolumeId};
use smallvec::smallvec;

/// Percent of the granules that allocating writes may use.
const FULL_PERCENT: u64 = 95;
/// One part in so many of the volume table is not for list entries and slots, but for lanes and promises.
const RESERVED_PART: u64 = 16;

impl StoreEngine {
    fn check_write(&self, write: &Write) -> Result<(), StoreError> {
        let refuse = |text: String| Err(StoreError::Refused(text));
        let long = matches!(write.body, Body::Data { .. }) && write.range.count > WRITE_BLOCKS_MAX;
        if !write.range.is_within_chunk() || write.range.chunk() >= CHUNKS_MAX || long {
            return refuse(format!("{:?} is not within one chunk and {WRITE_BLOCKS_MAX} blocks", write.range));
        }
        if self.table.lane(write.key).is_none() {
            return refuse(format!("{:?} is not kept here", write.key));
        }
        if write.stamp.epoch.0 > EPOCH_MAX {
            return refuse(format!(
                "epoch {} is above {EPOCH_MAX}, the largest that a device keeps",
                write.stamp.epoch
            ));
        }
        if let Body::Data { payload, checksums } = &write.body
            && (payload.block_count() != write.range.count || checksums.len() != write.range.count as usize)
        {
            return refuse(format!("{} blocks, {} checksums", payload.block_count(), checksums.len()));
        }
        Ok(())
    }

    /// What a request without room answers.
    pub(super) fn full(&self) -> StoreError {
        let (used, count) = (u64::from(self.granules.used()), u64::from(self.granules.count()));
        StoreError::Full { used_bytes: used * GRANULE_BYTES as u64, total_bytes: count * GRANULE_BYTES as u64 }
    }

    /// True if the volume table may grow by so many bytes for a lane or a promise: a checkpoint has to write all of it.
    pub(super) fn table_room(&self, more: usize) -> bool {
        self.table_fits(more, self.layout().table_bytes())
    }

    /// True if the volume table may grow by so many bytes for a write: a part is left to lanes and promises, so that a
    /// table full of lists keeps no epoch from starting.
    fn table_room_for_write(&self, more: usize) -> bool {
        let bytes = self.layout().table_bytes();
        self.table_fits(more, bytes - bytes / RESERVED_PART)
    }

    fn table_fits(&self, more: usize, limit: u64) -> bool {
        let bytes = self.table.bytes(self.map.slot_count(), self.granules.count());
        more == 0 || (bytes + more) as u64 <= limit
    }

    /// Space for an allocating write.
    fn check_space(&self, write: &Write, slot: Option<u32>) -> Result<(), StoreError> {
        let new_slot = slot.is_none() && !matches!(write.body, Body::Held);
        let no_slot = new_slot && self.slots.used() == self.slots.count();
        let more = ENTRY_BYTES * usize::from(write.listed) + DIRECTORY_BYTES * usize::from(new_slot);
        if no_slot || !self.table_room_for_write(more) {
            return Err(self.full());
        }
        if matches!(write.body, Body::Data { .. }) {
            let chunk = slot.and_then(|slot| self.map.chunk(slot));
            let empty = |granule: usize| chunk.is_none_or(|chunk| chunk.granule(granule) == NO_GRANULE);
            let new = granule_parts(write.range).filter(|(granule, _)| empty(*granule)).count() as u64;
            if new > 0 && !self.has_granules(new) {
                return Err(self.full());
            }
        }
        Ok(())
    }

    fn has_granules(&self, more: u64) -> bool {
        (u64::from(self.granules.used()) + more) * 100 <= u64::from(self.granules.count()) * FULL_PERCENT
    }

    pub(super) fn accept_write(&mut self, token: Token, write: Write) -> Result<(), Request> {
        let (volume, chunk) = (write.key.volume, write.range.chunk());
        if !self.chunk_ready(volume, chunk) || self.is_merging(volume, write.range) {
            return Err(Request::Write(write));
        }
        let slot = self.map.layer(volume, chunk, write.generation);
        if let Err(error) = self.check_write(&write).and_then(|()| self.check_space(&write, slot)) {
            self.reply(token, Reply::Error(error));
            return Ok(());
        }
        let blocks = if matches!(write.body, Body::Data { .. }) { u64::from(write.range.count) } else { 0 };
        let held = matches!(write.body, Body::Held);
        // A checkpoint is due then, and ends it.
        let pinned = self.pins.len() as u64 * PAGE_BYTES > self.options.pinned_bytes_max.saturating_mul(2);
        if !self.has_room(PAGE_BYTES * (1 + blocks)) || blocks > 0 && pinned || !(held || self.may_change(slot)) {
            return Err(Request::Write(write));
        }
        if held || (matches!(write.body, Body::Tombstone) && self.broken(Mutation::NoTombstone)) {
            self.enter_write(token, write, NO_SLOT, Content::Held, None);
            return Ok(());
        }
        let slot = slot.unwrap_or_else(|| self.slots.take(None).expect("the space check found one"));
        let (content, payload) = match &write.body {
            Body::Data { payload, checksums } => {
                let segments = self.plan(volume, slot, write.range);
                (Content::Data { segments, checksums: checksums.clone() }, Some(payload.clone()))
            }
            Body::Tombstone | Body::Held => (Content::Tombstone, None),
            Body::Lost => (Content::Lost, None),
        };
        self.enter_write(token, write, slot, content, payload);
        Ok(())
    }

    /// Chooses granule, place and class for each part of a data write.
    fn plan(&mut self, volume: VolumeId, slot: u32, range: BlockRange) -> Segments {
        let mut segments = Segments::with_capacity(1 + range.count as usize / GRANULE_BLOCKS);
        for (granule, part) in granule_parts(range) {
            let chunk = self.map.chunk(slot);
            let (old, valid) = chunk.map_or((NO_GRANULE, 0), |chunk| (chunk.granule(granule), chunk.valid(granule)));
            let order = chunk.map_or_else(Order::default, |chunk| chunk.order(granule));
            let mask = part_mask(part);
            let over_nothing = valid & mask == 0 && !self.being_cleared(volume, part);
            let one_write = part.count == 1 || order.is_plain(mask);
            let free = old != NO_GRANULE && !self.is_busy(old, order.places(mask)) && !self.is_young(old);
            if over_nothing && free && one_write {
                segments.push(Segment { granule: old, class: Class::Fresh, place: place_in(order, part) });
                continue;
            }
            let whole = part.count as usize == GRANULE_BLOCKS;
            if old == NO_GRANULE || (whole && self.has_granules(1)) {
                let before = chunk.filter(|_| granule > 0).map(|chunk| chunk.granule(granule - 1));
                let before = segments.last().map(|segment| segment.granule).or(before);
                let hint = before.filter(|granule| *granule != NO_GRANULE).map(|granule| granule + 1);
                let taken = self.granules.take(hint).expect("the space check found enough");
                if let Some(owned) = &mut self.owned {
                    owned.claim(taken);
                }
                if old != NO_GRANULE {
                    // The operation that is about to be made.
                    self.young.insert(taken, self.next_op);
                }
                segments.push(Segment { granule: taken, class: Class::Fresh, place: None });
                continue;
            }
            segments.push(self.plan_overwrite(slot, old, order, part, range));
        }
        segments
    }

    /// How an overwrite goes: a block beside its old content, if the spare place is free; a small one into the log, or to its
    /// place once its record is durable if the device is busy.
    fn plan_overwrite(&mut self, slot: u32, old: u32, order: Order, part: BlockRange, range: BlockRange) -> Segment {
        let one_write = part.count == 1 || order.is_plain(part_mask(part));
        if self.broken(Mutation::FreshOverData) && !self.is_busy(old, u32::MAX) && one_write {
            return Segment { granule: old, class: Class::Fresh, place: place_in(order, part) };
        }
        let logged = Segment { granule: old, class: Class::Logged, place: None };
        let alone = range.count == 1
            && !self.pins.contains_key(&pin_key(slot, range.start))
            && !self.is_young(old)
            && !self.is_busy(old, order.places(part_mask(part)));
        if !alone {
            return logged;
        }
        if self.may_move(slot, old, order) {
            // The operation that is about to be made.
            self.moving.insert(old, self.next_op);
            return Segment { granule: old, class: Class::Fresh, place: Some(order.spare() as u8) };
        }
        let busy = self.ops.len() >= self.options.busy_operations || self.log_is_behind();
        if busy && self.atomic() {
            return Segment { class: Class::Intent, place: place_in(order, part), ..logged };
        }
        logged
    }

    /// True if a crash may take back that a chunk has the granule.
    fn is_young(&self, granule: u32) -> bool {
        self.young.contains_key(&granule) && !self.broken(Mutation::YoungInPlace)
    }

    /// True if a block of a granule may go to the spare place, in parallel with its record. With flushes one of record and
    /// data in the log is cheaper.
    fn may_move(&self, slot: u32, granule: u32, order: Order) -> bool {
        let ordered = self.map.chunk(slot).is_some_and(Chunk::is_ordered);
        let settled = !self.moving.contains_key(&granule) || self.broken(Mutation::SpareTooSoon);
        !self.flush_needed()
            && settled
            && (ordered || self.all_pages_read() && self.map.may_order_more())
            && !self.is_busy(granule, 1 << order.spare())
    }

    /// True if a tombstone on the part is not durable: what it clears may still come back.
    fn being_cleared(&self, volume: VolumeId, part: BlockRange) -> bool {
        let ids = self.inflight.get(&(volume, part.chunk())).into_iter().flatten();
        let ops = ids.map(|op| self.ops.get(*op).expect("in flight"));
        ops.filter(|op| op.is_tombstone()).any(|op| op.range().is_some_and(|range| range.overlaps(part)))
    }

    fn enter_write(&mut self, token: Token, write: Write, slot: u32, content: Content, payload: Option<Payload>) {
        let (key, stamp, range) = (write.key, write.stamp, write.range);
        let (origin, listed, generation) = (write.origin, write.listed, write.generation);
        let live = (origin == EntryOrigin::Live).then_some((key, stamp));
        let record = WriteRecord { key, stamp, range, origin, listed, generation, slot, content };
        let id = self.enter_op(token, &record, payload.clone(), live);
        if slot != NO_SLOT {
            self.modify(slot);
            let new = self.map.chunk(slot).is_none();
            let mut moved = std::mem::take(&mut self.moved);
            self.map.apply(&record, &mut moved);
            moved.taken.clear();
            if self.broken(Mutation::EarlyRelease) {
                self.limbo.append(&mut moved.freed);
            } else if !moved.freed.is_empty() {
                self.ops.get_mut(id).expect("just made").granules_freed.append(&mut moved.freed);
            }
            self.moved = moved;
            self.mark_dirty(slot);
            if new {
                self.count_cached(slot);
            }
            self.unpin(slot, range);
        }
        if record.listed {
            self.table.add_entry(&record);
            self.map.list(key.volume, stamp, range, generation);
        }
        let mut logged = Pieces::new();
        if let (Some(payload), Content::Data { segments, checksums }) = (&payload, &record.content) {
            self.stats.accepted_bytes += payload.len() as u64;
            self.write_fresh(id, range, segments, payload);
            if !self.young.is_empty() {
                let fresh = segments.iter().filter(|segment| segment.class == Class::Fresh);
                let redirected =
                    fresh.map(|segment| segment.granule).filter(|granule| self.young.get(granule) == Some(&id));
                let redirected = redirected.collect();
                self.ops.get_mut(id).expect("just made").redirected = redirected;
            }
            if let [Segment { granule, class: Class::Fresh, .. }] = segments[..]
                && self.moving.get(&granule) == Some(&id)
            {
                mark("a block is overwritten beside its old content");
                self.stats.moves += 1;
                self.ops.get_mut(id).expect("just made").moved_in = Some(granule);
            }
            for ((_, part), segment) in record.parts().zip(segments) {
                self.stats.classes[segment.class as usize] += 1;
                match segment.class {
                    Class::Fresh => {}
                    Class::Intent => self.latch_intent(id, *segment, range),
                    Class::Logged => {
                        logged.push(payload.part((part.start - range.start) as usize, part.count as usize));
                        self.pin(slot, id, range, part, payload, checksums);
                    }
                }
            }
        }
        self.append(Record::Write(record), logged, Some(id));
    }

    fn enter_op(
        &mut self,
        token: Token,
        record: &WriteRecord,
        payload: Option<Payload>,
        live: Option<(LaneKey, Stamp)>,
    ) -> u64 {
        let (volume, range, slot) = (record.key.volume, record.range, record.slot);
        let id = self.new_op(Some(token), volume, OpKind::Write { range, payload, live, slot, intent: None });
        self.inflight.entry((volume, range.chunk())).or_default().push(id);
        if let Some((key, stamp)) = live {
            *self.live.entry((key, stamp.index)).or_default() += 1;
        }
        id
    }

    fn pin(&mut self, slot: u32, op: u64, range: BlockRange, part: BlockRange, payload: &Payload, checksums: &[u32]) {
        let first = (part.start - range.start) as usize;
        // A small part of a large buffer would keep all of it.
        let whole = payload.len() <= 2 * part.bytes();
        let kept = if whole {
            payload.part(first, part.count as usize)
        } else {
            payload.part(first, part.count as usize).copied()
        };
        for (i, block) in part.blocks().enumerate() {
            let (payload, checksum) = (kept.part(i, 1), checksums[first + i]);
            let pin = Pin { payload, checksum, op, lsn: u64::MAX };
            self.pins.insert(pin_key(slot, block), pin);
        }
    }

    /// Starts the data writes of the fresh parts, neighbours on the device in one.
    fn write_fresh(&mut self, op: u64, range: BlockRange, segments: &[Segment], payload: &Payload) {
        let mut run: Option<(BlockRange, u64)> = None;
        for ((_, part), segment) in granule_parts(range).zip(segments) {
            if segment.class != Class::Fresh {
                continue;
            }
            let physical = physical_block(segment.granule, segment.place_of(part.start));
            run = match run {
                Some((run, first)) if run.end() == part.start && are_neighbours(first, run.count, physical) => {
                    Some((BlockRange::new(run.start, run.count + part.count), first))
                }
                other => {
                    self.send_fresh(op, range, other, payload);
                    Some((part, physical))
                }
            };
        }
        self.send_fresh(op, range, run, payload);
    }

    fn send_fresh(&mut self, op: u64, range: BlockRange, run: Option<(BlockRange, u64)>, payload: &Payload) {
        let Some((run, first)) = run else { return };
        let place = Place { first, count: run.count };
        self.set_busy(place);
        self.ops.get_mut(op).expect("just made").data_left += 1;
        let offset = self.layout().physical_offset(first);
        let bytes = payload.part((run.start - range.start) as usize, run.count as usize);
        self.issue_write(Purpose::Data { op, place }, offset, smallvec![bytes]);
    }

    /// Keeps an intent's block for it until its record is durable.
    fn latch_intent(&mut self, id: u64, segment: Segment, range: BlockRange) {
        let first = physical_block(segment.granule, segment.place_of(range.start));
        self.set_busy(Place { first, count: 1 });
        let op = self.ops.get_mut(id).expect("just made");
        op.data_left += 1;
        if let OpKind::Write { intent, .. } = &mut op.kind {
            *intent = Some(first);
        }
        if self.broken(Mutation::IntentAtOnce) {
            self.send_intent(id);
        }
    }

    /// An intent's record is durable: its data may go over the old.
    pub(super) fn send_intent(&mut self, id: u64) {
        let op = self.ops.get_mut(id).expect("it waits for its data");
        let OpKind::Write { payload: Some(payload), intent, slot, .. } = &mut op.kind else { return };
        let Some(first) = intent.take() else { return };
        let (payload, slot) = (payload.clone(), *slot);
        self.touch(slot);
        let offset = self.layout().physical_offset(first);
        self.issue_write(Purpose::Data { op: id, place: Place { first, count: 1 } }, offset, smallvec![payload]);
    }

    pub(super) fn data_written(&mut self, id: u64) {
        let op = self.ops.get_mut(id).expect("an operation waits for its data");
        op.data_left -= 1;
        let (left, lsn) = (op.data_left, op.lsn);
        if left == 0 && lsn != 0 {
            self.group_data_done(id, lsn);
        }
    }

    /// An operation got its group, which has data of it if it is `logged`; true if its data is not done.
    pub(super) fn op_grouped(&mut self, id: u64, lsn: u64, logged: bool) -> bool {
        let op = self.ops.get_mut(id).expect("its record was waiting");
        op.lsn = lsn;
        let left = op.data_left > 0;
        if let OpKind::Write { range, slot, .. } = op.kind
            && logged
        {
            self.pins_grouped(slot, range, id, lsn);
        }
        left
    }

    /// True if an operation's data waits for its record.
    pub(super) fn is_intent(&self, id: u64) -> bool {
        let op = self.ops.get(id).expect("its record was waiting");
        matches!(op.kind, OpKind::Write { intent: Some(_), .. })
    }
}

/// True if a physical block follows so many from `first`. Spare blocks are written alone: nothing lies between those of two
/// granules, but granules are latched by their own places.
fn are_neighbours(first: u64, count: u32, next: u64) -> bool {
    (first | next) & SPARE == 0 && first + u64::from(count) == next
}

/// The place of a part's block, if it lies elsewhere than its number says.
fn place_in(order: Order, part: BlockRange) -> Option<u8> {
    let block = (part.start % GRANULE_BLOCKS as u64) as usize;
    let place = order.place(block);
    (part.count == 1 && place != block).then_some(place as u8)
}

trait Parts {
    fn part(&self, block: usize, count: usize) -> Payload;
    fn copied(&self) -> Payload;
}

impl Parts for Payload {
    fn part(&self, block: usize, count: usize) -> Payload {
        self.slice(block * BLOCK_BYTES, count * BLOCK_BYTES)
    }

    fn copied(&self) -> Payload {
        Payload::copied_from(self)
    }
}
