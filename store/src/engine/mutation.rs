//! Rules broken on purpose, one at a time, so that tests show that they would be noticed. In test builds only.
//!
//! It must never be reachable from the daemon.

use super::StoreEngine;

/// A rule of the store, broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Rule 1: a device write starts though another one on the same block is in flight.
    NoLatch,
    /// Rule 1: the log's head moves on before its pages are durable, so records that count are written over.
    EarlyHead,
    /// Rule 2: what had completed is taken for a torn tail.
    CompletedIgnored,
    /// Rule 3: a completed write is taken as durable on a device with a volatile cache.
    NoFlush,
    /// Rule 4: a failed write is taken for a done one.
    FailedWriteIgnored,
    /// Rule 5: a damaged map page reads as zeroes.
    DamagedIsZero,
    /// Rule 5: the space of a damaged page's blocks is used again before the medium says that it is free.
    DamagedReused,
    /// Rule 6: the space of trimmed blocks is used again before the trim is durable.
    EarlyRelease,
    /// Rule 6: a trim is acknowledged and forgotten.
    NoTombstone,
    /// Rule 7: writes are taken without room in the log.
    NoReserve,
    /// Rule 8: versions that leave a list are forgotten.
    NoVersions,
    /// Rule 9: the log before the last record of a chunk is not replayed.
    ShortReplay,
    /// Commit: a group counts though one before it is still being written.
    NoChain,
    /// Commit: a group is answered because its own write is durable, though one before it may not be.
    DurableAlone,
    /// Write classes: data goes over older data in parallel with its record.
    FreshOverData,
    /// Write classes: an intent's data does not wait for its record.
    IntentAtOnce,
    /// Write classes: the place of a block that moved is used again before the move is durable.
    SpareTooSoon,
    /// Write classes: a granule is written in place before the redirect that brought it is durable.
    YoungInPlace,
    /// Write classes: a logged block is never written back.
    NoWriteBack,
    /// Checkpoint: a block that changed meanwhile is not waited for.
    NoSecondSeal,
    /// Checkpoint: pages are written over those that count.
    NoTurn,
}

#[cfg(any(test, feature = "testing"))]
impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 21] = [
        Mutation::NoLatch,
        Mutation::EarlyHead,
        Mutation::CompletedIgnored,
        Mutation::NoFlush,
        Mutation::FailedWriteIgnored,
        Mutation::DamagedIsZero,
        Mutation::DamagedReused,
        Mutation::EarlyRelease,
        Mutation::NoTombstone,
        Mutation::NoReserve,
        Mutation::NoVersions,
        Mutation::ShortReplay,
        Mutation::NoChain,
        Mutation::DurableAlone,
        Mutation::FreshOverData,
        Mutation::IntentAtOnce,
        Mutation::SpareTooSoon,
        Mutation::YoungInPlace,
        Mutation::NoWriteBack,
        Mutation::NoSecondSeal,
        Mutation::NoTurn,
    ];
}

impl StoreEngine {
    /// True if this rule is to be broken.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn broken(&self, mutation: Mutation) -> bool {
        self.options.mutation == Some(mutation)
    }

    /// Never: only test builds can break rules.
    #[cfg(not(any(test, feature = "testing")))]
    #[inline]
    pub(super) fn broken(&self, _mutation: Mutation) -> bool {
        false
    }
}
