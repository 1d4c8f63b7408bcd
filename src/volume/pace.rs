//! How fast a resynchronisation may go: as fast as it can while guests are silent, and as fast as guests do not notice
//! while they work.
//!
//! The slowest of guests' requests while nothing is resynchronised are the measure: beside a resynchronisation they may
//! take half as long again. In each period the window grows by one step while latency stays below that, and halves when it does not
//! (additive increase, multiplicative decrease, as in TCP). Where one step at a time is still too much, it rests between them.

use ashlar_model::limits::WRITE_BLOCKS_MAX;

/// A new decision is made this often.
const PERIOD_US: u64 = 100_000;
/// The slowest requests of a period may take this much of what they usually take, in percent.
const SLOWER_PERCENT: u64 = 150;
/// Requests below which a period says nothing.
const REQUESTS_MIN: u64 = 8;
/// Requests from which on the slowest one says nothing: the second is looked at, about the 99th percentile.
const REQUESTS_MANY: u64 = 100;
/// Rest after a whole step of 128 KiB: where a resynchronisation begins while guests work, and the longest one. Even then
/// 16 MiB go per second, so that it ends.
const REST_FIRST_US: u64 = 4_000;
const REST_MAX_US: u64 = 8_000;
/// A shorter rest is none.
const REST_MIN_US: u64 = 500;

/// The pace of one volume's joins.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Steps in flight per join, at least one.
    window: usize,
    /// Rest after a whole step.
    rest_us: u64,
    /// The next step begins no earlier.
    next_us: u64,
    /// What the slowest requests of a period take while nothing is resynchronised, in microseconds.
    usual_us: Option<u64>,
    since_us: u64,
    requests: u64,
    /// The slowest and the second slowest of those, in microseconds.
    slowest_us: [u64; 2],
}

impl Pace {
    /// A guest's request has ended after so long.
    pub fn note(&mut self, latency_us: u64) {
        self.requests += 1;
        let [first, second] = self.slowest_us;
        self.slowest_us = [first.max(latency_us), second.max(first.min(latency_us))];
    }

    /// Time passes; `joining`: a resynchronisation runs.
    pub fn tick(&mut self, now_us: u64, joining: bool, window_max: usize) {
        if now_us < self.since_us + PERIOD_US {
            return;
        }
        self.since_us = now_us;
        let (requests, slowest_us) = (std::mem::take(&mut self.requests), std::mem::take(&mut self.slowest_us));
        let slowest_us = slowest_us[usize::from(requests >= REQUESTS_MANY)];
        if requests == 0 {
            // Nobody is there to notice.
            (self.window, self.rest_us) = (window_max, 0);
        } else if requests < REQUESTS_MIN {
            self.window = self.window.max(1);
        } else if !joining {
            self.usual_us = Some(self.usual_us.map_or(slowest_us, |usual| (usual * 3 + slowest_us) / 4));
            // Where a resynchronisation will begin.
            (self.window, self.rest_us) = (1, REST_FIRST_US);
        } else if slowest_us * 100 > *self.usual_us.get_or_insert(slowest_us) * SLOWER_PERCENT {
            self.slow_down();
        } else {
            self.speed_up(window_max);
        }
    }

    fn slow_down(&mut self) {
        if self.window > 1 {
            self.window /= 2;
        } else if self.rest_us < REST_MAX_US {
            self.rest_us = (self.rest_us * 2).clamp(2 * REST_MIN_US, REST_MAX_US);
        } else {
            // At the slowest pace it is not the resynchronisation that makes guests slow: their work has changed.
            self.usual_us = self.usual_us.map(|usual| usual + usual / 8 + 1);
        }
    }

    fn speed_up(&mut self, window_max: usize) {
        if self.rest_us > 0 {
            let shorter_us = self.rest_us * 3 / 4;
            self.rest_us = if shorter_us < REST_MIN_US { 0 } else { shorter_us };
        } else {
            self.window = (self.window + 1).min(window_max);
        }
    }

    /// True if a join with so many steps in flight may begin another one.
    pub fn allows(&self, now_us: u64, in_flight: usize) -> bool {
        in_flight < self.window.max(1) && now_us >= self.next_us
    }

    /// A step of so many blocks has begun: the next one waits in proportion.
    pub fn begun(&mut self, now_us: u64, blocks: u32) {
        self.next_us = now_us + self.rest_us * u64::from(blocks) / u64::from(WRITE_BLOCKS_MAX);
    }

    /// True once a rest is over.
    pub fn take_rested(&mut self, now_us: u64) -> bool {
        let rested = self.next_us != 0 && now_us >= self.next_us;
        if rested {
            self.next_us = 0;
        }
        rested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A period in which guests had this latency, `requests` times.
    fn period(pace: &mut Pace, now_us: &mut u64, requests: u64, latency_us: u64, joining: bool) {
        (0..requests).for_each(|_| pace.note(latency_us));
        *now_us += PERIOD_US;
        pace.tick(*now_us, joining, 8);
    }

    /// Guests usually see 200 us, and a resynchronisation begins.
    fn joining() -> (Pace, u64) {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        (pace, now_us)
    }

    #[test]
    fn silent_guests_give_the_whole_window() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 0, 0, true);
        pace.begun(now_us, WRITE_BLOCKS_MAX);
        assert!(pace.allows(now_us, 7) && !pace.allows(now_us, 8));
    }

    #[test]
    fn working_guests_are_found_out_step_by_step() {
        let (mut pace, mut now_us) = joining();
        assert_eq!((pace.window, pace.rest_us), (1, 4_000));
        for rest_us in [3_000, 2_250, 1_687, 1_265, 948, 711, 533, 0] {
            period(&mut pace, &mut now_us, 100, 300, true);
            assert_eq!((pace.window, pace.rest_us), (1, rest_us));
        }
        for window in 2..=8 {
            period(&mut pace, &mut now_us, 100, 300, true);
            assert!(pace.allows(now_us, window - 1) && !pace.allows(now_us, window));
        }
        for (window, rest_us) in [(4, 0), (2, 0), (1, 0), (1, 1_000), (1, 2_000), (1, 4_000), (1, 8_000)] {
            period(&mut pace, &mut now_us, 100, 301, true);
            assert_eq!((pace.window, pace.rest_us), (window, rest_us));
        }
    }

    #[test]
    fn one_request_of_many_may_be_slow() {
        let (mut pace, mut now_us) = joining();
        for (slow, requests, rest_us) in [(1, 99, 3_000), (2, 98, 6_000), (1, 50, 8_000)] {
            (0..slow).for_each(|_| pace.note(900));
            period(&mut pace, &mut now_us, requests, 200, true);
            assert_eq!(pace.rest_us, rest_us, "{slow} slow beside {requests}");
        }
    }

    #[test]
    fn what_is_usual_follows_the_guests_work() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 30_000, false);
        (0..15).for_each(|_| period(&mut pace, &mut now_us, 100, 200, false));
        assert!(pace.usual_us < Some(700), "{pace:?}");
    }

    #[test]
    fn a_step_is_followed_by_a_rest_in_proportion() {
        let (mut pace, now_us) = joining();
        pace.begun(now_us, WRITE_BLOCKS_MAX / 4);
        assert!(!pace.allows(now_us + 999, 0) && pace.allows(now_us + 1_000, 0));
        assert!(!pace.take_rested(now_us + 999) && pace.take_rested(now_us + 1_000));
        assert!(!pace.take_rested(now_us + 1_000), "it is told once");
    }

    #[test]
    fn guests_whose_work_has_changed_do_not_hold_it_at_the_slowest_pace() {
        let (mut pace, mut now_us) = joining();
        for _ in 0..30 {
            period(&mut pace, &mut now_us, 100, 900, true);
            assert!(pace.allows(now_us, 0));
        }
        assert!(pace.rest_us < REST_MAX_US, "{pace:?}");
    }
}
