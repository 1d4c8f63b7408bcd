//! C1 and C2, W9: changes of the in-sync set, by compare-and-set, never taking a timeout for an outcome.

use super::engine::{Effect, VolumeEngine, VolumePhase};
use super::lane::{LanePhase, Mask, bit, quorum, slots_of};
use ashlar_model::DeviceId;
use ashlar_model::cluster::{LaneCas, LaneCasReply};
use ashlar_model::mutation::{Mutation, broken};

/// Ejections of several lanes from the same device within this time count as one.
const EJECTION_BURST_US: u64 = 10_000_000;
/// A compare-and-set without an answer is repeated after this.
const CAS_AGAIN_US: u64 = 5_000_000;
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
        if self.lanes[number].pending.is_none()
            && let Some(slot) = self.slot_to_eject(number)
        {
            self.eject(number, slot);
        }
        if self.lanes[number].pending.is_none() && self.lanes[number].join.is_none() {
            self.begin_join_if_possible(number);
        }
        if self.lanes[number].pending.is_none() && self.lanes[number].join.is_none() {
            self.let_leave(number);
        }
        self.drive_join(number);
    }

    /// Every wanted member is in sync: those that are not wanted go.
    fn let_leave(&mut self, number: usize) {
        let lane = &self.lanes[number];
        if lane.leaving() != 0 && lane.copyset & !lane.in_sync == 0 {
            self.propose(number, lane.copyset);
        }
    }

    fn slot_to_eject(&self, number: usize) -> Option<usize> {
        let lane = &self.lanes[number];
        let lag_bytes = |slot: usize| {
            let lacks = lane.retained.iter().filter(|retained| retained.have & bit(slot) == 0);
            lacks.map(|retained| retained.cost_bytes()).sum::<usize>()
        };
        let over_lag = lane.retained_bytes > self.settings.eject_lag_bytes;
        slots_of(lane.in_sync).find(|slot| {
            let state = &lane.slots[*slot];
            let late = state.behind_since_us.is_some_and(|since| self.now_us >= since + self.settings.eject_after_us);
            let far = over_lag && lag_bytes(*slot) > self.settings.eject_lag_bytes;
            // A full device suspends, it is not thrown out: the others will be full soon, too.
            let waits_for_space = state.full && state.up;
            state.failed || state.eject_wanted || ((late || far) && !waits_for_space)
        })
    }

    fn eject(&mut self, number: usize, slot: usize) {
        let device = self.lanes[number].slots[slot].device;
        if !self.ejection_allowed(device) {
            return;
        }
        // Every survivor has answered lately: never eject the one that can be reached.
        let survivors = self.lanes[number].in_sync & !bit(slot);
        let granting = self.lanes[number].granting_slots(self.now_us, self.settings.grant_us);
        if survivors & !granting != 0 || !self.propose(number, survivors) {
            return;
        }
        let burst = self.ejected.back().is_some_and(|(d, at)| *d == device && self.now_us < at + EJECTION_BURST_US);
        if !burst {
            self.ejected.push_back((device, self.now_us));
        }
        self.counters.ejections += 1;
        self.out.push(Effect::Note(format!(
            "volume {} lane {number}: ejecting device {device}, which lacks writes; the others go on",
            self.spec.name
        )));
    }

    fn ejection_allowed(&mut self, device: DeviceId) -> bool {
        let minute_ago_us = self.now_us.saturating_sub(60_000_000);
        self.ejected.retain(|(_, at)| *at >= minute_ago_us);
        let burst = self.ejected.back().is_some_and(|(d, at)| *d == device && self.now_us < at + EJECTION_BURST_US);
        burst || self.ejected.len() < self.settings.ejections_per_minute
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
                (pending, None, None)
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
            LanePhase::Serving | LanePhase::Closing => self.set_changed(number),
            LanePhase::Sealing | LanePhase::Copying | LanePhase::Closed => {}
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
        for slot in slots_of(gone) {
            lane.slots[slot].started = false;
            lane.slots[slot].granted_us = None;
            lane.slots[slot].eject_wanted = false;
            if std::mem::take(&mut lane.slots[slot].lost_data) {
                lane.slots[slot].failed = false;
            }
            lane.slots[slot].join_not_before_us = now_us + REJOIN_PAUSE_US;
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
