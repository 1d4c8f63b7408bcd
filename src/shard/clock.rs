//! When the shard wakes up by itself: which volumes want their clock, and which timers of the reactor are running.
//!
//! It must never read a clock.

use crate::volume::Wake;
use ashlar_model::VolumeId;
use rustc_hash::FxHashSet;
use std::collections::BTreeSet;

/// Pace of the engines' clocks.
pub(super) const TICK_US: u64 = 50_000;
/// The same while reads wait for answers.
pub(super) const READS_TICK_US: u64 = 10_000;
/// The same while nothing happens at all. What is due in between is done then, so that what rests wakes up together.
pub(super) const REST_US: u64 = 500_000;

/// The shard's alarm clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Volumes that are told of every tick.
    ticking: FxHashSet<VolumeId>,
    /// Those that rest until then. What has woken up since may still be here: it is told once more than it needs.
    resting: BTreeSet<(u64, VolumeId)>,
    /// When running timers expire, in order.
    timers: Vec<u64>,
    /// Something has happened since the last tick, or is waited for.
    pub restless: bool,
    /// Reads wait for answers.
    pub awaits_reads: bool,
}

impl Clock {
    /// Something has happened to the volume.
    pub fn stir(&mut self, volume: VolumeId) {
        self.ticking.insert(volume);
    }

    /// The volume has been told of the tick. True if it goes on ticking.
    pub fn told(&mut self, volume: VolumeId, wake: Wake) -> bool {
        match wake {
            Wake::Soon => return true,
            Wake::At(by_us) => drop(self.resting.insert((by_us.next_multiple_of(REST_US), volume))),
            Wake::Never => {}
        }
        self.ticking.remove(&volume);
        false
    }

    /// Volumes that are told of this tick: those that tick, and those whose rest is over.
    pub fn due(&mut self, now_us: u64) -> Vec<VolumeId> {
        while let Some((by_us, volume)) = self.resting.first().copied()
            && by_us <= now_us
        {
            self.resting.pop_first();
            self.ticking.insert(volume);
        }
        self.ticking()
    }

    /// Volumes that tick, in order.
    pub fn ticking(&self) -> Vec<VolumeId> {
        let mut ticking: Vec<VolumeId> = self.ticking.iter().copied().collect();
        ticking.sort_unstable();
        ticking
    }

    /// The volume is gone.
    pub fn forget(&mut self, volume: VolumeId) {
        self.ticking.remove(&volume);
        self.resting.retain(|(_, resting)| *resting != volume);
    }

    /// After how long a further timer must expire, if those that run are too late.
    pub fn next_timer_us(&mut self, now_us: u64) -> Option<u64> {
        let by_us = if self.restless || !self.ticking.is_empty() {
            now_us + if self.awaits_reads { READS_TICK_US } else { TICK_US }
        } else {
            // Everything that rests wakes at multiples of this.
            (now_us + 1).next_multiple_of(REST_US)
        };
        if self.timers.first().is_some_and(|first| *first <= by_us) {
            return None;
        }
        self.timers.insert(0, by_us);
        Some(by_us - now_us)
    }

    /// The first of the running timers has expired.
    pub fn expired(&mut self) {
        if !self.timers.is_empty() {
            self.timers.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 10 * REST_US;

    fn volume(id: u128) -> VolumeId {
        VolumeId::from_u128(id)
    }

    #[test]
    fn a_volume_ticks_until_it_rests_and_rests_until_it_is_due() {
        let mut clock = Clock::default();
        clock.stir(volume(1));
        clock.stir(volume(2));
        assert_eq!(clock.due(NOW_US), [volume(1), volume(2)]);
        assert!(clock.told(volume(1), Wake::Soon));
        assert!(!clock.told(volume(2), Wake::At(NOW_US + 1)));
        assert_eq!(clock.due(NOW_US + REST_US - 1), [volume(1)]);
        assert_eq!(clock.due(NOW_US + REST_US), [volume(1), volume(2)]);
        assert!(!clock.told(volume(1), Wake::Never));
        assert_eq!(clock.due(NOW_US + 9 * REST_US), [volume(2)]);
        clock.forget(volume(2));
        assert_eq!(clock.due(NOW_US + 10 * REST_US), []);
    }

    #[test]
    fn a_volume_that_is_gone_is_not_told_that_its_rest_is_over() {
        let mut clock = Clock::default();
        assert!(!clock.told(volume(1), Wake::At(NOW_US + REST_US)));
        assert!(!clock.told(volume(2), Wake::At(NOW_US + REST_US)));
        clock.forget(volume(1));
        assert_eq!(clock.due(NOW_US + 9 * REST_US), [volume(2)]);
    }

    #[test]
    fn what_happens_to_a_resting_volume_wakes_it() {
        let mut clock = Clock::default();
        assert!(!clock.told(volume(1), Wake::At(NOW_US + REST_US)));
        clock.stir(volume(1));
        assert_eq!(clock.due(NOW_US), [volume(1)]);
        assert!(clock.told(volume(1), Wake::Soon));
        assert_eq!(clock.due(NOW_US + REST_US), [volume(1)], "once, though its rest is over, too");
    }

    #[test]
    fn a_timer_is_started_only_if_none_expires_in_time() {
        let mut clock = Clock { restless: true, ..Clock::default() };
        assert_eq!(clock.next_timer_us(NOW_US), Some(TICK_US));
        assert_eq!(clock.next_timer_us(NOW_US + 1), None);
        clock.awaits_reads = true;
        assert_eq!(clock.next_timer_us(NOW_US + 2), Some(READS_TICK_US));
        clock.awaits_reads = false;
        clock.expired(); // that of the reads
        assert_eq!(clock.next_timer_us(NOW_US + READS_TICK_US + 2), None, "the first one still runs");
        clock.expired();
        assert_eq!(clock.next_timer_us(NOW_US + TICK_US), Some(TICK_US));
    }

    #[test]
    fn a_shard_at_rest_wakes_twice_a_second_and_what_stirs_it_at_the_usual_pace() {
        let mut clock = Clock::default();
        assert_eq!(clock.next_timer_us(NOW_US + 1), Some(REST_US - 1));
        clock.restless = true;
        assert_eq!(clock.next_timer_us(NOW_US + 2), Some(TICK_US));
        clock.restless = false;
        clock.expired();
        assert_eq!(clock.next_timer_us(NOW_US + TICK_US + 2), None, "the timer of the rest still runs");
        clock.expired();
        assert_eq!(clock.next_timer_us(NOW_US + REST_US), Some(REST_US));
    }
}
