//! What writers and replicas say to each other: sections 3 and 5 to 8 of the replication protocol.
//!
//! Knows no bytes (see `codec`) and no sockets.

use ashlar_model::checksum::Checksums;
use ashlar_model::lane::{LaneState, ListEntry};
use ashlar_model::{BlockRange, DeviceId, Epoch, Payload, Stamp, VolumeId};
use std::sync::Arc;

/// Address of every message between a writer and a replica. A replica answers only to its own device identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Envelope {
    /// The volume.
    pub volume: VolumeId,
    /// The lane; [`Envelope::ALL_LANES`] in messages about the whole volume.
    pub lane: u16,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The replica's device.
    pub device: DeviceId,
}

impl Envelope {
    /// Lane number of messages that concern every lane of the volume.
    pub const ALL_LANES: u16 = u16::MAX;
}

/// New content of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Bytes and one checksum per block.
    Data {
        /// As many blocks as the range.
        payload: Payload,
        /// One per block.
        checksums: Checksums,
    },
    /// Zeroes, as a versioned tombstone.
    Zeroes,
    /// No member has the bytes of this version any more: reads fail until the blocks are written.
    Lost,
}

/// What rides on each message of a serving writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Configuration version.
    pub config: u64,
    /// Settled index.
    pub settled: u64,
    /// The device is in the writer's confirmed in-sync set.
    pub member: bool,
    /// The writer's clock when it sent the message, in microseconds: the start of a read grant.
    pub sent_at_us: u64,
}

/// From a writer to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToReplica {
    /// Promise the epoch and tell what you hold, in all lanes of the volume.
    Seal,
    /// The epoch begins after index `base`.
    Start {
        /// Configuration version.
        config: u64,
        /// Last index before the epoch.
        base: u64,
        /// The last writer closed clean: the replica must hold everything up to `base`.
        clean: bool,
    },
    /// A write.
    Write {
        /// Grant, settled and configuration.
        progress: Progress,
        /// Dense index in the lane.
        index: u64,
        /// Blocks, within one chunk, at most `WRITE_BLOCKS_MAX`.
        range: BlockRange,
        /// New content.
        content: Content,
        /// Snapshot generation.
        generation: u32,
    },
    /// Nothing new, but settled and a grant.
    Heartbeat {
        /// Grant, settled and configuration.
        progress: Progress,
    },
    /// Read durable content.
    Read {
        /// The writer's name for the request.
        request: u64,
        /// Blocks, within one chunk.
        range: BlockRange,
        /// Only versions and allocation, no data.
        map_only: bool,
        /// Answer only if the own prefix has reached this index (copy source); zero otherwise.
        prefix_min: u64,
        /// For a join or a repair: it takes background credits.
        background: bool,
    },
    /// Versions and digests of durable content: what a joiner may hold already needs not be sent.
    Digest {
        /// The writer's name for the request.
        request: u64,
        /// Blocks, within one chunk, at most `WRITE_BLOCKS_MAX`.
        range: BlockRange,
        /// Seed of the digests.
        seed: u64,
        /// Answer only if the own prefix has reached this index.
        prefix_min: u64,
    },
    /// Take over the version of every block that holds these bytes, and tell which do not.
    Confirm {
        /// Number of the join.
        join: u64,
        /// The writer's name for the request.
        request: u64,
        /// Blocks, within one chunk, at most `WRITE_BLOCKS_MAX`.
        range: BlockRange,
        /// Seed of the digests.
        seed: u64,
        /// Version and digest at the source, one per block; digest zero: no data there; see also [`recorded_digest`].
        blocks: Arc<[(Stamp, u128)]>,
        /// The writer's settled index.
        settled: u64,
    },
    /// Become a joiner.
    JoinStart {
        /// Configuration version.
        config: u64,
        /// Number of the join, growing over all joins of the device.
        join: u64,
        /// Writes after this index arrive live.
        base: u64,
    },
    /// A copied run of blocks of one version.
    Copy {
        /// Number of the join.
        join: u64,
        /// The writer's name for the request.
        request: u64,
        /// Blocks, within one chunk, at most `WRITE_BLOCKS_MAX`.
        range: BlockRange,
        /// Version at the source.
        stamp: Stamp,
        /// Content at the source.
        content: Content,
        /// The writer's settled index.
        settled: u64,
    },
    /// Rewrite a damaged block if its recorded checksum is this one.
    Repair {
        /// The block.
        block: u64,
        /// Checksum of the bytes.
        checksum: u32,
        /// One block.
        payload: Payload,
    },
}

/// State of a block in a read reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockCondition {
    /// Data with this checksum.
    Data(u32),
    /// Zeroes.
    Zero,
    /// Damaged; this checksum is recorded for it.
    Bad(u32),
    /// Not known.
    Unknown,
}

/// Answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadReply {
    /// Blocks.
    pub range: BlockRange,
    /// One per block.
    pub conditions: Vec<BlockCondition>,
    /// One per block if the request was for the map, else empty.
    pub stamps: Vec<Stamp>,
    /// As many blocks as the range if any block is `Data` and the request was for data.
    pub payload: Option<Payload>,
}

/// From a replica to a writer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToWriter {
    /// Answer to `Seal`: what this device holds of the volume.
    Sealed {
        /// Lane number and state; lanes not kept here are absent.
        lanes: Vec<(u16, LaneState)>,
    },
    /// Durable progress, and a read grant.
    Ack {
        /// All writes of the epoch up to this index are durable.
        prefix: u64,
        /// This write above the prefix is durable too; zero if none.
        index: u64,
        /// `sent_at_us` of the newest message seen.
        sent_at_us: u64,
        /// The device has no room: writes wait.
        full: bool,
    },
    /// Answer to `Read`.
    ReadDone {
        /// The writer's name for the request.
        request: u64,
        /// Content.
        reply: ReadReply,
    },
    /// The read was not possible now (not in this epoch, prefix too low, device failed): ask elsewhere or later.
    ReadRefused {
        /// The writer's name for the request.
        request: u64,
    },
    /// Answer to `JoinStart`.
    JoinReady {
        /// Number of the join.
        join: u64,
        /// The joiner's own settled index.
        settled: u64,
        /// Blocks that must be copied whatever their version.
        suspects: Vec<BlockRange>,
    },
    /// The join is over (the joiner restarted): begin again.
    JoinLost {
        /// Number of the join.
        join: u64,
    },
    /// Answer to `Digest`.
    Digests {
        /// The writer's name for the request.
        request: u64,
        /// Blocks.
        range: BlockRange,
        /// Version and digest, one per block; digest zero: no good data.
        blocks: Vec<(Stamp, u128)>,
    },
    /// Answer to `Confirm`: every other block of the range is durable in its version.
    Confirmed {
        /// Number of the join.
        join: u64,
        /// The writer's name for the request.
        request: u64,
        /// Blocks that must be copied.
        differs: Vec<BlockRange>,
    },
    /// The copy is durable, or was superseded by a live write.
    CopyDone {
        /// Number of the join.
        join: u64,
        /// The writer's name for the request.
        request: u64,
    },
    /// A higher epoch is promised: this writer is over.
    Fenced {
        /// The promise.
        promised: Epoch,
    },
    /// The device has failed; it stays out until it is replaced.
    DeviceFailed {
        /// What happened.
        reason: String,
    },
    /// Answer to a clean `Start`: writes that this replica had acknowledged are gone. It must be copied again.
    LostData {
        /// What is left.
        prefix: u64,
    },
    /// The node does not serve the device (yet): its messages are dropped; ask again.
    NotServed,
    /// A damaged block was rewritten.
    Repaired {
        /// The block.
        block: u64,
    },
    /// Nobody asked: the device's scrub met damage here. About the whole volume ([`Envelope::ALL_LANES`]); a read of the
    /// blocks says more. Told once to each writer, and again over a new link.
    Damaged {
        /// Blocks, within one chunk.
        range: BlockRange,
    },
}

/// Stands for the digest of a block that every source has damaged: the checksum that is recorded for it.
pub fn recorded_digest(checksum: u32) -> u128 {
    RECORDED << 32 | u128::from(checksum)
}

/// The recorded checksum, if that is what it stands for.
pub fn checksum_of_digest(digest: u128) -> Option<u32> {
    (digest >> 32 == RECORDED).then_some(digest as u32)
}

/// Upper bits of a digest that is none; one digest in 2^96 has them by chance.
const RECORDED: u128 = u128::MAX >> 32;

/// A list entry is encoded often enough to be named here.
pub type Entry = ListEntry;
