//! The commands of the metadata service and their answers: a closed, versioned vocabulary.
//!
//! A command carries every decision, identity and time that it needs; [`crate::state::State::apply`] checks and records.
//! Every command may be proposed twice (a client that got no answer repeats it): creates carry a token, an attach is
//! known by (session, attempt), the rest end in the same state when repeated.
//!
//! The order of variants and fields is the encoding. Append at the end; change [`crate::codec::VERSION`] otherwise.

use crate::state::entities::{Admin, AttachMode, DeviceState, Labels, Liveness, Locality, Roles, Spread, VolumeLabels};
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply, QuorumPolicy};
use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, SessionId, VolumeGeometry, VolumeId};
use serde::{Deserialize, Serialize};

/// Most compare-and-sets in one command, so that one command stays far below the record limit.
pub const LANE_CAS_BATCH_MAX: usize = 1024;

/// A node as it introduces itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeSpec {
    /// Name that people use, unique in the cluster.
    pub name: String,
    /// `host:port` of its HTTP API, which also carries Raft.
    pub api_address: String,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// Where it stands.
    pub labels: Labels,
    /// What its daemon does.
    pub roles: Roles,
    /// The run of its daemon.
    pub session: SessionId,
    /// Shards of its data plane in this run, 1 to [`ashlar_model::limits::SHARDS_MAX`].
    pub shards: u16,
}

/// A volume to be created, with the placement that the planner decided.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct CreateVolume {
    /// Fresh identity, never used before.
    pub id: VolumeId,
    /// Name that people use, unique in the cluster.
    pub name: String,
    /// Free labels of the user.
    pub labels: VolumeLabels,
    /// Size and lane count.
    pub geometry: VolumeGeometry,
    /// Replicas of each lane, 1 to 3.
    pub replicas: u8,
    /// Who must have a write before it is acknowledged.
    pub quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer in-sync members than this, 1 to `replicas`.
    pub in_sync_min: u8,
    /// Failure domains that the replicas of a lane must (or should) not share.
    pub spread: Spread,
    /// Wish for replicas near the attach node.
    pub locality: Locality,
    /// Only devices of this class; `None`: any.
    pub class: Option<String>,
    /// The planner's decision: the members of each lane's copyset, in order.
    pub lanes: Vec<Vec<DeviceId>>,
    /// A repeated create with the same token gets the first one's answer.
    pub token: Option<String>,
}

/// Open (rule M1) for all lanes of a volume at once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attach {
    /// The volume.
    pub volume: VolumeId,
    /// The node that will write.
    pub node: NodeId,
    /// The run of the node's daemon; must be the one that the node registered last.
    pub session: SessionId,
    /// Number of this attempt, rising within the session per volume. A repeated message repeats it; a new writer takes the next one.
    pub attempt: u64,
    /// What the writer may do.
    pub mode: AttachMode,
    /// Take the volume from another node that holds it.
    pub takeover: bool,
}

/// Who wants an attachment to end.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum DetachBy {
    /// The writer itself, after it closed its lanes. Ends only its own attachment.
    Holder {
        /// Its node.
        node: NodeId,
        /// Its session.
        session: SessionId,
        /// Its attempt.
        attempt: u64,
    },
    /// Somebody else. Ends the attachment of this epoch only, so that a repeated command cannot hit a later writer.
    Operator {
        /// The epoch whose attachment shall end.
        epoch: Epoch,
        /// Also if the holder seems alive. Safe by protocol: the next attach seals the lanes.
        force: bool,
    },
}

/// Everything that changes the metadata.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Command {
    /// Founds the cluster with its first node.
    InitCluster {
        /// Fresh identity of the cluster.
        cluster: ClusterId,
        /// Name of the cluster.
        name: String,
        /// Number of the first node, also its Raft id.
        node_id: NodeId,
        /// The first node.
        node: NodeSpec,
    },
    /// Registers a node. Repeated with the same name and session it answers the same number.
    AddNode {
        /// Wanted number; `None`: the next free one. Numbers are never reused.
        id: Option<NodeId>,
        /// The node.
        node: NodeSpec,
    },
    /// A node came back (new session, maybe new addresses, labels, roles), or its labels changed. It is alive then.
    UpdateNode {
        /// The node.
        id: NodeId,
        /// All its properties. The name must stay.
        node: NodeSpec,
    },
    /// Records what the leader found out about a node's life.
    SetNodeLiveness {
        /// The node.
        id: NodeId,
        /// Applies only while the node has this session: keeps a late verdict off a restarted node.
        session: SessionId,
        /// The verdict.
        liveness: Liveness,
    },
    /// Records what an operator decided about a node: drain, resume, remove.
    SetNodeAdmin {
        /// The node.
        id: NodeId,
        /// The decision.
        admin: Admin,
    },
    /// Registers a formatted device.
    AddDevice {
        /// Identity of this formatting.
        id: DeviceId,
        /// The node that owns it.
        node: NodeId,
        /// What the node calls it, for people (a path).
        name: String,
        /// Class: `nvme`, `ssd`, `hdd` or an own name.
        class: String,
        /// Bytes that the store offers.
        capacity_bytes: u64,
        /// Its place among the node's devices, as the node decided: no other device of the node has it.
        ordinal: u32,
    },
    /// Changes the state of a device.
    SetDeviceState {
        /// The device.
        id: DeviceId,
        /// The new state.
        state: DeviceState,
    },
    /// Creates a volume.
    CreateVolume(CreateVolume),
    /// Deletes a detached volume. Its devices reclaim the space and report it with `Reclaimed`.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// Grows a volume.
    ResizeVolume {
        /// The volume.
        volume: VolumeId,
        /// The new size, not below the present one.
        size_bytes: u64,
    },
    /// A device no longer holds anything of these volumes, which were deleted or have left it.
    Reclaimed {
        /// The device.
        device: DeviceId,
        /// The volumes.
        volumes: Vec<VolumeId>,
    },
    /// Open of all lanes (M1).
    Attach(Attach),
    /// Ends an attachment.
    Detach {
        /// The volume.
        volume: VolumeId,
        /// Who asks.
        by: DetachBy,
    },
    /// Compare-and-set of lane records (M2), each on its own; at most [`LANE_CAS_BATCH_MAX`].
    LaneCas(Vec<LaneCas>),
    /// Changes a cluster setting; see [`crate::settings`].
    SetSetting {
        /// Its key.
        key: String,
        /// The new value, within its range.
        value: u64,
    },
    /// Wants `joining` in the place of `leaving` in every copyset of the volume that names it. The in-sync sets do not
    /// change: the writer copies, and swaps the two by compare-and-set.
    ReplaceDevice {
        /// The volume.
        volume: VolumeId,
        /// The member that shall go.
        leaving: DeviceId,
        /// The device that shall come.
        joining: DeviceId,
    },
    /// Takes a replacement back in the lanes where `joining` is not in sync yet: the copysets want `leaving` again.
    CancelReplacement {
        /// The volume.
        volume: VolumeId,
        /// The member that shall stay.
        leaving: DeviceId,
        /// The device that shall not come.
        joining: DeviceId,
    },
    /// Asks whether a device shall free what it holds of a volume; refused if not. Changes nothing.
    CheckReclaim {
        /// The device.
        device: DeviceId,
        /// The volume.
        volume: VolumeId,
    },
    /// Wants `joining` in the place of `leaving` in these lanes only; else as [`Command::ReplaceDevice`].
    MoveLanes {
        /// The volume.
        volume: VolumeId,
        /// Its lanes.
        lanes: Vec<u16>,
        /// The member that shall go.
        leaving: DeviceId,
        /// The device that shall come.
        joining: DeviceId,
    },
    /// After a restore: no lane shall wait for what this device may hold, but those that have no other. An operator knows
    /// that it is lost, or older than the others.
    Disregard {
        /// The device.
        device: DeviceId,
        /// The lanes that are meant.
        scope: LaneScope,
    },
    /// What a node found out about the space of its device. Counts only while the device is in use: what operators decided
    /// and what has failed stays.
    MarkFull {
        /// The device.
        id: DeviceId,
        /// It has no room for new lanes, or has again.
        full: bool,
    },
}

/// Lanes that a command means.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct LaneScope {
    /// Those of this volume; `None`: of every volume.
    pub volume: Option<VolumeId>,
    /// This one; `None`: every one.
    pub lane: Option<u16>,
}

impl LaneScope {
    /// True if the lane of this number is meant.
    pub fn contains(&self, volume: VolumeId, lane: usize) -> bool {
        self.volume.is_none_or(|meant| meant == volume) && self.lane.is_none_or(|meant| usize::from(meant) == lane)
    }
}

/// The answer to an applied command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Response {
    /// Done, nothing to tell.
    Done,
    /// The node's number.
    Node(NodeId),
    /// The volume's identity: of the first create when a token was repeated.
    Volume(VolumeId),
    /// The grant of an attach.
    Attached(AttachGrant),
    /// Whether the detach ended an attachment (`false`: it had ended before).
    Detached(bool),
    /// One result per compare-and-set, in order.
    LaneCas(Vec<Result<LaneCasReply, crate::refusal::Refusal>>),
    /// The device may free what it holds. The volume goes on without it, and this is its epoch: the device keeps it as
    /// its promise. `None`: the volume is deleted.
    Reclaim(Option<Epoch>),
}
