//! What the metadata consists of. Plain data; the rules are in the sibling modules.

use ashlar_model::cluster::{EpochRow, LaneGrant, QuorumPolicy};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, SessionId, VolumeGeometry, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The cluster itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Cluster {
    /// Identity; a daemon refuses peers of another one.
    pub id: ClusterId,
    /// Name for people.
    pub name: String,
    /// Settings that differ from their defaults.
    pub settings: crate::settings::Settings,
}

/// Where a node stands. A missing label means unknown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
pub struct Labels {
    /// Region.
    pub region: Option<String>,
    /// Zone, unique within its region.
    pub zone: Option<String>,
    /// Rack, unique within its zone.
    pub rack: Option<String>,
}

/// What the daemon of a node does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Roles {
    /// Owns devices and keeps replicas.
    pub store: bool,
    /// Exposes volumes to its machine.
    pub target: bool,
    /// Belongs to the Raft group of the metadata service.
    pub meta: bool,
}

/// Whether a node renews its session.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It does.
    Up,
    /// It missed some renewals.
    Suspect,
    /// It missed them for longer than `down_after_ms`. Down is not out: its data still counts.
    Down,
    /// It missed them for so long that its replicas are rebuilt elsewhere.
    Out,
}

impl Liveness {
    /// Nobody answers there: down, or out.
    pub fn is_silent(self) -> bool {
        matches!(self, Liveness::Down | Liveness::Out)
    }
}

/// What operators decided about a node.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// In normal use.
    Active,
    /// Gets nothing new; its lanes shall move elsewhere.
    Draining,
    /// Gone for good. The number stays used.
    Removed,
}

/// Liveness and decision in one word, as people see it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Alive and in normal use.
    Up,
    /// Missed some renewals.
    Suspect,
    /// Not alive.
    Down,
    /// Alive, being emptied.
    Draining,
    /// Gone for good.
    Removed,
    /// Not alive for long: its replicas are rebuilt elsewhere.
    Out,
}

/// A machine of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Node {
    /// Number, also its Raft id; never reused.
    pub id: NodeId,
    /// Name for people, unique.
    pub name: String,
    /// `host:port` of its HTTP API.
    pub api_address: String,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// Where it stands.
    pub labels: Labels,
    /// What it does.
    pub roles: Roles,
    /// The run of its daemon that registered last.
    pub session: SessionId,
    /// Whether it is alive.
    pub liveness: Liveness,
    /// What operators decided.
    pub admin: Admin,
    /// Its latest earlier sessions: they never come back.
    pub past_sessions: Vec<SessionId>,
    /// Shards of its data plane: device `ordinal` belongs to shard `ordinal % shards`.
    pub shards: u16,
}

impl Node {
    /// Liveness and decision in one word.
    pub fn state(&self) -> NodeState {
        match (self.admin, self.liveness) {
            (Admin::Removed, _) => NodeState::Removed,
            (_, Liveness::Out) => NodeState::Out,
            (_, Liveness::Down) => NodeState::Down,
            (_, Liveness::Suspect) => NodeState::Suspect,
            (Admin::Draining, Liveness::Up) => NodeState::Draining,
            (Admin::Active, Liveness::Up) => NodeState::Up,
        }
    }
}

/// Whether a device may get and keep replicas.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// In normal use.
    In,
    /// Keeps what it has, gets nothing new.
    Full,
    /// Broken: its replicas are to be rebuilt elsewhere.
    Failed,
    /// Gets nothing new; its lanes shall move elsewhere.
    Draining,
    /// Gone for good, holds no lane.
    Out,
}

/// A formatted device.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Device {
    /// Identity of this formatting.
    pub id: DeviceId,
    /// The node that owns it.
    pub node: NodeId,
    /// What the node calls it (a path), for people.
    pub name: String,
    /// `nvme`, `ssd`, `hdd` or an own name.
    pub class: String,
    /// Bytes that the store offers.
    pub capacity_bytes: u64,
    /// Bytes promised to lanes; volumes are thin, so this may exceed the capacity.
    pub committed_bytes: u64,
    /// Number of lanes on it.
    pub lane_count: u32,
    /// Whether it may be used.
    pub state: DeviceState,
    /// Its place among the devices of its node; stays as long as the device is there, however many shards the node has.
    pub ordinal: u32,
}

/// Number of a copyset; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct CopysetId(pub u64);

/// An ordered set of devices on different nodes that lanes map to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Copyset {
    /// Its number.
    pub id: CopysetId,
    /// Members in order: 1 to 3.
    pub members: Vec<DeviceId>,
    /// Lanes that use it; at zero it goes.
    pub lane_count: u32,
}

/// A level of the topology that replicas are spread over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum SpreadLevel {
    /// Different zones.
    Zone,
    /// Different racks.
    Rack,
    /// Different nodes.
    Node,
}

/// How the replicas of a lane are spread. Different nodes always hold; `soft` falls to the next level when the
/// wanted one cannot be had, hard refuses.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Spread {
    /// The level.
    pub level: SpreadLevel,
    /// Fall to the next level rather than refuse.
    pub soft: bool,
}

impl Default for Spread {
    /// Over zones if there are enough, else over racks, else over nodes.
    fn default() -> Self {
        Self { level: SpreadLevel::Zone, soft: true }
    }
}

/// Whether a volume wants a replica on the node that attaches it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// No wish.
    #[default]
    None,
    /// If possible.
    Prefer,
    /// Else refuse.
    Require,
}

/// Free labels of a volume.
pub type VolumeLabels = BTreeMap<String, String>;

/// What an attached writer may do.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "kebab-case")]
pub enum AttachMode {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Bring the members in sync and let go; no guest. Anybody else's read-write attach wins without a takeover.
    Maintenance,
}

/// Who holds a volume: the owner of its epoch.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attachment {
    /// The node.
    pub node: NodeId,
    /// The run of its daemon.
    pub session: SessionId,
    /// The attempt within the session.
    pub attempt: u64,
    /// What it may do.
    pub mode: AttachMode,
}

/// The latest attach attempt that a session made on a volume: what tells a late duplicate from a new attach.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attempt {
    /// The node.
    pub node: NodeId,
    /// Its session.
    pub session: SessionId,
    /// The highest attempt seen.
    pub attempt: u64,
}

/// A copyset member that is being replaced in one lane.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Replacement {
    /// The device that shall go. The copyset does not name it any more; [`LEAVING_BIT`] says whether it is in sync.
    pub leaving: DeviceId,
    /// The device in its place, a member of the copyset.
    pub joining: DeviceId,
}

/// A device that a lane has done without since its last compare-and-set or open: it keeps its data until the next one.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Parting {
    /// The lane.
    pub lane: u16,
    /// The device.
    pub device: DeviceId,
}

/// The bit of a lane's in-sync mask that stands for the leaving device of its replacement.
pub const LEAVING_BIT: u8 = 0x80;

/// The mask of all `count` members, and of nobody that leaves.
pub fn full_mask(count: usize) -> u8 {
    assert!(count > 0 && count <= REPLICAS_MAX, "a copyset has 1 to 3 members");
    (1 << count) - 1
}

/// The record of one lane. A healthy lane stores little more than its version.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Lane {
    /// Its wanted copyset.
    pub copyset: CopysetId,
    /// The change of its copyset under way; ends when the writer has recorded a set with the one and without the other.
    pub replacement: Option<Box<Replacement>>,
    /// In-sync set: bit i is member i of the copyset, [`LEAVING_BIT`] the device that leaves it. Never zero.
    pub in_sync_mask: u8,
    /// Rises with every change of the record by compare-and-set.
    pub version: u64,
    /// Last index of a clean close, until the next open takes it.
    pub clean: Option<u64>,
    /// What the current epoch's open took.
    pub granted_clean: Option<u64>,
    /// Where the latest epochs began; see [`crate::state::lanes`] for what is dropped.
    pub rows: Vec<EpochRow>,
    /// The grant of the current epoch, kept once the record differs from it, to repeat the same answer.
    pub granted: Option<Box<LaneGrant>>,
    /// The metadata was restored, and no writer has looked yet which devices hold the lane: the mask names all that may.
    pub unverified: bool,
    /// The metadata was restored, and since then no set with all members has been recorded: see [`LaneGrant::trusted`].
    pub distrusted: bool,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Volume {
    /// Identity, never reused.
    pub id: VolumeId,
    /// Name for people, unique.
    pub name: String,
    /// Free labels.
    pub labels: VolumeLabels,
    /// Size and lane count.
    pub geometry: VolumeGeometry,
    /// Replicas of each lane.
    pub replicas: u8,
    /// Acknowledgement policy.
    pub quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer in-sync members.
    pub in_sync_min: u8,
    /// Spread of the replicas.
    pub spread: Spread,
    /// Wish for a local replica.
    pub locality: Locality,
    /// Device class; `None`: any.
    pub class: Option<String>,
    /// Number of the latest writer's reign; 0: never attached.
    pub epoch: Epoch,
    /// Its writer, if attached.
    pub attachment: Option<Attachment>,
    /// Latest attempts per session, of sessions that still exist.
    pub attempts: Vec<Attempt>,
    /// The lanes, as many as the geometry says.
    pub lanes: Vec<Lane>,
    /// Devices that lanes have just sent away. Empty but for a moment.
    pub parting: Vec<Parting>,
    /// The metadata was restored at some time in its life.
    pub restored: bool,
}

impl Volume {
    /// Bytes of one lane at most: whole chunks of its share.
    pub fn lane_bytes(&self) -> u64 {
        lane_bytes(self.geometry)
    }
}

/// Bytes of the largest lane of a volume of this geometry.
pub fn lane_bytes(geometry: VolumeGeometry) -> u64 {
    geometry.chunk_count().div_ceil(u64::from(geometry.lane_count.max(1))) * ashlar_model::units::CHUNK_BYTES as u64
}

/// A remembered create, so that its repetition gets the same answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct TokenRecord {
    /// The client's token.
    pub token: String,
    /// Name that was created with it: a token with another name is a mistake.
    pub name: String,
    /// The volume that it created.
    pub volume: VolumeId,
}
