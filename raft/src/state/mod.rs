//! The deterministic state machine: the same commands in the same order give the same state, to the byte.
//!
//! Invariant: no clock, no randomness, no hashing order, no placement. A refused command changes nothing. Everything
//! that grows is bounded by a limit or by what the cluster consists of.

mod copysets;
pub mod entities;
pub mod lanes;
mod replace;
mod restore;
mod topology;
mod views;
mod volumes;

pub use copysets::DeviceCopysets;
pub use views::{LaneView, ReplicaView, VolumeHealth};

use crate::codec::{self, CodecError, Kind};
use crate::command::{Command, Response};
use crate::refusal::Refusal;
use ashlar_model::limits::check_name;
use ashlar_model::{ClusterId, DeviceId, NodeId, VolumeId};
use entities::{Admin, Cluster, Copyset, CopysetId, Device, Node, TokenRecord, Volume};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Nodes of one cluster, removed ones included.
pub const NODES_MAX: usize = 10_000;
/// Devices of one cluster.
pub const DEVICES_MAX: usize = 100_000;
/// Volumes of one cluster.
pub const VOLUMES_MAX: usize = 200_000;
/// Creates that are remembered by their token: eight minutes at the sizing rate of 2 000 a minute.
pub const TOKENS_MAX: usize = 16_384;

/// All metadata of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct State {
    /// Commands that changed the state so far.
    version: u64,
    cluster: Option<Cluster>,
    nodes: BTreeMap<NodeId, Node>,
    devices: BTreeMap<DeviceId, Device>,
    copyset_next: u64,
    copysets: BTreeMap<CopysetId, Copyset>,
    /// Shared, so that a copy of the state for a reader or a snapshot costs little.
    volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Volumes with the devices that may still hold replicas of them and should not: the volume was deleted, or none of
    /// its lanes wants the device any more.
    deleted: BTreeMap<VolumeId, BTreeSet<DeviceId>>,
    tokens: VecDeque<TokenRecord>,
    /// Derived from the above; see [`State::rebuild_indexes`].
    #[serde(skip)]
    indexes: Indexes,
}

/// What can be computed from the rest of the state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Indexes {
    node_names: BTreeMap<String, NodeId>,
    volume_names: BTreeMap<String, VolumeId>,
    copysets_by_members: BTreeMap<Vec<DeviceId>, CopysetId>,
    tokens: BTreeMap<String, (String, VolumeId)>,
    copysets_by_device: copysets::CopysetIndex,
}

/// Decodes the state of a snapshot.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_snapshot(record: &[u8]) -> Result<State, CodecError> {
    let mut state: State = codec::decode(Kind::State, record)?;
    state.rebuild_indexes();
    Ok(state)
}

impl State {
    /// Applies one command.
    ///
    /// # Errors
    /// A refusal; the state is then unchanged.
    pub fn apply(&mut self, command: &Command) -> Result<Response, Refusal> {
        if let Command::InitCluster { cluster, name, node_id, node } = command {
            let response = self.init_cluster(*cluster, name, *node_id, node)?;
            self.version += 1;
            return Ok(response);
        }
        if self.cluster.is_none() {
            return Err(Refusal::NotInitialised);
        }
        let response = self.dispatch(command)?;
        self.version += 1;
        Ok(response)
    }

    fn dispatch(&mut self, command: &Command) -> Result<Response, Refusal> {
        match command {
            Command::InitCluster { .. } => Err(Refusal::AlreadyInitialised),
            Command::AddNode { id, node } => self.add_node(*id, node),
            Command::UpdateNode { id, node } => self.update_node(*id, node),
            Command::SetNodeLiveness { id, session, liveness } => self.set_node_liveness(*id, *session, *liveness),
            Command::SetNodeAdmin { id, admin } => self.set_node_admin(*id, *admin),
            Command::AddDevice { id, node, name, class, capacity_bytes, ordinal } => self.add_device(
                *id,
                topology::DevicePlace { node: *node, ordinal: *ordinal },
                name,
                class,
                *capacity_bytes,
            ),
            Command::SetDeviceState { id, state } => self.set_device_state(*id, *state),
            Command::CreateVolume(create) => self.create_volume(create),
            Command::DeleteVolume { volume } => self.delete_volume(*volume),
            Command::ResizeVolume { volume, size_bytes } => self.resize_volume(*volume, *size_bytes),
            Command::Reclaimed { device, volumes } => self.reclaimed(*device, volumes),
            Command::Attach(attach) => self.attach(attach),
            Command::Detach { volume, by } => self.detach(*volume, by),
            Command::LaneCas(batch) => self.lane_cas_batch(batch),
            Command::SetSetting { key, value } => self.set_setting(key, *value),
            Command::ReplaceDevice { volume, leaving, joining } => {
                self.replace_device(*volume, None, *leaving, *joining)
            }
            Command::CancelReplacement { volume, leaving, joining } => {
                self.cancel_replacement(*volume, *leaving, *joining)
            }
            Command::CheckReclaim { device, volume } => self.check_reclaim(*device, *volume),
            Command::MoveLanes { volume, lanes, leaving, joining } => {
                self.replace_device(*volume, Some(lanes), *leaving, *joining)
            }
            Command::Disregard { device, scope } => self.disregard(*device, *scope),
            Command::MarkFull { id, full } => self.mark_full(*id, *full),
        }
    }

    fn init_cluster(
        &mut self,
        id: ClusterId,
        name: &str,
        node_id: NodeId,
        node: &crate::command::NodeSpec,
    ) -> Result<Response, Refusal> {
        if let Some(cluster) = &self.cluster {
            // The founder repeats itself: same answer.
            return if cluster.id == id { Ok(Response::Node(node_id)) } else { Err(Refusal::AlreadyInitialised) };
        }
        check_name("cluster", name).map_err(Refusal::Invalid)?;
        assert!(self.nodes.is_empty(), "nodes come after the cluster");
        let response = self.add_node(Some(node_id), node)?;
        self.cluster = Some(Cluster { id, name: name.to_owned(), settings: Default::default() });
        Ok(response)
    }

    fn set_setting(&mut self, key: &str, value: u64) -> Result<Response, Refusal> {
        let cluster = self.cluster.as_mut().ok_or(Refusal::NotInitialised)?;
        cluster.settings.set(key, value)?;
        Ok(Response::Done)
    }

    /// Computes the derived part anew, after the rest was decoded from a snapshot.
    fn rebuild_indexes(&mut self) {
        let named = self.nodes.values().filter(|node| node.admin != Admin::Removed);
        self.indexes = Indexes {
            node_names: named.map(|node| (node.name.clone(), node.id)).collect(),
            volume_names: self.volumes.values().map(|volume| (volume.name.clone(), volume.id)).collect(),
            copysets_by_members: self.copysets.values().map(|set| (set.members.clone(), set.id)).collect(),
            tokens: self.tokens.iter().map(|t| (t.token.clone(), (t.name.clone(), t.volume))).collect(),
            copysets_by_device: copysets::CopysetIndex::of(self.copysets.values()),
        };
    }
}
