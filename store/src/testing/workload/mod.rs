//! A random workload with crashes, and a naive model that says what may be there afterwards.
//!
//! Per block: the last acknowledged write or a later one, never older, never torn, for every snapshot. Per lane: nothing
//! acknowledged is lost, and whatever is held above settled is listed. It must never look into the engine.

mod answers;
pub mod campaign;
mod checks;
mod endings;
mod submit;

use super::{Prng, SimDevice};
use crate::api::{Request, Token};
use crate::engine::{Effect, FormatOptions, Mutation, OpenOptions, StoreEngine};
use crate::layout::PAGE_BYTES;
use ashlar_model::lane::ListEntry;
use ashlar_model::units::KIB;
use ashlar_model::{BlockRange, ClusterId, DeviceId, LaneKey, Stamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const LANES: u16 = 2;
const CHUNKS: u64 = 3;
const CHUNK: u64 = 1024;
const VOLUMES: u64 = 2;
/// Blocks used per chunk: some whole granules.
const USED: u64 = 160;
const OUTSTANDING_MAX: usize = 24;
/// Device operations after which an engine that is asked nothing must be idle.
const STEPS_TO_IDLE: u64 = 100_000;
/// Snapshots that a volume has at most.
const SNAPSHOTS_MAX: usize = 2;
/// What a block shows whose content was written off.
const LOST: u64 = u64::MAX;

/// One content of a block.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// Zero: zeroes; [`LOST`]: unknown.
    id: u64,
    stamp: Stamp,
    token: u64,
    acked: bool,
    generation: u32,
}

#[derive(Clone, Debug)]
struct Entry {
    entry: ListEntry,
    token: u64,
    acked: bool,
}

#[derive(Clone, Default, Debug)]
struct Lane {
    epoch: u64,
    base: u64,
    next: u64,
    settled: u64,
    /// Settled when the last acknowledged operation was submitted.
    settled_floor: u64,
    /// A joiner's settle dropped entries up to here.
    dropped: u64,
    entries: Vec<Entry>,
}

#[derive(Clone, Default, Debug)]
struct Volume {
    lanes: BTreeMap<u16, Lane>,
    promised: u64,
    promised_max: u64,
    /// A start, join or deletion is outstanding: lanes before and after it.
    changing: Option<(u64, BTreeMap<u16, Lane>)>,
    /// The promise that an outstanding deletion leaves; zero: none.
    kept: u64,
    generation: u32,
    snapshots: BTreeSet<u32>,
    /// A generation is being dropped, into another one.
    dropping: Option<(u32, u32)>,
}

impl Volume {
    /// What is promised after a deletion: nothing, or what it left.
    fn deleted(&mut self) {
        match std::mem::take(&mut self.kept) {
            0 => self.promised = 0,
            kept => self.promised = self.promised.max(kept),
        }
    }
}

#[derive(Debug)]
enum Asked {
    Write { volume: u64, lane: u16, range: BlockRange, settled: u64 },
    Read { volume: u64, floor: Vec<usize>, generation: u32 },
    Map,
    Promise { volume: u64, epoch: u64 },
    Change { volume: u64 },
    Drop { volume: u64 },
}

/// What happened in a run, so that nobody takes an empty run for a good one.
#[derive(Clone, Copy, Default, Debug)]
pub struct Coverage {
    /// Power cuts that were survived.
    pub crashes: u64,
    /// More of them while opening.
    pub open_crashes: u64,
    /// Acknowledged writes.
    pub writes: u64,
    /// Writes refused for lack of space.
    pub full: u64,
    /// Torn writes dropped at open.
    pub dropped: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Granules written fresh, logged, as intent.
    pub classes: [u64; 3],
    /// Blocks that were overwritten beside their old content.
    pub moves: u64,
    /// Snapshot generations dropped.
    pub generations: u64,
    /// Runs that ended with rot, with a failing and with a lying device.
    pub endings: [u64; 3],
    /// Damaged blocks that reads met in those.
    pub bad_blocks: u64,
    /// Devices that refused to open in those.
    pub refused: u64,
    /// Bytes that the scrub read.
    pub scrubbed_bytes: u64,
}

impl Coverage {
    /// Adds another run's.
    pub fn add(&mut self, other: &Coverage) {
        let sums = |mine: &mut [u64], more: &[u64]| mine.iter_mut().zip(more).for_each(|(sum, one)| *sum += one);
        self.crashes += other.crashes;
        self.open_crashes += other.open_crashes;
        self.writes += other.writes;
        self.full += other.full;
        self.dropped += other.dropped;
        self.checkpoints += other.checkpoints;
        self.moves += other.moves;
        self.generations += other.generations;
        self.bad_blocks += other.bad_blocks;
        self.refused += other.refused;
        self.scrubbed_bytes += other.scrubbed_bytes;
        sums(&mut self.classes, &other.classes);
        sums(&mut self.endings, &other.endings);
    }

    /// What did not happen at all, and should in a run of some length.
    pub fn missing(&self) -> Vec<&'static str> {
        let figures = [
            ("crashes while opening", self.open_crashes),
            ("full devices", self.full),
            ("torn writes", self.dropped),
            ("checkpoints", self.checkpoints),
            ("fresh writes", self.classes[0]),
            ("logged writes", self.classes[1]),
            ("intent writes", self.classes[2]),
            ("moved blocks", self.moves),
            ("dropped generations", self.generations),
            ("rot", self.endings[0]),
            ("failing devices", self.endings[1]),
            ("lying devices", self.endings[2]),
            ("damaged blocks", self.bad_blocks),
            ("scrubs", self.scrubbed_bytes),
        ];
        figures.into_iter().filter(|(_, figure)| *figure == 0).map(|(name, _)| name).collect()
    }
}

/// The run.
#[derive(Debug)]
pub struct CrashRun {
    prng: Prng,
    options: OpenOptions,
    device: SimDevice,
    engine: StoreEngine,
    volumes: BTreeMap<u64, Volume>,
    blocks: HashMap<(u64, u64), Vec<Version>>,
    asked: BTreeMap<u64, Asked>,
    next_token: u64,
    next_id: u64,
    next_epoch: u64,
    /// The device fails or lies: damage and errors may show, wrong data may not.
    lenient: bool,
    /// Writes go to this volume, lane and chunk of the lane only: the log then names no others.
    narrow: Option<(u64, u16, u64)>,
    /// A block of the range that was written last is often overwritten next.
    follows: bool,
    /// What was written last to each volume and lane.
    last: BTreeMap<(u64, u16), BlockRange>,
    /// What happened.
    pub coverage: Coverage,
}

fn volume_id(volume: u64) -> VolumeId {
    VolumeId::from_u128(0x1000 + u128::from(volume))
}

fn lane_key(volume: u64, lane: u16) -> LaneKey {
    LaneKey { volume: volume_id(volume), lane }
}

impl CrashRun {
    /// A run of `seed`, on a device with hostile sizes, with a rule broken or none.
    pub fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut prng = Prng(seed);
        let format = FormatOptions {
            cluster: ClusterId::from_u128(1),
            device: DeviceId::from_u128(u128::from(seed) + 2),
            size_bytes: (2600 + prng.below(9000)) * KIB + 4096 * KIB,
            power_loss_protected: false,
            atomic_declared: false,
            log_bytes: Some(512 * KIB),
            table_bytes: Some(64 * KIB),
        };
        let (flush, spares) = (!prng.one_in(3), !prng.one_in(4));
        let mut options = OpenOptions::new(format.size_bytes, flush);
        options.atomic = prng.one_in(2);
        if prng.one_in(2) {
            // Less than the chunks that are used.
            options.checksum_cache_bytes = 4 * PAGE_BYTES;
        }
        if prng.one_in(3) {
            options.pinned_bytes_max = 8 * PAGE_BYTES;
        }
        if prng.one_in(4) {
            options.restart_log_bytes = 64 * KIB;
        }
        if prng.one_in(2) {
            // Blocks may move in all chunks.
            options.map_bytes_per_granule *= 10;
        }
        let follows = prng.one_in(2);
        options.busy_operations = 2 + prng.below(14) as usize;
        options.mutation = mutation;
        let formatted = if spares { SimDevice::formatted } else { SimDevice::formatted_without_spares };
        let mut device = formatted(&format, flush, prng.next_u64());
        if options.atomic {
            device.atomic_write_bytes = PAGE_BYTES as u32;
        }
        let engine = StoreEngine::open(options.clone());
        let mut run = Self {
            prng,
            options,
            device,
            engine,
            volumes: BTreeMap::new(),
            blocks: HashMap::new(),
            asked: BTreeMap::new(),
            next_token: 1,
            next_id: 1,
            next_epoch: 1,
            lenient: false,
            narrow: None,
            follows,
            last: BTreeMap::new(),
            coverage: Coverage::default(),
        };
        for volume in 0..VOLUMES {
            run.volumes.insert(volume, Volume::default());
        }
        run.open_to_end().expect("a fresh device opens");
        run
    }

    /// Runs until `crashes` power cuts have been survived, then ends in a way that the seed chooses.
    pub fn run(&mut self, crashes: u64) {
        while self.coverage.crashes < crashes {
            let most = if self.prng.one_in(8) { 600 } else { 100 };
            let steps = 5 + self.prng.below(most);
            for _ in 0..steps {
                self.step();
            }
            if self.prng.one_in(8) {
                self.quiesce();
                self.check_all();
            } else {
                self.crash();
            }
        }
        self.end();
    }

    fn step(&mut self) {
        self.collect();
        let complete = self.device.pending() > 0 && (self.prng.below(100) < 55 || self.asked.len() >= OUTSTANDING_MAX);
        if complete {
            self.device.complete_one(&mut self.engine);
        } else if self.asked.len() < OUTSTANDING_MAX {
            self.submit_random();
        }
        self.collect();
    }

    fn ask(&mut self, asked: Asked, request: Request) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.asked.insert(token, asked);
        self.engine.submit(Token(token), request);
        token
    }

    fn quiesce(&mut self) {
        self.collect();
        let mut steps = 0;
        while self.device.pending() > 0 {
            self.device.complete_one(&mut self.engine);
            self.collect();
            steps += 1;
            assert!(steps < STEPS_TO_IDLE, "it never comes to rest");
        }
        let waiting = self.engine.waiting();
        assert!(self.asked.is_empty(), "idle, but unanswered: {:?} waiting {waiting}", self.asked);
        assert!(self.engine.failed().is_some() || self.engine.is_idle(), "nothing to do, and not idle");
    }

    fn count_engine(&mut self) {
        let stats = self.engine.stats();
        self.coverage.checkpoints += stats.checkpoints;
        self.coverage.scrubbed_bytes += stats.scrubbed_bytes;
        self.coverage.bad_blocks += stats.bad_blocks;
        self.coverage.moves += stats.moves;
        self.coverage.classes.iter_mut().zip(stats.classes).for_each(|(sum, one)| *sum += one);
    }

    fn crash(&mut self) {
        self.power_cut();
        self.open_to_end().expect("a device that only lost power opens");
        self.reopened();
        self.check_all();
    }

    /// A power cut; then more of them while opening.
    fn power_cut(&mut self) {
        self.coverage.crashes += 1;
        self.count_engine();
        self.device.crash();
        loop {
            self.options.nonce = self.prng.next_u64();
            self.engine = StoreEngine::open(self.options.clone());
            if !self.prng.one_in(3) {
                break;
            }
            self.coverage.open_crashes += 1;
            for _ in 0..self.prng.below(40) {
                self.device.take(&mut self.engine);
                if self.device.pending() == 0 {
                    break;
                }
                self.device.complete_one(&mut self.engine);
            }
            self.device.crash();
        }
    }

    /// The device is open again: what was on its way is answered by what is there.
    fn reopened(&mut self) {
        self.coverage.dropped += self.engine.stats().dropped_writes;
        self.check_lanes();
        self.asked.clear();
        self.finish_drops();
    }

    /// Generations that were being dropped are asked for again.
    fn finish_drops(&mut self) {
        let dropping: Vec<_> =
            self.volumes.iter().filter_map(|(volume, state)| Some((*volume, state.dropping?))).collect();
        for (volume, (generation, into)) in dropping {
            let request = Request::DropGeneration { volume: volume_id(volume), generation, into };
            self.ask(Asked::Drop { volume }, request);
        }
        self.quiesce();
    }

    fn open_to_end(&mut self) -> Result<(), crate::engine::OpenError> {
        loop {
            match self.device.take(&mut self.engine).into_iter().next() {
                Some(Effect::Opened) => return Ok(()),
                Some(Effect::OpenFailed(error)) => return Err(error),
                Some(other) => panic!("open gave {other:?}"),
                None => {}
            }
            assert!(self.device.pending() > 0, "nothing to do, and not open");
            self.device.complete_one(&mut self.engine);
        }
    }
}
