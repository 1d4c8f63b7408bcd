//! How fast a resynchronisation may go: as fast as it can while guests are silent, and as fast as guests do not notice
//! while they work.
//!
//! Guests' latency while nothing is resynchronised is the measure. In each period the window grows by one step while
//! latency stays near it, and halves when it does not (additive increase, multiplicative decrease, as in TCP).

/// A new decision is made this often.
const PERIOD_US: u64 = 100_000;
/// Guests may be slower than without a resynchronisation by this much, in percent.
const SLOWER_PERCENT: u64 = 125;
/// Requests below which a period says nothing.
const REQUESTS_MIN: u64 = 8;
/// With the smallest window, steps begin no sooner one after the other.
const PAUSE_US: u64 = 5_000;

/// The pace of one volume's joins.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Steps in flight per join; at zero there is one, with pauses.
    window: usize,
    /// Mean latency of guests' requests while nothing is resynchronised, in microseconds.
    usual_us: Option<u64>,
    since_us: u64,
    requests: u64,
    sum_us: u64,
    begun_us: u64,
}

impl Pace {
    /// A guest's request has ended after so long.
    pub fn note(&mut self, latency_us: u64) {
        self.requests += 1;
        self.sum_us += latency_us;
    }

    /// Time passes; `joining`: a resynchronisation runs.
    pub fn tick(&mut self, now_us: u64, joining: bool, window_max: usize) {
        if now_us < self.since_us + PERIOD_US {
            return;
        }
        self.since_us = now_us;
        let (requests, sum_us) = (std::mem::take(&mut self.requests), std::mem::take(&mut self.sum_us));
        if requests < REQUESTS_MIN {
            // Nobody is there to notice.
            self.window = if requests == 0 { window_max } else { self.window.max(1) };
            return;
        }
        let mean_us = sum_us / requests;
        if !joining {
            self.usual_us = Some(self.usual_us.map_or(mean_us, |usual| (usual * 7 + mean_us) / 8));
            self.window = 1; // where a resynchronisation will begin
            return;
        }
        let usual_us = *self.usual_us.get_or_insert(mean_us);
        if mean_us * 100 > usual_us * SLOWER_PERCENT {
            if self.window == 0 {
                // At the slowest pace it is not the resynchronisation that makes guests slow: their work has changed.
                self.usual_us = Some(usual_us + usual_us / 8 + 1);
                return;
            }
            self.window /= 2;
        } else {
            self.window = (self.window + 1).min(window_max);
        }
        // Guests that have become quicker than they ever were show what is possible.
        self.usual_us = Some(usual_us.min(mean_us));
    }

    /// True if a join with so many steps in flight may begin another one.
    pub fn allows(&mut self, now_us: u64, in_flight: usize) -> bool {
        let allowed = match self.window {
            0 => in_flight == 0 && now_us >= self.begun_us + PAUSE_US,
            window => in_flight < window,
        };
        if allowed {
            self.begun_us = now_us;
        }
        allowed
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

    #[test]
    fn silent_guests_give_the_whole_window() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 0, 0, true);
        assert!(pace.allows(now_us, 7) && !pace.allows(now_us, 8));
    }

    #[test]
    fn working_guests_are_found_out_step_by_step() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        assert!(pace.allows(now_us, 0) && !pace.allows(now_us, 1));
        for window in 2..=8 {
            period(&mut pace, &mut now_us, 100, 240, true);
            assert!(pace.allows(now_us, window - 1) && !pace.allows(now_us, window));
        }
        for window in [4, 2, 1] {
            period(&mut pace, &mut now_us, 100, 260, true);
            assert!(pace.allows(now_us, window - 1) && !pace.allows(now_us, window));
        }
    }

    #[test]
    fn the_smallest_pace_is_one_step_after_a_pause() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        period(&mut pace, &mut now_us, 100, 900, true);
        assert!(pace.allows(now_us, 0));
        assert!(!pace.allows(now_us + PAUSE_US - 1, 0));
        assert!(pace.allows(now_us + PAUSE_US, 0));
        assert!(!pace.allows(now_us + 2 * PAUSE_US, 1));
        period(&mut pace, &mut now_us, 0, 0, true);
        assert!(pace.allows(now_us, 7));
    }
}
