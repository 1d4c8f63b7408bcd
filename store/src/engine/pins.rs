//! Blocks whose newest content is in the log and not at its place yet; and writing them back.
//!
//! It must never choose how a block is written.

use super::types::{Place, Purpose};
use super::{Mutation, StoreEngine};
use crate::disk::NO_GRANULE;
use crate::layout::physical_block;
use crate::map::block_of_chunk;
use ashlar_model::Payload;
use ashlar_model::units::GRANULE_BLOCKS;

/// A block that is read from memory.
#[derive(Debug)]
pub(super) struct Pin {
    pub payload: Payload,
    pub checksum: u32,
    /// The operation that brought it (zero after recovery).
    pub op: u64,
    /// Its group; `u64::MAX` while it waits for one.
    pub lsn: u64,
}

/// The key of a block's pin.
pub(super) fn pin_key(slot: u32, block: u64) -> (u32, u16) {
    (slot, block_of_chunk(block) as u16)
}

/// Blocks still to be written back, last first, and until when.
#[derive(Debug, Default)]
pub(super) struct WriteBacks {
    pub todo: Vec<(u32, u16)>,
    /// Operations below this one are the checkpoint's.
    pub before_op: u64,
    /// A block changed before it was written back: its new content must be durable instead.
    pub overtaken: bool,
}

impl StoreEngine {
    /// All that waits for its write-back now.
    pub(super) fn write_backs(&self) -> WriteBacks {
        let todo = if self.broken(Mutation::NoWriteBack) { vec![] } else { self.pins.keys().copied().rev().collect() };
        WriteBacks { todo, before_op: self.next_op, overtaken: false }
    }

    /// Starts up to `depth` write-backs; gives their number. A block whose group is not complete, or with a device write
    /// in flight, is left for later.
    pub(super) fn write_back(&mut self, backs: &mut WriteBacks, depth: usize) -> usize {
        let (mut later, mut started) = (Vec::new(), 0);
        while started < depth {
            let Some(key) = backs.todo.pop() else { break };
            if self.pins.get(&key).is_none_or(|pin| pin.op >= backs.before_op) {
                backs.overtaken = true;
                continue;
            }
            if !self.can_write_back(key) {
                later.push(key);
                continue;
            }
            let mut count = 1;
            while let Some(next) = backs.todo.last().copied() {
                let neighbour = next.0 == key.0
                    && next.1 == key.1 + count
                    && next.1 as usize / GRANULE_BLOCKS == key.1 as usize / GRANULE_BLOCKS
                    && self.physical(next) == self.physical(key) + u64::from(count);
                let ours = self.pins.get(&next).is_some_and(|pin| pin.op < backs.before_op);
                if !neighbour || !ours || !self.can_write_back(next) {
                    break;
                }
                count += 1;
                backs.todo.pop();
            }
            self.send_write_back(key, count);
            started += 1;
        }
        later.reverse();
        backs.todo.extend(later);
        started
    }

    fn can_write_back(&self, key: (u32, u16)) -> bool {
        let (granule, place) = self.pin_place(key);
        self.pins[&key].lsn <= self.log.completed && !self.is_busy(granule, 1 << place)
    }

    /// Granule and place of a pinned block.
    fn pin_place(&self, (slot, block): (u32, u16)) -> (u32, usize) {
        let chunk = self.map.chunk(slot).expect("a pin's slot is in use");
        let (granule, block) = (usize::from(block) / GRANULE_BLOCKS, usize::from(block) % GRANULE_BLOCKS);
        (chunk.granule(granule), chunk.order(granule).place(block))
    }

    fn physical(&self, key: (u32, u16)) -> u64 {
        let (granule, place) = self.pin_place(key);
        physical_block(granule, place)
    }

    fn send_write_back(&mut self, key: (u32, u16), count: u16) {
        let (slot, first) = key;
        let (granule, place) = self.pin_place(key);
        assert_ne!(granule, NO_GRANULE, "a pinned block has a place");
        let physical = physical_block(granule, place);
        let place = Place { first: physical, count: u32::from(count) };
        self.set_busy(place);
        self.touch(slot);
        let parts = (first..first + count).map(|block| self.pins[&(slot, block)].payload.clone()).collect();
        let offset = self.layout().physical_offset(place.first);
        self.issue_write(Purpose::WriteBack { slot, first, place }, offset, parts);
    }

    /// Written-back blocks are read from their place again, unless they were overwritten meanwhile.
    pub(super) fn written_back(&mut self, slot: u32, first: u16, count: u32) {
        let checkpoint = self.checkpoint.as_ref().expect("only checkpoints write back");
        let before_op = checkpoint.backs.before_op;
        for block in first..first + count as u16 {
            if self.pins.get(&(slot, block)).is_some_and(|pin| pin.op < before_op) {
                self.pins.remove(&(slot, block));
            }
        }
        self.touch(slot);
        self.checkpoint_io_done();
    }

    /// An operation got its group: its pins know it.
    pub(super) fn pins_grouped(&mut self, slot: u32, range: ashlar_model::BlockRange, op: u64, lsn: u64) {
        let (first, last) = (pin_key(slot, range.start), pin_key(slot, range.end() - 1));
        if first == last {
            if let Some(pin) = self.pins.get_mut(&first).filter(|pin| pin.op == op) {
                pin.lsn = lsn;
            }
            return;
        }
        for (_, pin) in self.pins.range_mut(first..=last).filter(|(_, pin)| pin.op == op) {
            pin.lsn = lsn;
        }
    }

    /// The blocks are no longer what their pins hold.
    pub(super) fn unpin(&mut self, slot: u32, range: ashlar_model::BlockRange) {
        let (first, last) = (pin_key(slot, range.start), pin_key(slot, range.end() - 1));
        if first == last {
            self.pins.remove(&first);
            return;
        }
        while let Some((key, _)) = self.pins.range(first..=last).next() {
            let key = *key;
            self.pins.remove(&key);
        }
    }

    /// Drops all pins of a slot.
    pub(super) fn unpin_slot(&mut self, slot: u32) {
        let keys: Vec<_> = self.pins.range((slot, 0)..=(slot, u16::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            self.pins.remove(&key);
        }
    }

    /// Tells readers of a chunk that they may have raced with a device write.
    pub(super) fn touch(&mut self, slot: u32) {
        self.map.touch(slot);
    }
}
