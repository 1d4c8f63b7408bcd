//! Checkpoints: write back what only the log has, write the changed pages beside the old ones, and move the log's head.
//!
//! Requests go on meanwhile: a page that changes before it is written is copied first. It must never know what the pages
//! mean.

use super::commit::{Cut, REQUEST_LOG_BYTES_MAX};
use super::pins::WriteBacks;
use super::types::Purpose;
use super::{Mutation, StoreEngine};
use crate::layout::{PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B, TABLE_COPIES};
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::{AlignedBuffer, Payload};
use smallvec::smallvec;

/// Device writes of a checkpoint that are in flight at once while there is time.
const DEPTH: usize = 16;
/// Device writes of a checkpoint that are in flight at once when requests are about to wait for it.
const DEPTH_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Checksum pages of changed chunks are read.
    Gather,
    /// Blocks, pages and table are written.
    Write,
    /// What overtook a write-back becomes durable.
    Overtaken,
    Flush,
    Superblock,
    SuperblockFlush,
}

/// Slots whose checksums a checkpoint needs and were not in memory when it looked, last first.
#[derive(Default, Debug)]
struct Missing(Vec<u32>);

impl Missing {
    /// The next ones that still lack them, at most `count_max`. It is asked after every event, so it looks at few others.
    fn next(&mut self, count_max: usize, lacks: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut next = Vec::new();
        while next.len() < count_max {
            let Some(slot) = self.0.pop() else { break };
            if lacks(slot) {
                next.push(slot);
            }
        }
        self.0.extend(next.iter().rev());
        next
    }
}

/// A running checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    step: Step,
    /// The sequence of the superblock that ends it.
    sequence: u64,
    /// Its number in pages: no other checkpoint has it, not even one that a crash cut short.
    as_of: u64,
    /// The new head of the log.
    head: Option<Cut>,
    missing: Missing,
    pub backs: WriteBacks,
    /// Slots whose pages are to be written as they were when it began.
    slots: Vec<u32>,
    /// Granules without an owner that its bitmap calls free.
    leaked: Vec<u32>,
    outstanding: usize,
    table: Vec<Payload>,
    table_bytes: u64,
    table_checksum: u64,
}

impl StoreEngine {
    fn checkpoint_due(&self) -> bool {
        let pinned = self.pins.len() as u64 * PAGE_BYTES;
        let waits_for_room = !self.waiting.is_empty() || !self.drops.is_empty();
        self.checkpoint_wanted
            || waits_for_room && !self.has_room(REQUEST_LOG_BYTES_MAX)
            || self.log.used() > self.log_limit()
            || self.dirty.len() > self.dirty_limit()
            || pinned > self.options.pinned_bytes_max
    }

    /// True while a checkpoint waits for checksum pages.
    pub(super) fn gathering(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.step == Step::Gather)
    }

    /// The number of the checkpoint that is writing pages.
    pub(super) fn checkpoint_as_of(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.as_of)
    }

    /// Moves the checkpoint on. True if it went further.
    pub(super) fn checkpoint_step(&mut self) -> bool {
        if self.checkpoint.is_none() && self.checkpoint_due() {
            self.checkpoint_wanted = false;
            self.checkpoint = Some(Box::new(Checkpoint {
                step: Step::Gather,
                sequence: self.sb.sequence + 1,
                as_of: self.options.nonce.wrapping_add(self.sb.sequence + 1),
                head: None,
                missing: Missing::default(),
                backs: WriteBacks::default(),
                slots: vec![],
                leaked: vec![],
                outstanding: 0,
                table: vec![],
                table_bytes: 0,
                table_checksum: 0,
            }));
        }
        let Some(mut checkpoint) = self.checkpoint.take() else { return false };
        let before = checkpoint.step;
        let done = self.checkpoint_advance(&mut checkpoint);
        let moved = done || checkpoint.step != before;
        if !done {
            self.checkpoint = Some(checkpoint);
        }
        moved
    }

    /// One step; true when the checkpoint is done.
    fn checkpoint_advance(&mut self, c: &mut Checkpoint) -> bool {
        match c.step {
            Step::Gather => {
                if self.gather(c) {
                    self.freeze(c);
                    c.step = Step::Write;
                }
            }
            Step::Write => self.checkpoint_write(c),
            Step::Overtaken => {
                if self.log.complete_cut().is_some() || self.broken(Mutation::NoSecondSeal) {
                    self.flush_then(c, Step::Flush);
                }
            }
            _ if c.outstanding > 0 => {}
            Step::Flush => {
                self.write_superblock(c);
                c.step = Step::Superblock;
            }
            Step::Superblock => self.flush_then(c, Step::SuperblockFlush),
            Step::SuperblockFlush => {
                self.log.head = c.head.expect("the superblock names it").position;
                self.stats.checkpoints += 1;
                if !c.leaked.is_empty() {
                    self.leaked.clear();
                }
                for granule in std::mem::take(&mut c.leaked) {
                    self.granules.release(granule);
                }
                self.evict_all();
                return true;
            }
        }
        false
    }

    fn flush_then(&mut self, c: &mut Checkpoint, step: Step) {
        if self.flush_needed() {
            c.outstanding += 1;
            self.issue_flush(Purpose::Checkpoint);
        }
        c.step = step;
    }

    pub(super) fn checkpoint_io_done(&mut self) {
        self.checkpoint.as_mut().expect("its operation was in flight").outstanding -= 1;
    }

    /// True once all checksums of changed chunks are in memory. All of these are looked at when none is known to lack any.
    fn gather(&mut self, c: &mut Checkpoint) -> bool {
        if self.want_missing(c) {
            return false;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty.retain(|slot| self.map.chunk(*slot).is_some_and(|chunk| chunk.dirty));
        let lacks = |slot: &u32| self.map.chunk(*slot).is_some_and(|chunk| !chunk.has_sums());
        c.missing = Missing(dirty.iter().copied().filter(lacks).collect());
        self.dirty = dirty;
        !self.want_missing(c)
    }

    /// True if checksums are known to be missing; the next ones are being read then.
    fn want_missing(&mut self, c: &mut Checkpoint) -> bool {
        let lacks = |slot| self.map.chunk(slot).is_some_and(|chunk| chunk.dirty && !chunk.has_sums());
        let next = c.missing.next(2 * DEPTH, lacks);
        next.iter().for_each(|slot| self.want_sums(*slot));
        !next.is_empty()
    }

    /// The moment that the checkpoint shows: changed pages are marked, the table is copied, the log is cut.
    fn freeze(&mut self, c: &mut Checkpoint) {
        c.slots = std::mem::take(&mut self.dirty);
        for slot in &c.slots {
            if !self.broken(Mutation::NoTurn) {
                self.map.turn(*slot);
            }
            let chunk = self.map.chunk_mut(*slot).expect("dirty slots are in use");
            (chunk.dirty, chunk.frozen, chunk.as_of) = (false, true, c.as_of);
        }
        c.backs = self.write_backs();
        let granules = self.granules.words_without(self.freed_on_the_way());
        c.leaked = self.leaked.clone();
        let bytes = self.table.encode(self.map.slot_count(), self.map.directory(), &granules);
        let (half, layout) = (1 - self.sb.table_half, self.layout());
        assert!(bytes.len() as u64 <= layout.table_bytes(), "the volume table keeps its limit: {} bytes", bytes.len());
        c.table_bytes = bytes.len() as u64;
        c.table_checksum = metadata_checksum(self.sb.device.as_u128(), layout.table_offset(half, 0), &bytes);
        c.table = vec![AlignedBuffer::copied_from(&bytes).freeze(); TABLE_COPIES as usize];
        self.log.ask_for_cut();
    }

    /// Yields to requests as long as it can: the nearer log or pins are to where requests wait, at twice their limit, the
    /// more goes out at once.
    fn write_depth(&self) -> usize {
        let more = (DEPTH_MAX - DEPTH) as u64;
        let behind = |used: u64, limit: u64| more * used.saturating_sub(limit).min(limit) / limit.max(1);
        let log = behind(self.log.used(), self.log_limit());
        let pins = behind(self.pins.len() as u64 * PAGE_BYTES, self.options.pinned_bytes_max);
        DEPTH + log.max(pins) as usize
    }

    fn checkpoint_write(&mut self, c: &mut Checkpoint) {
        let (half, mut copy) = (1 - self.sb.table_half, 0);
        while let Some(table) = c.table.pop() {
            c.outstanding += 1;
            let offset = self.layout().table_offset(half, copy);
            self.issue_write(Purpose::Checkpoint, offset, smallvec![table]);
            copy += 1;
        }
        let depth = self.write_depth();
        while c.outstanding < depth {
            if self.frozen_pages.is_empty() {
                let Some(slot) = c.slots.pop() else { break };
                self.freeze_page(slot);
            }
            let Some((slot, pages)) = self.frozen_pages.pop() else { continue };
            c.outstanding += 1;
            let offset = self.layout().slot_offset(slot, self.map.half(slot));
            self.issue_write(Purpose::Checkpoint, offset, smallvec![pages]);
        }
        c.outstanding += self.write_back(&mut c.backs, depth.saturating_sub(c.outstanding));
        let written =
            c.outstanding == 0 && c.backs.todo.is_empty() && c.slots.is_empty() && self.frozen_pages.is_empty();
        let early = self.broken(Mutation::EarlyHead);
        if !(written || early) {
            return;
        }
        c.head = self.log.complete_cut();
        if c.head.is_none() {
            return;
        }
        if c.backs.overtaken {
            self.log.ask_for_cut();
            c.step = Step::Overtaken;
        } else {
            self.flush_then(c, Step::Flush);
        }
    }

    /// A slot's page changes: a checkpoint that wants it as it was gets it now.
    pub(super) fn freeze_page(&mut self, slot: u32) {
        let (half, device) = (self.map.half(slot), self.sb.device);
        let Some(chunk) = self.map.chunk_mut(slot).filter(|chunk| chunk.frozen) else { return };
        chunk.frozen = false;
        let as_of = chunk.as_of;
        let pages = chunk.encode(device, &self.sb.layout, slot, half, as_of).freeze();
        self.frozen_pages.push((slot, pages));
    }

    /// A slot is about to change.
    pub(super) fn modify(&mut self, slot: u32) {
        self.freeze_page(slot);
        self.mark_dirty(slot);
    }

    /// A slot has changed.
    pub(super) fn mark_dirty(&mut self, slot: u32) {
        if let Some(chunk) = self.map.chunk_mut(slot)
            && !chunk.dirty
        {
            chunk.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn write_superblock(&mut self, c: &mut Checkpoint) {
        let head = c.head.expect("it was cut before");
        let (flushes, atomic, completed) = (self.flush_needed(), self.atomic(), self.log.completed);
        let scrub = self.scrub.slot;
        let sb = &mut self.sb;
        sb.sequence = c.sequence;
        sb.head_offset = head.position % sb.layout.log.bytes;
        (sb.head_lsn, sb.head_previous) = (head.lsn, head.previous);
        sb.completed_lsn = completed;
        sb.table_half = 1 - sb.table_half;
        (sb.table_bytes, sb.table_checksum) = (c.table_bytes, c.table_checksum);
        (sb.flushes, sb.atomic) = (flushes, atomic);
        sb.scrub_slot = u64::from(scrub);
        let offset = if sb.sequence.is_multiple_of(2) { SUPERBLOCK_A } else { SUPERBLOCK_B };
        let page = sb.encode(offset).freeze();
        c.outstanding += 1;
        self.issue_write(Purpose::Checkpoint, offset, smallvec![page]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::HashSet;

    /// With all of the list looked at after each event, a checkpoint of many chunks kept the processor busy.
    #[test]
    fn what_is_missing_is_asked_for_without_looking_at_all_of_it_each_time() {
        const SLOTS: u32 = 10_000;
        let (mut missing, mut read, looks) = (Missing((0..SLOTS).collect()), HashSet::new(), Cell::new(0u64));
        let mut events = 0;
        loop {
            let next = missing.next(2 * DEPTH, |slot| {
                looks.set(looks.get() + 1);
                !read.contains(&slot)
            });
            // They arrive in any order.
            let Some(slot) = next.get(events % next.len().max(1)) else { break };
            assert!(next.len() == 2 * DEPTH || read.len() + next.len() == SLOTS as usize, "as many as possible");
            read.insert(*slot);
            events += 1;
        }
        assert_eq!((events, read.len()), (SLOTS as usize, SLOTS as usize));
        assert!(looks.get() <= u64::from(SLOTS) * (2 * DEPTH as u64 + 1), "{} looks", looks.get());
    }
}
