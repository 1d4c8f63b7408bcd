//! Content that no member has any more: blocks whose every copy is damaged.
//!
//! A newer version whose bytes are gone must not give way to an older one that some member still has. Such a block is
//! written off: all members store that its content is unknown in that version, and reads of it fail until it is written.
//! That keeps the damage to the block: the volume opens, and a joiner joins.

use super::asking::{Newest, Purpose, Read};
use super::engine::{ClientRequest, Effect, VolumeEngine, VolumePhase};
use super::lane::{Copied, LanePhase, bit, slots_of};
use super::repair::is_own;
use super::settings::Settings;
use crate::wire::message::{BlockCondition, Content};
use ashlar_model::mutation::mark;
use ashlar_model::{BlockRange, DeviceId, Stamp};

/// Seal patience of a writer that knows of a member which comes late, at least.
const SUCCESSOR_SEAL_PATIENCE_US: u64 = 10_000_000;
/// While a writer gives way what guests ask for is held for this long, so that it comes to an end; then it goes on for the
/// rest of a round: a request that does not end must not hold up lanes that can serve.
const HOLD_US: u64 = 5_000_000;
const ROUND_US: u64 = 60_000_000;

/// Whether a writer ends for a successor that opens the volume again.
#[derive(Debug, Default)]
pub(super) enum Way {
    /// It does not.
    #[default]
    Kept,
    /// It will, because this device has come.
    Giving { device: DeviceId, since_us: u64 },
    /// It has, and leaves these.
    Given(Vec<ClientRequest>),
}

impl VolumeEngine {
    /// A holder's copy of an unsettled write is damaged: another holder is asked, block by block.
    pub(super) fn on_holder_damaged(&mut self, number: usize, slot: usize, index: u64, block: u64) {
        let lane = &mut self.lanes[number];
        let device = lane.slots[slot].device;
        let Some(retained) = lane.retained_mut(index).filter(|r| r.content.is_none()) else { return };
        retained.fetching = false;
        if retained.range.count > 1 {
            // Each block may be good somewhere. The first one keeps the index; the order among them does not matter.
            mark("recovery asks for a damaged run block by block");
            let (range, holders) = (retained.range, retained.holders);
            retained.range = BlockRange::new(range.start, 1);
            for block in range.blocks().skip(1) {
                lane.retain(BlockRange::new(block, 1), None, None, holders, self.now_us);
            }
            return;
        }
        retained.holders &= !bit(slot);
        let then = match retained.holders {
            0 => "no other device that answered has its newest version",
            _ => "recovery reads it from another one",
        };
        self.count_damage(block, device, then);
    }

    /// Writes off what no member of the recovery holds. A member that has not answered may have it: that one is waited for.
    pub(super) fn write_off_lost(&mut self, number: usize) {
        let patience_us = self.settings.lost_patience_us;
        let lane = &mut self.lanes[number];
        let (failed, absent) = (lane.failed_slots(), lane.may_hold_lost());
        let lost = lane.retained.iter().filter(|r| r.content.is_none() && !r.fetching && r.holders & !failed == 0);
        let lost: Vec<(u64, u64)> = lost.map(|retained| (retained.index, retained.range.start)).collect();
        let recovery = lane.recovery.as_mut().expect("a copying lane recovers");
        let Some((_, first)) = lost.first().copied() else {
            recovery.damaged = None;
            return;
        };
        let (_, since_us) = *recovery.damaged.get_or_insert((first, self.now_us));
        if recovery.sealed_late != 0 || (absent != 0 && self.now_us < since_us + patience_us) {
            return;
        }
        recovery.damaged = None;
        recovery.fed_us = self.now_us;
        for (index, block) in lost {
            mark("recovery writes a block off");
            self.lanes[number].retained_mut(index).expect("just listed").content = Some(Content::Lost);
            self.note_lost(number, block);
            for slot in slots_of(self.lanes[number].members()) {
                self.send_retained(number, slot, index);
            }
        }
    }

    /// A member that was not there when the lane was sealed has come, while a block is missing that it may hold. Its seal
    /// counts in a new epoch only: this writer gives way to its successor.
    pub(super) fn give_way_to(&mut self, number: usize, slot: usize) {
        let lane = &mut self.lanes[number];
        if lane.phase != LanePhase::Copying {
            return;
        }
        let device = lane.slots[slot].device;
        let recovery = lane.recovery.as_mut().expect("a copying lane recovers");
        let awaited = recovery.damaged.is_some() && recovery.sealed & bit(slot) == 0;
        if awaited && recovery.sealed_late & bit(slot) == 0 {
            recovery.sealed_late |= bit(slot);
            if !matches!(self.way, Way::Kept) {
                return;
            }
            mark("a writer gives way: a member that may have a lost block has come");
            self.way = Way::Giving { device, since_us: self.now_us };
            self.out.push(Effect::Note(format!(
                "volume {} lane {number}: device {device} has come, and may have what is damaged on the others; the volume opens \
                 again with it as soon as the requests under way are done",
                self.spec.name
            )));
        }
    }

    /// What guests ask for waits: for the successor, or for a while.
    pub(super) fn holds_requests(&self) -> bool {
        matches!(self.way, Way::Giving { since_us, .. } if (self.now_us - since_us) % ROUND_US < HOLD_US)
    }

    /// Requests of guests that have begun.
    pub(super) fn guests_active(&self) -> usize {
        self.active.keys().filter(|request| !is_own(**request)).count()
    }

    /// Ends for the successor's sake, once what guests have begun on other lanes is done. What has not begun is handed over.
    pub(super) fn finish_giving_way(&mut self) {
        let Way::Giving { device, .. } = self.way else { return };
        if self.phase != VolumePhase::Closing && self.guests_active() == 0 {
            let waiting = std::mem::take(&mut self.waiting);
            self.way = Way::Given(std::mem::take(&mut self.parked).into_iter().chain(waiting).collect());
            self.fence(&format!("its successor opens the volume with device {device}"));
        }
    }

    /// `Some` if it ended so that another writer of the same place opens the volume again: requests that have not begun.
    pub fn take_handed_over(&mut self) -> Option<Vec<ClientRequest>> {
        match std::mem::take(&mut self.way) {
            Way::Given(requests) => Some(requests),
            other => {
                self.way = other;
                None
            }
        }
    }

    /// Settings of a writer after this one, which gave way to a member that came late: it may come late again.
    pub fn successor_settings(&self) -> Settings {
        let twice_us = self.settings.seal_patience_us * 2;
        let longest_us = self.settings.lost_patience_us.max(SUCCESSOR_SEAL_PATIENCE_US);
        Settings { seal_patience_us: twice_us.clamp(SUCCESSOR_SEAL_PATIENCE_US, longest_us), ..self.settings }
    }

    /// A source has no good bytes of a block: others are asked.
    pub(super) fn on_source_damaged(
        &mut self,
        read: &Read,
        slot: usize,
        at: usize,
        stamp: Stamp,
        condition: BlockCondition,
    ) {
        let (number, block) = (read.number, read.range.start + at as u64);
        let device = self.lanes[number].slots[slot].device;
        self.count_damage(block, device, "the join copies it from another replica");
        let range = BlockRange::new(block, 1);
        let current = self.lanes[number].join.as_mut().expect("the read is of this join");
        current.read_begins(range);
        let recorded = match condition {
            BlockCondition::Bad(checksum) | BlockCondition::Data(checksum) => Some(checksum),
            BlockCondition::Zero | BlockCondition::Unknown => None,
        };
        // Every source has what was settled before the join: any checksum that one of them has recorded is the block's.
        let newest =
            Some(read.newest.map_or((stamp, recorded), |(newest, before)| (newest.max(stamp), before.or(recorded))));
        self.insert_read(Read {
            range,
            tried: read.tried | bit(slot),
            newest,
            newest_us: self.now_us,
            asked: None,
            also: 0,
            began_us: 0,
            ..read.clone()
        });
    }

    /// No source has good bytes of a block. The joiner may: it is asked whether its own match the recorded checksum.
    pub(super) fn on_sources_exhausted(&mut self, number: usize, join: u64, range: BlockRange, newest: Newest) {
        let Some(current) = self.lanes[number].join.as_mut().filter(|current| current.join == join) else { return };
        current.read_ends(range);
        let (version, recorded) = newest;
        match recorded {
            Some(checksum) => self.begin_copy_of(number, range, Copied::Recorded(version, checksum)),
            None => self.copy_lost(number, range, version),
        }
    }

    /// The joiner is told that the block is lost, in the version that it has at the sources.
    pub(super) fn copy_lost(&mut self, number: usize, range: BlockRange, version: Stamp) {
        mark("a lost block is copied as such");
        self.begin_copy_of(number, range, Copied::Content(version, Content::Lost));
    }

    /// A member has good bytes of the block again: joins that found it damaged there ask once more, and what they told their
    /// joiner meanwhile is told anew.
    pub(super) fn ask_sources_again(&mut self, block: u64) {
        let is_join = |read: &&mut Read| matches!(read.purpose, Purpose::JoinData { .. });
        for read in self.reads.values_mut().filter(is_join).filter(|read| read.range.contains(block)) {
            read.tried = 0;
        }
        let in_doubt = |what: &Copied| matches!(what, Copied::Recorded(..) | Copied::Content(_, Content::Lost));
        for join in self.lanes.iter_mut().filter_map(|lane| lane.join.as_mut()) {
            for copying in join.copies.values_mut().filter(|copying| copying.range.contains(block)) {
                copying.is_outdated |= in_doubt(&copying.what);
            }
        }
    }

    pub(super) fn note_lost(&mut self, number: usize, block: u64) {
        self.counters.lost_blocks += 1;
        self.out.push(Effect::Alarm(format!(
            "volume {} lane {number}: block {block} is lost: it is damaged on every device that holds its newest version; \
             reads of it fail until it is written, restore it from a backup",
            self.spec.name
        )));
    }
}
