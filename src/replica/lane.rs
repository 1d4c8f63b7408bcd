//! What the engine remembers of one lane: a mirror of the durable state it needs, and what is in flight.

use super::engine::LinkId;
use super::join::cut;
use super::written::WrittenBlocks;
use crate::wire::message::Content;
use crate::wire::{Class, Credit, Ledger, Permit};
use ashlar_model::lane::{EntryOrigin, LaneState};
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{BlockRange, Epoch, Stamp};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A write or copy that was accepted and is not durable yet.
#[derive(Debug)]
pub(super) struct Accepted {
    pub stamp: Stamp,
    pub range: BlockRange,
    pub content: Content,
    pub generation: u32,
    pub origin: EntryOrigin,
    pub listed: bool,
    /// For a copy: which request it answers.
    pub copy: Option<CopyId>,
    /// The blocks hold something newer already: only the list entry is missing.
    pub held: bool,
    /// Credits of its link, or room where it waits; dropped with it.
    pub permit: Permit,
}

impl Accepted {
    /// Cuts these parts out of it. They share its permit; the last one gets what is left of it.
    pub fn split(&mut self, ranges: Vec<BlockRange>) -> Vec<Self> {
        let last = ranges.len().saturating_sub(1);
        let part = |(at, range): (usize, BlockRange)| {
            let permit =
                if at == last { std::mem::take(&mut self.permit) } else { self.permit.share(range.bytes() as u64) };
            self.part(range, permit)
        };
        ranges.into_iter().enumerate().map(part).collect()
    }

    /// One part, with this permit.
    pub fn part(&self, range: BlockRange, permit: Permit) -> Self {
        let Self { stamp, generation, origin, listed, copy, held, .. } = *self;
        Self { stamp, range, content: cut(self, range), generation, origin, listed, copy, held, permit }
    }

    /// It waits for something other than the medium: exchanges its link's credits for room of the device's own. False
    /// without room: it keeps what it has.
    pub fn park(&mut self, parking: &Rc<Ledger>) -> bool {
        let bytes = match &self.content {
            Content::Data { payload, .. } => payload.len() as u64,
            Content::Zeroes | Content::Lost => 0,
        };
        let room = parking.admit(Credit { class: Class::Foreground, operations: 1, bytes });
        room.map(|room| self.permit = room).is_ok()
    }
}

/// Names one copy request of one join.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct CopyId {
    pub join: u64,
    pub request: u64,
}

/// A copy that is not answered yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Copying {
    /// Parts that are not durable.
    pub parts: usize,
    /// Blocks that were left to live writes which are not durable either: until they are, neither content is here.
    pub left_to_writes: Vec<BlockRange>,
    /// For blocks that were to be confirmed: those that hold something else.
    pub differs: Option<Vec<BlockRange>>,
}

/// A change of the lane's epoch that waits until nothing of the lane is in flight in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transition {
    Start { epoch: Epoch, config: u64, base: u64 },
    JoinStart { epoch: Epoch, config: u64, join: u64, base: u64 },
}

/// What a joiner tells its writer; kept to repeat it.
#[derive(Clone, Debug)]
pub(super) struct JoinInfo {
    pub settled: u64,
    pub suspects: Vec<BlockRange>,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Epoch in which `prefix` counts (durable).
    pub current: Epoch,
    /// Highest configuration version seen in `current`.
    pub config: u64,
    /// All live writes of `current` up to here are durable.
    pub prefix: u64,
    /// Live writes of `current` above `prefix` that are durable, with their blocks.
    pub above: BTreeMap<u64, BlockRange>,
    /// Writes that came back after a crash lost them and kept a later one of the same blocks: parts still missing.
    pub patches: BTreeMap<u64, (usize, Accepted)>,
    pub settled: u64,
    /// Highest join accepted (durable).
    pub join: u64,
    /// A join runs; gone after a restart.
    pub joining: Option<JoinInfo>,
    /// The store is being asked what the joiner shall answer.
    pub join_asking: bool,
    /// Blocks written live since the join began.
    pub written: WrittenBlocks,
    /// Arrived out of order: waiting for the indices between.
    pub queue: BTreeMap<u64, Accepted>,
    /// Lowest index not yet given to the store.
    pub next_index: u64,
    /// Tells this lane from an earlier one of the same name that was deleted.
    pub life: u64,
    /// Indices given to the store and not durable yet, with their blocks.
    pub in_store: BTreeMap<u64, BlockRange>,
    /// Requests of this lane in the store, copies included.
    pub in_flight: usize,
    /// Refused for want of space: tried again on each tick, in order.
    pub waiting_space: Vec<Accepted>,
    pub transition: Option<Transition>,
    /// Copies that are not answered yet, by join and request.
    pub copies: BTreeMap<(u64, u64), Copying>,
    /// Where the lane's writer is.
    pub link: Option<LinkId>,
    /// Newest `sent_at_us` of the writer of `current`.
    pub sent_at_us: u64,
    /// Tell the writer of progress in the next settling pass.
    pub ack_due: bool,
    /// Durable out of order since the last acknowledgement.
    pub singles: Vec<u64>,
    /// Tell the store of progress in the next settling pass: (index, member).
    pub settle_due: Option<(u64, bool)>,
}

impl Lane {
    pub fn from_durable(state: &LaneState) -> Self {
        let above = state
            .list
            .iter()
            .filter(|e| e.origin == EntryOrigin::Live && e.stamp.epoch == state.current && e.stamp.index > state.prefix)
            .map(|e| (e.stamp.index, e.range))
            .collect();
        let mut lane = Self {
            current: state.current,
            config: state.config,
            prefix: state.prefix,
            above,
            settled: state.settled,
            join: state.join,
            next_index: state.prefix + 1,
            ..Self::default()
        };
        lane.advance_prefix();
        lane
    }

    /// R10: true if what belongs to this join is taken: copies of an earlier one may hold older content.
    pub fn takes_copies_of(&self, join: u64) -> bool {
        self.join == join || broken(Mutation::OldCopyAccepted) || broken(Mutation::OldJoinAccepted)
    }

    /// True if the live write is durable here.
    pub fn holds(&self, index: u64) -> bool {
        index <= self.prefix || self.above.contains_key(&index)
    }

    /// True if the write has been accepted and will become durable.
    pub fn accepted(&self, index: u64) -> bool {
        self.in_store.contains_key(&index)
            || self.queue.contains_key(&index)
            || self.waiting_space.iter().any(|w| w.origin == EntryOrigin::Live && w.stamp.index == index)
    }

    /// Notes that a live write of the current epoch is durable.
    pub fn make_durable(&mut self, index: u64, range: BlockRange) {
        self.in_store.remove(&index);
        if index == self.prefix + 1 {
            self.prefix = index;
            self.advance_prefix();
        } else if index > self.prefix {
            self.above.insert(index, range);
        }
        if index > self.prefix {
            self.singles.push(index);
        }
        self.ack_due = true;
    }

    pub fn advance_prefix(&mut self) {
        while !self.above.is_empty() && self.above.remove(&(self.prefix + 1)).is_some() {
            self.prefix += 1;
        }
        self.next_index = self.next_index.max(self.prefix + 1);
    }

    /// Forgets everything that is accepted and not in the store: it will never become durable.
    pub fn refuse_queued(&mut self) {
        self.queue.clear();
        self.waiting_space.clear();
        for (_, whole) in self.patches.values_mut() {
            whole.permit = Permit::none(); // whatever becomes of it, its writer waits for it no more
        }
        self.next_index = self.in_store.keys().last().map_or(self.prefix, |last| (*last).max(self.prefix)) + 1;
    }

    /// True if a newer durable write covers the block.
    pub fn has_newer(&self, block: u64, index: u64) -> bool {
        self.above.range(index + 1..).any(|(_, range)| range.contains(block))
    }

    /// True if a newer write that covers part of the range is on its way to the medium.
    pub fn has_newer_in_store(&self, range: BlockRange, index: u64) -> bool {
        self.in_store.range(index + 1..).any(|(_, newer)| newer.overlaps(range))
    }

    /// True if a live write that covers part of the range is accepted and not durable.
    pub fn awaits_write(&self, range: BlockRange) -> bool {
        let waiting = self.waiting_space.iter().filter(|w| w.origin == EntryOrigin::Live).map(|w| w.range);
        self.in_store.values().copied().chain(waiting).any(|write| write.overlaps(range))
    }

    /// True if a write to this range would overtake one that waits for space.
    pub fn must_wait_for_space(&self, range: BlockRange) -> bool {
        self.waiting_space.iter().any(|waiting| waiting.range.overlaps(range))
    }
}
