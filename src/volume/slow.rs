//! Members that are too slow to be waited for: who they are, whether the others can do without them, and when they are
//! taken back.
//!
//! A member that merely follows with less than the others sets the pace of new writes, so that it is not lost. One that
//! would hold guests up by more than that is given up: it would take long to catch up, and longer by far than it took to
//! fall behind. How long follows from the rate at which it made writes durable in the last moments, so it is known as
//! soon as it matters.

use super::engine::VolumeEngine;
use super::lane::{Join, Lane, bit, quorum, slots_of};

/// The rate of a member is that of the last one to two of these.
const FOLLOWED_US: u64 = 200_000;
/// A member whose catching up takes so many times as long as falling behind took follows with less than half of what guests
/// write: it is not waited for.
const SLOWER_TIMES: u64 = 2;
/// One that follows with less than an eighth will be waited for soon, and would catch up late after a burst of writes.
const SLOWER_TIMES_SOON: u64 = 8;
/// A member that makes nothing durable for this long pauses; that it is slow as well shows when it goes on.
const PAUSED_US: u64 = 500_000;
/// A member that has been in sync for this long has kept up: what was before is forgotten.
const KEPT_UP_US: u64 = 60_000_000;
/// A joiner that has been slow before and keeps up for this long is well enough to join other lanes, too.
const TRIAL_US: u64 = 10_000_000;
/// Times that a pause doubles, at most.
const DOUBLED_MAX: u32 = 16;

/// How far a slot had followed the lane at two moments of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Followed {
    older: Mark,
    newer: Mark,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at_us: u64,
    /// Bytes of this epoch's writes that it had without a gap.
    bytes: u64,
}

impl Followed {
    /// It has just begun to follow.
    pub fn begins(at_us: u64, bytes: u64) -> Self {
        let mark = Mark { at_us, bytes };
        Self { older: mark, newer: mark }
    }

    /// Called now and then. Time in which it lacks nothing says nothing of its rate.
    pub fn note(&mut self, at_us: u64, bytes: u64, lag_bytes: u64) {
        if lag_bytes == 0 {
            *self = Self::begins(at_us, bytes);
        } else if at_us >= self.newer.at_us + FOLLOWED_US {
            self.older = std::mem::replace(&mut self.newer, Mark { at_us, bytes });
        }
    }

    /// Time in which it would follow by `lag_bytes` more, if it goes on as of late. Nothing can be said of one that has
    /// just begun.
    fn catch_up_us(&self, at_us: u64, bytes: u64, lag_bytes: u64) -> Option<u64> {
        let elapsed_us = at_us.saturating_sub(self.older.at_us);
        let followed_bytes = bytes.saturating_sub(self.older.bytes).max(1);
        let needed_us = u128::from(lag_bytes) * u128::from(elapsed_us) / u128::from(followed_bytes);
        (elapsed_us >= FOLLOWED_US).then(|| u64::try_from(needed_us).unwrap_or(u64::MAX))
    }
}

impl Lane {
    /// Age of the oldest write that a slot lacks: what it has is what the lane was so long ago.
    pub fn lag_us(&self, slot: usize, now_us: u64) -> u64 {
        let lacking = self.retained_at(self.slots[slot].prefix + 1).or(self.retained.front());
        lacking
            .filter(|lacking| lacking.index > self.slots[slot].prefix)
            .map_or(0, |lacking| now_us - lacking.issued_us)
    }

    /// Bytes of this epoch's writes that a slot has without a gap.
    pub fn followed_bytes(&self, slot: usize) -> u64 {
        self.issued_bytes - self.lag_bytes(slot)
    }

    /// True if a slot would need long to catch up, and so many times as long as it took to fall behind.
    fn falls_back(&self, slot: usize, now_us: u64, catch_up_us_max: u64, times: u64) -> bool {
        let (bytes, lag_bytes, lag_us) = (self.followed_bytes(slot), self.lag_bytes(slot), self.lag_us(slot, now_us));
        if lag_us < FOLLOWED_US {
            return false; // it has not been behind for as long as it is watched
        }
        let limit_us = catch_up_us_max.max(lag_us.saturating_mul(times));
        self.slots[slot].followed.catch_up_us(now_us, bytes, lag_bytes).is_some_and(|needed_us| needed_us > limit_us)
    }
}

impl VolumeEngine {
    /// A member that gets on, or a joiner, lacks so much that writes go at its pace: unless it is about to be given up.
    pub(super) fn is_throttled(&self, lane: &Lane) -> bool {
        let (now_us, lag_bytes) = (self.now_us, self.settings.throttle_lag_bytes());
        let number = usize::from(lane.number);
        let slow = |slot: usize| {
            let state = &lane.slots[slot];
            let gets_on = state.started && !state.failed && now_us < state.progressed_us + self.settings.hung_after_us;
            let leaves = lane.pending.is_some_and(|pending| pending & bit(slot) == 0) && lane.in_sync & bit(slot) != 0;
            gets_on && lane.lag_bytes(slot) > lag_bytes && !leaves && !self.is_given_up(number, slot)
        };
        lane.retained_bytes as u64 > lag_bytes && slots_of(lane.destinations()).any(slow)
    }

    /// It is too slow, and the lane can do without it.
    pub(super) fn is_given_up(&self, number: usize, slot: usize) -> bool {
        let (lane, settings) = (&self.lanes[number], &self.settings);
        let state = &lane.slots[slot];
        // A join begins anew when it is given up: not for a bad second, unless the device has been slow before.
        let soon = lane.in_sync & bit(slot) != 0 || state.left_alone.is_some();
        let is_late = soon
            && lane.lag_us(slot, self.now_us) > settings.behind_us_max
            && self.now_us < state.progressed_us + PAUSED_US;
        let times = match (lane.lag_bytes(slot) > settings.throttle_lag_bytes(), is_late) {
            (true, _) => SLOWER_TIMES,
            (false, true) => SLOWER_TIMES_SOON,
            (false, false) => return false,
        };
        !state.full
            && lane.falls_back(slot, self.now_us, settings.catch_up_us_max, times)
            && self.is_spare(number, slot)
    }

    /// Its first sign of life after a pause: how far it followed before says nothing of how it follows now.
    pub(super) fn note_progress(&mut self, number: usize, slot: usize) {
        let progressed_us = std::mem::replace(&mut self.lanes[number].slots[slot].progressed_us, self.now_us);
        if self.now_us >= progressed_us + PAUSED_US {
            self.begin_following(number, slot);
        }
    }

    /// The lane keeps its minimum and its quorum without this slot, now, and may lose it.
    fn is_spare(&self, number: usize, slot: usize) -> bool {
        let lane = &self.lanes[number];
        let others = lane.started_slots() & lane.in_sync & !bit(slot);
        if lane.in_sync & bit(slot) == 0 {
            return !self.is_needed(lane);
        }
        let unanswered = lane.in_sync & !bit(slot) & !lane.granting_slots(self.now_us, self.settings.grant_us);
        lane.pending.is_none()
            && unanswered == 0
            && others.count_ones() >= quorum(lane.in_sync, self.spec.quorum).max(u32::from(self.spec.in_sync_min))
            && self.may_eject(lane.slots[slot].device)
    }

    /// Another member is wanted, however slow: there is one copy only, or fewer than the volume's minimum.
    pub(super) fn is_needed(&self, lane: &Lane) -> bool {
        lane.in_sync.count_ones() < u32::from(self.spec.in_sync_min).max(2)
    }

    /// Notes how far everybody has followed who is sent writes.
    pub(super) fn note_followed(&mut self, number: usize) {
        let now_us = self.now_us;
        let lane = &mut self.lanes[number];
        for slot in slots_of(lane.destinations()) {
            let (bytes, lag_bytes) = (lane.followed_bytes(slot), lane.lag_bytes(slot));
            lane.slots[slot].followed.note(now_us, bytes, lag_bytes);
        }
    }

    /// It follows from here on.
    pub(super) fn begin_following(&mut self, number: usize, slot: usize) {
        let now_us = self.now_us;
        let lane = &mut self.lanes[number];
        lane.slots[slot].followed = Followed::begins(now_us, lane.followed_bytes(slot));
    }

    /// It was in sync for long: its setbacks do not count.
    pub(super) fn forgive(&mut self, number: usize, slot: usize) {
        let state = &mut self.lanes[number].slots[slot];
        if self.now_us >= state.in_sync_since_us + KEPT_UP_US {
            state.setbacks = 0;
        }
    }

    /// It was too slow: it is left alone for a while, longer each time until it has kept up.
    pub(super) fn leave_alone(&mut self, number: usize, slot: usize) -> u64 {
        let behind_us = self.lanes[number].lag_us(slot, self.now_us);
        let state = &mut self.lanes[number].slots[slot];
        let device = state.device;
        let pause_us = self.settings.slow_pause_us << state.setbacks.min(DOUBLED_MAX);
        let pause_us = pause_us.min(self.settings.slow_pause_us_max);
        let until_us = self.now_us + pause_us;
        state.left_alone = Some(LeftAlone { until_us, behind_us });
        // One lane has shown it for all in which it is out.
        for lane in &mut self.lanes {
            let left_alone = lane.slot_of(device).and_then(|slot| lane.slots[slot].left_alone.as_mut());
            if let Some(left_alone) = left_alone {
                left_alone.until_us = left_alone.until_us.max(until_us);
            }
        }
        pause_us
    }

    /// Another lane has just begun to show whether a device that was too slow is well again.
    pub(super) fn is_on_trial_elsewhere(&self, lane: &Lane, slot: usize) -> bool {
        let device = lane.slots[slot].device;
        let is_new = |join: &Join| self.now_us < join.since_us + TRIAL_US;
        let tries = |lane: &Lane| lane.join.as_ref().is_some_and(|j| lane.slots[j.slot].device == device && is_new(j));
        lane.slots[slot].left_alone.is_some() && !self.is_needed(lane) && self.lanes.iter().any(tries)
    }

    /// It is left alone, and not needed.
    pub(super) fn is_left_alone(&self, lane: &Lane, slot: usize) -> bool {
        let left_alone = lane.slots[slot].left_alone;
        left_alone.is_some_and(|left_alone| self.now_us < left_alone.until_us) && !self.is_needed(lane)
    }
}

/// A device that was too slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LeftAlone {
    /// It is taken back then.
    pub until_us: u64,
    /// Age of the oldest write that it lacked.
    pub behind_us: u64,
}

/// A time for people: with tenths if it is short.
pub(super) fn seconds(time_us: u64) -> String {
    match time_us {
        0..10_000_000 => format!("{}.{} s", time_us / 1_000_000, time_us / 100_000 % 10),
        _ => format!("{} s", time_us / 1_000_000),
    }
}
