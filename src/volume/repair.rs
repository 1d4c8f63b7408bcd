//! Damage that replicas report by themselves (a scrub met it), and blocks whose content a replica does not know: looked
//! at, and put right from another member.
//!
//! A damaged block is read from its own replica first, then elsewhere, and rewritten in place there, as when a guest's
//! read meets it. A block of *unknown* content has no recorded checksum to repair it by, so it gets its content anew by an
//! ordinary write to all members under the range lock, of the bytes that the others have.
//!
//! Few at a time, and one by one while guests have work here. It must never write bytes that no member verified.

use super::asking::{Purpose, Read};
use super::engine::{Active, Effect, Operation, Outcome, VolumeEngine, VolumePhase, Work};
use super::lane::{LanePhase, Mask, bit};
use crate::wire::message::{BlockCondition, ReadReply, ToReplica};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, DeviceId};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::RangeInclusive;

/// Blocks that may wait for their repair. What is beyond is found by the replica's next pass.
pub(super) const WAITING_MAX: usize = 4096;
/// A repair that is not done by then makes room for the next: it was refused, or no good copy can be reached.
const PATIENCE_US: u64 = 10_000_000;
/// Marks requests that no guest asked for; the rest of the number is the block.
const OWN: u64 = 1 << 63;

/// A block on a device.
type Place = (u64, DeviceId);

/// What is known of a block that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Suspicion {
    /// The replica says that it is damaged.
    Reported,
    /// It is: this checksum is recorded for it.
    Bad(u32),
    /// The replica does not know its content.
    Unknown,
}

/// A repair under way.
#[derive(Clone, Copy, Debug)]
struct Running {
    since_us: u64,
    found: Suspicion,
    /// The good bytes are on their way to it.
    sent: bool,
}

/// Damaged blocks of one volume.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    waiting: BTreeMap<Place, Suspicion>,
    running: BTreeMap<Place, Running>,
    /// Where the last one began: those behind it come first.
    last: Option<Place>,
    /// Something may have become possible.
    pub wake: bool,
}

/// True for a request of the volume itself.
pub(super) fn is_own(request: u64) -> bool {
    request & OWN != 0
}

impl VolumeEngine {
    /// A replica's scrub met damage.
    pub(super) fn on_damaged(&mut self, device: DeviceId, range: BlockRange) {
        let geometry = self.spec.geometry;
        for block in range.blocks().filter(|block| geometry.contains(BlockRange::new(*block, 1))) {
            let lane = self.lanes.get(usize::from(geometry.lane_of_block(block)));
            if lane.is_some_and(|lane| lane.slot_of(device).is_some()) {
                self.suspect((block, device), Suspicion::Reported);
            }
        }
    }

    /// A read met a block whose content this device does not know.
    pub(super) fn note_unknown(&mut self, device: DeviceId, block: u64) {
        self.suspect((block, device), Suspicion::Unknown);
    }

    fn suspect(&mut self, place: Place, suspicion: Suspicion) {
        let repairs = &mut self.repairs;
        let known = repairs.waiting.contains_key(&place);
        if repairs.running.contains_key(&place) || (known && suspicion == Suspicion::Reported) {
            return;
        }
        if known || repairs.waiting.len() < WAITING_MAX {
            repairs.waiting.insert(place, suspicion);
            // What a guest's read met waits for the tick: the guest comes first.
            repairs.wake |= suspicion == Suspicion::Reported;
        }
    }

    /// Begins what may be begun.
    pub(super) fn drive_repairs(&mut self) {
        self.repairs.wake = false;
        if self.phase != VolumePhase::Serving || self.repairs.is_empty() {
            return;
        }
        self.give_up_late_repairs();
        let guests = !self.waiting.is_empty() || self.active.keys().any(|request| !is_own(*request));
        let most = if guests { self.settings.repairs_max.min(1) } else { self.settings.repairs_max };
        while self.repairs.running.len() < most {
            let Some(place) = self.next_repair() else { return };
            self.begin_repair(place);
        }
    }

    /// The next block that can be looked at, behind the last one in a circle.
    fn next_repair(&self) -> Option<Place> {
        let waiting = &self.repairs.waiting;
        let after = self.repairs.last.map_or(Unbounded, Excluded);
        let possible = |(place, suspicion): &(&Place, &Suspicion)| self.can_repair(**place, **suspicion);
        waiting.range((after, Unbounded)).chain(waiting).find(possible).map(|(place, _)| *place)
    }

    fn can_repair(&self, (block, device): Place, suspicion: Suspicion) -> bool {
        let lane = &self.lanes[usize::from(self.spec.geometry.lane_of_block(block))];
        let Some(slot) = lane.slot_of(device) else { return false };
        let there = lane.phase == LanePhase::Serving && self.lane_serves(lane) && lane.source_slots() & bit(slot) != 0;
        let others = lane.readable_slots(BlockRange::new(block, 1)) & !bit(slot) & !self.unknown_at(block);
        let possible = match suspicion {
            Suspicion::Reported => true,
            Suspicion::Bad(_) => others != 0,
            // Nothing of its own may hold a guest's write back for long.
            Suspicion::Unknown => others != 0 && self.may_write(),
        };
        there && possible && self.repairs.of_block(block).next().is_none()
    }

    fn begin_repair(&mut self, place: Place) {
        let (block, device) = place;
        let found = self.repairs.waiting.remove(&place).expect("just chosen");
        self.repairs.last = Some(place);
        self.repairs.running.insert(place, Running { since_us: self.now_us, found, sent: false });
        let number = usize::from(self.spec.geometry.lane_of_block(block));
        let slot = self.lanes[number].slot_of(device).expect("just looked up");
        let range = BlockRange::new(block, 1);
        match found {
            Suspicion::Reported => self.ask_slot(number, slot, range, Purpose::Repair { device }),
            Suspicion::Bad(checksum) => {
                let damage = vec![(slot, block, checksum)];
                let read = Read { damage, tried: bit(slot), ..Read::new(Purpose::Repair { device }, number, range) };
                self.insert_read(read);
            }
            Suspicion::Unknown => self.begin_rewrite(block),
        }
    }

    /// An answer to a read for a repair: first of the damaged replica itself, then of others.
    pub(super) fn on_repair_read(&mut self, read: Read, device: DeviceId, slot: usize, reply: &ReadReply) {
        let place = (read.range.start, device);
        let Some(running) = self.repairs.running.get(&place).copied() else { return };
        if self.check_blocks(read.range, reply)[0].is_some() {
            let sent = self.repair_damage(&read, reply);
            if sent & self.slot_mask(read.number, device) == 0 {
                self.end_repair(place); // it is sound, or of another version by now
            } else {
                self.repairs.running.insert(place, Running { sent: true, ..running });
            }
            return;
        }
        let own = self.lanes[read.number].slots[slot].device == device;
        match reply.conditions[0] {
            BlockCondition::Bad(checksum) if own => {
                self.repairs.running.insert(place, Running { found: Suspicion::Bad(checksum), ..running });
                self.read_elsewhere(&read, slot, 0, reply.conditions[0]);
            }
            BlockCondition::Unknown if own => {
                self.count_damage(place.0, device, "its content is not known there");
                self.repairs.running.remove(&place);
                self.suspect(place, Suspicion::Unknown);
                self.repairs.wake = true;
            }
            condition => self.read_elsewhere(&read, slot, 0, condition),
        }
    }

    fn slot_mask(&self, number: usize, device: DeviceId) -> Mask {
        self.lanes[number].slot_of(device).map_or(0, bit)
    }

    /// The device could not be asked now: later.
    pub(super) fn postpone_repair(&mut self, block: u64, device: DeviceId) {
        if let Some(running) = self.repairs.running.remove(&(block, device)) {
            self.suspect((block, device), running.found);
            self.repairs.wake = false; // with the next tick
        }
    }

    /// A repair is done, or there is nothing to repair.
    pub(super) fn end_repair(&mut self, place: Place) {
        self.repairs.running.remove(&place);
        self.repairs.waiting.remove(&place);
        self.repairs.wake = true;
    }

    fn give_up_late_repairs(&mut self) {
        let now_us = self.now_us;
        let late = |(_, running): &(&Place, &Running)| {
            now_us >= running.since_us + PATIENCE_US && running.found != Suspicion::Unknown
        };
        let late: Vec<(Place, Running)> = self.repairs.running.iter().filter(late).map(|(p, r)| (*p, *r)).collect();
        for ((block, device), running) in late {
            self.drop_repair_reads(|read| read.range.start == block && read.purpose == Purpose::Repair { device });
            self.repairs.running.remove(&(block, device));
            // Bytes that were sent and never confirmed were lost, or refused because a write came first; and what the
            // replica has told since was not listened to. The block is looked at again.
            let found = if running.sent { Suspicion::Reported } else { running.found };
            self.suspect((block, device), found);
        }
    }

    /// Over a new link the replica reports anew.
    pub(super) fn forget_repairs_of(&mut self, device: DeviceId) {
        self.drop_repair_reads(|read| read.purpose == Purpose::Repair { device });
        self.repairs.waiting.retain(|(_, damaged), _| *damaged != device);
        self.repairs.running.retain(|(_, damaged), run| *damaged != device || run.found == Suspicion::Unknown);
        self.repairs.wake = true;
    }

    fn drop_repair_reads(&mut self, gone: impl Fn(&Read) -> bool) {
        self.reads.retain(|_, read| !gone(read));
    }

    /// Writes the block's own content again, as an ordinary write that nobody waits for.
    fn begin_rewrite(&mut self, block: u64) {
        let (range, half) = (BlockRange::new(block, 1), BLOCK_BYTES as u32 / 2);
        let buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
        let operation = Operation::Write { range, buffer, head_bytes: half, tail_bytes: half };
        let id = OWN | block;
        self.active.insert(id, Active { since_us: self.now_us, range, work: Work::Locking { operation } });
        if self.lock.acquire(range, id) {
            self.begin_locked(id);
        }
    }

    /// Slots that a read for this request must not ask.
    pub(super) fn unknown_slots(&self, request: u64) -> Mask {
        if is_own(request) { self.unknown_at(request & !OWN) } else { 0 }
    }

    /// Slots that do not know the block's content.
    fn unknown_at(&self, block: u64) -> Mask {
        let number = usize::from(self.spec.geometry.lane_of_block(block));
        let running = self.repairs.running.range(places_of(block)).map(|(place, running)| (place, running.found));
        let waiting = self.repairs.waiting.range(places_of(block)).map(|(place, suspicion)| (place, *suspicion));
        let unknown = running.chain(waiting).filter(|(_, found)| *found == Suspicion::Unknown);
        unknown.fold(0, |mask, ((_, device), _)| mask | self.slot_mask(number, *device))
    }

    /// A rewrite has ended: it is committed, or no member has good bytes.
    pub(super) fn on_rewritten(&mut self, request: u64, outcome: &Outcome) {
        let block = request & !OWN;
        let devices: Vec<DeviceId> = self.repairs.of_block(block).collect();
        for device in devices {
            self.end_repair((block, device));
            if *outcome == Outcome::Written {
                self.note_repaired(block, device);
            }
        }
        // Written, it is known to all; and where nobody knows it, another try would find nothing else.
        self.repairs.waiting.retain(|(waiting, _), _| *waiting != block);
    }

    pub(super) fn note_repaired(&mut self, block: u64, device: DeviceId) {
        self.counters.repaired_blocks += 1;
        self.out.push(Effect::Note(format!("block {block} was repaired on device {device}")));
        self.ask_sources_again(block);
    }

    pub(super) fn count_damage(&mut self, block: u64, device: DeviceId, then: &str) {
        self.counters.damaged_blocks += 1;
        self.out.push(Effect::Alarm(format!(
            "volume {}: block {block} is damaged on device {device}; {then}",
            self.spec.name
        )));
    }

    /// A good copy came: rewrite the damaged ones that are of the same version. Gives the slots that it was sent to.
    pub(super) fn repair_damage(&mut self, read: &Read, reply: &ReadReply) -> Mask {
        let mut sent = 0;
        for (slot, block, recorded) in &read.damage {
            let at = (block - read.range.start) as usize;
            let same = reply.conditions.get(at) == Some(&BlockCondition::Data(*recorded));
            if let Some(payload) = reply.payload.as_ref().filter(|_| same) {
                let payload = payload.slice(at * BLOCK_BYTES, BLOCK_BYTES);
                let repair = ToReplica::Repair { block: *block, checksum: *recorded, payload };
                self.send(read.number, *slot, repair);
                sent |= bit(*slot);
            }
        }
        sent
    }
}

impl Repairs {
    /// Nothing is to be repaired.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Devices on which a block is being repaired.
    fn of_block(&self, block: u64) -> impl Iterator<Item = DeviceId> {
        self.running.range(places_of(block)).map(|((_, device), _)| *device)
    }
}

fn places_of(block: u64) -> RangeInclusive<Place> {
    (block, DeviceId::from_u128(0))..=(block, DeviceId::from_u128(u128::MAX))
}
