//! When the volume needs its clock: every 50 ms while something goes on, once in a while when nothing does.
//!
//! At rest a tick changes nothing but the pulse: members have every write and know that they have, nobody waits, and no
//! member could be taken back. Whatever ends the rest is an event of its own: a request, a message, a link.

use super::engine::{VolumeEngine, VolumePhase};
use super::lane::{Lane, LanePhase, slots_of};
use super::lost::Way;
use super::service::IDLE_AFTER_US;
use ashlar_model::DeviceId;
use ashlar_model::mutation::mark;

/// At rest some lanes hear from the writer this often, so that it learns that another one has taken the volume. Whether a
/// node is there at all is seen on its link.
const PULSE_US: u64 = 10_000_000;
/// Pulses within which every lane has had its turn.
const PULSES_PER_ROUND: usize = 4;

/// When the next tick is wanted, unless something else happens first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// Nothing here waits for time to pass.
    Never,
    /// By then, in microseconds of the engine's clock; ticks before it do nothing.
    At(u64),
    /// In 50 ms or so.
    Soon,
}

impl VolumeEngine {
    /// When this writer wants to be told the time. Ask after a tick; after any other event it is `Soon`.
    pub fn wake(&self) -> Wake {
        match self.phase {
            VolumePhase::Idle | VolumePhase::Closed | VolumePhase::Fenced => Wake::Never,
            _ if self.is_at_rest() => Wake::At(self.pulsed_us + PULSE_US),
            _ => Wake::Soon,
        }
    }

    /// Time alone changes nothing.
    pub(super) fn is_at_rest(&self) -> bool {
        self.phase == VolumePhase::Serving
            && matches!(self.way, Way::Kept)
            && self.in_flight() == 0
            && self.reads.is_empty()
            && self.held_reads.is_empty()
            && self.late_reads.is_empty()
            && self.repairs.is_empty()
            && self.pace.is_at_rest()
            && self.now_us > self.last_request_us + IDLE_AFTER_US
            && self.lanes.iter().all(|lane| self.lane_rests(lane))
    }

    /// It has one set, whose members have everything and know it, and nobody else could come in.
    fn lane_rests(&self, lane: &Lane) -> bool {
        let has_everything = |slot: usize| {
            let state = &lane.slots[slot];
            let counts =
                state.up && state.started && !state.failed && !state.full && self.now_us >= state.eject_until_us;
            counts && state.prefix == lane.last && state.behind_since_us.is_none()
        };
        let could_join = |slot: usize| lane.slots[slot].up && !lane.slots[slot].failed;
        lane.phase == LanePhase::Serving
            && self.now_us >= lane.ready_at_us
            && lane.pending.is_none()
            && !lane.cas_outstanding
            && lane.confirm_from.is_none()
            && lane.join.is_none()
            && lane.leaving() == 0
            && lane.retained.is_empty()
            && lane.settled == lane.last
            && lane.told_settled == Some(lane.settled)
            && slots_of(lane.in_sync).all(has_everything)
            && !slots_of(lane.copyset & !lane.in_sync).any(could_join)
    }

    /// The tick of a volume at rest.
    pub(super) fn pulse_if_due(&mut self) {
        if self.now_us >= self.pulsed_us + PULSE_US {
            mark("a volume at rest has a pulse");
            self.pulsed_us = self.now_us;
            for _ in 0..self.lanes.len().div_ceil(PULSES_PER_ROUND) {
                self.pulse();
            }
        }
    }

    /// The next lane's members hear from the writer, and answer.
    fn pulse(&mut self) {
        if self.lanes.is_empty() || self.is_over() {
            return;
        }
        self.pulse_lane = (self.pulse_lane + 1) % self.lanes.len();
        if self.lanes[self.pulse_lane].has_pulse() {
            self.heartbeat(self.pulse_lane);
        }
    }

    /// The members of a lane that has one of these devices hear from the writer, and answer.
    pub(super) fn pulse_to(&mut self, devices: &[DeviceId]) {
        let lane = self.lanes.iter().position(|lane| lane.tells(devices));
        if let Some(number) = lane.filter(|_| !self.is_over()) {
            self.heartbeat(number);
        }
    }

    /// True if a pulse would reach one of these devices.
    pub fn hears_from(&self, devices: &[DeviceId]) -> bool {
        !self.is_over() && self.lanes.iter().any(|lane| lane.tells(devices))
    }
}

impl Lane {
    /// Its members may hear from the writer at any time.
    fn has_pulse(&self) -> bool {
        matches!(self.phase, LanePhase::Serving | LanePhase::Closing)
    }

    fn tells(&self, devices: &[DeviceId]) -> bool {
        self.has_pulse() && slots_of(self.destinations()).any(|slot| devices.contains(&self.slots[slot].device))
    }
}
