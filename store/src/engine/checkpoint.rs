//! Checkpoints: write back what only the log has, write the changed pages twice, and move the log's head.
//!
//! Requests go on meanwhile, except while the log drains just before the pages are copied. It must never know what the
//! pages mean.

use super::commit::Pending;
use super::types::{Effect, Purpose};
use super::{Phase, StoreEngine};
use crate::layout::{PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use crate::map::{block_of_chunk, encode_slot, image_checksum};
use crate::record::Record;
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::units::{CHUNK_BLOCKS, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, Payload};

/// Device writes of a checkpoint in flight.
const DEPTH: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    WriteBack,
    WriteBackFlush,
    Drain,
    Images,
    Pages,
    PagesFlush,
    Superblock,
    SuperblockFlush,
}

/// A running checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    step: Step,
    /// The new head of the log: position, number, and checksum of the group before.
    head: (u64, u64, u64),
    /// Blocks to write back, last first.
    todo: Vec<(u32, u16)>,
    outstanding: usize,
    /// Pages to write in place.
    pages: Vec<(u32, Payload)>,
    as_of: u64,
    table: Option<Payload>,
    table_bytes: u64,
    table_checksum: u64,
}

impl StoreEngine {
    /// True while the log drains: even lazy records are written.
    pub(super) fn draining(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.step == Step::Drain)
    }

    fn checkpoint_due(&self) -> bool {
        let log = self.layout().log.bytes;
        let pinned = self.pins.len() as u64 * PAGE_BYTES;
        self.checkpoint_wanted
            || matches!(self.phase, Phase::Finishing)
            || !self.waiting.is_empty() && !self.has_room(40 * PAGE_BYTES, 4)
            || self.log.used() > log / 2
            || self.dirty.len() as u64 * super::IMAGE_COST > log / 4
            || pinned > self.options.pinned_bytes_max
    }

    /// Moves the checkpoint on. True if requests may be taken again.
    pub(super) fn checkpoint_step(&mut self) -> bool {
        if self.checkpoint.is_none() && self.checkpoint_due() {
            self.checkpoint_wanted = false;
            self.checkpoint_begin();
        }
        let Some(mut checkpoint) = self.checkpoint.take() else { return false };
        let (before, mut done) = (checkpoint.step, false);
        loop {
            let step = checkpoint.step;
            done = done || self.checkpoint_advance(&mut checkpoint);
            if done || checkpoint.step == step {
                break;
            }
        }
        let moved = done || checkpoint.step != before;
        if !done {
            self.checkpoint = Some(checkpoint);
        }
        // Images and what waited for the drain want a group.
        if moved {
            self.commit_step();
        }
        moved
    }

    fn checkpoint_begin(&mut self) {
        let head = (self.log.tail, self.log.next_lsn, self.log.previous);
        let mut todo: Vec<_> = self.pins.iter().filter(|(_, pin)| pin.lsn < head.1).map(|(key, _)| *key).collect();
        todo.reverse();
        self.checkpoint = Some(Box::new(Checkpoint {
            step: Step::WriteBack,
            head,
            todo,
            outstanding: 0,
            pages: vec![],
            as_of: 0,
            table: None,
            table_bytes: 0,
            table_checksum: 0,
        }));
    }

    /// One step; true when the checkpoint is done.
    fn checkpoint_advance(&mut self, c: &mut Checkpoint) -> bool {
        let idle = c.outstanding == 0;
        match c.step {
            Step::WriteBack => {
                self.write_back(c);
                if c.outstanding == 0 && c.todo.is_empty() {
                    self.flush_then(c, Step::WriteBackFlush);
                }
            }
            Step::WriteBackFlush if idle => {
                // What this open judged is durable now, so its judgement may become so.
                for (lsn, ordinal) in std::mem::take(&mut self.dropped_now) {
                    self.append(Record::Dropped { lsn, ordinal }, vec![], None);
                }
                self.accepting = false;
                c.step = Step::Drain;
            }
            Step::Drain if self.log.is_drained() => {
                self.snapshot(c);
                c.step = Step::Images;
                self.accepting = !matches!(self.phase, Phase::Finishing);
            }
            Step::Images if self.log.images_left == 0 => {
                c.step = Step::Pages;
            }
            Step::Pages => {
                self.write_pages(c);
                if c.outstanding == 0 && c.pages.is_empty() {
                    self.flush_then(c, Step::PagesFlush);
                }
            }
            Step::PagesFlush if idle => {
                self.write_superblock(c);
                c.step = Step::Superblock;
            }
            Step::Superblock if idle => self.flush_then(c, Step::SuperblockFlush),
            Step::SuperblockFlush if idle => {
                self.log.head = c.head.0;
                self.stats.checkpoints += 1;
                if matches!(self.phase, Phase::Finishing) {
                    self.phase = Phase::Open;
                    self.accepting = true;
                    self.effects.push(Effect::Opened);
                }
                return true;
            }
            _ => {}
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

    /// Starts write-backs. A block whose group is not complete, or with a device write in flight, is left for later.
    fn write_back(&mut self, c: &mut Checkpoint) {
        let mut later = Vec::new();
        while c.outstanding < DEPTH {
            let Some(key) = c.todo.pop() else { break };
            match self.pins.get(&key) {
                Some(pin) if pin.lsn >= c.head.1 => continue,
                Some(_) => {}
                None => continue,
            }
            if !self.can_write_back(key) {
                later.push(key);
                continue;
            }
            let mut keys = vec![key];
            while let Some(next) = c.todo.last().copied() {
                let last = keys.last().expect("never empty");
                let neighbour = next.0 == last.0
                    && next.1 == last.1 + 1
                    && next.1 as usize / GRANULE_BLOCKS == last.1 as usize / GRANULE_BLOCKS;
                let old = self.pins.get(&next).is_some_and(|pin| pin.lsn < c.head.1);
                if !neighbour || !old || !self.can_write_back(next) {
                    break;
                }
                keys.push(next);
                c.todo.pop();
            }
            self.send_write_back(&keys);
            c.outstanding += 1;
        }
        later.reverse();
        c.todo.extend(later);
    }

    fn can_write_back(&self, key: (u32, u16)) -> bool {
        let entry = self.map.chunk(key.0).expect("a pin's slot is in use").entries[key.1 as usize / GRANULE_BLOCKS];
        let busy = self.busy.get(&entry.granule).copied().unwrap_or(0);
        self.pins[&key].lsn <= self.log.completed && busy & (1 << (key.1 as usize % GRANULE_BLOCKS)) == 0
    }

    fn send_write_back(&mut self, keys: &[(u32, u16)]) {
        let (slot, first) = keys[0];
        let granule =
            self.map.chunk(slot).expect("a pin's slot is in use").entries[first as usize / GRANULE_BLOCKS].granule;
        let mask = keys.iter().fold(0u16, |mask, key| mask | 1 << (key.1 as usize % GRANULE_BLOCKS));
        self.set_busy(granule, mask);
        self.touch(slot, first as usize / GRANULE_BLOCKS);
        let parts = keys.iter().map(|key| self.pins[key].payload.clone()).collect();
        let keys = keys.iter().map(|key| (*key, self.pins[key].op)).collect();
        let offset = self.layout().block_offset(granule, first as usize % GRANULE_BLOCKS);
        self.issue_write(Purpose::WriteBack { place: (granule, mask), keys }, offset, parts);
    }

    /// Written-back blocks are read from their place again, unless they were overwritten meanwhile.
    pub(super) fn written_back(&mut self, keys: &[((u32, u16), u64)]) {
        for (key, op) in keys {
            if self.pins.get(key).is_some_and(|pin| pin.op == *op) {
                self.pins.remove(key);
                self.touch(key.0, key.1 as usize / GRANULE_BLOCKS);
            }
        }
        self.checkpoint_io_done();
    }

    /// Everything accepted is complete: copies the changed pages and the table.
    fn snapshot(&mut self, c: &mut Checkpoint) {
        c.as_of = self.log.next_lsn - 1;
        let imaged = std::mem::take(&mut self.imaged);
        for slot in &self.dirty {
            let pages = encode_slot(self.sb.device, &self.sb.layout, *slot, self.map.chunk(*slot)).freeze();
            let checksum = image_checksum(self.sb.device, &self.sb.layout, *slot, &pages);
            let record = Record::PageImage { slot: *slot, as_of: c.as_of, checksum };
            self.log.images.push_back(Pending { record, payloads: vec![pages.clone()], op: None });
            c.pages.push((*slot, pages));
        }
        self.log.images_left = self.log.images.len();
        for slot in imaged.difference(&self.dirty) {
            c.pages.push((*slot, encode_slot(self.sb.device, &self.sb.layout, *slot, self.map.chunk(*slot)).freeze()));
        }
        self.dirty.clear();
        let bytes = self.table.encode(&self.map.directory());
        let half = self.layout().table[1 - self.sb.table_half as usize];
        assert!(bytes.len() as u64 <= half.bytes, "the volume table is kept within its half: {} bytes", bytes.len());
        c.table_bytes = bytes.len() as u64;
        c.table_checksum = metadata_checksum(self.sb.device.as_u128(), half.offset, &bytes);
        c.table = Some(AlignedBuffer::copied_from(&bytes).freeze());
    }

    fn write_pages(&mut self, c: &mut Checkpoint) {
        if let Some(table) = c.table.take() {
            c.outstanding += 1;
            let offset = self.layout().table[1 - self.sb.table_half as usize].offset;
            self.issue_write(Purpose::Checkpoint, offset, vec![table]);
        }
        while c.outstanding < DEPTH {
            let Some((slot, pages)) = c.pages.pop() else { break };
            c.outstanding += 1;
            let offset = self.layout().slot_offset(slot);
            self.issue_write(Purpose::Checkpoint, offset, vec![pages]);
        }
    }

    fn write_superblock(&mut self, c: &mut Checkpoint) {
        let sb = &mut self.sb;
        sb.sequence += 1;
        sb.head_offset = c.head.0 % sb.layout.log.bytes;
        sb.head_lsn = c.head.1;
        sb.head_previous = c.head.2;
        sb.map_lsn = c.as_of;
        sb.completed_lsn = self.log.completed;
        sb.table_half = 1 - sb.table_half;
        (sb.table_bytes, sb.table_checksum) = (c.table_bytes, c.table_checksum);
        let offset = if sb.sequence.is_multiple_of(2) { SUPERBLOCK_A } else { SUPERBLOCK_B };
        let page = sb.encode(offset).freeze();
        c.outstanding += 1;
        self.issue_write(Purpose::Checkpoint, offset, vec![page]);
    }
}

const _: () = assert!(CHUNK_BLOCKS <= u16::MAX as usize, "block numbers within a chunk fit a pin's key");

/// The key of a block's pin.
pub(super) fn pin_key(slot: u32, block: u64) -> (u32, u16) {
    (slot, block_of_chunk(block) as u16)
}
