//! Z1: finish everything, mark every lane clean, and never serve again.

use super::engine::{Effect, Failure, VolumeEngine, VolumePhase};
use super::lane::{LanePhase, quorum, slots_of};
use ashlar_model::mutation::{Mutation, broken};

/// Members that cannot be reached are waited for this long before the volume ends without the clean mark.
const CLOSE_PATIENCE_US: u64 = 3_000_000;

impl VolumeEngine {
    pub(super) fn on_close(&mut self) {
        match self.phase {
            VolumePhase::Opening if broken(Mutation::CloseInGrantWait) => {
                self.phase = VolumePhase::Closing;
                self.closing_since_us = self.now_us;
            }
            VolumePhase::Serving => {
                self.phase = VolumePhase::Closing;
                self.closing_since_us = self.now_us;
                let parked = std::mem::take(&mut self.parked);
                for request in std::mem::take(&mut self.waiting).into_iter().chain(parked) {
                    self.complete(request.id.0, super::engine::Outcome::Failed(Failure::Closed));
                }
            }
            VolumePhase::Idle | VolumePhase::Opening => self.end(false),
            VolumePhase::Closing | VolumePhase::Closed | VolumePhase::Fenced => {}
        }
    }

    pub(super) fn continue_close(&mut self) {
        for number in 0..self.lanes.len() {
            if self.active.is_empty() && self.lane_is_complete(number) {
                let lane = &mut self.lanes[number];
                lane.phase = LanePhase::Closing;
                lane.closing_clean = true;
                self.send_cas(number);
            }
        }
        if self.lanes.iter().all(|lane| lane.phase == LanePhase::Closed) {
            self.end(true);
        } else if self.now_us >= self.closing_since_us + CLOSE_PATIENCE_US {
            self.end(false);
        }
    }

    /// Every member has every write, and nothing is being changed.
    fn lane_is_complete(&mut self, number: usize) -> bool {
        if let Some(slot) = self.lanes[number].join.as_ref().map(|join| join.slot) {
            self.drop_join_of(number, slot);
        }
        let lane = &self.lanes[number];
        let complete = |s: &usize| lane.slots[*s].started && lane.slots[*s].prefix == lane.last;
        let needed = match broken(Mutation::CleanByQuorum) {
            true => quorum(lane.in_sync, self.spec.quorum),
            false => lane.in_sync.count_ones(),
        };
        lane.phase == LanePhase::Serving
            && lane.pending.is_none()
            && lane.join.is_none()
            && (self.now_us >= lane.ready_at_us || broken(Mutation::CloseInGrantWait))
            && lane.retained.iter().all(|retained| retained.acked)
            && slots_of(lane.in_sync).filter(complete).count() as u32 >= needed
    }

    fn end(&mut self, clean: bool) {
        self.phase = VolumePhase::Closed;
        self.fail_all(&Failure::Closed);
        self.out.push(Effect::Closed { clean });
    }
}
