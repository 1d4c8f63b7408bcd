//! How fast a resynchronisation may go: as fast as it can while guests are silent, and as fast as guests do not notice
//! while they work.
//!
//! The slowest of guests' requests while nothing is resynchronised are the measure. Beside a resynchronisation they may take
//! 30 percent more in a period, so that the 99th percentile over all of it is about half as long again. Two periods in a
//! row in which they take longer halve the rate (one alone may be chance: these are the slowest of few requests). What it
//! was then is remembered: most of the way back to it is made soon, and from there on the rate grows slowly (as TCP CUBIC
//! does, RFC 9438), so that guests feel the resynchronisation in few periods.

use ashlar_model::units::BLOCK_BYTES;

/// A decision is made this often, or later if guests' requests are few.
const PERIOD_US: u64 = 100_000;
const PERIOD_US_MAX: u64 = 1_000_000;
/// Requests that are enough for a decision.
const REQUESTS_MIN: u64 = 8;
/// Requests from which on the slowest one says nothing: the second is looked at, about the 99th percentile.
const REQUESTS_MANY: u64 = 100;
/// The slowest requests of a period may take this much of what they usually take, in percent.
const SLOWER_PERCENT: u64 = 130;
/// Periods after which what was usual counts a third.
const USUAL_PERIODS: u64 = 16;
/// Bytes per second: where a resynchronisation begins while guests work, the least, so that it ends, and the most.
const RATE_FIRST: u64 = 32 << 20;
const RATE_MIN: u64 = 16 << 20;
const RATE_MAX: u64 = 4 << 30;
/// Steps that begin late, because nothing happened at their time, are made up for, of this long.
const LATE_US_MAX: u64 = 50_000;

/// The pace of one volume's joins.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Bytes per second; `None`: as many as there is room for.
    rate: Option<u64>,
    /// The rate at which guests felt it last.
    felt_rate: Option<u64>,
    /// Guests felt it in the last period.
    felt_before: bool,
    /// The next step begins no earlier.
    next_us: u64,
    /// Somebody has to begin it then.
    rests: bool,
    /// What the slowest requests of a period take while nothing is resynchronised, in microseconds.
    usual_us: Option<u64>,
    since_us: u64,
    /// Bytes of steps, requests of guests and the two slowest of these in the period.
    begun_bytes: u64,
    requests: u64,
    slowest_us: [u64; 2],
    turns: usize,
}

impl Pace {
    /// A guest's request has ended after so long.
    pub fn note(&mut self, latency_us: u64) {
        self.requests += 1;
        let [first, second] = self.slowest_us;
        self.slowest_us = [first.max(latency_us), second.max(first.min(latency_us))];
    }

    /// Time passes. `joining`: a resynchronisation runs; `busy`: requests of guests are not answered.
    pub fn tick(&mut self, now_us: u64, joining: bool, busy: bool) {
        let elapsed_us = now_us.saturating_sub(self.since_us);
        let enough = self.requests >= REQUESTS_MIN || elapsed_us >= PERIOD_US_MAX;
        if elapsed_us < PERIOD_US || !enough {
            return;
        }
        let (requests, slowest_us) = (std::mem::take(&mut self.requests), std::mem::take(&mut self.slowest_us));
        let moved = (std::mem::take(&mut self.begun_bytes) as u128 * 1_000_000 / u128::from(elapsed_us)) as u64;
        self.since_us = now_us;
        let slowest_us = match requests {
            0 => elapsed_us, // none was answered
            _ => slowest_us[usize::from(requests >= REQUESTS_MANY)],
        };
        if requests == 0 && !busy {
            (self.rate, self.felt_before) = (None, false); // nobody is there to notice
        } else if !joining {
            self.learn(slowest_us);
            (self.rate, self.felt_before) = (Some(self.near_felt()), false);
        } else if moved >= RATE_MIN / 2 {
            self.judge(slowest_us, moved);
        }
    }

    /// What guests see without a resynchronisation, with a memory of some seconds: the member that will join has disturbed
    /// the last moments already, when it came; and if it was waited for, some request took far longer than usual.
    fn learn(&mut self, slowest_us: u64) {
        let usual_us = self.usual_us.unwrap_or(slowest_us);
        let slowest_us = slowest_us.min(usual_us.saturating_mul(4));
        self.usual_us = Some((usual_us * (USUAL_PERIODS - 1) + slowest_us) / USUAL_PERIODS);
    }

    /// Where it goes on after a pause.
    fn near_felt(&self) -> u64 {
        self.felt_rate.map_or(RATE_FIRST, |felt| (felt / 4 * 3).max(RATE_MIN))
    }

    fn judge(&mut self, slowest_us: u64, moved: u64) {
        let Some(usual_us) = self.usual_us else {
            // Nothing is known without it: the slowest pace shows about what there would be.
            match self.rate {
                Some(RATE_MIN) => self.usual_us = Some(slowest_us),
                _ => self.rate = Some(RATE_MIN),
            }
            return;
        };
        if slowest_us < usual_us / 2 {
            self.learn(slowest_us); // something else had made guests slow
        }
        let felt = slowest_us * 100 > usual_us * SLOWER_PERCENT;
        match (felt, std::mem::replace(&mut self.felt_before, felt)) {
            (true, true) => self.slow_down(moved),
            (true, false) => {} // chance, until the next period agrees
            (false, _) => self.speed_up(moved),
        }
    }

    /// Down from what it did, which may be less than it might.
    fn slow_down(&mut self, moved: u64) {
        let rate = self.rate.unwrap_or(RATE_MAX).min(moved).max(RATE_MIN);
        if rate == RATE_MIN {
            // At the slowest pace it is not the resynchronisation that makes guests slow: their work has changed.
            self.usual_us = self.usual_us.map(|usual| usual + usual / 8 + 1);
        }
        (self.rate, self.felt_rate) = (Some((rate / 2).max(RATE_MIN)), Some(rate));
    }

    fn speed_up(&mut self, moved: u64) {
        let rate = self.rate.unwrap_or_else(|| self.near_felt());
        let more = match self.felt_rate.map(|felt| felt / 4 * 3) {
            _ if moved < rate / 2 => 0, // it is not the rate that holds it back
            Some(near) => (near.saturating_sub(rate) / 4).max(rate / 64),
            None => rate / 32,
        };
        self.rate = Some((rate + more).min(RATE_MAX));
    }

    /// True if another step may begin.
    pub fn allows(&self, now_us: u64) -> bool {
        now_us >= self.next_us
    }

    /// A step of so many blocks has begun: the next one waits in proportion.
    pub fn begun(&mut self, now_us: u64, blocks: u32) {
        let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
        self.begun_bytes += bytes;
        let step_us = self.rate.map_or(0, |rate| bytes * 1_000_000 / rate);
        self.next_us = self.next_us.max(now_us.saturating_sub(LATE_US_MAX)) + step_us;
        self.rests = self.next_us > now_us;
    }

    /// True once a rest is over.
    pub fn take_rested(&mut self, now_us: u64) -> bool {
        let rested = self.rests && now_us >= self.next_us;
        self.rests &= !rested;
        rested
    }

    /// Time alone changes nothing.
    pub fn is_at_rest(&self) -> bool {
        self.rate.is_none() && self.requests == 0 && !self.rests
    }

    /// Whose turn it is, of those that join at the same time.
    pub fn turn(&mut self) -> usize {
        self.turns = self.turns.wrapping_add(1);
        self.turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A period in which guests had this latency, `requests` times, and a resynchronisation did all that it might.
    fn period(pace: &mut Pace, now_us: &mut u64, requests: u64, latency_us: u64, joining: bool) {
        (0..requests).for_each(|_| pace.note(latency_us));
        pace.begun_bytes = if joining { pace.rate.unwrap_or(400 * MIB) / 10 } else { 0 };
        *now_us += PERIOD_US;
        pace.tick(*now_us, joining, false);
    }

    /// Guests usually see 200 us, and a resynchronisation begins.
    fn joining() -> (Pace, u64) {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 200, false);
        (pace, now_us)
    }

    /// MiB per second; 0: no limit.
    fn rate_mib(pace: &Pace) -> u64 {
        pace.rate.map_or(0, |rate| rate / MIB)
    }

    /// A second in which nobody asks for anything.
    fn silence(pace: &mut Pace, now_us: &mut u64) {
        *now_us += PERIOD_US_MAX;
        pace.tick(*now_us, true, false);
    }

    #[test]
    fn guests_that_are_silent_for_a_second_hold_nothing_back() {
        let (mut pace, mut now_us) = joining();
        now_us += PERIOD_US_MAX - 1;
        pace.tick(now_us, true, false);
        assert!(pace.rate.is_some());
        now_us += 1;
        pace.tick(now_us, true, false);
        pace.begun(now_us, 32);
        assert!(pace.rate.is_none() && pace.allows(now_us));
        // When they are back, what they felt before is known.
        pace.felt_rate = Some(400 * MIB);
        period(&mut pace, &mut now_us, 100, 200, true);
        assert_eq!(rate_mib(&pace), 304);
    }

    #[test]
    fn the_rate_that_guests_feel_is_neared_soon_and_passed_slowly() {
        let (mut pace, mut now_us) = joining();
        assert_eq!(rate_mib(&pace), 32);
        let mut rates = |latency_us, periods| {
            let next = |_| {
                period(&mut pace, &mut now_us, 100, latency_us, true);
                rate_mib(&pace)
            };
            (0..periods).map(next).collect::<Vec<u64>>()
        };
        assert_eq!(rates(260, 64).last(), Some(&229), "nothing is known of it");
        assert_eq!(rates(261, 2), [229, 114], "once is chance");
        assert_eq!(rates(260, 8), [128, 139, 147, 153, 158, 161, 164, 166], "three quarters of 228 are 171");
        assert_eq!(rates(260, 64).last(), Some(&450), "and further, more slowly");
        assert_eq!(rates(261, 5), [450, 225, 112, 56, 28]);
    }

    /// Symptom: guests feel a resynchronisation for half a second after they have begun. Cause: the rate was halved from
    /// what no device does.
    #[test]
    fn it_slows_down_from_what_it_did() {
        let (mut pace, mut now_us) = joining();
        silence(&mut pace, &mut now_us);
        assert_eq!(pace.rate, None);
        period(&mut pace, &mut now_us, 100, 900, true);
        period(&mut pace, &mut now_us, 100, 900, true);
        assert_eq!(rate_mib(&pace), 200, "half of 400");
        for _ in 0..10 {
            (0..100).for_each(|_| pace.note(200));
            pace.begun_bytes = 4 * MIB;
            now_us += PERIOD_US;
            pace.tick(now_us, true, false);
        }
        assert_eq!(rate_mib(&pace), 200, "the device does no more than 40");
    }

    #[test]
    fn there_is_a_slowest_and_a_fastest_rate() {
        let (mut pace, mut now_us) = joining();
        (0..200).for_each(|_| period(&mut pace, &mut now_us, 100, 260, true));
        assert_eq!(pace.rate, Some(RATE_MAX));
        for _ in 0..40 {
            period(&mut pace, &mut now_us, 100, 20_000_000, true);
            assert!(pace.rate >= Some(RATE_MIN), "{pace:?}");
        }
        assert_eq!(pace.rate, Some(RATE_MIN));
    }

    #[test]
    fn one_request_of_many_may_be_slow() {
        let (mut pace, mut now_us) = joining();
        for (slow, requests, mib) in [(1, 99, 33), (2, 98, 33), (1, 50, 16), (2, 98, 16)] {
            (0..slow).for_each(|_| pace.note(900));
            period(&mut pace, &mut now_us, requests, 200, true);
            assert_eq!(rate_mib(&pace), mib, "{slow} slow beside {requests}");
        }
    }

    #[test]
    fn few_requests_are_collected_for_a_second_and_an_unanswered_one_is_somebody() {
        let (mut pace, mut now_us) = joining();
        pace.note(900);
        now_us += PERIOD_US;
        pace.tick(now_us, true, true);
        assert_eq!((pace.requests, pace.felt_before), (1, false), "too few to say anything");
        for felt_rate in [None, Some(RATE_FIRST)] {
            pace.begun_bytes = RATE_FIRST;
            now_us += PERIOD_US_MAX;
            pace.tick(now_us, true, true);
            assert!(pace.felt_before, "a second without an answer is slow");
            assert_eq!(pace.felt_rate.is_some(), felt_rate.is_some());
        }
    }

    /// Symptom: guests of a volume that opens with a member behind feel its join, all of it. Cause: what they felt beside
    /// it was taken for usual.
    #[test]
    fn what_is_usual_is_not_learnt_beside_a_join_at_full_speed() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 9_000, true);
        assert_eq!((pace.rate, pace.usual_us), (Some(RATE_MIN), None));
        period(&mut pace, &mut now_us, 100, 200, true);
        assert_eq!((pace.rate, pace.usual_us), (Some(RATE_MIN), Some(200)));
    }

    #[test]
    fn a_join_that_moves_nothing_is_not_blamed() {
        let (mut pace, mut now_us) = joining();
        for _ in 0..5 {
            (0..100).for_each(|_| pace.note(9_000));
            now_us += PERIOD_US;
            pace.tick(now_us, true, false);
        }
        assert_eq!((pace.rate, pace.usual_us), (Some(RATE_FIRST), Some(200)));
    }

    #[test]
    fn requests_that_waited_for_a_lost_member_do_not_spoil_what_is_usual() {
        let (mut pace, mut now_us) = joining();
        period(&mut pace, &mut now_us, 100, 5_000_000, false);
        assert_eq!(pace.usual_us, Some(237));
        pace.usual_us = Some(5_000);
        (0..60).for_each(|_| period(&mut pace, &mut now_us, 100, 200, true));
        assert!(pace.usual_us < Some(500), "{pace:?}");
    }

    #[test]
    fn what_is_usual_follows_the_guests_work() {
        let (mut pace, mut now_us) = (Pace::default(), 0);
        period(&mut pace, &mut now_us, 100, 30_000, false);
        (0..60).for_each(|_| period(&mut pace, &mut now_us, 100, 200, false));
        assert!(pace.usual_us < Some(1_000), "{pace:?}");
    }

    #[test]
    fn a_step_is_followed_by_a_rest_in_proportion() {
        let (mut pace, now_us) = joining();
        pace.next_us = now_us;
        pace.begun(now_us, 32);
        let rest_us = 128 * 1024 * 1_000_000 / RATE_FIRST;
        assert!(!pace.allows(now_us + rest_us - 1) && pace.allows(now_us + rest_us));
        assert!(!pace.take_rested(now_us + rest_us - 1) && pace.take_rested(now_us + rest_us));
        assert!(!pace.take_rested(now_us + rest_us), "it is told once");
    }

    /// Symptom: on a quiet machine the rate was not reached. Cause: steps begin when something happens.
    #[test]
    fn late_steps_are_made_up_for() {
        let (mut pace, mut now_us) = joining();
        pace.next_us = now_us;
        let mut steps = 0;
        for _ in 0..100 {
            now_us += 10_000;
            while pace.allows(now_us) {
                pace.begun(now_us, 32);
                steps += 1;
            }
        }
        assert_eq!(steps, RATE_FIRST / (128 * 1024) + 1);
    }

    #[test]
    fn guests_whose_work_has_changed_do_not_hold_it_at_the_slowest_pace() {
        let (mut pace, mut now_us) = joining();
        for _ in 0..60 {
            period(&mut pace, &mut now_us, 100, 900, true);
        }
        assert!(pace.rate > Some(RATE_MIN), "{pace:?}");
    }
}
