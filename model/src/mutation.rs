//! For the simulator: rules of the replication protocol that can be broken on purpose, one at a time, and marks that
//! count how often rare branches are taken.
//!
//! Without the feature `mutation` nothing here does anything: [`broken`] is a constant and [`mark`] is empty. The
//! daemon is built without it.

/// A rule of the replication protocol, broken. Each has its line in docs/protocols/replication.md, that of late requests in nbd.md.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mutation {
    /// W11: settled is what a quorum has, not what every member has.
    SettledByQuorum,
    /// R8: a joiner does not name its own unsettled blocks.
    JoinWithoutSuspects,
    /// C1: a member is ejected although the others lack acknowledged writes.
    EjectBehind,
    /// W9: while a change of the set is out, the old set alone decides.
    OldSetOnly,
    /// W9: an unanswered compare-and-set is taken as failed.
    UnknownCasFailed,
    /// W6: recovery records the set before every member has everything.
    SetBeforeCopy,
    /// M2: a compare-and-set of an older epoch applies.
    CasIgnoresEpoch,
    /// W2: recovery goes on with one seal fewer.
    OneSealFewer,
    /// W5, W6: the lane serves before the copies are durable.
    ServeBeforeCopy,
    /// W6: members that were not sealed stay in the set.
    UnsealedStay,
    /// R2: the list is dropped when an epoch starts.
    StartDropsList,
    /// W5: settled moves during recovery.
    SettledInRecovery,
    /// W3: the base of an epoch ignores the sealed prefixes.
    BaseWithoutPrefix,
    /// W4: a prefix of a later epoch makes a member a holder, too.
    LaterPrefixHolds,
    /// R1: the promise is not durable.
    VolatilePromise,
    /// R1: writes accepted before the seal become durable after it.
    QueueSurvivesSeal,
    /// C5: an emptied device answers under its old identity.
    EmptyOldIdentity,
    /// R0: replicas ignore epochs.
    EpochsIgnored,
    /// R4: writes apply in the order in which they arrive.
    ArrivalOrder,
    /// 14.1: a write that comes again overwrites newer ones.
    LateWriteWins,
    /// W13: reads are served during unacknowledged writes.
    ReadDuringWrites,
    /// W13: the same, checked only when the read is asked.
    ReadCheckedWhenAsked,
    /// W13: any member is read, whatever it lacks.
    ReadAnyMember,
    /// W13: reads need no grants.
    ReadWithoutGrants,
    /// W7: a new writer does not wait for older grants.
    NoGrantWait,
    /// W13: a grant counts from the receipt of its answer.
    GrantFromReceipt,
    /// W7: only acknowledgements wait for older grants, reads do not.
    ReadsDoNotWait,
    /// Z1: the volume closes clean while older grants may run.
    CloseInGrantWait,
    /// R10: copies overwrite live writes.
    CopyOverLive,
    /// R9: the source of a copy may lack writes before the join.
    SourceBehind,
    /// R8, R10: starts and copies of an earlier join are accepted.
    OldJoinAccepted,
    /// R10: copies of an earlier join are accepted.
    OldCopyAccepted,
    /// R10: copied blocks above settled are not listed.
    CopyUnlisted,
    /// R5: a joiner adopts settled.
    JoinerSettles,
    /// R8: a joiner keeps its old list.
    JoinerKeepsList,
    /// C1: a promotion does not look at acknowledged writes.
    PromoteOnSettled,
    /// R4, R9: a trim leaves no tombstone.
    TrimWithoutTombstone,
    /// Z1: the clean mark needs a quorum only.
    CleanByQuorum,
    /// Z1: the volume serves on after it has proposed the clean mark.
    ServeAfterClose,
    /// M1: an open leaves the clean mark.
    CleanMarkStays,
    /// Late requests: one whose guest is gone goes on, although it has not begun.
    AbandonedGoesOn,
    /// V1: the sets of restored metadata are believed.
    RestoreBelieved,
    /// V2: who holds what is known to be above the end of its epoch is trusted after a restore.
    ConvictedTrusted,
    /// V3: after a restore a joiner is believed about what it has.
    JoinerTrusted,
    /// V4: after a restore indexes go on where those that are known ended.
    RestoredIndexes,
}

impl Mutation {
    /// Every one, in the order of the protocol's table.
    pub const ALL: [Self; 45] = [
        Self::SettledByQuorum,
        Self::JoinWithoutSuspects,
        Self::EjectBehind,
        Self::OldSetOnly,
        Self::UnknownCasFailed,
        Self::SetBeforeCopy,
        Self::CasIgnoresEpoch,
        Self::OneSealFewer,
        Self::ServeBeforeCopy,
        Self::UnsealedStay,
        Self::StartDropsList,
        Self::SettledInRecovery,
        Self::BaseWithoutPrefix,
        Self::LaterPrefixHolds,
        Self::VolatilePromise,
        Self::QueueSurvivesSeal,
        Self::EmptyOldIdentity,
        Self::EpochsIgnored,
        Self::ArrivalOrder,
        Self::LateWriteWins,
        Self::ReadDuringWrites,
        Self::ReadCheckedWhenAsked,
        Self::ReadAnyMember,
        Self::ReadWithoutGrants,
        Self::NoGrantWait,
        Self::GrantFromReceipt,
        Self::ReadsDoNotWait,
        Self::CloseInGrantWait,
        Self::CopyOverLive,
        Self::SourceBehind,
        Self::OldJoinAccepted,
        Self::OldCopyAccepted,
        Self::CopyUnlisted,
        Self::JoinerSettles,
        Self::JoinerKeepsList,
        Self::PromoteOnSettled,
        Self::TrimWithoutTombstone,
        Self::CleanByQuorum,
        Self::ServeAfterClose,
        Self::CleanMarkStays,
        Self::AbandonedGoesOn,
        Self::RestoreBelieved,
        Self::ConvictedTrusted,
        Self::JoinerTrusted,
        Self::RestoredIndexes,
    ];

    /// The mutation of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutation| format!("{mutation:?}") == name)
    }
}

#[cfg(feature = "mutation")]
mod switches {
    use super::Mutation;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
        static MARKS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Breaks a rule on this thread from now on, or none.
    pub fn activate(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
    }

    /// True if this thread has broken the rule.
    pub fn broken(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }

    /// Counts that a rare branch was taken.
    pub fn mark(name: &'static str) {
        MARKS.with_borrow_mut(|marks| *marks.entry(name).or_default() += 1);
    }

    /// The marks of this thread since the last call.
    pub fn take_marks() -> BTreeMap<&'static str, u64> {
        MARKS.with_borrow_mut(std::mem::take)
    }
}

#[cfg(feature = "mutation")]
pub use switches::{activate, broken, mark, take_marks};

/// Never: rules hold in the daemon.
#[cfg(not(feature = "mutation"))]
#[inline(always)]
pub const fn broken(_: Mutation) -> bool {
    false
}

/// Nothing: the daemon counts no branches.
#[cfg(not(feature = "mutation"))]
#[inline(always)]
pub const fn mark(_: &'static str) {}
