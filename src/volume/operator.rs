//! What people and the metadata service want of a running writer: another size, other members, a member out.
//!
//! Wishes change no set by themselves: joins and compare-and-sets do, under the same rules as always (C1 to C4).

use super::engine::{Effect, VolumeEngine};
use super::lane::{Lane, Mask, Slot, bit, slots_of};
use super::slow::Followed;
use ashlar_model::DeviceId;
use ashlar_model::cluster::VolumeSpec;

/// An ejection by hand that is not possible for this long is forgotten: it must not come as a surprise.
const EJECT_PATIENCE_US: u64 = 10_000_000;

impl VolumeEngine {
    /// The volume as it is wanted now. Grows the volume, and gives lanes the members that they shall have: a device that
    /// is new joins, and one that is not wanted any more leaves when another has taken its place.
    /// Volumes only grow: a smaller size is an older one than the grant's.
    pub(super) fn on_spec(&mut self, mut spec: VolumeSpec) {
        let fits = spec.id == self.spec.id
            && spec.lanes.len() == self.spec.lanes.len()
            && spec.geometry.lane_count == self.spec.geometry.lane_count
            && spec.quorum == self.spec.quorum;
        if !fits {
            self.out.push(Effect::Alarm(format!(
                "volume {}: a change of its lanes or quorum that an attached volume cannot follow; detach it first",
                self.spec.name
            )));
            return;
        }
        spec.geometry.size_bytes = spec.geometry.size_bytes.max(self.spec.geometry.size_bytes);
        self.spec = spec;
        for number in 0..self.lanes.len() {
            self.adopt_copyset(number);
        }
    }

    fn adopt_copyset(&mut self, number: usize) {
        let wanted = self.spec.lanes[number].clone();
        for device in &wanted {
            if self.lanes[number].slot_of(*device).is_none() && !self.add_slot(number, *device) {
                return;
            }
        }
        let lane = &mut self.lanes[number];
        let former = lane.copyset;
        lane.copyset = lane.mask_of(&wanted);
        if former & !lane.copyset & !lane.in_sync != 0 {
            lane.confirm_from = Some(lane.last); // it may free what it has once nothing here counts it
        }
        let unwanted = lane.join.as_ref().map(|join| join.slot).filter(|slot| lane.copyset & bit(*slot) == 0);
        if let Some(slot) = unwanted {
            self.drop_join_of(number, slot);
        }
    }

    /// Makes room for a device, in place of one that has left if there are many.
    fn add_slot(&mut self, number: usize, device: DeviceId) -> bool {
        let (up, distrusted) = (self.links_up.contains(&device), self.spec.restored);
        let lane = &mut self.lanes[number];
        if lane.slots.len() < Mask::BITS as usize {
            lane.slots.push(Slot { distrusted, ..Slot::new(device, up) });
            if let Some(recovery) = &mut lane.recovery {
                recovery.seals.push(None);
            }
            return true;
        }
        let used = lane.used_slots();
        let asked = |slot: usize| self.reads.values().any(|read| read.number == number && read.concerns(slot));
        let Some(free) = (0..lane.slots.len()).find(|slot| used & bit(*slot) == 0 && !asked(*slot)) else {
            self.out.push(Effect::Alarm(format!(
                "volume {} lane {number}: no room to remember device {device}; detach and attach the volume",
                self.spec.name
            )));
            return false;
        };
        for retained in &mut lane.retained {
            retained.have &= !bit(free);
            retained.holders &= !bit(free);
        }
        lane.slots[free] = Slot { distrusted, ..Slot::new(device, up) };
        true
    }

    /// An operator wants the device out of every lane, now. It comes back by a join, like any member that was away.
    pub(super) fn on_eject(&mut self, device: DeviceId) {
        let mut known = false;
        for lane in &mut self.lanes {
            if let Some(slot) = lane.slot_of(device).filter(|slot| lane.in_sync & bit(*slot) != 0) {
                lane.slots[slot].eject_until_us = self.now_us + EJECT_PATIENCE_US;
                known = true;
            }
        }
        if !known {
            self.out.push(Effect::Note(format!("volume {}: device {device} is in no in-sync set", self.spec.name)));
        }
    }
}

impl Slot {
    /// A device of which nothing is known yet.
    pub fn new(device: DeviceId, up: bool) -> Self {
        Self {
            device,
            up,
            started: false,
            prefix: 0,
            granted_us: None,
            slow_until_us: 0,
            full: false,
            failed: false,
            distrusted: false,
            lost_data: false,
            eject_until_us: 0,
            behind_since_us: None,
            behind_index: 0,
            progressed_us: 0,
            resent_us: 0,
            followed: Followed::default(),
            in_sync_since_us: 0,
            join_not_before_us: 0,
            joins_failed: 0,
            setbacks: 0,
            left_alone: None,
        }
    }
}

impl Lane {
    /// Slots that some rule still looks at.
    fn used_slots(&self) -> Mask {
        let target = self.recovery.as_ref().map_or(0, |recovery| recovery.target);
        let join = self.join.as_ref().map_or(0, |join| bit(join.slot));
        self.copyset | self.in_sync | self.pending.unwrap_or(0) | target | join
    }

    /// Members that another device shall replace.
    pub fn leaving(&self) -> Mask {
        self.in_sync & !self.copyset
    }

    /// The set to propose once `joiner` has caught up: never more members than are wanted, as long as one may leave.
    pub fn set_with(&self, joiner: usize) -> Mask {
        let mut new = self.in_sync | bit(joiner);
        for slot in slots_of(self.leaving()) {
            if new.count_ones() > self.copyset.count_ones() {
                new &= !bit(slot);
            }
        }
        new
    }
}
