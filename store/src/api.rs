//! What a replica asks of the store, and what the store answers.
//!
//! Requests on the same block take effect in the order of submission. Completions may come in any order, but an
//! acknowledged request survives every crash. Nothing here compares stamps: the replica engine decides what is newer
//! and submits writes of one lane in index order (joins aside).

use ashlar_model::checksum::Checksums;
use ashlar_model::{BlockRange, Epoch, LaneKey, Payload, Stamp, VolumeId, lane::EntryOrigin, lane::LaneState};

/// The caller's name for a request; the store only gives it back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// New content of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Bytes, and one checksum per block (see `ashlar_model::checksum`), already verified by the caller.
    Data {
        /// As many blocks as the range.
        payload: Payload,
        /// One per block.
        checksums: Checksums,
    },
    /// Zeroes that take no space (trim and write-zeroes), versioned like data.
    Tombstone,
    /// The content of this version is lost everywhere: the blocks are unknown until they are written.
    Lost,
    /// The blocks already hold something newer: only the list entry and `prefix` change.
    Held,
}

/// One write, atomic per block: data, stamp and list entry become durable together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The lane whose list the entry joins.
    pub key: LaneKey,
    /// Version.
    pub stamp: Stamp,
    /// Blocks of the volume, within one chunk.
    pub range: BlockRange,
    /// New content.
    pub body: Body,
    /// Live write or join copy.
    pub origin: EntryOrigin,
    /// False for a copy at or below the set's settled index: it needs no list entry.
    pub listed: bool,
    /// Snapshot generation.
    pub generation: u32,
}

/// A request to the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Store a write. Answer: `Done`. A live write of the lane's current epoch also extends `prefix`: the store keeps
    /// `prefix` as the largest index up to which all live writes of `current` are durable.
    Write(Write),
    /// Read content that is durable or at least accepted (a read after an accepted write of the same block waits for
    /// it). Answer: `Read`.
    Read {
        /// The volume.
        volume: VolumeId,
        /// Blocks, within one chunk.
        range: BlockRange,
    },
    /// Read content as a snapshot sees it: only what was written up to `generation`. Otherwise as `Read`.
    ReadSnapshot {
        /// The volume.
        volume: VolumeId,
        /// Blocks, within one chunk.
        range: BlockRange,
        /// The snapshot's generation.
        generation: u32,
    },
    /// Nobody sees `generation` any more: what is still seen through it moves into the next newer one, `into`, and the
    /// rest becomes free. Answer: `Done`, when all of it is durable; asked again after a crash, it goes on.
    DropGeneration {
        /// The volume.
        volume: VolumeId,
        /// The generation to drop.
        generation: u32,
        /// The next newer one that is still seen; the volume's present one if there is no snapshot between.
        into: u32,
    },
    /// Which blocks hold data, and their versions, without reading the data. Same ordering as `Read`. Answer: `Map`.
    Map {
        /// The volume.
        volume: VolumeId,
        /// Blocks, within one chunk.
        range: BlockRange,
    },
    /// Make `epoch` the volume's promise if it is higher. Acts as a barrier: answered with `Sealed` when the promise is
    /// durable and every request of the volume accepted before it has completed. `Full`: the volume has no promise yet,
    /// and the volume table no room for one; raising one never needs room.
    Promise {
        /// The volume.
        volume: VolumeId,
        /// The promised epoch.
        epoch: Epoch,
    },
    /// One commit: promise := max(promise, epoch); current := epoch; prefix := base; config := config. The list,
    /// settled, suspect and join stay. Creates the lane if it is new. Answer: `Done`, or `Full`: the lane is new and the
    /// volume table has no room for it; starting one that is there never needs room.
    Start {
        /// The lane.
        key: LaneKey,
        /// The writer's epoch.
        epoch: Epoch,
        /// Configuration version.
        config: u64,
        /// The epoch starts after this index.
        base: u64,
    },
    /// The set's progress. Volatile at once and durable with the next commit of the lane at the latest; dropped list
    /// entries leave durably only together with the settled value or later. No answer.
    /// Member: settled := max(settled, index), drop list entries with index <= it, clear suspect.
    /// Joiner (`member` false): drop list entries with index <= `index` only.
    Settle {
        /// The lane.
        key: LaneKey,
        /// Settled index, at most the own prefix for a member.
        index: u64,
        /// Configuration version: the lane keeps the maximum.
        config: u64,
        /// Whether this replica is a confirmed member.
        member: bool,
    },
    /// One commit: promise := max(promise, epoch); current, config, join := given; prefix := base; suspect := suspect
    /// and all ranges of the list; list := empty; settled stays. Creates the lane if it is new. Answer: `Done`, or `Full`
    /// as for `Start`.
    JoinStart {
        /// The lane.
        key: LaneKey,
        /// The writer's epoch.
        epoch: Epoch,
        /// Configuration version.
        config: u64,
        /// Number of the join.
        join: u64,
        /// The join's base.
        base: u64,
    },
    /// Rewrite a damaged block in place, only if its recorded checksum is `checksum` (same version). Answer: `Done`, or
    /// `Refused` if the block now has another checksum.
    Repair {
        /// The volume.
        volume: VolumeId,
        /// The block.
        block: u64,
        /// Checksum of the bytes.
        checksum: u32,
        /// One block.
        payload: Payload,
    },
    /// Delete everything of a volume; its space becomes free when the deletion is durable. Answer: `Done`.
    Forget {
        /// The volume.
        volume: VolumeId,
    },
    /// As `Forget`, and in the same commit: promise := max(promise, epoch). Answer: `Done`, or `Full`: the volume has no
    /// promise yet, and the volume table no room for one.
    Release {
        /// The volume.
        volume: VolumeId,
        /// The promised epoch.
        epoch: Epoch,
    },
}

/// State of one block that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockState {
    /// Data, verified against this checksum.
    Data(u32),
    /// Zeroes: never written, or a tombstone.
    Zero,
    /// Damaged: the recorded checksum is this, the bytes are something else, or the device could not read them.
    Bad(u32),
    /// Damaged metadata: what should be here is not known.
    Unknown,
}

impl BlockState {
    /// The recorded checksum, if there is one.
    pub fn checksum(self) -> Option<u32> {
        match self {
            BlockState::Data(checksum) | BlockState::Bad(checksum) => Some(checksum),
            BlockState::Zero | BlockState::Unknown => None,
        }
    }
}

/// Content of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadResult {
    /// The range read.
    pub range: BlockRange,
    /// As many blocks as the range; zeroes where a block is not `Data`. `None` if no block is `Data`.
    pub payload: Option<Payload>,
    /// One per block.
    pub states: Vec<BlockState>,
    /// Version per block; exact above settled, possibly too new (never too old) below. Zero: never written.
    pub stamps: Vec<Stamp>,
}

/// What a range holds, without its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapResult {
    /// The range asked for.
    pub range: BlockRange,
    /// One per block: `true` where it holds data, `false` where it reads as zeroes (`Unknown` counts as data).
    pub written: Vec<bool>,
    /// Version per block, as in [`ReadResult::stamps`]. A tombstone has the stamp of its trim.
    pub stamps: Vec<Stamp>,
}

/// Why a request did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// No room for an allocating write, a list entry, a new lane or a new promise; overwrites, trims and deletes go on as
    /// far as they need none. Nothing of the request happened. Retry when space has returned: data space after trims, room
    /// in the volume table after settles and deletions.
    #[error("the device is full: {used_bytes} of {total_bytes} bytes of data space are in use")]
    Full {
        /// Data bytes in use.
        used_bytes: u64,
        /// Data bytes of the device.
        total_bytes: u64,
    },
    /// The request cannot be right (range outside a chunk, unknown lane, wrong checksum count, repair of another version).
    #[error("refused: {0}")]
    Refused(String),
    /// The device failed; every later request fails too until it is replaced.
    #[error("the device has failed: {0}")]
    Failed(String),
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Durable.
    Done,
    /// The answer to `Read`.
    Read(ReadResult),
    /// The answer to `Map`.
    Map(MapResult),
    /// The answer to `Promise`: a promise that is durable, and every lane of the volume kept here.
    Sealed {
        /// The highest promise that is known to be durable: what was asked for, or a higher one before it.
        promised: Epoch,
        /// Lane number and state.
        lanes: Vec<(u16, LaneState)>,
    },
    /// It did not happen.
    Error(StoreError),
}
