//! A volume that is attached to this node, or about to be: what for, and who waits for it.

use super::control::{AttachDone, AttachFor, AttachRefusal};
use crate::volume::VolumeEngine;
use ashlar_model::{DeviceId, Epoch};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::oneshot;

/// Waits for an attach by command.
pub(super) type Waiter = oneshot::Sender<Result<AttachDone, AttachRefusal>>;

/// How many attached volumes need a device.
#[derive(Debug, Default)]
pub(super) struct Users(BTreeMap<DeviceId, u32>);

impl Users {
    /// Devices that some volume needs.
    pub fn devices(&self) -> impl Iterator<Item = DeviceId> {
        self.0.keys().copied()
    }

    /// A volume that needed `before` needs `now`.
    fn change(&mut self, before: &BTreeSet<DeviceId>, now: &BTreeSet<DeviceId>) {
        for device in now.difference(before) {
            *self.0.entry(*device).or_default() += 1;
        }
        for device in before.difference(now) {
            let users = self.0.get_mut(device).expect("counted when it was needed");
            *users -= 1;
            if *users == 0 {
                self.0.remove(device);
            }
        }
    }
}

/// A volume with its writer on this node.
pub(super) struct Attached {
    pub engine: VolumeEngine,
    /// Number of the writer in this session of the daemon.
    pub attempt: u64,
    /// The writer before it, which gave way and has the volume until this one's grant.
    pub predecessor: Option<u64>,
    /// What the metadata service is asked for.
    pub asked: AttachFor,
    pub asked_at_us: u64,
    /// What it granted; a writer that cares for a volume may be granted the volume for guests later.
    pub granted: Option<AttachFor>,
    /// The grant needed no recovery.
    pub opened_clean: bool,
    /// Attached by command: stays without guests.
    pub pinned: bool,
    pub guests: BTreeSet<u64>,
    /// Guests that wait for the volume, or for its end to attach it anew.
    pub waiting_guests: Vec<u64>,
    pub waiters: Vec<Waiter>,
    pub detach_waiters: Vec<oneshot::Sender<bool>>,
    pub quiet_since_us: u64,
    pub closing: bool,
    /// Devices that it needs, as they are counted.
    pub devices: BTreeSet<DeviceId>,
    /// Its engine is told of every tick: what the clock has, without a look-up for each event.
    pub ticks: bool,
}

impl Attached {
    /// A writer that asks for its epoch.
    pub fn new(engine: VolumeEngine, attempt: u64, purpose: AttachFor, now_us: u64) -> Self {
        Self {
            engine,
            attempt,
            predecessor: None,
            asked: purpose,
            asked_at_us: now_us,
            granted: None,
            opened_clean: false,
            pinned: false,
            guests: BTreeSet::new(),
            waiting_guests: Vec::new(),
            waiters: Vec::new(),
            detach_waiters: Vec::new(),
            quiet_since_us: now_us,
            closing: false,
            devices: BTreeSet::new(),
            ticks: false,
        }
    }

    /// Counts the devices that the engine needs now. True if these are others than before.
    pub fn count_devices(&mut self, users: &mut Users) -> bool {
        let now = self.engine.devices();
        users.change(&self.devices, &now);
        let before = std::mem::replace(&mut self.devices, now);
        before != self.devices
    }

    /// It needs none any more.
    pub fn release_devices(&mut self, users: &mut Users) {
        users.change(&std::mem::take(&mut self.devices), &BTreeSet::new());
    }

    /// Guests may use it.
    pub fn serves_guests(&self) -> bool {
        self.granted.is_some_and(|granted| granted != AttachFor::Maintenance) && !self.closing
    }

    /// It is attached only to be brought in sync.
    pub fn is_maintenance(&self) -> bool {
        self.granted.unwrap_or(self.asked) == AttachFor::Maintenance
    }

    /// The metadata service has not yet given what was asked for.
    pub fn is_asking(&self) -> bool {
        let is_upgrade = self.is_maintenance() && self.asked != AttachFor::Maintenance;
        self.granted.is_none() || is_upgrade
    }

    /// Another node may have it that knows this epoch; for maintenance only if nobody uses it or is about to.
    pub fn may_be_released(&self, epoch: Epoch, maintenance_only: bool) -> bool {
        let maintained = self.is_maintenance() && self.asked == AttachFor::Maintenance;
        let spare = maintained && !self.is_used() && self.waiters.is_empty();
        self.engine.epoch() <= epoch && (spare || !maintenance_only)
    }

    /// It is what it shall be: nothing is asked for, nobody waits, nobody has just left.
    pub fn rests(&self) -> bool {
        let is_kept = self.pinned || !self.guests.is_empty() || self.is_maintenance();
        is_kept && !self.closing && !self.is_asking() && self.waiting_guests.is_empty() && self.waiters.is_empty()
    }

    /// Somebody uses it or waits for it.
    pub fn is_used(&self) -> bool {
        self.pinned || !self.guests.is_empty() || !self.waiting_guests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Event, Settings};
    use ashlar_model::cluster::{AttachGrant, LaneGrant, QuorumPolicy, VolumeSpec};
    use ashlar_model::{DeviceId, VolumeGeometry, VolumeId};

    /// A writer in epoch 3.
    fn attached(purpose: AttachFor) -> Attached {
        let (id, devices) = (VolumeId::from_u128(1), vec![DeviceId::from_u128(2)]);
        let size_bytes = 1 << 30;
        let spec = VolumeSpec {
            id,
            name: "v".into(),
            geometry: VolumeGeometry { size_bytes, lane_count: 1 },
            replicas: 1,
            quorum: QuorumPolicy::Majority,
            restored: false,
            in_sync_min: 1,
            lanes: vec![devices.clone()],
        };
        let mut engine = VolumeEngine::new(spec, Settings::default());
        let lanes = vec![LaneGrant {
            in_sync: devices,
            version: 1,
            clean: Some(0),
            rows: vec![],
            trusted: Vec::new(),
            unverified: false,
        }];
        let grant = AttachGrant { volume: id, epoch: Epoch(3), size_bytes, lanes };
        engine.apply(0, Event::Granted(grant), &mut Vec::new());
        Attached { granted: Some(purpose), ..Attached::new(engine, 1, purpose, 0) }
    }

    #[test]
    fn a_device_is_needed_until_the_last_volume_that_needs_it_is_gone() {
        let (mut users, mut first, mut second) =
            (Users::default(), attached(AttachFor::Guests), attached(AttachFor::Guests));
        assert!(first.count_devices(&mut users));
        assert!(!first.count_devices(&mut users));
        assert!(second.count_devices(&mut users));
        first.release_devices(&mut users);
        first.release_devices(&mut users);
        assert_eq!(users.devices().collect::<Vec<_>>(), [DeviceId::from_u128(2)]);
        let mut spec = second.engine.spec().clone();
        spec.lanes = vec![vec![DeviceId::from_u128(3)]];
        second.engine.apply(0, Event::Spec(spec), &mut Vec::new());
        assert!(second.count_devices(&mut users));
        let both = [DeviceId::from_u128(2), DeviceId::from_u128(3)];
        assert_eq!(users.devices().collect::<Vec<_>>(), both, "the old member until it has left");
        second.release_devices(&mut users);
        assert_eq!(users.devices().count(), 0);
    }

    #[test]
    fn it_rests_while_somebody_keeps_it_and_nothing_is_asked_for() {
        let mut attached = attached(AttachFor::Guests);
        assert!(!attached.rests(), "nobody uses it: it is let go soon");
        attached.pinned = true;
        assert!(attached.rests());
        attached.waiting_guests.push(7);
        assert!(!attached.rests());
        attached.waiting_guests.clear();
        attached.closing = true;
        assert!(!attached.rests());
    }

    /// Symptom: guests are cut off by another node's attach without takeover, which saw the volume maintained a moment ago.
    #[test]
    fn only_maintenance_gives_way_unasked() {
        let mut attached = attached(AttachFor::Maintenance);
        assert!(attached.may_be_released(Epoch(3), true));
        assert!(!attached.may_be_released(Epoch(2), true), "a later writer is not meant");
        attached.guests.insert(7);
        assert!(!attached.may_be_released(Epoch(3), true));
        attached.guests.clear();
        attached.asked = AttachFor::Guests;
        assert!(!attached.may_be_released(Epoch(3), true), "guests wait for it");
        attached.granted = Some(AttachFor::Guests);
        assert!(!attached.may_be_released(Epoch(3), true));
        assert!(attached.may_be_released(Epoch(3), false), "a takeover");
    }
}
