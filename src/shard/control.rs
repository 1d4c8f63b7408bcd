//! What the control plane and a shard say to each other, over bounded queues.
//!
//! The control plane pushes what the metadata says (routes, volumes, grants); the shard asks for what only the
//! metadata service can decide (epochs, changes of in-sync sets). The shard never blocks on an answer.

use super::parcel::Parcel;
use super::scrub::{Pace, ScrubOptions};
use crate::front::doors::Doors;
use crate::volume::VolumeStatus;
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply, VolumeSpec};
use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, ShardId, VolumeId};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::sync::oneshot;

/// What shards are started with.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The cluster; peers of another one are refused.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// How many shards it has.
    pub shards: u16,
    /// Where peers connect (data plane).
    pub data_address: SocketAddr,
    /// NBD unix socket, if this node is a target.
    pub nbd_socket: Option<PathBuf>,
    /// NBD TCP address, off by default.
    pub nbd_address: Option<SocketAddr>,
    /// Who comes in by them.
    pub doors: Doors,
    /// Background scrub of each device.
    pub scrub: ScrubOptions,
    /// How long it looks for the next message before it sleeps.
    pub spin: std::time::Duration,
}

/// Where a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRoute {
    /// The device.
    pub device: DeviceId,
    /// The shard that owns it.
    pub at: ShardId,
    /// Data-plane address of the node.
    pub address: SocketAddr,
}

/// A device of this node, already formatted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalDevice {
    /// File or block device.
    pub path: PathBuf,
    /// The operator declares that its write cache survives a power cut: no flushes.
    pub power_loss_protected: bool,
    /// The operator declares that it never tears an aligned 4 KiB write: it is overwritten in place while it is busy.
    pub atomic_writes: bool,
}

/// Why an attach was refused, for the guest's error message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachRefusal {
    /// One line for people, naming the holder if there is one.
    pub message: String,
    /// True if trying again later may help (no leader, for instance).
    pub retry: bool,
}

/// What a volume is attached for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AttachFor {
    /// Guests, or an operator who expects some. Refused while another node has it for guests.
    Guests,
    /// Guests, whoever has it: an operator said so.
    Takeover,
    /// Bringing its members in sync: gives way to everybody.
    Maintenance,
}

/// A volume was attached by command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachDone {
    /// It was closed cleanly before, or it was attached here already: nothing had to be recovered.
    pub clean: bool,
}

/// Why a device does not serve.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenFailure {
    /// Another process has it, or a killed one of which the kernel has not yet ended all I/O.
    #[error("{0}")]
    InUse(String),
    /// Anything else.
    #[error("{0}")]
    Refused(String),
}

/// From the control plane to a shard.
#[derive(Debug)]
pub enum ShardCommand {
    /// Every device of the cluster and where it is; replaces the former list.
    Routes(Vec<DeviceRoute>),
    /// Every volume of the cluster; replaces the former list. Absence deletes nothing: see [`ShardCommand::Reclaim`].
    Volumes(Vec<VolumeSpec>),
    /// Open a device of this node and serve it. Answered when it serves, or with the reason why not.
    OpenDevice {
        /// The device.
        device: LocalDevice,
        /// The shard that owns it.
        shard: u16,
        /// Identity and size once it is open.
        done: oneshot::Sender<Result<DeviceId, OpenFailure>>,
    },
    /// Attach a volume to this node (also done by itself when a guest opens the export).
    Attach {
        /// The volume.
        volume: VolumeId,
        /// Also from another node that has it for its guests.
        takeover: bool,
        /// Answered when its epoch is granted.
        done: oneshot::Sender<Result<AttachDone, AttachRefusal>>,
    },
    /// The volumes that this node shall bring in sync while nobody uses them; replaces the former list. Those that are
    /// not attached anywhere are attached once; those that are not named any more are let go.
    Maintain(Vec<VolumeId>),
    /// Put a device out of a volume's in-sync sets, now. Answered with whether the volume is attached here.
    Eject {
        /// The volume.
        volume: VolumeId,
        /// The device.
        device: DeviceId,
        /// Answered when the volume's engine knows.
        done: oneshot::Sender<bool>,
    },
    /// Answer to [`ShardRequest::Attach`].
    Granted {
        /// The writer that asked: a later one does not take its answer.
        attempt: u64,
        /// What it is attached for.
        purpose: AttachFor,
        /// Epoch and lanes.
        grant: AttachGrant,
    },
    /// Answer to [`ShardRequest::Attach`].
    AttachRefused {
        /// The volume.
        volume: VolumeId,
        /// The writer that asked.
        attempt: u64,
        /// What for.
        purpose: AttachFor,
        /// Why.
        refusal: AttachRefusal,
    },
    /// Answer to [`ShardRequest::Cas`].
    CasDone {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
        /// The record as it is now.
        reply: LaneCasReply,
    },
    /// Answer to [`ShardRequest::Cas`] when the metadata service does not take the set as the record is.
    CasRefused {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
    },
    /// Answer to [`ShardRequest::Cas`] when the metadata service could not be asked: the outcome is unknown.
    CasUnknown {
        /// The volume.
        volume: VolumeId,
        /// The lane.
        lane: u16,
    },
    /// Finish what is in flight, mark the volume clean and let it go. Guests' connections are closed.
    Detach {
        /// The volume.
        volume: VolumeId,
        /// True: closed clean. False: it was not attached here, or ended without the clean mark.
        done: oneshot::Sender<bool>,
    },
    /// As `Detach`, because another node wants the volume.
    Release {
        /// The volume.
        volume: VolumeId,
        /// The epoch that the other node knows: a later writer is not meant.
        epoch: Epoch,
        /// Only if nobody uses it here, or is about to.
        maintenance_only: bool,
        /// As for `Detach`; false as well if it was not let go.
        done: oneshot::Sender<bool>,
    },
    /// A volume was deleted or has left a device of this node: free what the device still holds of it. Answered when
    /// that is durable.
    Reclaim {
        /// The device.
        device: DeviceId,
        /// The volume.
        volume: VolumeId,
        /// It goes on elsewhere, in this epoch: the device keeps that promise.
        promise: Option<Epoch>,
        /// Answered when its space is free.
        done: oneshot::Sender<()>,
    },
    /// Which volumes devices of this node keep nothing of but a promise.
    LeftVolumes(oneshot::Sender<Vec<(DeviceId, VolumeId)>>),
    /// From another shard: bring this volume in sync, which is on the list of [`ShardCommand::Maintain`].
    Keep(VolumeId),
    /// From another shard: a connection that is meant for this one.
    Adopt(Parcel),
    /// Report.
    Status(oneshot::Sender<ShardStatus>),
    /// Detach everything, close the devices, end the thread.
    Shutdown(oneshot::Sender<()>),
}

impl ShardCommand {
    /// The volume that it is about, if that decides which shard it is for.
    pub fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Attach { volume, .. }
            | Self::Eject { volume, .. }
            | Self::AttachRefused { volume, .. }
            | Self::CasDone { volume, .. }
            | Self::CasRefused { volume, .. }
            | Self::CasUnknown { volume, .. }
            | Self::Detach { volume, .. }
            | Self::Release { volume, .. }
            | Self::Keep(volume) => Some(*volume),
            Self::Granted { grant, .. } => Some(grant.volume),
            // A guest's volume is looked up where it arrives.
            Self::Adopt(_)
            | Self::Routes(_)
            | Self::Volumes(_)
            | Self::OpenDevice { .. }
            | Self::Maintain(_)
            | Self::Reclaim { .. }
            | Self::LeftVolumes(_)
            | Self::Status(_)
            | Self::Shutdown(_) => None,
        }
    }
}

/// From a shard to the control plane. Each is answered by a command; the shard repeats what stays unanswered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardRequest {
    /// Ask for an epoch of the volume. `attempt` names the writer: a repeated question gets the same grant.
    Attach {
        /// The volume.
        volume: VolumeId,
        /// Number of the writer in this session of the daemon, from 1.
        attempt: u64,
        /// What for. Asked again by the same writer for guests, maintenance becomes an ordinary attachment.
        purpose: AttachFor,
    },
    /// Change a lane's record.
    Cas(LaneCas),
    /// The writer has ended; the attachment may be cleared.
    Detached {
        /// The volume.
        volume: VolumeId,
        /// The writer that has ended: a later one's attachment stays.
        attempt: u64,
        /// Every lane carries the clean mark.
        clean: bool,
    },
    /// A device of this node failed: its state should be recorded.
    DeviceFailed {
        /// The device.
        device: DeviceId,
        /// What happened.
        reason: String,
    },
}

/// How far the background scrub of a device is. Counts since the device was opened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ScrubStatus {
    /// What it is doing.
    pub pace: Pace,
    /// Bytes per second that it may read now.
    pub rate_bytes_per_s: u64,
    /// Data bytes read and verified.
    pub scrubbed_bytes: u64,
    /// About how much of this pass is done.
    pub percent: u64,
    /// Passes that have ended.
    pub passes: u64,
    /// Seconds since the last pass ended, if one has.
    pub ended_s_ago: Option<u64>,
    /// Damaged blocks that it met.
    pub damaged_blocks: u64,
}

/// A device of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceStatus {
    /// Identity.
    pub id: DeviceId,
    /// File or block device.
    pub path: PathBuf,
    /// Data bytes in use.
    pub used_bytes: u64,
    /// Data bytes that it can hold.
    pub total_bytes: u64,
    /// Bytes written to the medium since it was opened.
    pub written_bytes: u64,
    /// Blocks found damaged since it was opened.
    pub bad_blocks: u64,
    /// Blocks repaired since it was opened.
    pub repaired_blocks: u64,
    /// Every commit is followed by a flush.
    pub flushes: bool,
    /// An operator declared that its write cache survives a power cut.
    pub power_loss_protected: bool,
    /// Aligned 4 KiB writes are taken as never torn.
    pub atomic: bool,
    /// An operator declared that, whatever the device says.
    pub atomic_declared: bool,
    /// Its background scrub.
    pub scrub: ScrubStatus,
    /// Why it no longer serves.
    pub failed: Option<String>,
}

/// A volume attached to this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AttachedVolume {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// NBD connections that serve it.
    pub connections: usize,
    /// It is attached to bring its members in sync; no guest uses it.
    pub maintenance: bool,
    /// Health, lanes, counts.
    pub status: VolumeStatus,
}

/// How often requests to other shards had to wait for credits (within the last 50 ms some may be missing).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CreditWaits {
    /// Of guests and recoveries.
    pub foreground: u64,
    /// Of joins and repairs.
    pub background: u64,
}

/// What one shard has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ShardLoad {
    /// Its number.
    pub number: u16,
    /// Volumes attached to it.
    pub volumes: usize,
    /// Devices that it serves.
    pub devices: usize,
    /// Guest connections.
    pub nbd_connections: usize,
    /// Guest requests answered.
    pub requests: u64,
    /// io_uring_enter calls.
    pub enters: u64,
}

/// What a shard reports, or all shards of a daemon together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ShardStatus {
    /// Volumes attached here.
    pub volumes: Vec<AttachedVolume>,
    /// Devices of this node.
    pub devices: Vec<DeviceStatus>,
    /// Other nodes with an established link.
    pub peers_connected: Vec<NodeId>,
    /// Flow control on the links to other shards, of this node too.
    pub credit_waits: CreditWaits,
    /// Each shard.
    pub shards: Vec<ShardLoad>,
}

impl ShardStatus {
    /// The reports of all shards as one.
    pub fn merged(reports: Vec<Self>) -> Self {
        let mut all = Self::default();
        for report in reports {
            let Self { volumes, devices, peers_connected, credit_waits, shards } = report;
            all.volumes.extend(volumes);
            all.devices.extend(devices);
            all.peers_connected.extend(peers_connected);
            all.credit_waits.foreground += credit_waits.foreground;
            all.credit_waits.background += credit_waits.background;
            all.shards.extend(shards);
        }
        all.peers_connected.sort_unstable();
        all.peers_connected.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_several_shards_are_linked_to_is_counted_once() {
        let report = |number, peers: &[u64], waits| ShardStatus {
            peers_connected: peers.iter().copied().map(NodeId).collect(),
            credit_waits: CreditWaits { foreground: waits, background: 1 },
            shards: vec![ShardLoad { number, ..ShardLoad::default() }],
            ..ShardStatus::default()
        };
        let all = ShardStatus::merged(vec![report(0, &[2, 3], 4), report(1, &[3], 5)]);
        assert_eq!(all.peers_connected, [NodeId(2), NodeId(3)]);
        assert_eq!(all.credit_waits, CreditWaits { foreground: 9, background: 2 });
        assert_eq!(all.shards.iter().map(|shard| shard.number).collect::<Vec<_>>(), [0, 1]);
    }
}
