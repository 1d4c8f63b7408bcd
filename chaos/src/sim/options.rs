//! What one run is like: drawn from the seed, so that runs differ (swarm testing).

use crate::prng::Prng;
use ashlar::volume::Settings;

/// Shape of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of everything.
    pub seed: u64,
    /// Devices of the copyset.
    pub devices: usize,
    /// Lanes of the volume.
    pub lanes: u16,
    /// Blocks that guests use; few, so that they meet.
    pub blocks: u64,
    /// Virtual time during which faults happen, in microseconds.
    pub faulty_us: u64,
    /// Mean time between faults, in microseconds.
    pub fault_every_us: u64,
    /// Requests that each writer's guest keeps in flight.
    pub guest_depth: usize,
    /// Longest time in the network or the store, in microseconds.
    pub delay_us_max: u64,
    /// Some messages and store answers take no time at all, as between engines of one thread.
    pub instant: bool,
    /// Writers alive at once, zombies included.
    pub writers_max: usize,
    /// The writer's limits, some of them hostile.
    pub settings: Settings,
    /// Print every event.
    pub trace: bool,
}

impl Options {
    /// Draws a run from its seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut prng = Prng::new(seed, "options");
        let hostile = prng.chance(1, 2);
        let settings = Settings {
            eject_after_us: if hostile { 300_000 } else { 3_000_000 },
            eject_lag_bytes: if hostile { 40_000 } else { 8 << 20 },
            ejections_per_minute: 1000,
            join_window: prng.between(1, 8) as usize,
            seal_patience_us: *prng.pick(&[0, 20_000, 500_000]),
            recovery_patience_us: *prng.pick(&[100_000, 2_000_000]),
            ..Settings::default()
        };
        Self {
            seed,
            devices: *prng.pick(&[1, 2, 3, 3, 3, 3]),
            lanes: *prng.pick(&[1, 1, 2, 3]),
            blocks: prng.between(2, 8),
            faulty_us: prng.between(5, 40) * 1_000_000,
            fault_every_us: prng.between(50, 3000) * 1000,
            guest_depth: prng.between(1, 6) as usize,
            delay_us_max: *prng.pick(&[500, 5_000, 100_000]),
            instant: prng.chance(1, 2),
            writers_max: prng.between(1, 4) as usize,
            settings,
            trace: false,
        }
    }
}
