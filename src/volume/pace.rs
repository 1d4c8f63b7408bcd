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

/// The pace of one volume's joins.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Steps in flight per join, at least one.
    window: usize,
    /// Mean latency of guests' requests while nothing is resynchronised, in microseconds.
    usual_us: Option<u64>,
    since_us: u64,
    requests: u64,
    sum_us: u64,
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
            if self.window <= 1 {
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
    pub fn allows(&self, in_flight: usize) -> bool {
        in_flight < self.window.max(1)
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
        assert!(pace.allows(7) && !pace.allows(8));
    }

    #[test]
    fn working_guests_are_found_out_step_by_step() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        assert!(pace.allows(0) && !pace.allows(1));
        for window in 2..=8 {
            period(&mut pace, &mut now_us, 100, 240, true);
            assert!(pace.allows(window - 1) && !pace.allows(window));
        }
        for window in [4, 2, 1] {
            period(&mut pace, &mut now_us, 100, 260, true);
            assert!(pace.allows(window - 1) && !pace.allows(window));
        }
    }

    #[test]
    fn guests_whose_work_has_changed_do_not_hold_it_at_the_slowest_pace() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        for _ in 0..20 {
            period(&mut pace, &mut now_us, 100, 900, true);
            assert!(pace.allows(0));
        }
        assert!(pace.allows(1), "{pace:?}");
    }
}
