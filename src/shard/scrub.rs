//! The pace of a device's background scrub: how many bytes it may read now, so that it yields to whoever waits for the
//! device, and still comes to an end.
//!
//! Alone it gets its rate. With requests in the store it gets an eighth, with more than 16 nothing, and after 10 s of
//! nothing a sixty-fourth for as long as that lasts: a pass over 4 TiB at 32 MiB/s takes 1.5 days on a quiet device, 12
//! on a used one, 97 on one that is never less than overwhelmed. After a pass it rests.
//!
//! It must never read a clock, nor know what is read.

use serde::Serialize;

/// Requests in the store above which the scrub stands still.
const FOREGROUND_MAX: usize = 16;
/// Its part of the rate while there are requests.
const BUSY_PART: u64 = 8;
/// Its part of the rate when it has stood still for [`STILL_MAX_US`].
const LEAST_PART: u64 = 64;
/// Longest time without any progress.
const STILL_MAX_US: u64 = 10_000_000;
/// Time that a late tick is paid for at most: no burst after a stall.
const ELAPSED_MAX_US: u64 = 200_000;

/// What the configuration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubOptions {
    /// Bytes per second and device; 0: no scrub.
    pub bytes_per_s: u64,
    /// Rest between two passes.
    pub pause_us: u64,
}

/// What the scrub of a device is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Switched off.
    Off,
    /// At its full rate.
    Running,
    /// Slowed down for requests.
    Yielding,
    /// Between two passes.
    Resting,
}

/// Paces one device.
#[derive(Debug)]
pub(super) struct Pacer {
    options: ScrubOptions,
    now_us: u64,
    /// Parts of a byte (millionths of the smallest part) that the last grants left over.
    rest: u64,
    passes: u64,
    /// When the last pass ended.
    ended_us: Option<u64>,
    /// Since when nothing was granted for want of quiet.
    still_since_us: Option<u64>,
    part: u64,
}

impl Pacer {
    pub fn new(options: ScrubOptions, now_us: u64) -> Self {
        Self { options, now_us, rest: 0, passes: 0, ended_us: None, still_since_us: None, part: 0 }
    }

    /// Bytes that may be read since the last call. `passes`: passes that have ended.
    pub fn grant(&mut self, now_us: u64, foreground: usize, passes: u64) -> u64 {
        let elapsed_us = now_us.saturating_sub(self.now_us).min(ELAPSED_MAX_US);
        self.now_us = now_us;
        if passes != self.passes {
            self.passes = passes;
            self.ended_us = Some(now_us);
        }
        self.part = match foreground {
            _ if self.is_resting() => 0,
            0 => LEAST_PART,
            1..=FOREGROUND_MAX => LEAST_PART / BUSY_PART,
            _ if now_us >= self.still_since_us.unwrap_or(now_us) + STILL_MAX_US => 1,
            _ => 0,
        };
        if foreground <= FOREGROUND_MAX || self.is_resting() {
            self.still_since_us = None;
        } else {
            self.still_since_us.get_or_insert(now_us);
        }
        let unit = LEAST_PART * 1_000_000;
        let total = u128::from(self.options.bytes_per_s) * u128::from(elapsed_us * self.part) + u128::from(self.rest);
        self.rest = (total % u128::from(unit)) as u64;
        u64::try_from(total / u128::from(unit)).unwrap_or(u64::MAX)
    }

    fn is_resting(&self) -> bool {
        self.ended_us.is_some_and(|ended_us| self.now_us < ended_us + self.options.pause_us)
    }

    pub fn pace(&self) -> Pace {
        match self.part {
            _ if self.options.bytes_per_s == 0 => Pace::Off,
            _ if self.is_resting() => Pace::Resting,
            LEAST_PART => Pace::Running,
            _ => Pace::Yielding,
        }
    }

    /// Bytes per second granted now.
    pub fn rate(&self) -> u64 {
        (u128::from(self.options.bytes_per_s) * u128::from(self.part) / u128::from(LEAST_PART)) as u64
    }

    /// Seconds since the last pass ended, if one has.
    pub fn ended_s_ago(&self) -> Option<u64> {
        self.ended_us.map(|ended_us| (self.now_us - ended_us) / 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TICK_US: u64 = 50_000;

    fn pacer() -> Pacer {
        Pacer::new(ScrubOptions { bytes_per_s: 64 * MIB, pause_us: 3_000_000 }, 0)
    }

    /// Bytes granted over `ticks`, with this much foreground.
    fn run(pacer: &mut Pacer, ticks: u64, foreground: usize, passes: u64) -> u64 {
        (0..ticks).map(|_| pacer.grant(pacer.now_us + TICK_US, foreground, passes)).sum()
    }

    #[test]
    fn alone_it_has_its_rate() {
        let mut pacer = pacer();
        assert_eq!(pacer.grant(TICK_US, 0, 0), 64 * MIB / 20);
        assert_eq!(run(&mut pacer, 19, 0, 0), 64 * MIB - 64 * MIB / 20);
        assert_eq!((pacer.pace(), pacer.rate()), (Pace::Running, 64 * MIB));
    }

    #[test]
    fn small_rates_lose_nothing_to_rounding() {
        let mut pacer = Pacer::new(ScrubOptions { bytes_per_s: 100, pause_us: 0 }, 0);
        assert_eq!(run(&mut pacer, 64 * 20, 5, 0), 800);
    }

    #[test]
    fn with_requests_it_gets_an_eighth() {
        let mut pacer = pacer();
        assert_eq!(run(&mut pacer, 20, 1, 0), 8 * MIB);
        assert_eq!(run(&mut pacer, 20, FOREGROUND_MAX, 0), 8 * MIB);
        assert_eq!((pacer.pace(), pacer.rate()), (Pace::Yielding, 8 * MIB));
    }

    #[test]
    fn under_load_it_stands_still_for_ten_seconds_and_then_creeps() {
        let mut pacer = pacer();
        assert_eq!(run(&mut pacer, 200, FOREGROUND_MAX + 1, 0), 0);
        assert_eq!((pacer.pace(), pacer.rate()), (Pace::Yielding, 0));
        assert_eq!(run(&mut pacer, 20, FOREGROUND_MAX + 1, 0), MIB);
        assert_eq!(pacer.rate(), MIB);
        // A moment of quiet, and it may be made to stand still again.
        assert_eq!(run(&mut pacer, 1, 0, 0), 64 * MIB / 20);
        assert_eq!(run(&mut pacer, 200, 1000, 0), 0);
        assert_eq!(run(&mut pacer, 20, 1000, 0), MIB);
    }

    #[test]
    fn after_a_pass_it_rests() {
        let mut pacer = pacer();
        assert_eq!(pacer.ended_s_ago(), None);
        assert_eq!(run(&mut pacer, 60, 0, 1), 0);
        assert_eq!((pacer.pace(), pacer.rate(), pacer.ended_s_ago()), (Pace::Resting, 0, Some(2)));
        assert_eq!(run(&mut pacer, 20, 0, 1), 64 * MIB);
        assert_eq!(run(&mut pacer, 1, 0, 2), 0);
        assert_eq!(pacer.ended_s_ago(), Some(0));
    }

    #[test]
    fn without_a_pause_it_goes_on() {
        let mut pacer = Pacer::new(ScrubOptions { bytes_per_s: 20 * MIB, pause_us: 0 }, 0);
        assert_eq!(run(&mut pacer, 1, 0, 1), MIB);
        assert_eq!(pacer.pace(), Pace::Running);
    }

    #[test]
    fn a_stall_brings_no_burst() {
        let mut pacer = pacer();
        assert_eq!(pacer.grant(60_000_000, 0, 0), 64 * MIB / 5);
    }

    #[test]
    fn off_is_off() {
        let mut pacer = Pacer::new(ScrubOptions { bytes_per_s: 0, pause_us: 0 }, 0);
        assert_eq!(run(&mut pacer, 100, 0, 0), 0);
        assert_eq!((pacer.pace(), pacer.rate()), (Pace::Off, 0));
    }
}
