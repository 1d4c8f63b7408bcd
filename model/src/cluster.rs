//! What the metadata service, the agents and the volume engines say to each other.

use crate::geometry::VolumeGeometry;
use crate::ids::{DeviceId, VolumeId};
use crate::lane::Epoch;
use serde::{Deserialize, Serialize};

/// Who must have a write before it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum QuorumPolicy {
    /// 2 of 3, 2 of 2, 1 of 1.
    #[default]
    Majority,
    /// Every in-sync member.
    All,
}

/// What a volume engine must know of its volume, whoever writes it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeSpec {
    /// Identity, never reused.
    pub id: VolumeId,
    /// Name that people use.
    pub name: String,
    /// Size and lanes.
    pub geometry: VolumeGeometry,
    /// Wanted number of replicas, 1 to 3.
    pub replicas: u8,
    /// Acknowledgement policy.
    pub quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer in-sync members than this, 1 to `replicas`. It never changes the quorum.
    pub in_sync_min: u8,
    /// The metadata was restored once: a device that comes in may hold writes of a history that ended.
    pub restored: bool,
    /// Devices of each lane's wanted copyset, in order; as many as there are lanes. While a member is being replaced,
    /// the joining device is named here and the leaving one only in the lane's in-sync set.
    pub lanes: Vec<Vec<DeviceId>>,
}

/// An epoch of a lane starts after index `base`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct EpochRow {
    /// The epoch.
    pub epoch: Epoch,
    /// The last index before it.
    pub base: u64,
}

/// What the metadata service tells a new writer about one lane (the answer to Open).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LaneGrant {
    /// In-sync set: the devices that hold the lane. May name one that is leaving the copyset.
    pub in_sync: Vec<DeviceId>,
    /// Version of the lane's record.
    pub version: u64,
    /// Last index of a clean close; the open then needs no recovery.
    pub clean: Option<u64>,
    /// Where earlier epochs began.
    pub rows: Vec<EpochRow>,
    /// Of a volume whose metadata was restored once ([`VolumeSpec::restored`]), the devices that have been in a set since, or
    /// may have been. Whatever another one holds may be of a history that ended: its join takes nothing of it for granted. So
    /// it is with one that the grant does not know, because it came later. Empty, and meaningless, for other volumes.
    pub trusted: Vec<DeviceId>,
    /// The record may be older than what the devices hold: `in_sync` names all that may hold the lane, and their seals
    /// decide which do.
    pub unverified: bool,
}

/// The answer to an attach: the epoch, and each lane's record as it was granted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct AttachGrant {
    /// The volume.
    pub volume: VolumeId,
    /// The new writer's epoch, in all lanes.
    pub epoch: Epoch,
    /// Size of the volume. The writer before may have written up to its end, so a new one never begins with less.
    pub size_bytes: u64,
    /// One grant per lane.
    pub lanes: Vec<LaneGrant>,
}

/// A compare-and-set of one lane's record (Cas).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LaneCas {
    /// The volume.
    pub volume: VolumeId,
    /// The lane.
    pub lane: u16,
    /// Applies only in this epoch.
    pub epoch: Epoch,
    /// Applies only to this version.
    pub version: u64,
    /// The new in-sync set, never empty: at most three devices of the wanted copyset and the one that is leaving it.
    pub in_sync: Vec<DeviceId>,
    /// Clean-close mark: the last index.
    pub clean: Option<u64>,
    /// The epoch starts after this index: recorded when recovery commits.
    pub base: Option<u64>,
}

/// The lane's record after a compare-and-set, whether it applied or not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LaneCasReply {
    /// Current epoch of the volume.
    pub epoch: Epoch,
    /// Current version of the record.
    pub version: u64,
    /// Current in-sync set.
    pub in_sync: Vec<DeviceId>,
}
