//! What readers of the state ask: agents, the HTTP API, the planner. Nothing here changes anything.

use super::State;
use super::entities::{Cluster, Copyset, CopysetId, Device, DeviceState, LEAVING_BIT, Lane, Node, Replacement, Volume};
use crate::settings::{SettingInfo, Settings};
use ashlar_model::cluster::{QuorumPolicy, VolumeSpec};
use ashlar_model::{DeviceId, LaneKey, NodeId, VolumeId};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::Bound;

/// One lane, with its members spelled out.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct LaneView {
    /// Its copyset.
    pub copyset: CopysetId,
    /// Members of the wanted copyset in order.
    pub members: Vec<DeviceId>,
    /// A member that is being replaced, and by which device.
    pub replacement: Option<Replacement>,
    /// Devices that hold the lane: members, and perhaps the one that leaves.
    pub in_sync: Vec<DeviceId>,
    /// Version of the record.
    pub version: u64,
    /// Last index of a clean close, if the lane is closed cleanly.
    pub clean: Option<u64>,
}

/// One replica: a lane on a device.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
pub struct ReplicaView {
    /// The lane.
    pub lane: LaneKey,
    /// The device counts as holding it.
    pub in_sync: bool,
}

/// What the metadata can say about a volume's health; only its writer knows more (whether it is suspended just now).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum VolumeHealth {
    /// Every copy is there.
    Healthy,
    /// A copy is missing or its node does not answer; the volume can be written.
    Degraded,
    /// Some lane has fewer live in-sync members than an open needs.
    Unavailable,
}

impl State {
    /// Commands that changed the state so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The cluster, once it is founded.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The value in force of a setting.
    pub fn setting(&self, info: &SettingInfo) -> u64 {
        self.cluster.as_ref().map_or(info.default, |cluster| cluster.settings.get(info))
    }

    /// All settings.
    pub fn settings(&self) -> Option<&Settings> {
        self.cluster.as_ref().map(|cluster| &cluster.settings)
    }

    /// All nodes by number, removed ones included.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The node with this name; removed nodes have none.
    pub fn node_by_name(&self, name: &str) -> Option<&Node> {
        self.nodes.get(self.indexes.node_names.get(name)?)
    }

    /// All devices by identity.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// A device.
    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.get(&id)
    }

    /// The node that owns a device.
    pub fn node_of_device(&self, id: DeviceId) -> Option<&Node> {
        self.nodes.get(&self.devices.get(&id)?.node)
    }

    /// All copysets in use.
    pub fn copysets(&self) -> impl Iterator<Item = &Copyset> {
        self.copysets.values()
    }

    /// A copyset.
    pub fn copyset(&self, id: CopysetId) -> Option<&Copyset> {
        self.copysets.get(&id)
    }

    /// All volumes by identity.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values().map(AsRef::as_ref)
    }

    /// A volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id).map(AsRef::as_ref)
    }

    /// The volume with this name.
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volume(*self.indexes.volume_names.get(name)?)
    }

    /// Volumes in order of their names: those after this one, or all.
    pub fn volumes_after(&self, name: Option<&str>) -> impl Iterator<Item = &Volume> {
        let first = name.map_or(Bound::Unbounded, Bound::Excluded);
        let named = self.indexes.volume_names.range::<str, _>((first, Bound::Unbounded));
        named.filter_map(|(_, id)| self.volume(*id))
    }

    /// Volumes, deleted or gone from this device, of which it has not reclaimed the space yet.
    pub fn deleted_on(&self, device: DeviceId) -> impl Iterator<Item = VolumeId> + '_ {
        self.deleted.iter().filter(move |(_, devices)| devices.contains(&device)).map(|(volume, _)| *volume)
    }

    /// Every device with a volume, deleted or gone from it, of which it has not reclaimed the space yet.
    pub fn deleted_everywhere(&self) -> impl Iterator<Item = (DeviceId, VolumeId)> + '_ {
        self.deleted.iter().flat_map(|(volume, devices)| devices.iter().map(move |device| (*device, *volume)))
    }

    /// A device still frees what it held of the volume before: it cannot get it again yet.
    pub(crate) fn still_frees(&self, volume: VolumeId, device: DeviceId) -> bool {
        self.deleted.get(&volume).is_some_and(|holders| holders.contains(&device))
    }

    /// Members of a copyset; empty if it does not exist, which no lane's copyset does.
    pub(crate) fn members(&self, id: CopysetId) -> &[DeviceId] {
        self.copysets.get(&id).map_or(&[], |set| &set.members)
    }

    /// Every device that a lane wants or that leaves it, with its bit in the in-sync mask.
    pub(crate) fn bits_of<'a>(&'a self, lane: &'a Lane) -> impl Iterator<Item = (DeviceId, u8)> + 'a {
        let members = self.members(lane.copyset).iter().enumerate().map(|(i, device)| (*device, 1 << i));
        members.chain(lane.replacement.iter().map(|replacement| (replacement.leaving, LEAVING_BIT)))
    }

    /// Every device that a lane wants or that leaves it: members in order, then the leaving one.
    pub fn devices_of(&self, lane: &Lane) -> Vec<DeviceId> {
        self.bits_of(lane).map(|(device, _)| device).collect()
    }

    /// The in-sync devices of a lane: members in order, then the leaving one.
    pub fn in_sync(&self, lane: &Lane) -> Vec<DeviceId> {
        self.bits_of(lane).filter(|(_, bit)| lane.in_sync_mask & bit != 0).map(|(device, _)| device).collect()
    }

    /// A lane with its members spelled out.
    pub fn lane_view(&self, lane: &Lane) -> LaneView {
        LaneView {
            copyset: lane.copyset,
            members: self.members(lane.copyset).to_vec(),
            replacement: lane.replacement.as_deref().copied(),
            in_sync: self.in_sync(lane),
            version: lane.version,
            clean: lane.clean,
        }
    }

    /// What a volume engine must know of a volume.
    pub fn volume_spec(&self, volume: &Volume) -> VolumeSpec {
        VolumeSpec {
            id: volume.id,
            name: volume.name.clone(),
            geometry: volume.geometry,
            replicas: volume.replicas,
            quorum: volume.quorum,
            in_sync_min: volume.in_sync_min,
            restored: volume.restored,
            lanes: volume.lanes.iter().map(|lane| self.members(lane.copyset).to_vec()).collect(),
        }
    }

    /// The volumes attached to a node.
    pub fn attached_to(&self, node: NodeId) -> impl Iterator<Item = &Volume> {
        self.volumes().filter(move |volume| volume.attachment.is_some_and(|held| held.node == node))
    }

    /// The replicas on a device. Looks at every volume.
    pub fn replicas_on(&self, device: DeviceId) -> impl Iterator<Item = ReplicaView> + '_ {
        self.volumes().flat_map(move |volume| {
            volume.lanes.iter().enumerate().filter_map(move |(number, lane)| {
                let (_, bit) = self.bits_of(lane).find(|(holder, _)| *holder == device)?;
                let in_sync = lane.in_sync_mask & bit != 0;
                Some(ReplicaView { lane: LaneKey { volume: volume.id, lane: number as u16 }, in_sync })
            })
        })
    }

    /// True if the device and its node can answer, as far as the metadata knows.
    pub fn is_device_alive(&self, id: DeviceId) -> bool {
        let usable = |device: &Device| !matches!(device.state, DeviceState::Failed | DeviceState::Out);
        self.device(id).is_some_and(usable) && self.node_of_device(id).is_some_and(|node| !node.liveness.is_silent())
    }

    /// In-sync devices of a lane that can answer, and how many of them an open needs.
    pub(crate) fn open_quorum(&self, volume: &Volume, lane: &Lane) -> (usize, usize) {
        let in_sync = self.in_sync(lane);
        let alive = in_sync.iter().filter(|device| self.is_device_alive(**device)).count();
        // Fewest members that meet every acknowledgement quorum: |S| - q + 1.
        let quorum = match volume.quorum {
            QuorumPolicy::Majority => in_sync.len().min(2),
            QuorumPolicy::All => in_sync.len(),
        };
        let needed = if lane.unverified { in_sync.len() } else { in_sync.len() - quorum + 1 };
        (alive, needed)
    }

    /// Health of a volume as the metadata sees it.
    pub fn volume_health(&self, volume: &Volume) -> VolumeHealth {
        let lanes = volume.lanes.iter().map(|lane| {
            let (alive, needed) = self.open_quorum(volume, lane);
            if alive < needed {
                VolumeHealth::Unavailable
            } else if alive < self.members(lane.copyset).len() {
                VolumeHealth::Degraded
            } else {
                VolumeHealth::Healthy
            }
        });
        lanes.max().unwrap_or(VolumeHealth::Healthy)
    }

    /// The nodes that hold replicas of a volume.
    pub fn nodes_of_volume(&self, volume: &Volume) -> BTreeSet<NodeId> {
        let devices = volume.lanes.iter().flat_map(|lane| self.devices_of(lane));
        devices.filter_map(|device| self.device(device)).map(|device| device.node).collect()
    }
}
