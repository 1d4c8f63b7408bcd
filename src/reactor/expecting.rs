//! Whether the next message is likely to come before a thread could be put to sleep and woken.
//!
//! It must never read a clock.

use std::time::{Duration, Instant};

/// So long after bytes were received more are expected soon.
const SOON: Duration = Duration::from_millis(1);
/// Rounds with received bytes, each soon after the one before, that make a conversation. Pulses of what rests, and a request
/// now and then, are none: looking for what follows them would be most of what an idle shard costs.
const CONVERSATION_ROUNDS: u32 = 16;

/// What the last rounds have received.
#[derive(Debug, Default)]
pub(super) struct Expecting {
    received_at: Option<Instant>,
    rounds: u32,
}

impl Expecting {
    /// This round has received bytes.
    pub fn received(&mut self, now: Instant) {
        let soon = self.is_soon(now);
        self.rounds = if soon { self.rounds.saturating_add(1) } else { 1 };
        self.received_at = Some(now);
    }

    /// True while a conversation goes on.
    pub fn is_expecting(&self, now: Instant) -> bool {
        self.rounds >= CONVERSATION_ROUNDS && self.is_soon(now)
    }

    fn is_soon(&self, now: Instant) -> bool {
        self.received_at.is_some_and(|before| now.saturating_duration_since(before) < SOON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_expected_while_a_conversation_goes_on_and_not_after_a_few_messages() {
        let mut expecting = Expecting::default();
        let mut now = Instant::now();
        assert!(!expecting.is_expecting(now));
        for round in 1..=2 * CONVERSATION_ROUNDS {
            now += SOON / 2;
            expecting.received(now);
            assert_eq!(expecting.is_expecting(now), round >= CONVERSATION_ROUNDS, "round {round}");
        }
        assert!(expecting.is_expecting(now + SOON / 2));
        assert!(!expecting.is_expecting(now + SOON));
        now += SOON;
        expecting.received(now);
        assert!(!expecting.is_expecting(now), "a new one has to begin");
    }
}
