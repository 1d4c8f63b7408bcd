//! What one run is like: drawn from the seed, so that runs differ (swarm testing).

use super::script::Class;
use crate::prng::Prng;
use ashlar::volume::Settings;
use ashlar_model::mutation::Mutation;
use std::collections::BTreeSet;

/// Shape of one run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of everything.
    pub seed: u64,
    /// Devices of the copyset, each on a machine of its own.
    pub devices: usize,
    /// Further machines with a device, to which lanes may move.
    pub spares: usize,
    /// Lanes of the volume.
    pub lanes: u16,
    /// Blocks that guests use; few, so that they meet.
    pub blocks: u64,
    /// Virtual time during which faults happen, in microseconds.
    pub faulty_us: u64,
    /// Mean time between faults of a frequent class, in microseconds.
    pub fault_every_us: u64,
    /// Requests that each writer's guest keeps in flight.
    pub guest_depth: usize,
    /// Mean pause of a guest between two requests, in microseconds.
    pub guest_pause_us: u64,
    /// Longest time in the network, in microseconds.
    pub delay_us_max: u64,
    /// Messages between engines of one machine take no time at all.
    pub instant: bool,
    /// Writers run on the machines that have the devices.
    pub colocated: bool,
    /// Writers alive at once, zombies included.
    pub writers_max: usize,
    /// Devices have a cache that a power cut loses.
    pub volatile_cache: bool,
    /// Devices never tear a page.
    pub atomic_pages: bool,
    /// Log that a store keeps before a checkpoint, in bytes.
    pub restart_log_bytes: u64,
    /// The writer's limits, some of them hostile.
    pub settings: Settings,
    /// Classes of faults left out.
    pub without: BTreeSet<Class>,
    /// The only faults that happen, by number; `None`: all.
    pub keep: Option<BTreeSet<usize>>,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
    /// Print every event.
    pub trace: bool,
}

impl Options {
    /// The longest time during which faults happen, in microseconds.
    pub const FAULTY_US_MAX: u64 = 40_000_000;

    /// Draws a run from its seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut prng = Prng::new(seed, "options");
        let hostile = prng.chance(1, 2);
        let settings = Settings {
            eject_after_us: if hostile { 300_000 } else { 3_000_000 },
            eject_lag_bytes: if hostile { 40_000 } else { 8 << 20 },
            behind_us_max: if hostile { 50_000 } else { 1_000_000 },
            catch_up_us_max: if hostile { 20_000 } else { 500_000 },
            slow_pause_us: 500_000,
            slow_pause_us_max: 10_000_000,
            ejections_per_minute: 1000,
            lost_patience_us: 30_000_000,
            join_window: prng.between(1, 8) as usize,
            seal_patience_us: *prng.pick(&[0, 20_000, 500_000]),
            recovery_patience_us: *prng.pick(&[100_000, 2_000_000]),
            ..Settings::default()
        };
        // Of a stream of its own: other runs stay as they were.
        let mut spares = Prng::new(seed, "spares");
        let spares = if spares.chance(1, 4) { spares.between(1, 2) as usize } else { 0 };
        Self {
            seed,
            spares,
            devices: *prng.pick(&[1, 2, 3, 3, 3, 3]),
            lanes: *prng.pick(&[1, 1, 2, 3]),
            blocks: prng.between(2, 8),
            faulty_us: prng.between(5_000_000, Self::FAULTY_US_MAX),
            fault_every_us: prng.between(100, 1500) * 1000,
            guest_depth: prng.between(1, 6) as usize,
            guest_pause_us: prng.between(3, 20) * 1000,
            delay_us_max: *prng.pick(&[500, 5_000, 100_000]),
            instant: prng.chance(1, 2),
            colocated: prng.chance(1, 2),
            writers_max: prng.between(1, 4) as usize,
            volatile_cache: prng.chance(2, 3),
            atomic_pages: prng.chance(1, 2),
            restart_log_bytes: *prng.pick(&[64 << 10, 256 << 10, 256 << 20]),
            settings,
            without: BTreeSet::new(),
            keep: None,
            mutation: None,
            trace: false,
        }
    }
}
