//! W1 to W7: from an epoch to service.

use super::asking::Purpose;
use super::engine::{Effect, VolumeEngine, VolumePhase};
use super::lane::{Lane, LanePhase, Mask, Recovery, Retained, Slot, bit, seals_needed, slots_of};
use crate::wire::message::{Content, Envelope, ToReplica};
use ashlar_model::cluster::{AttachGrant, EpochRow, LaneCas, LaneGrant};
use ashlar_model::lane::LaneState;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{BlockRange, DeviceId, Epoch, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// Seal is sent again to whoever has not answered after this.
const SEAL_AGAIN_US: u64 = 1_000_000;
/// Fetches of recovery in flight per lane.
const FETCHES_MAX: usize = 32;

/// The first writer after a restore of the metadata begins above everything that devices may hold which it has not seen, and
/// above what was written after an earlier restore that is lost too: at its epoch times 2^this. Epochs after a restore grow
/// with time, by four a second, so a lane would have to take 262 144 writes a second for all of its life to get beyond that.
const RESTORED_EPOCH_SHIFT: u32 = 16;
/// If it did all the same, because a clock was wrong, the writer begins so far above what it has seen.
const RESTORED_STEP: u64 = 1 << 32;

/// The newest unsettled version of a block among the seals.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Newest {
    stamp: Stamp,
    tombstone: bool,
    holders: Mask,
}

impl VolumeEngine {
    /// W1.
    pub(super) fn on_granted(&mut self, grant: AttachGrant) {
        if self.phase != VolumePhase::Idle {
            return;
        }
        assert_eq!(grant.lanes.len(), self.spec.lanes.len(), "a grant names every lane");
        // What is known here of the volume may be older than its last writer, which may have used all of its size.
        let geometry = &mut self.spec.geometry;
        geometry.size_bytes = geometry.size_bytes.max(grant.size_bytes);
        self.epoch = grant.epoch;
        self.granted_at_us = self.now_us;
        self.phase = VolumePhase::Opening;
        self.lanes = grant.lanes.iter().enumerate().map(|(number, lane)| self.lane_of_grant(number, lane)).collect();
        for number in 0..self.lanes.len() {
            for slot in 0..self.lanes[number].slots.len() {
                self.send_start(number, slot);
            }
        }
        self.seals_sent_us = self.now_us;
        if self.lanes.iter().any(|lane| lane.phase == LanePhase::Sealing) {
            for device in self.devices() {
                self.send_seal(device);
            }
        }
    }

    fn lane_of_grant(&self, number: usize, grant: &LaneGrant) -> Lane {
        let copyset = &self.spec.lanes[number];
        let others = grant.in_sync.iter().filter(|device| !copyset.contains(device));
        let mut slots: Vec<Slot> =
            copyset.iter().chain(others).map(|device| Slot::new(*device, self.links_up.contains(device))).collect();
        if self.spec.restored || grant.unverified {
            slots.iter_mut().for_each(|slot| slot.distrusted = !grant.trusted.contains(&slot.device));
        }
        assert!(slots.len() <= Mask::BITS as usize, "a lane knows at most eight devices");
        let base = grant.clean.unwrap_or(0);
        let recovery = Recovery { seals: vec![None; slots.len()], ..Recovery::default() };
        let mut lane = Lane {
            number: number as u16,
            phase: if grant.clean.is_some() { LanePhase::Serving } else { LanePhase::Sealing },
            slots,
            copyset: 0,
            in_sync: 0,
            pending: None,
            taking_back: false,
            confirm_from: None,
            version: grant.version,
            unverified: grant.unverified,
            rows: grant.rows.clone(),
            base,
            last: base,
            settled: base,
            ready_at_us: 0,
            retained: Default::default(),
            retained_bytes: 0,
            issued_bytes: 0,
            unavailable: false,
            recovery: grant.clean.is_none().then_some(recovery),
            join: None,
            joins_begun: 0,
            closing_clean: false,
            opened_clean: grant.clean.is_some(),
            cas_outstanding: false,
            cas_sent_us: 0,
            heartbeat_sent_us: 0,
            told_settled: None,
        };
        lane.copyset = lane.mask_of(copyset);
        lane.in_sync = lane.mask_of(&grant.in_sync);
        assert_ne!(lane.in_sync, 0, "the in-sync set is never empty");
        lane
    }

    pub(super) fn send_seal(&mut self, device: DeviceId) {
        if self.links_up.contains(&device) {
            let envelope = self.envelope(Envelope::ALL_LANES, device);
            self.out.push(Effect::Send { envelope, message: ToReplica::Seal });
        }
    }

    /// Tells a member that is not following this epoch yet where the epoch begins.
    pub(super) fn send_start(&mut self, number: usize, slot: usize) {
        let lane = &self.lanes[number];
        let follows = !matches!(lane.phase, LanePhase::Sealing | LanePhase::Closed);
        let joins = lane.join.as_ref().is_some_and(|join| join.slot == slot);
        if follows && !joins && lane.members() & bit(slot) != 0 && !lane.slots[slot].started {
            let message = ToReplica::Start { config: lane.version, base: lane.base, clean: lane.opened_clean };
            self.send(number, slot, message);
        }
    }

    /// W2.
    pub(super) fn on_sealed(&mut self, device: DeviceId, states: &[(u16, LaneState)]) {
        for number in 0..self.lanes.len() {
            let now_us = self.now_us;
            let lane = &mut self.lanes[number];
            let Some(slot) = lane.slot_of(device).filter(|slot| lane.in_sync & bit(*slot) != 0) else { continue };
            if lane.phase != LanePhase::Sealing {
                self.give_way_to(number, slot);
                continue;
            }
            let recovery = lane.recovery.as_mut().expect("a sealing lane recovers");
            let state = states.iter().find(|(lane, _)| usize::from(*lane) == number).map(|(_, state)| state.clone());
            recovery.seals[slot] = Some(state.unwrap_or_default());
            recovery.last_seal_us = now_us;
            self.continue_seal(number);
        }
    }

    /// Asks again whoever has not answered: its device may not have been open yet.
    pub(super) fn repeat_seal(&mut self) {
        if self.now_us < self.seals_sent_us + SEAL_AGAIN_US {
            return;
        }
        self.seals_sent_us = self.now_us;
        let missing = |lane: &Lane| {
            let recovery = lane.recovery.as_ref()?;
            match lane.phase {
                LanePhase::Sealing => {
                    let sealed = slots_of(lane.in_sync).filter(|slot| recovery.seals[*slot].is_some());
                    Some(lane.devices_of(lane.in_sync & !sealed.fold(0, |mask, slot| mask | bit(slot))))
                }
                LanePhase::Copying if recovery.damaged.is_some() => {
                    Some(lane.devices_of(lane.in_sync & !recovery.sealed))
                }
                _ => None,
            }
        };
        let devices: BTreeSet<DeviceId> = self.lanes.iter().filter_map(missing).flatten().collect();
        for device in devices {
            self.send_seal(device);
        }
    }

    /// Goes on with enough seals, after a little patience for the rest.
    pub(super) fn continue_seal(&mut self, number: usize) {
        let (now_us, policy) = (self.now_us, self.spec.quorum);
        let patience_us = self.settings.seal_patience_us;
        let lane = &mut self.lanes[number];
        let recovery = lane.recovery.as_mut().expect("a sealing lane recovers");
        let sealed = slots_of(lane.in_sync).filter(|slot| recovery.seals[*slot].is_some()).count() as u32;
        // Where the record may be old every device that it names has to say what it holds.
        let mut needed = if lane.unverified { lane.in_sync.count_ones() } else { seals_needed(lane.in_sync, policy) };
        if broken(Mutation::OneSealFewer) {
            needed = (needed - 1).max(1);
        }
        if sealed < needed {
            return;
        }
        let enough_at_us = *recovery.enough_at_us.get_or_insert(now_us);
        if sealed == lane.in_sync.count_ones() || now_us >= enough_at_us + patience_us {
            self.begin_copy(number);
        }
    }

    /// W3 and W4: what any member holds above settled is issued again under the new epoch.
    fn begin_copy(&mut self, number: usize) {
        if self.lanes[number].unverified && !self.verify(number) {
            return;
        }
        let grant_wait_us = self.settings.grant_wait_us();
        let lane = &mut self.lanes[number];
        let recovery = lane.recovery.as_mut().expect("a sealing lane recovers");
        let seals: Vec<(usize, LaneState)> =
            recovery.seals.iter_mut().enumerate().filter_map(|(slot, s)| s.take().map(|s| (slot, s))).collect();
        recovery.sealed = seals.iter().fold(0, |mask, (slot, _)| mask | bit(*slot));
        recovery.target = recovery.sealed;
        let settled = seals.iter().map(|(_, seal)| seal.settled).max().expect("at least one seal");
        let mut union = union_of(&seals, settled, &lane.rows);
        if lane.unverified && !broken(Mutation::RestoredIndexes) {
            union.base = restored_base(union.base, self.epoch);
        }
        lane.settled = settled;
        lane.base = union.base;
        lane.last = union.base;
        lane.ready_at_us = recovery.last_seal_us + if broken(Mutation::NoGrantWait) { 0 } else { grant_wait_us };
        lane.phase = LanePhase::Copying;
        for state in &mut lane.slots {
            state.behind_since_us = Some(self.now_us);
        }
        for (range, newest) in union.runs() {
            let content = newest.tombstone.then_some(Content::Zeroes);
            lane.retain(range, content, None, newest.holders, self.now_us);
        }
        for alarm in union.alarms {
            self.out.push(Effect::Alarm(format!("volume {} lane {number}: {alarm}", self.spec.name)));
        }
        if broken(Mutation::SetBeforeCopy) {
            self.record_target(number);
        }
        let recovered = self.lanes[number].retained.len();
        self.out.push(Effect::Note(format!(
            "volume {} lane {number}: recovering {recovered} unsettled writes above index {settled}",
            self.spec.name
        )));
        for slot in slots_of(self.lanes[number].members()) {
            self.send_start(number, slot);
        }
    }

    /// W6 broken: the set is recorded before its members have everything.
    fn record_target(&mut self, number: usize) {
        let lane = &self.lanes[number];
        let cas = LaneCas {
            volume: self.spec.id,
            lane: lane.number,
            epoch: self.epoch,
            version: lane.version,
            in_sync: lane.devices_of(lane.members()),
            clean: None,
            base: None,
        };
        self.out.push(Effect::Cas(cas));
    }

    /// Fetches what is missing, leaves out who went away, and proposes the set when everybody has everything.
    pub(super) fn continue_copy(&mut self, number: usize) {
        if self.lanes[number].phase != LanePhase::Copying {
            return;
        }
        self.write_off_lost(number);
        self.fetch_missing(number);
        self.leave_out_missing(number);
        let lane = &mut self.lanes[number];
        let target = lane.members();
        let caught_up = |slot: usize| lane.slots[slot].prefix >= lane.last || broken(Mutation::ServeBeforeCopy);
        let complete = slots_of(target).all(|slot| lane.slots[slot].started && caught_up(slot));
        if complete {
            lane.phase = LanePhase::Committing;
            self.send_cas(number);
        }
    }

    fn fetch_missing(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        let started = lane.started_slots();
        let now_us = self.now_us;
        let quick = slots_of(started)
            .filter(|slot| lane.slots[*slot].slow_until_us <= now_us)
            .fold(0, |mask, slot| mask | bit(slot));
        let mut room = FETCHES_MAX.saturating_sub(lane.retained.iter().filter(|r| r.fetching).count());
        let mut asks = Vec::new();
        for retained in lane.retained.iter_mut() {
            if room == 0 {
                break;
            }
            if retained.content.is_none() && !retained.fetching && retained.holders & started != 0 {
                retained.fetching = true;
                room -= 1;
                let able = retained.holders & started;
                let able = if able & quick != 0 { able & quick } else { able };
                let slot = slots_of(able).next().expect("not empty");
                asks.push((slot, retained.index, retained.range));
            }
        }
        for (slot, index, range) in asks {
            self.ask_slot(number, slot, range, Purpose::Fetch { index });
        }
    }

    /// A member that is gone for long is left out, if nothing depends on it alone.
    fn leave_out_missing(&mut self, number: usize) {
        let gone = slots_of(self.lanes[number].members())
            .filter(|slot| self.is_gone(number, *slot))
            .fold(0, |mask, slot| mask | bit(slot));
        let lane = &mut self.lanes[number];
        if lane.members() & !gone == 0 {
            return; // nobody is better than the others
        }
        for slot in slots_of(gone) {
            let rest = lane.members() & !bit(slot);
            let needed = lane.retained.iter().any(|r| r.content.is_none() && r.holders & rest == 0);
            if !needed {
                mark("recovery leaves out a member");
                lane.recovery.as_mut().expect("a copying lane recovers").target = rest;
            }
        }
    }

    /// It failed, does not start in time (away, or without room for the lane), or gets no further.
    fn is_gone(&self, number: usize, slot: usize) -> bool {
        let patience_us = self.settings.recovery_patience_us;
        let (lane, state) = (&self.lanes[number], &self.lanes[number].slots[slot]);
        let late = state.behind_since_us.is_some_and(|since| self.now_us >= since + patience_us);
        let fed_us = lane.recovery.as_ref().map_or(0, |recovery| recovery.fed_us);
        let still = self.now_us >= state.progressed_us.max(fed_us) + patience_us;
        let lacks = |r: &Retained| r.content.is_some() && r.have & bit(slot) == 0;
        let hangs = state.started && !state.full && still && lane.retained.iter().any(lacks);
        state.failed || (!state.started && late) || hangs
    }

    /// The answer to a fetch: the content goes to every member, or another holder is asked.
    pub(super) fn on_fetched(&mut self, number: usize, slot: usize, index: u64, content: Result<Content, u64>) {
        let lane = &mut self.lanes[number];
        let Some(retained) = lane.retained_mut(index).filter(|r| r.content.is_none()) else { return };
        retained.fetching = false;
        match content {
            Ok(content) => {
                retained.content = Some(content);
                let bytes = retained.cost_bytes();
                lane.retained_bytes += bytes;
                lane.retained_bytes -= 128;
                if let Some(recovery) = &mut lane.recovery {
                    recovery.fed_us = self.now_us;
                }
                for slot in slots_of(lane.members()) {
                    self.send_retained(number, slot, index);
                }
            }
            Err(block) => self.on_holder_damaged(number, slot, index, block),
        }
        self.continue_copy(number);
    }

    /// W6 is done: the set is recorded.
    pub(super) fn serve_lane(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        let recovery = lane.recovery.take().expect("a committing lane recovers");
        if !broken(Mutation::UnsealedStay) {
            lane.in_sync = recovery.target;
        }
        slots_of(lane.in_sync).for_each(|slot| lane.slots[slot].distrusted = false);
        lane.phase = LanePhase::Serving;
        lane.unavailable = false;
        for retained in &mut lane.retained {
            retained.acked = true;
        }
        self.advance(number);
    }

    /// W7a: every lane is sealed or has been given up for now, and one at least can serve.
    pub(super) fn can_serve(&self) -> bool {
        let sealed = |lane: &Lane| lane.phase != LanePhase::Sealing || lane.unavailable;
        self.lanes.iter().all(sealed) && self.lanes.iter().any(|lane| self.lane_serves(lane))
    }

    /// The lane is open, and every older grant has run out (W7).
    pub(super) fn lane_serves(&self, lane: &Lane) -> bool {
        let waited = self.now_us >= lane.ready_at_us || broken(Mutation::ReadsDoNotWait);
        matches!(lane.phase, LanePhase::Serving | LanePhase::Closing) && waited
    }

    /// True if every lane that the range touches serves.
    pub(super) fn range_serves(&self, range: BlockRange) -> bool {
        let geometry = self.spec.geometry;
        range
            .pieces(CHUNK_BLOCKS as u32)
            .all(|p| self.lane_serves(&self.lanes[usize::from(geometry.lane_of_block(p.start))]))
    }

    /// The others serve without a lane that gets no seals; it opens later, by its own recovery.
    pub(super) fn give_up_for_now(&mut self, number: usize) {
        let patience_us = self.settings.open_patience_us;
        let lane = &mut self.lanes[number];
        if !lane.unavailable && self.now_us >= self.granted_at_us + patience_us {
            lane.unavailable = true;
            mark("a lane is unavailable when the others open");
            self.out.push(Effect::Note(format!(
                "volume {} lane {number}: too few of its in-sync devices answer; what touches it waits, the other lanes open without it",
                self.spec.name
            )));
        }
    }
}

/// W3: what the seals say together.
struct Union {
    base: u64,
    newest: BTreeMap<u64, Newest>,
    alarms: Vec<String>,
}

/// Where a lane goes on after a restore, if what was seen of it ends at `base`.
fn restored_base(base: u64, epoch: Epoch) -> u64 {
    let floor = epoch.0 << RESTORED_EPOCH_SHIFT;
    if base < floor { floor } else { base + RESTORED_STEP }
}

/// I5: nothing of an epoch is above the base of a later one.
pub(super) fn is_of_its_epoch(stamp: Stamp, rows: &[EpochRow]) -> bool {
    rows.iter().filter(|row| row.epoch > stamp.epoch).all(|row| stamp.index <= row.base)
}

fn union_of(seals: &[(usize, LaneState)], settled: u64, rows: &[EpochRow]) -> Union {
    let mut union = Union { base: settled, newest: BTreeMap::new(), alarms: Vec::new() };
    for (slot, seal) in seals {
        if !broken(Mutation::BaseWithoutPrefix) {
            union.base = union.base.max(seal.prefix);
        }
        for entry in &seal.list {
            if !is_of_its_epoch(entry.stamp, rows) {
                union.alarms.push(format!("a member's list holds {:?} beyond the end of its epoch", entry.stamp));
                continue;
            }
            union.base = union.base.max(entry.stamp.index);
            if entry.stamp.index <= settled {
                continue;
            }
            let candidate = Newest { stamp: entry.stamp, tombstone: entry.tombstone, holders: bit(*slot) };
            for block in entry.range.blocks() {
                let newest = union.newest.entry(block).or_insert(candidate);
                if newest.stamp < candidate.stamp {
                    *newest = candidate;
                } else if newest.stamp == candidate.stamp {
                    newest.holders |= candidate.holders;
                }
            }
        }
    }
    // What was copied to a member before it came in sync is in no list of its own: its prefix says that it has it, if it
    // counts the same epoch. In a later one it begins with that epoch's base, whether the member has what was before or not.
    for newest in union.newest.values_mut() {
        let counts = |seal: &LaneState| match broken(Mutation::LaterPrefixHolds) {
            true => seal.current >= newest.stamp.epoch,
            false => seal.current == newest.stamp.epoch,
        };
        let has = |seal: &LaneState| counts(seal) && seal.prefix >= newest.stamp.index;
        let by_prefix = seals.iter().filter(|(_, seal)| has(seal)).fold(0, |mask, (slot, _)| mask | bit(*slot));
        if by_prefix & !newest.holders != 0 {
            mark("a member holds by its prefix what its list does not name");
        }
        newest.holders |= by_prefix;
    }
    union
}

impl Union {
    /// Blocks joined into writes: same kind, same holders, within one chunk.
    fn runs(&self) -> Vec<(BlockRange, Newest)> {
        let mut runs: Vec<(BlockRange, Newest)> = Vec::new();
        for (block, newest) in &self.newest {
            if let Some((range, first)) = runs.last_mut()
                && range.end() == *block
                && range.count < WRITE_BLOCKS_MAX
                && range.chunk() == BlockRange::new(*block, 1).chunk()
                && (first.tombstone, first.holders) == (newest.tombstone, newest.holders)
            {
                range.count += 1;
            } else {
                runs.push((BlockRange::new(*block, 1), *newest));
            }
        }
        runs
    }
}
