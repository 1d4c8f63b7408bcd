//! What an agent must know of the metadata. Complete or absent, never partial: the shard drops what a list lacks.

use ashlar_model::cluster::VolumeSpec;
use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, SessionId, ShardId, VolumeId};
use ashlar_raft::State;
use ashlar_raft::settings::FULL_PERCENT;
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{Admin, AttachMode, DeviceState, Lane, Liveness, Volume, full_mask};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRow {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// `host:port` of its API.
    pub api_address: String,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// It belongs to the metadata service.
    pub meta: bool,
    /// It exposes volumes.
    pub target: bool,
    /// The run of its daemon that registered last.
    pub session: SessionId,
    /// Whether it is alive.
    pub liveness: Liveness,
    /// Shards of its data plane.
    pub shards: u16,
}

/// A device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Identity.
    pub id: DeviceId,
    /// Its node.
    pub node: NodeId,
    /// Whether it may be used.
    pub state: DeviceState,
    /// Its place among the devices of its node.
    pub ordinal: u32,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRow {
    /// What its engine must know.
    pub spec: VolumeSpec,
    /// Epoch of its latest writer.
    pub epoch: Epoch,
    /// The node that it is attached to.
    pub holder: Option<NodeId>,
    /// That node only brings its members in sync, and gives way.
    pub maintenance: bool,
    /// What it lacks, unless it is complete or somebody may have it for guests.
    pub care: Option<CareRow>,
}

impl VolumeRow {
    /// The node that has it for guests.
    pub fn user(&self) -> Option<NodeId> {
        self.holder.filter(|_| !self.maintenance)
    }
}

/// What a volume that nobody uses lacks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CareRow {
    /// Devices that some lane wants and that are not in sync there.
    pub missing: Vec<DeviceId>,
    /// Devices that are in sync in some lane.
    pub in_sync: Vec<DeviceId>,
    /// Copies that are in sync, over all lanes.
    pub copies: u32,
    /// As far as the metadata knows, enough members are alive to open it.
    pub openable: bool,
    /// The node that has it is alive and the run of its daemon the same.
    pub holder_alive: bool,
}

/// What a device may still hold of a deleted volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DeletedRow {
    /// The device.
    pub device: DeviceId,
    /// The deleted volume.
    pub volume: VolumeId,
}

/// The metadata as an agent sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterView {
    /// Commands that had changed the metadata.
    pub version: u64,
    /// The cluster; `None`: nothing is known yet, and nothing may be concluded.
    pub cluster: Option<ClusterId>,
    /// Nodes that were not removed, by number.
    pub nodes: Vec<NodeRow>,
    /// Devices that are not gone, by identity.
    pub devices: Vec<DeviceRow>,
    /// Volumes.
    pub volumes: Vec<VolumeRow>,
    /// What is to be reclaimed.
    pub deleted: Vec<DeletedRow>,
    /// A device that holds so much of what it can hold is full; 0: not known.
    #[serde(default)]
    pub full_percent: u64,
}

/// The shard that owns a device of a node with so many shards.
pub fn owner(ordinal: u32, shards: u16) -> u16 {
    (ordinal % u32::from(shards.max(1))) as u16
}

fn care_of(state: &State, volume: &Volume) -> Option<CareRow> {
    let held = volume.attachment;
    // Guests of a node that is down may still be there, behind a partition. Those of a daemon that has ended are not.
    if held.is_some_and(|held| held.mode != AttachMode::Maintenance && !state.has_holder_ended(&held)) {
        return None;
    }
    let whole = |lane: &Lane| {
        lane.replacement.is_none() && lane.in_sync_mask == full_mask(usize::from(volume.replicas)) && !lane.unverified
    };
    if volume.lanes.iter().all(whole) {
        return None;
    }
    let (mut missing, mut in_sync, mut copies) = (BTreeSet::new(), BTreeSet::new(), 0);
    for lane in &volume.lanes {
        let view = state.lane_view(lane);
        copies += view.in_sync.len() as u32;
        missing.extend(view.members.iter().filter(|member| !view.in_sync.contains(member)));
        in_sync.extend(view.in_sync);
    }
    Some(CareRow {
        missing: missing.into_iter().collect(),
        in_sync: in_sync.into_iter().collect(),
        copies,
        openable: state.volume_health(volume) != VolumeHealth::Unavailable,
        holder_alive: held.is_some_and(|held| state.is_holder_alive(&held)),
    })
}

impl ClusterView {
    /// The view of a state.
    pub fn of(state: &State) -> Self {
        let nodes = state.nodes().filter(|node| node.admin != Admin::Removed).map(|node| NodeRow {
            id: node.id,
            name: node.name.clone(),
            api_address: node.api_address.clone(),
            data_address: node.data_address.clone(),
            meta: node.roles.meta,
            target: node.roles.target,
            session: node.session,
            liveness: node.liveness,
            shards: node.shards,
        });
        let devices = state.devices().filter(|device| device.state != DeviceState::Out).map(|device| DeviceRow {
            id: device.id,
            node: device.node,
            state: device.state,
            ordinal: device.ordinal,
        });
        let volumes = state.volumes().map(|volume| VolumeRow {
            spec: state.volume_spec(volume),
            epoch: volume.epoch,
            holder: volume.attachment.map(|held| held.node),
            maintenance: volume.attachment.is_some_and(|held| held.mode == AttachMode::Maintenance),
            care: care_of(state, volume),
        });
        let is_there = |id: DeviceId| state.device(id).is_some_and(|device| device.state != DeviceState::Out);
        let deleted = state.deleted_everywhere().filter(|(device, _)| is_there(*device));
        let deleted = deleted.map(|(device, volume)| DeletedRow { device, volume });
        Self {
            version: state.version(),
            cluster: state.cluster().map(|cluster| cluster.id),
            nodes: nodes.collect(),
            devices: devices.collect(),
            volumes: volumes.collect(),
            deleted: deleted.collect(),
            full_percent: state.setting(&FULL_PERCENT),
        }
    }

    /// A node by number.
    pub fn node(&self, id: NodeId) -> Option<&NodeRow> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|at| &self.nodes[at])
    }

    /// A device by identity.
    pub fn device(&self, id: DeviceId) -> Option<&DeviceRow> {
        self.devices.binary_search_by_key(&id, |device| device.id).ok().map(|at| &self.devices[at])
    }

    /// Where a device is: every node computes the same.
    pub fn shard_of(&self, device: &DeviceRow) -> Option<ShardId> {
        let shards = self.node(device.node)?.shards;
        Some(ShardId { node: device.node, shard: owner(device.ordinal, shards) })
    }

    /// The devices of a node with their ordinals.
    pub fn ordinals(&self, node: NodeId) -> BTreeMap<DeviceId, u32> {
        let own = self.devices.iter().filter(|row| row.node == node);
        own.map(|row| (row.id, row.ordinal)).collect()
    }

    /// A node by name or number.
    pub fn find_node(&self, wanted: &str) -> Option<&NodeRow> {
        self.nodes.iter().find(|node| node.name == wanted || node.id.to_string() == wanted)
    }

    /// A volume by name or identity.
    pub fn find_volume(&self, wanted: &str) -> Option<&VolumeRow> {
        self.volumes.iter().find(|row| row.spec.name == wanted || row.spec.id.to_string() == wanted)
    }

    /// API addresses of the nodes of the metadata service.
    pub fn meta_addresses(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.meta).map(|node| node.api_address.clone()).collect()
    }
}
