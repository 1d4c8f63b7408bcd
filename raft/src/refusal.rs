//! Why a command was refused: typed, with a stable `code` for programs and a sentence for people.

use ashlar_model::{DeviceId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// What the caller can do about a refusal; the API maps it to a status, the CLI to an exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// The request itself is wrong.
    Invalid,
    /// It names something that does not exist.
    NotFound,
    /// The present state does not allow it.
    Conflict,
    /// It was refused to keep data safe.
    Unsafe,
    /// There is not enough of something.
    Capacity,
}

/// A refusal. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, thiserror::Error)]
pub enum Refusal {
    /// A field is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// The cluster was founded before.
    #[error("the cluster is already initialised")]
    AlreadyInitialised,
    /// No cluster yet.
    #[error("the cluster is not initialised")]
    NotInitialised,
    /// No such node.
    #[error("there is no node {0}")]
    NodeNotFound(NodeId),
    /// No such device.
    #[error("there is no device {0}")]
    DeviceNotFound(DeviceId),
    /// No such volume.
    #[error("there is no volume {0}")]
    VolumeNotFound(VolumeId),
    /// No such lane.
    #[error("volume {volume} has no lane {lane}")]
    LaneNotFound {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
    },
    /// No such setting.
    #[error("there is no setting '{0}'")]
    SettingNotFound(String),
    /// The name is in use.
    #[error("the {what} name '{name}' is taken")]
    NameTaken {
        /// `node` or `volume`.
        what: String,
        /// The name.
        name: String,
    },
    /// The identity is in use, or was.
    #[error("{0} was used before and identities are never reused")]
    IdTaken(String),
    /// The token belongs to another request.
    #[error("the idempotency token was used for another request")]
    TokenReused,
    /// A limit of the cluster is reached.
    #[error("{0}")]
    Limit(String),
    /// The placement in the command does not hold (any more): plan again.
    #[error("the placement does not hold: {0}")]
    Placement(String),
    /// Another node has the volume attached.
    #[error("volume {volume} is attached to node {holder_name} ({holder}); detach it there, or take it over")]
    AttachedElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The holder.
        holder: NodeId,
        /// The holder's name.
        holder_name: String,
    },
    /// The volume is attached and must not be.
    #[error("volume {volume} is attached to node {holder_name}; detach it first")]
    Attached {
        /// The volume.
        volume: VolumeId,
        /// The holder's name.
        holder_name: String,
    },
    /// The attach attempt was superseded; it grants nothing.
    #[error("this attach of volume {0} was superseded by a later one")]
    Superseded(VolumeId),
    /// The session is not the node's current one.
    #[error("the session is over: node {0} has registered a newer one")]
    StaleSession(NodeId),
    /// The node may not do this.
    #[error("node {node} {why}")]
    NodeUnfit {
        /// The node.
        node: NodeId,
        /// What is wrong with it.
        why: String,
    },
    /// The holder of the volume seems alive.
    #[error("node {holder_name} holds volume {volume} and is not down; detach it there, or use force")]
    HolderAlive {
        /// The volume.
        volume: VolumeId,
        /// The holder's name.
        holder_name: String,
    },
    /// The attachment changed meanwhile.
    #[error("the attachment of volume {0} has changed meanwhile; look again")]
    EpochChanged(VolumeId),
    /// An in-sync set may not become empty (M4).
    #[error("the in-sync set of lane {lane} of volume {volume} would be empty")]
    EmptySet {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
    },
    /// A device is not in the lane's copyset.
    #[error("device {device} is no member of lane {lane} of volume {volume}")]
    NotMember {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
        /// The device.
        device: DeviceId,
    },
    /// The lane's epoch began elsewhere already.
    #[error("lane {lane} of volume {volume} has another base recorded for this epoch")]
    BaseConflict {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
    },
    /// Something still depends on it.
    #[error("{what} is still in use: {why}")]
    InUse {
        /// The thing.
        what: String,
        /// By what.
        why: String,
    },
    /// A node cannot go from its present state to the wanted one.
    #[error("node {0} is removed for good; add it again under a new number")]
    NodeRemoved(NodeId),
    /// The device may not do this.
    #[error("device {device} {why}")]
    DeviceUnfit {
        /// The device.
        device: DeviceId,
        /// What is wrong with it.
        why: String,
    },
    /// A member of the lane is being replaced already.
    #[error(
        "lane {lane} of volume {volume} is replacing device {leaving} by {joining}; wait for that or cancel it first"
    )]
    ReplacementPending {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
        /// Who goes.
        leaving: DeviceId,
        /// Who comes.
        joining: DeviceId,
    },
    /// The volume is not on this device, or not being moved from it.
    #[error("no lane of volume {volume} {why}")]
    NothingToReplace {
        /// The volume.
        volume: VolumeId,
        /// What no lane has.
        why: String,
    },
    /// The device has freed the volume's space, or shall keep it.
    #[error("device {device} has nothing to free of volume {volume}")]
    NothingToReclaim {
        /// The volume.
        volume: VolumeId,
        /// The device.
        device: DeviceId,
    },
}

impl Refusal {
    /// The stable code that programs may rely on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::AlreadyInitialised => "already_initialised",
            Self::NotInitialised => "not_initialised",
            Self::NodeNotFound(_) => "node_not_found",
            Self::DeviceNotFound(_) => "device_not_found",
            Self::VolumeNotFound(_) => "volume_not_found",
            Self::LaneNotFound { .. } => "lane_not_found",
            Self::SettingNotFound(_) => "setting_not_found",
            Self::NameTaken { .. } => "name_taken",
            Self::IdTaken(_) => "id_taken",
            Self::TokenReused => "token_reused",
            Self::Limit(_) => "limit_reached",
            Self::Placement(_) => "placement_refused",
            Self::AttachedElsewhere { .. } => "attached_elsewhere",
            Self::Attached { .. } => "attached",
            Self::Superseded(_) => "superseded",
            Self::StaleSession(_) => "stale_session",
            Self::NodeUnfit { .. } => "node_unfit",
            Self::HolderAlive { .. } => "holder_alive",
            Self::EpochChanged(_) => "epoch_changed",
            Self::EmptySet { .. } => "empty_set",
            Self::NotMember { .. } => "not_a_member",
            Self::BaseConflict { .. } => "base_conflict",
            Self::InUse { .. } => "in_use",
            Self::NodeRemoved(_) => "node_removed",
            Self::DeviceUnfit { .. } => "device_unfit",
            Self::ReplacementPending { .. } => "replacement_pending",
            Self::NothingToReplace { .. } => "nothing_to_replace",
            Self::NothingToReclaim { .. } => "nothing_to_reclaim",
        }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Invalid(_) => RefusalKind::Invalid,
            Self::NodeNotFound(_)
            | Self::DeviceNotFound(_)
            | Self::VolumeNotFound(_)
            | Self::LaneNotFound { .. }
            | Self::SettingNotFound(_) => RefusalKind::NotFound,
            Self::AlreadyInitialised
            | Self::NotInitialised
            | Self::NameTaken { .. }
            | Self::IdTaken(_)
            | Self::TokenReused
            | Self::AttachedElsewhere { .. }
            | Self::Attached { .. }
            | Self::Superseded(_)
            | Self::StaleSession(_)
            | Self::NodeUnfit { .. }
            | Self::EpochChanged(_)
            | Self::InUse { .. }
            | Self::NodeRemoved(_)
            | Self::DeviceUnfit { .. }
            | Self::ReplacementPending { .. }
            | Self::NothingToReplace { .. }
            | Self::NothingToReclaim { .. } => RefusalKind::Conflict,
            Self::HolderAlive { .. } | Self::EmptySet { .. } | Self::NotMember { .. } | Self::BaseConflict { .. } => {
                RefusalKind::Unsafe
            }
            Self::Limit(_) | Self::Placement(_) => RefusalKind::Capacity,
        }
    }
}
