//! State of one lane at its writer, and the arithmetic of sets and quorums.

use super::slow::{Followed, LeftAlone};
use crate::wire::message::Content;
use ashlar_model::cluster::{EpochRow, QuorumPolicy};
use ashlar_model::lane::LaneState;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{BlockRange, DeviceId, Stamp, VolumeGeometry};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A set of slots, one bit each.
pub(super) type Mask = u8;

/// The bits of a set.
pub(super) fn slots_of(mask: Mask) -> impl Iterator<Item = usize> {
    (0..Mask::BITS as usize).filter(move |slot| mask >> slot & 1 == 1)
}

pub(super) fn bit(slot: usize) -> Mask {
    1 << slot
}

/// Where a lane is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LanePhase {
    /// W2: asking members to promise.
    Sealing,
    /// W4: making what was unsettled durable everywhere.
    Copying,
    /// W6: the set is being recorded.
    Committing,
    /// W8 and on.
    Serving,
    /// Z1: the clean mark is being recorded.
    Closing,
    /// Nothing more happens.
    Closed,
}

/// A device that the lane knows.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub device: DeviceId,
    /// The link is up.
    pub up: bool,
    /// It follows this epoch (answered Start or JoinStart) over the current link.
    pub started: bool,
    /// Highest prefix it acknowledged in this epoch.
    pub prefix: u64,
    /// Start of its newest read grant, on the own clock. `None`: no grant in this epoch.
    pub granted_us: Option<u64>,
    /// It did not answer a read in time: others are asked first until then.
    pub slow_until_us: u64,
    /// It has no room.
    pub full: bool,
    /// It failed or lost data: never used again by this writer.
    pub failed: bool,
    /// It is not in the set, and may hold writes of a history that ended with lost metadata.
    pub distrusted: bool,
    /// It lost data before this writer began: once it is out of the set it may be copied again.
    pub lost_data: bool,
    /// An operator wants it out of the set, until this time.
    pub eject_until_us: u64,
    /// Since when it lacks the write `behind_index`, or is away.
    pub behind_since_us: Option<u64>,
    pub behind_index: u64,
    /// When it last made a write durable, or began to follow.
    pub progressed_us: u64,
    /// When writes that it seems never to have got were sent again.
    pub resent_us: u64,
    /// How far it has followed of late.
    pub followed: Followed,
    pub in_sync_since_us: u64,
    /// When it left or last failed to join: not tried again at once.
    pub join_not_before_us: u64,
    /// Joins in a row that came to nothing; a link that broke after its answer is not its fault.
    pub joins_failed: u32,
    /// Joins that it could not keep up with, and ejections because it was slow, until it has kept up.
    pub setbacks: u32,
    /// It was too slow of late.
    pub left_alone: Option<LeftAlone>,
}

/// A write that some member may still lack.
#[derive(Clone, Debug)]
pub(super) struct Retained {
    pub index: u64,
    pub issued_us: u64,
    /// Bytes that the lane had issued before it.
    pub issued_before_bytes: u64,
    pub range: BlockRange,
    /// `None` while recovery still fetches it.
    pub content: Option<Content>,
    /// Slots on which it is durable.
    pub have: Mask,
    pub acked: bool,
    /// The client request that it is part of.
    pub request: Option<u64>,
    /// Recovery: slots that hold the content.
    pub holders: Mask,
    /// Recovery: a read is on its way.
    pub fetching: bool,
}

impl Retained {
    /// Memory that it holds back, roughly.
    pub fn cost_bytes(&self) -> usize {
        match &self.content {
            Some(Content::Data { .. }) => self.range.bytes(),
            Some(Content::Zeroes | Content::Lost) | None => 128,
        }
    }
}

/// A recovery under way.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Seal answers by slot.
    pub seals: Vec<Option<LaneState>>,
    /// When enough had answered.
    pub enough_at_us: Option<u64>,
    /// When the last one answered.
    pub last_seal_us: u64,
    /// Members that take part and will form the set.
    pub target: Mask,
    /// When members were last given something new to hold.
    pub fed_us: u64,
    /// Members that have sealed.
    pub sealed: Mask,
    /// Members that sealed later, while a block was missing that they may hold.
    pub sealed_late: Mask,
    /// A block whose every holder is damaged, and since when it is known.
    pub damaged: Option<(u64, u64)>,
    /// Why it cannot be told who holds the lane.
    pub undecided: Option<String>,
}

/// A join under way.
#[derive(Debug)]
pub(super) struct Join {
    pub slot: usize,
    pub join: u64,
    pub base: u64,
    /// The joiner's own settled index and suspect blocks, once it answered.
    pub info: Option<(u64, Vec<BlockRange>)>,
    /// Every block is copied or compared, whatever the joiner says that it has.
    pub whole: bool,
    /// Next chunk of the lane to look at.
    pub next_chunk: u64,
    /// Reads of the source in flight, and the blocks that they count for.
    pub reads: usize,
    pub read_blocks: u32,
    /// Copies that are not durable at the joiner yet, by the writer's name for them.
    pub copies: BTreeMap<u64, Copying>,
    /// Runs that must be copied and are not being read yet.
    pub todo: VecDeque<JoinRun>,
    pub copied_bytes: u64,
    /// Blocks compared of late, and how many of them the joiner held already.
    pub compared: (u64, u64),
    /// Runs of data so far.
    pub runs: u64,
    /// Bytes that the joiner had missed and held already: nothing was sent.
    pub compared_bytes: u64,
    pub since_us: u64,
    /// When JoinStart was last sent.
    pub asked_us: u64,
}

/// A copy on its way to the joiner; kept to be sent again if it gets lost.
#[derive(Clone, Debug)]
pub(super) struct Copying {
    pub range: BlockRange,
    pub what: Copied,
    pub sent_us: u64,
    /// It was decided when no source had the block, and one has it again: its answer decides nothing.
    pub is_outdated: bool,
}

/// What a joiner is sent of a range.
#[derive(Clone, Debug)]
pub(super) enum Copied {
    /// Content of one version.
    Content(Stamp, Content),
    /// Version and digest per block: it may hold the bytes already.
    Digests(Arc<[(Stamp, u128)]>),
    /// Of a block that every source has damaged, version and recorded checksum: it may hold the bytes.
    Recorded(Stamp, u32),
}

/// A run to copy: data, or zeroes of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct JoinRun {
    pub range: BlockRange,
    /// `Some`: the source has zeroes of this version; no need to read.
    pub zeroes: Option<Stamp>,
    /// The joiner is known to hold something else.
    pub differs: bool,
}

impl Join {
    /// True if the next run should be compared before it is copied: at first, while an eighth of what is compared is held
    /// already, and once in a while.
    pub fn should_compare(&mut self) -> bool {
        self.runs += 1;
        let (compared, equal) = self.compared;
        self.runs <= 4 || equal * 8 >= compared || self.runs.is_multiple_of(16)
    }

    /// So many blocks were compared, and so many were equal.
    pub fn note_compared(&mut self, blocks: u64, equal: u64) {
        /// Blocks after which the past counts half.
        const MEMORY_BLOCKS: u64 = 1024;
        self.compared.0 += blocks;
        self.compared.1 += equal;
        if self.compared.0 > MEMORY_BLOCKS {
            self.compared = (self.compared.0 / 2, self.compared.1 / 2);
        }
    }

    /// Notes a read of the source.
    pub fn read_begins(&mut self, range: BlockRange) {
        self.reads += 1;
        self.read_blocks += weight_blocks(range);
    }

    /// The read is answered.
    pub fn read_ends(&mut self, range: BlockRange) {
        self.reads -= 1;
        self.read_blocks -= weight_blocks(range);
    }

    /// True if no read and no copy is under way.
    pub fn is_idle(&self) -> bool {
        self.reads == 0 && self.copies.is_empty()
    }

    /// Reads and copies under way, in whole pieces: several small ones count as one.
    pub fn in_flight(&self) -> usize {
        let copied: u32 = self.copies.values().map(|copying| weight_blocks(copying.range)).sum();
        ((self.read_blocks + copied) / WRITE_BLOCKS_MAX) as usize
    }

    /// The next chunk of the volume to look at.
    pub fn chunk(&self, lane: usize, geometry: VolumeGeometry) -> u64 {
        lane as u64 + self.next_chunk * u64::from(geometry.lane_count)
    }

    /// True if something is to be copied or looked at that is not under way.
    pub fn has_more(&self, lane: usize, geometry: VolumeGeometry) -> bool {
        !self.todo.is_empty() || self.chunk(lane, geometry) < geometry.chunk_count()
    }
}

/// What a step counts for: a small one costs a device as much as a few blocks, a map as much as a piece.
pub(super) fn weight_blocks(range: BlockRange) -> u32 {
    range.count.clamp(4, WRITE_BLOCKS_MAX)
}

#[derive(Debug)]
pub(super) struct Lane {
    pub number: u16,
    pub phase: LanePhase,
    pub slots: Vec<Slot>,
    /// Devices that should hold the lane, as slots.
    pub copyset: Mask,
    pub in_sync: Mask,
    /// Set that the metadata service may hold instead (W9).
    pub pending: Option<Mask>,
    /// The pending set was refused: the old set is being recorded anew, so that it cannot be recorded any more.
    pub taking_back: bool,
    /// A device has left for good. Once settled is here, one more compare-and-set says that this writer knows (C4).
    pub confirm_from: Option<u64>,
    pub version: u64,
    /// The record may be older than the devices: see `verify`.
    pub unverified: bool,
    pub rows: Vec<EpochRow>,
    pub base: u64,
    pub last: u64,
    pub settled: u64,
    /// Nothing is completed before (W7).
    pub ready_at_us: u64,
    /// Dense: index of the first, then one by one.
    pub retained: VecDeque<Retained>,
    pub retained_bytes: usize,
    /// Bytes of all writes of this epoch.
    pub issued_bytes: u64,
    /// Too few members answered when the volume opened: what touches the lane waits, the rest is served.
    pub unavailable: bool,
    pub recovery: Option<Recovery>,
    pub join: Option<Join>,
    pub joins_begun: u64,
    /// The last writer closed clean: members hold everything up to `base`.
    pub opened_clean: bool,
    /// The clean mark is in the outstanding compare-and-set.
    pub closing_clean: bool,
    /// A compare-and-set is with the metadata service.
    pub cas_outstanding: bool,
    pub cas_sent_us: u64,
    pub heartbeat_sent_us: u64,
    /// What the last heartbeat said of settled; `None` once a member follows that did not get it.
    pub told_settled: Option<u64>,
}

impl Lane {
    pub fn mask_of(&self, devices: &[DeviceId]) -> Mask {
        self.slots.iter().enumerate().filter(|(_, s)| devices.contains(&s.device)).fold(0, |m, (i, _)| m | bit(i))
    }

    pub fn devices_of(&self, mask: Mask) -> Vec<DeviceId> {
        slots_of(mask).map(|slot| self.slots[slot].device).collect()
    }

    pub fn slot_of(&self, device: DeviceId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.device == device)
    }

    /// Every device that counts: the target during recovery, both possible sets afterwards.
    pub fn members(&self) -> Mask {
        match (self.phase, &self.recovery) {
            (LanePhase::Copying | LanePhase::Committing, Some(recovery)) => recovery.target,
            _ => self.in_sync | self.pending.unwrap_or(0),
        }
    }

    /// Notes how long a slot has lacked the oldest write that it lacks.
    pub fn note_lag(&mut self, slot: usize, now_us: u64) {
        let last = self.last;
        let state = &mut self.slots[slot];
        let caught_up = state.up && state.prefix >= state.behind_index;
        if state.up && state.prefix >= last {
            state.behind_since_us = None;
        } else if state.behind_since_us.is_none() || caught_up {
            state.behind_since_us = Some(now_us);
            state.behind_index = last;
        }
    }

    /// Bytes from the first write that a slot lacks to the last one.
    pub fn lag_bytes(&self, slot: usize) -> u64 {
        let Some(first) = self.retained.front() else { return 0 };
        let skip = (self.slots[slot].prefix + 1).saturating_sub(first.index) as usize;
        self.retained.get(skip).map_or(0, |lacking| self.issued_bytes - lacking.issued_before_bytes)
    }

    /// What a device that failed or lost data has acknowledged counts no more.
    pub fn distrust(&mut self, slot: usize) -> bool {
        for retained in &mut self.retained {
            retained.have &= !bit(slot);
        }
        !std::mem::replace(&mut self.slots[slot].failed, true)
    }

    /// Devices that have failed.
    pub fn failed_slots(&self) -> Mask {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.failed).fold(0, |mask, (at, _)| mask | bit(at))
    }

    /// Members that may hold what no other one of the recovery holds.
    pub fn may_hold_lost(&self) -> Mask {
        let sealed = self.recovery.as_ref().map_or(0, |recovery| recovery.sealed);
        self.in_sync & (!sealed | self.failed_slots())
    }

    /// Members that a joiner may be copied from.
    pub fn source_slots(&self) -> Mask {
        slots_of(self.in_sync)
            .filter(|slot| self.slots[*slot].up && self.slots[*slot].started && !self.slots[*slot].failed)
            .fold(0, |mask, slot| mask | bit(slot))
    }

    /// Every device that receives writes.
    pub fn destinations(&self) -> Mask {
        self.members() | self.join.as_ref().filter(|join| join.info.is_some()).map_or(0, |join| bit(join.slot))
    }

    /// True if `mask` contains an acknowledgement quorum of every set that the metadata service may hold (W9).
    pub fn has_quorum(&self, mask: Mask, policy: QuorumPolicy) -> bool {
        let enough = |set: Mask| (mask & set).count_ones() >= quorum(set, policy);
        enough(self.in_sync) && (self.pending.is_none_or(enough) || broken(Mutation::OldSetOnly))
    }

    pub fn retained_at(&self, index: u64) -> Option<&Retained> {
        let first = self.retained.front()?.index;
        self.retained.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// Members that follow the epoch over a link that is up.
    pub fn started_slots(&self) -> Mask {
        slots_of(self.members())
            .filter(|slot| self.slots[*slot].started && self.slots[*slot].up && !self.slots[*slot].failed)
            .fold(0, |mask, slot| mask | bit(slot))
    }

    pub fn retained_mut(&mut self, index: u64) -> Option<&mut Retained> {
        let first = self.retained.front()?.index;
        self.retained.get_mut(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// Slots that hold the newest write of every block of the range, among started members (W13).
    pub fn readable_slots(&self, range: BlockRange) -> Mask {
        let mut mask = self.source_slots();
        for slot in slots_of(mask) {
            let first = self.retained.front().map_or(u64::MAX, |retained| retained.index);
            let skip = (self.slots[slot].prefix + 1).saturating_sub(first) as usize;
            let lacks = |retained: &Retained| retained.have & bit(slot) == 0 && retained.range.overlaps(range);
            if skip < self.retained.len() && self.retained.range(skip..).any(lacks) {
                mask &= !bit(slot);
            }
        }
        mask
    }

    /// Slots whose read grant is younger than `grant_us` now.
    pub fn granting_slots(&self, now_us: u64, grant_us: u64) -> Mask {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.granted_us.is_some_and(|since| now_us < since + grant_us))
            .fold(0, |mask, (i, _)| mask | bit(i))
    }

    /// Appends a write and gives it the next index.
    pub fn retain(
        &mut self,
        range: BlockRange,
        content: Option<Content>,
        request: Option<u64>,
        holders: Mask,
        now_us: u64,
    ) -> u64 {
        self.last += 1;
        let retained = Retained {
            index: self.last,
            issued_us: now_us,
            issued_before_bytes: self.issued_bytes,
            range,
            content,
            have: 0,
            acked: false,
            request,
            holders,
            fetching: false,
        };
        self.issued_bytes += retained.cost_bytes() as u64;
        self.retained_bytes += retained.cost_bytes();
        self.retained.push_back(retained);
        self.last
    }

    /// W12: lets go of writes that nobody can ask for any more.
    pub fn release_settled(&mut self) {
        let join_floor = self.join.as_ref().map_or(u64::MAX, |join| match join.info {
            Some(_) => self.slots[join.slot].prefix,
            None => join.base,
        });
        let floor = self.settled.min(join_floor);
        while self.retained.front().is_some_and(|first| first.index <= floor && first.acked) {
            let first = self.retained.pop_front().expect("looked at it");
            self.retained_bytes -= first.cost_bytes();
        }
    }
}

/// Acknowledgement quorum of a set.
pub(super) fn quorum(set: Mask, policy: QuorumPolicy) -> u32 {
    match policy {
        QuorumPolicy::Majority => set.count_ones().min(2),
        QuorumPolicy::All => set.count_ones(),
    }
}

/// Fewest members that meet every acknowledgement quorum of a set.
pub(super) fn seals_needed(set: Mask, policy: QuorumPolicy) -> u32 {
    set.count_ones() - quorum(set, policy) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_meet_every_quorum() {
        for policy in [QuorumPolicy::Majority, QuorumPolicy::All] {
            for set in [0b1, 0b11, 0b111] {
                let (members, needed) = (set as u32, seals_needed(set, policy));
                for acked in 0..=set {
                    for sealed in 0..=set {
                        if acked.count_ones() >= quorum(set, policy) && sealed.count_ones() >= needed {
                            assert_ne!(acked & sealed, 0, "{policy:?} set {members:b}");
                        }
                    }
                }
            }
        }
    }
}
