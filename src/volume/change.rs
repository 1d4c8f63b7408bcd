//! C1 and C2, W9: changes of the in-sync set, by compare-and-set, never taking a timeout for an outcome.

use super::engine::{Effect, VolumeEngine, VolumePhase};
use super::lane::{LanePhase, Mask, bit, quorum, slots_of};
use super::slow::seconds;
use ashlar_model::DeviceId;
use ashlar_model::cluster::{LaneCas, LaneCasReply};
use ashlar_model::mutation::{Mutation, broken, mark};

/// Ejections are limited per so much time.
const MINUTE_US: u64 = 60_000_000;
/// Ejections of several lanes from the same device within this time count as one.
const EJECTION_BURST_US: u64 = 10_000_000;
/// A compare-and-set without an answer is repeated after this.
const CAS_AGAIN_US: u64 = 5_000_000;
/// A joiner whose promotion was refused is not taken up again before this: this node's view of the members is old.
const REFUSED_PAUSE_US: u64 = 5_000_000;
/// An ejected device is not taken back before this.
const REJOIN_PAUSE_US: u64 = 500_000;

impl VolumeEngine {
    /// Ejects who holds the others up, takes back who has returned, promotes who has caught up.
    pub(super) fn change_set(&mut self, number: usize) {
        if self.lanes[number].phase != LanePhase::Serving || self.phase != VolumePhase::Serving {
            return;
        }
        if self.lanes[number].pending.is_none() {
            self.try_promote(number);
        }
        self.eject_who_should_go(number);
        if self.lanes[number].pending.is_none() && self.lanes[number].join.is_none() {
            self.begin_join_if_possible(number);
        }
        if self.lanes[number].pending.is_none() && self.lanes[number].join.is_none() {
            self.let_leave(number);
            self.confirm_departure(number);
        }
        self.drop_hung_join(number);
        self.drive_join(number);
    }

    /// Every wanted member is in sync: those that are not wanted go.
    fn let_leave(&mut self, number: usize) {
        let lane = &self.lanes[number];
        if lane.leaving() != 0 && lane.copyset & !lane.in_sync == 0 {
            self.propose(number, lane.copyset);
        }
    }

    /// C4: a device that left keeps its data until the metadata service hears of this writer once more. Any change does;
    /// a join under way will end in one.
    fn confirm_departure(&mut self, number: usize) {
        let lane = &self.lanes[number];
        if lane.pending.is_none() && lane.confirm_from.is_some_and(|from| lane.settled >= from) {
            self.propose(number, lane.in_sync);
        }
    }

    /// One after the other: one that may not go now must not shield the next.
    fn eject_who_should_go(&mut self, number: usize) {
        let in_sync = self.lanes[number].in_sync;
        let (up, away): (Vec<usize>, Vec<usize>) =
            slots_of(in_sync).partition(|slot| self.lanes[number].slots[*slot].up);
        for slot in away.into_iter().chain(up) {
            if self.lanes[number].pending.is_none() && self.should_go(number, slot) {
                self.eject(number, slot);
            }
        }
    }

    fn should_go(&self, number: usize, slot: usize) -> bool {
        let (lane, settings) = (&self.lanes[number], &self.settings);
        let state = &lane.slots[slot];
        if state.failed || self.now_us < state.eject_until_us {
            return true;
        }
        if state.full && state.up {
            return false; // it suspends, it is not thrown out: the others will be full soon, too
        }
        let behind_us = state.behind_since_us.map_or(0, |since| self.now_us - since);
        let still_us =
            if state.up { self.now_us.saturating_sub(state.progressed_us).min(behind_us) } else { behind_us };
        let lag_bytes = lane.lag_bytes(slot);
        let hung = lag_bytes > settings.throttle_lag_bytes() && still_us >= settings.hung_after_us;
        let blocks = still_us >= settings.eject_blocked_after_us && self.is_blocked(number, slot);
        let late = behind_us >= settings.eject_after_us || lag_bytes > settings.eject_lag_bytes as u64;
        late || hung || blocks || self.is_given_up(number, slot)
    }

    /// Guests wait, and without this member nothing of the lane can be acknowledged or read as the set is.
    fn is_blocked(&self, number: usize, slot: usize) -> bool {
        let lane = &self.lanes[number];
        let others = lane.started_slots() & lane.in_sync & !bit(slot);
        self.in_flight() > 0 && others.count_ones() < quorum(lane.in_sync, self.spec.quorum)
    }

    /// A joiner that cannot keep up with live writes holds them back: it begins again later.
    pub(super) fn drop_hung_join(&mut self, number: usize) {
        let lane = &self.lanes[number];
        let Some(slot) = lane.join.as_ref().filter(|join| join.info.is_some()).map(|join| join.slot) else { return };
        if lane.pending.is_some_and(|pending| pending & bit(slot) != 0) {
            return; // the outcome of its promotion decides
        }
        let (lag_bytes, state) = (lane.lag_bytes(slot), &lane.slots[slot]);
        let still_us = self.now_us.saturating_sub(state.progressed_us);
        let behind_us = state.behind_since_us.map_or(0, |since| self.now_us - since);
        // Writes go at its pace meanwhile, if that is most of theirs; one that gets nowhere, or does not catch up for long,
        // is given up even if it is needed.
        let hung = lag_bytes > self.settings.throttle_lag_bytes() && still_us >= self.settings.eject_blocked_after_us;
        let late = lag_bytes > self.settings.eject_lag_bytes as u64 && behind_us >= self.settings.eject_after_us;
        if (hung || late || self.is_given_up(number, slot)) && !state.full {
            mark("a joiner cannot keep up");
            let (device, behind) = (state.device, seconds(lane.lag_us(slot, self.now_us)));
            let pause = seconds(self.leave_alone(number, slot));
            self.out.push(Effect::Note(format!(
                "volume {} lane {number}: device {device} fell {behind} behind while it joined; it is tried again in {pause}",
                self.spec.name
            )));
            self.drop_join_of(number, slot);
            self.lanes[number].slots[slot].setbacks += 1;
        }
    }

    fn eject(&mut self, number: usize, slot: usize) {
        let device = self.lanes[number].slots[slot].device;
        if !self.may_eject(device) {
            return;
        }
        // Every survivor has answered lately: never eject the one that can be reached.
        let survivors = self.lanes[number].in_sync & !bit(slot);
        let granting = self.lanes[number].granting_slots(self.now_us, self.settings.grant_us);
        if survivors & !granting != 0 || !self.propose(number, survivors) {
            return;
        }
        if !self.is_burst(device) {
            let now_us = self.now_us;
            self.ejected.retain(|(_, at)| at + MINUTE_US >= now_us);
            self.ejected.push_back((device, self.now_us));
        }
        mark("a member is ejected");
        self.counters.ejections += 1;
        let why = self.note_ejected(number, slot);
        self.out.push(Effect::Note(format!(
            "volume {} lane {number}: ejecting device {device}, which {why}; the others go on",
            self.spec.name
        )));
    }

    /// Who is slow, and not merely away, is left alone for a while. Returns why it has to go.
    fn note_ejected(&mut self, number: usize, slot: usize) -> String {
        self.forgive(number, slot);
        let state = &self.lanes[number].slots[slot];
        if !state.up || state.failed || self.now_us < state.eject_until_us {
            return "lacks writes".into();
        }
        let behind = seconds(self.lanes[number].lag_us(slot, self.now_us));
        let pause_us = self.leave_alone(number, slot);
        self.lanes[number].slots[slot].setbacks += 1;
        format!("is {behind} behind and is tried again in {}", seconds(pause_us))
    }

    /// The last ejection was of the same device, just now.
    fn is_burst(&self, device: DeviceId) -> bool {
        self.ejected.back().is_some_and(|(d, at)| *d == device && self.now_us < at + EJECTION_BURST_US)
    }

    pub(super) fn may_eject(&self, device: DeviceId) -> bool {
        let lately = self.ejected.iter().filter(|(_, at)| at + MINUTE_US >= self.now_us).count();
        self.is_burst(device) || lately < self.settings.ejections_per_minute
    }

    /// C1: the set changes only to one that already has every acknowledged write on a quorum.
    pub(super) fn propose(&mut self, number: usize, new: Mask) -> bool {
        let policy = self.spec.quorum;
        let lane = &mut self.lanes[number];
        assert!(lane.pending.is_none(), "one change at a time");
        let caught_up = |slot: usize| {
            let state = &lane.slots[slot];
            state.started && state.up && !state.failed && state.prefix >= lane.settled
        };
        let covered = lane
            .retained
            .iter()
            .all(|retained| !retained.acked || (retained.have & new).count_ones() >= quorum(new, policy));
        let ejects = new & !lane.in_sync == 0;
        let covered =
            covered || (ejects && broken(Mutation::EjectBehind)) || (!ejects && broken(Mutation::PromoteOnSettled));
        if new == 0 || !slots_of(new).all(caught_up) || !covered {
            return false;
        }
        lane.pending = Some(new);
        self.send_cas(number);
        true
    }

    /// Sends the compare-and-set that the lane's state calls for.
    pub(super) fn send_cas(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        let (mask, clean, base) = match lane.phase {
            LanePhase::Committing if broken(Mutation::UnsealedStay) => (lane.in_sync, None, Some(lane.base)),
            LanePhase::Committing => (lane.members(), None, Some(lane.base)),
            LanePhase::Closing if lane.closing_clean => (lane.in_sync, Some(lane.last), None),
            LanePhase::Serving | LanePhase::Closing => {
                let Some(pending) = lane.pending else { return };
                (if lane.taking_back { lane.in_sync } else { pending }, None, None)
            }
            _ => return,
        };
        lane.cas_outstanding = true;
        lane.cas_sent_us = self.now_us;
        let cas = LaneCas {
            volume: self.spec.id,
            lane: number as u16,
            epoch: self.epoch,
            version: lane.version,
            in_sync: lane.devices_of(mask),
            clean,
            base,
        };
        self.out.push(Effect::Cas(cas));
    }

    /// W9: repeated until the outcome is known.
    pub(super) fn repeat_cas(&mut self, number: usize) {
        let lane = &self.lanes[number];
        // An answer that does not come is no reason to wait for ever: a compare-and-set may be repeated.
        if !lane.cas_outstanding || self.now_us >= lane.cas_sent_us + CAS_AGAIN_US {
            self.send_cas(number);
        }
    }

    pub(super) fn on_cas_done(&mut self, number: u16, reply: LaneCasReply) {
        let number = usize::from(number);
        if self.is_over() || number >= self.lanes.len() {
            return;
        }
        if reply.epoch > self.epoch {
            self.fence(&format!("epoch {} has been granted", reply.epoch));
            return;
        }
        let lane = &mut self.lanes[number];
        lane.cas_outstanding = false;
        if reply.epoch != self.epoch || reply.version != lane.version + 1 {
            return; // not applied yet: the tick repeats it
        }
        lane.version = reply.version;
        match lane.phase {
            LanePhase::Committing => self.serve_lane(number),
            LanePhase::Closing if lane.closing_clean => {
                lane.phase = LanePhase::Closed;
            }
            LanePhase::Serving | LanePhase::Closing => self.set_recorded(number, &reply.in_sync),
            LanePhase::Sealing | LanePhase::Copying | LanePhase::Closed => {}
        }
    }

    /// A proposed set was refused: it names a device that the metadata service does not want in this lane (any more).
    ///
    /// W9 asks what the record may hold. A refusal changed nothing, but it is no outcome yet: the refused set is a matter of
    /// the members wanted at that moment, these change without a new version, and an earlier or repeated copy of the same
    /// compare-and-set may still be under way and find them changed back. So nothing is taken back here: both sets go
    /// on counting, and the old set is proposed in the same version. It is never refused, as the metadata service keeps
    /// every recorded device acceptable. One of the two proposals makes the next version, once, and every copy of the
    /// other is void from then on; the answer names the set that did, and that is the outcome. A refusal that is late and
    /// meant an earlier proposal does no harm: it only gives up a change that may be proposed again.
    pub(super) fn on_cas_refused(&mut self, number: u16) {
        let number = usize::from(number);
        if self.is_over() || number >= self.lanes.len() {
            return;
        }
        let lane = &mut self.lanes[number];
        lane.cas_outstanding = false; // the tick repeats whatever else was asked for
        let is_change = matches!(lane.phase, LanePhase::Serving | LanePhase::Closing) && !lane.closing_clean;
        if is_change && lane.pending.is_some() && !std::mem::replace(&mut lane.taking_back, true) {
            mark("a refused set is taken back");
            self.out.push(Effect::Note(format!(
                "volume {} lane {number}: a change of the in-sync set was refused; the former one is recorded again",
                self.spec.name
            )));
            self.send_cas(number);
        }
    }

    /// The next version is recorded, with the proposed set or, after a refusal, perhaps with the former one.
    fn set_recorded(&mut self, number: usize, recorded: &[DeviceId]) {
        let lane = &mut self.lanes[number];
        let is_former = std::mem::take(&mut lane.taking_back) && lane.mask_of(recorded) == lane.in_sync;
        let refused = if is_former { lane.pending.replace(lane.in_sync) } else { None };
        self.set_changed(number);
        let joiner = self.lanes[number].join.as_ref().map(|join| join.slot);
        if let Some(slot) = joiner.filter(|slot| refused.is_some_and(|refused| refused & bit(*slot) != 0)) {
            self.drop_join_of(number, slot);
            self.lanes[number].slots[slot].join_not_before_us = self.now_us + REFUSED_PAUSE_US;
        }
    }

    /// C2: the proposed set is the recorded one.
    fn set_changed(&mut self, number: usize) {
        let now_us = self.now_us;
        let lane = &mut self.lanes[number];
        let Some(new) = lane.pending.take() else { return };
        let gone = lane.in_sync & !new;
        let came = new & !lane.in_sync;
        lane.in_sync = new;
        slots_of(came).for_each(|slot| lane.slots[slot].distrusted = false);
        lane.confirm_from = (gone & !lane.copyset != 0).then_some(lane.last);
        for slot in slots_of(gone) {
            lane.slots[slot].started = false;
            lane.slots[slot].granted_us = None;
            lane.slots[slot].eject_until_us = 0;
            if std::mem::take(&mut lane.slots[slot].lost_data) {
                lane.slots[slot].failed = false;
            }
            lane.slots[slot].join_not_before_us = now_us + REJOIN_PAUSE_US;
        }
        for slot in slots_of(came) {
            lane.slots[slot].in_sync_since_us = now_us;
            lane.slots[slot].joins_failed = 0;
            lane.slots[slot].left_alone = None;
        }
        if lane.join.as_ref().is_some_and(|join| came & bit(join.slot) != 0) {
            let join = lane.join.take().expect("just seen");
            let device = lane.slots[join.slot].device;
            self.counters.joins += 1;
            self.out.push(Effect::Note(format!(
                "volume {} lane {number}: device {device} is in sync again after copying {} bytes",
                self.spec.name, join.copied_bytes
            )));
        }
        self.acknowledge_all(number);
        // Members learn the new configuration at once.
        self.heartbeat(number);
    }
}
