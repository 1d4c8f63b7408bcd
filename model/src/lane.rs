//! A lane: the unit of replication. Stamps, and the durable state that a replica keeps per lane.

use crate::geometry::BlockRange;
use crate::ids::VolumeId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Number of a writer's reign over a volume. Replicas refuse older ones. Zero: nobody has written yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Version of a write: epoch, then the lane's dense index, which never goes back over epochs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
pub struct Stamp {
    /// The writer's reign.
    pub epoch: Epoch,
    /// Position in the lane's sequence, from 1.
    pub index: u64,
}

/// One lane of one volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct LaneKey {
    /// The volume.
    pub volume: VolumeId,
    /// The lane's number, below the volume's lane count.
    pub lane: u16,
}

/// How an entry of a replica's list came about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub enum EntryOrigin {
    /// A write of the lane's writer: counts for `prefix` and "already held".
    Live,
    /// Copied from a member during a join: counts for recovery and rejoin only.
    Copy,
}

/// One durable write above `settled`: an entry of the replica's list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct ListEntry {
    /// Version of the write.
    pub stamp: Stamp,
    /// Blocks of the volume that it covered; all in one chunk.
    pub range: BlockRange,
    /// The write left zeroes (trim or write-zeroes) instead of data.
    pub tombstone: bool,
    /// Live write or copy.
    pub origin: EntryOrigin,
    /// Snapshot generation of the write.
    pub generation: u32,
}

/// What a replica holds durably about one lane (section 2 of the replication protocol).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct LaneState {
    /// Epoch in which `prefix` counts.
    pub current: Epoch,
    /// Highest configuration version seen in `current`.
    pub config: u64,
    /// Largest index such that all live writes of `current` up to it are durable here.
    pub prefix: u64,
    /// Index up to which every write is durable on every member.
    pub settled: u64,
    /// Every durable write above `settled`. A store gives them in order of index.
    pub list: Vec<ListEntry>,
    /// Blocks whose content may differ from the set's: to be copied again on the next join.
    pub suspect: Vec<BlockRange>,
    /// Highest join accepted.
    pub join: u64,
}

impl LaneState {
    /// True if the live write `index` of the current epoch is durable here.
    pub fn holds(&self, index: u64) -> bool {
        index <= self.prefix
            || self
                .list
                .iter()
                .any(|entry| entry.origin == EntryOrigin::Live && entry.stamp == Stamp { epoch: self.current, index })
    }
}
