//! Which shard of this daemon has what. It is all that the shards share, and they ask it when a volume is attached or let
//! go, when a device is opened and when the daemon stops: never for a request.
//!
//! A volume is sequenced by one shard. The shard that first hears that a volume is wanted places it; the shard that has it
//! forgets it when its writer has ended, so that the next attach may place it anew. A message that comes to a shard which
//! does not have the volume any more is placed again, or passed on.

use ashlar_model::cluster::VolumeSpec;
use ashlar_model::{DeviceId, VolumeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where a volume is.
#[derive(Clone, Copy, Debug)]
struct Home {
    shard: u16,
    /// It has a writer there; otherwise somebody is on the way to have one made.
    attached: bool,
}

#[derive(Debug, Default)]
struct Places {
    volumes: BTreeMap<VolumeId, Home>,
    devices: BTreeMap<DeviceId, u16>,
}

/// The daemon's register of homes.
#[derive(Debug)]
pub struct Homes {
    shards: u16,
    places: Mutex<Places>,
    attempts: AtomicU64,
}

impl Homes {
    /// For so many shards.
    pub fn new(shards: u16) -> Self {
        assert!(shards > 0, "a daemon has a shard");
        Self { shards, places: Mutex::default(), attempts: AtomicU64::new(0) }
    }

    /// The shard that has the volume, or is about to.
    pub fn of_volume(&self, volume: VolumeId) -> Option<u16> {
        self.places().volumes.get(&volume).map(|home| home.shard)
    }

    /// The shard that has the volume; if none has, the one that `choose` says, given how many volumes each has.
    pub fn place(&self, volume: VolumeId, choose: impl FnOnce(&[usize]) -> u16) -> u16 {
        let mut places = self.places();
        if let Some(home) = places.volumes.get(&volume) {
            return home.shard;
        }
        let mut loads = vec![0; usize::from(self.shards)];
        for home in places.volumes.values() {
            loads[usize::from(home.shard)] += 1;
        }
        let shard = choose(&loads);
        assert!(shard < self.shards, "a shard of this daemon");
        places.volumes.insert(volume, Home { shard, attached: false });
        shard
    }

    /// A writer of the volume begins on this shard, which has the volume.
    pub fn attached(&self, volume: VolumeId, shard: u16) {
        let mut places = self.places();
        let home = places.volumes.entry(volume).or_insert(Home { shard, attached: true });
        assert_eq!(home.shard, shard, "a volume has one home");
        home.attached = true;
    }

    /// The shard has no writer of the volume any more. Nobody else may say so: what a shard has found to be at home on it
    /// stays there until it says this.
    pub fn forget(&self, volume: VolumeId, shard: u16) {
        let mut places = self.places();
        if places.volumes.get(&volume).is_some_and(|home| home.shard == shard) {
            places.volumes.remove(&volume);
        }
    }

    /// The shard has no volumes any more, and gets none.
    pub fn leave(&self, shard: u16) {
        self.places().volumes.retain(|_, home| home.shard != shard);
    }

    /// No shard has a writer.
    pub fn are_empty(&self) -> bool {
        !self.places().volumes.values().any(|home| home.attached)
    }

    /// The shard serves the device.
    pub fn opened(&self, device: DeviceId, shard: u16) {
        self.places().devices.insert(device, shard);
    }

    /// The shard that serves the device.
    pub fn of_device(&self, device: DeviceId) -> Option<u16> {
        self.places().devices.get(&device).copied()
    }

    /// Number of the next writer: one count for all, so that a later writer of a volume has a higher one, whichever shard
    /// the volume is on.
    pub fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pure: the shard that is to sequence a volume. The one that owns most of its replicas on this node, so that they are
/// reached without a link; of equals, the one with fewest volumes, and of these the last: the first has the doors
/// besides. `owner`: the shard of a device, if it is of this node.
pub fn choose(spec: &VolumeSpec, owner: impl Fn(DeviceId) -> Option<u16>, loads: &[usize]) -> u16 {
    let mut replicas = vec![0_usize; loads.len()];
    for shard in spec.lanes.iter().flatten().filter_map(|device| owner(*device)) {
        if let Some(count) = replicas.get_mut(usize::from(shard)) {
            *count += 1;
        }
    }
    let best = (0..loads.len()).max_by_key(|shard| (replicas[*shard], Reverse(loads[*shard]), *shard));
    best.expect("there is a shard") as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::VolumeGeometry;
    use ashlar_model::cluster::QuorumPolicy;

    const A: VolumeId = VolumeId::from_u128(1);
    const B: VolumeId = VolumeId::from_u128(2);

    fn spec(lanes: &[&[u128]]) -> VolumeSpec {
        let lanes: Vec<Vec<DeviceId>> =
            lanes.iter().map(|lane| lane.iter().map(|device| DeviceId::from_u128(*device)).collect()).collect();
        VolumeSpec {
            id: A,
            name: "a".into(),
            geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: lanes.len() as u16 },
            replicas: 2,
            quorum: QuorumPolicy::Majority,
            restored: false,
            in_sync_min: 1,
            lanes,
        }
    }

    /// Devices below 10 are of this node, and belong to the shard of their number.
    fn owner(device: DeviceId) -> Option<u16> {
        (device.as_u128() < 10).then_some(device.as_u128() as u16)
    }

    #[test]
    fn most_local_replicas_decide_then_the_load() {
        let chosen = |lanes: &[&[u128]], loads: &[usize]| choose(&spec(lanes), owner, loads);
        assert_eq!(chosen(&[&[1, 10], &[1, 11], &[0, 10]], &[0, 9]), 1, "two of three lanes, whatever the load");
        assert_eq!(chosen(&[&[1, 10], &[0, 10]], &[3, 2]), 1, "equal: fewer volumes");
        assert_eq!(chosen(&[&[1, 10], &[0, 10]], &[2, 2]), 1, "equal in everything: the last");
        assert_eq!(chosen(&[&[10, 11]], &[4, 2, 3]), 1, "none here: fewest volumes");
        assert_eq!(chosen(&[&[7, 10], &[1, 10]], &[1, 1]), 1, "a device of a shard that is not there counts for none");
        assert_eq!(chosen(&[&[0, 10]], &[5]), 0);
    }

    #[test]
    fn a_volume_stays_where_it_is_until_its_shard_lets_it_go() {
        let homes = Homes::new(2);
        assert_eq!(homes.of_volume(A), None);
        assert_eq!(homes.place(A, |loads| loads.len() as u16 - 1), 1);
        homes.attached(A, 1);
        assert_eq!(homes.place(A, |_| 0), 1);
        homes.forget(A, 0);
        assert_eq!(homes.of_volume(A), Some(1), "only its own shard forgets it");
        let seen = |loads: &[usize]| u16::from(loads == [0, 1]);
        assert_eq!(homes.place(B, seen), 1);
        homes.forget(A, 1);
        assert!(homes.are_empty(), "who is on the way to have a writer made is waited for by nobody");
        assert_eq!(homes.of_volume(B), Some(1));
    }

    #[test]
    fn a_shard_that_leaves_takes_its_volumes_along() {
        let homes = Homes::new(2);
        homes.attached(A, 0);
        homes.attached(B, 1);
        homes.leave(0);
        assert_eq!((homes.of_volume(A), homes.of_volume(B)), (None, Some(1)));
        assert!(!homes.are_empty());
        homes.leave(1);
        assert!(homes.are_empty());
    }

    /// Symptom it prevents: a volume that is let go on one shard and attached on another gets its old grant, or none,
    /// because its writer's number is not higher than the last.
    #[test]
    fn writers_are_numbered_over_all_shards() {
        let homes = Homes::new(2);
        homes.attached(A, 0);
        let first = homes.next_attempt();
        homes.forget(A, 0);
        homes.attached(A, 1);
        let second = homes.next_attempt();
        assert!(first > 0 && second > first, "{first} {second}");
    }

    #[test]
    fn devices_are_found_where_they_were_opened() {
        let homes = Homes::new(3);
        let device = DeviceId::from_u128(5);
        assert_eq!(homes.of_device(device), None);
        homes.opened(device, 2);
        assert_eq!(homes.of_device(device), Some(2));
    }
}
