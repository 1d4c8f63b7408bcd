//! A state that may be older than what the devices hold: it was read from a backup, or from what one member of a lost
//! group had. What it says of nodes, devices and volumes is taken; what it says of who is in sync is not.
//!
//! A member that has left a set since then must not be taken as one that holds the lane. So every lane becomes
//! *unverified*: its mask names every device that may hold it, no clean mark stands, and the next writer seals all of them
//! and decides by what they hold (`src/volume/verify.rs` of the daemon). Its first compare-and-set ends that. Epochs rise
//! above whatever was promised in the life that was lost.

use super::State;
use super::entities::{Lane, Volume};
use crate::command::{LaneScope, Response};
use crate::refusal::Refusal;
use ashlar_model::{DeviceId, Epoch, VolumeId};
use std::sync::Arc;

/// A restored volume's next epochs are this far above those that are known.
const EPOCH_STEP: u64 = 1 << 20;
/// Stores keep the epochs of settled blocks in 32 bits.
const EPOCH_MAX: u64 = u32::MAX as u64 / 2;
/// Agents that go on running take only a later version of the metadata for newer.
const VERSION_STEP: u64 = 1 << 32;

/// What a restored state consists of, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Volumes.
    pub volumes: usize,
    /// Volumes that were attached.
    pub attached: usize,
    /// Lanes, all unverified from now on.
    pub lanes: usize,
    /// Devices that a volume had left and that keep what they hold of it: it may have come back since.
    pub kept: usize,
}

impl State {
    /// Makes the state safe to go on from. `epoch_floor` is a number that is larger with every restore of the cluster, by
    /// more than a volume can be attached in between: time.
    ///
    /// # Errors
    /// It is no state of a cluster, or the floor is out of range.
    pub fn restore(&mut self, epoch_floor: u64) -> Result<Restored, String> {
        if self.cluster.is_none() {
            return Err("it holds no cluster".to_owned());
        }
        let highest = self.volumes.values().map(|volume| volume.epoch.0).max().unwrap_or(0);
        if epoch_floor.max(highest) > EPOCH_MAX - EPOCH_STEP {
            return Err(format!(
                "epochs end at {EPOCH_MAX}: {highest} is in use and {epoch_floor} wanted; set the clock"
            ));
        }
        let mut restored = Restored { volumes: self.volumes.len(), ..Restored::default() };
        for id in self.volumes.keys().copied().collect::<Vec<_>>() {
            self.distrust(id, epoch_floor, &mut restored);
        }
        self.version += VERSION_STEP;
        Ok(restored)
    }

    fn distrust(&mut self, id: VolumeId, epoch_floor: u64, restored: &mut Restored) {
        let masks = self.volumes[&id].lanes.iter().map(|lane| self.bits_of(lane).fold(0, |mask, (_, bit)| mask | bit));
        let masks = masks.collect::<Vec<u8>>();
        let left = self.deleted.remove(&id).map_or(0, |devices| devices.len());
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { return };
        restored.attached += usize::from(volume.attachment.take().is_some());
        restored.lanes += volume.lanes.len();
        restored.kept += left + volume.parting.len();
        volume.epoch = Epoch(volume.epoch.0.max(epoch_floor) + EPOCH_STEP);
        volume.parting.clear();
        volume.restored = true;
        for (lane, mask) in volume.lanes.iter_mut().zip(masks) {
            (lane.clean, lane.granted_clean, lane.granted) = (None, None, None);
            (lane.in_sync_mask, lane.unverified, lane.distrusted) = (mask, true, true);
        }
    }

    /// Lanes that wait for what this device may hold: those that could do without it, and those that have no other.
    pub fn unverified_on(&self, device: DeviceId, scope: LaneScope) -> (usize, usize) {
        let all = self.volumes().flat_map(|volume| volume.lanes.iter().enumerate().map(move |lane| (volume.id, lane)));
        let meant = all.filter(|(id, (number, _))| scope.contains(*id, *number));
        let bits = meant.filter_map(|(_, (_, lane))| self.unverified_bit(lane, device));
        let (others, last): (Vec<bool>, Vec<bool>) = bits.map(|(_, others)| others).partition(|others| *others);
        (others.len(), last.len())
    }

    /// Volumes with lanes that wait for what this device may hold.
    pub fn volumes_waiting_for(&self, device: DeviceId) -> impl Iterator<Item = VolumeId> + '_ {
        let waits = move |volume: &&Volume| volume.lanes.iter().any(|lane| self.unverified_bit(lane, device).is_some());
        self.volumes().filter(waits).map(|volume| volume.id)
    }

    /// Lanes of a volume that no writer has looked at since the metadata was restored.
    pub fn unverified_lanes(&self, volume: VolumeId) -> usize {
        self.volume(volume).map_or(0, |volume| volume.lanes.iter().filter(|lane| lane.unverified).count())
    }

    /// The device's bit in the mask of an unverified lane, and whether there are others.
    fn unverified_bit(&self, lane: &Lane, device: DeviceId) -> Option<(u8, bool)> {
        let (_, bit) = self.bits_of(lane).find(|(holder, _)| *holder == device)?;
        (lane.unverified && lane.in_sync_mask & bit != 0).then_some((bit, lane.in_sync_mask & !bit != 0))
    }

    /// An operator's word in place of the device's. The epoch rises, so that no writer of before records a set with it; it
    /// keeps the volume until it has been told to let go.
    pub(super) fn disregard(&mut self, device: DeviceId, scope: LaneScope) -> Result<Response, Refusal> {
        self.devices.get(&device).ok_or(Refusal::DeviceNotFound(device))?;
        if let Some(volume) = scope.volume {
            self.volumes.get(&volume).ok_or(Refusal::VolumeNotFound(volume))?;
        }
        for id in self.volumes.keys().copied().collect::<Vec<_>>() {
            let lanes = self.volumes[&id].lanes.iter().enumerate();
            let bit = |(number, lane)| scope.contains(id, number).then(|| self.unverified_bit(lane, device)).flatten();
            let bits = lanes.map(bit).collect::<Vec<_>>();
            let may_go = |bit: &Option<(u8, bool)>| bit.filter(|(_, others)| *others).map(|(bit, _)| bit);
            if !bits.iter().any(|bit| may_go(bit).is_some()) {
                continue;
            }
            let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { continue };
            volume.epoch = Epoch(volume.epoch.0 + 1);
            for (lane, bit) in volume.lanes.iter_mut().zip(&bits) {
                lane.in_sync_mask &= !may_go(bit).unwrap_or(0);
                (lane.granted, lane.granted_clean) = (None, None);
                assert!(lane.in_sync_mask != 0, "M4");
            }
        }
        Ok(Response::Done)
    }
}
