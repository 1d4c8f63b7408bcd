//! A random workload with crashes, and a naive model that says what may be there afterwards.
//!
//! Per block: the last acknowledged write or a later one, never older, never torn. Per lane: nothing acknowledged is
//! lost, and whatever is held above settled is listed. It must never look into the engine.

use super::{Prng, SimDevice};
use crate::api::{Body, Reply, Request, StoreError, Token, Write};
use crate::engine::{Effect, FormatOptions, OpenOptions, StoreEngine};
use ashlar_model::checksum::block_checksums;
use ashlar_model::lane::{EntryOrigin, ListEntry};
use ashlar_model::units::KIB;
use ashlar_model::{BlockRange, ClusterId, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeId};
use std::collections::{BTreeMap, HashMap};

pub(super) const LANES: u16 = 2;
pub(super) const CHUNKS: u64 = 3;
pub(super) const CHUNK: u64 = 1024;
/// Blocks used per chunk: some whole granules.
pub(super) const USED: u64 = 160;
const OUTSTANDING_MAX: usize = 24;

/// One content of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    /// Zero: zeroes.
    pub id: u64,
    pub stamp: Stamp,
    pub token: u64,
    pub acked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub entry: ListEntry,
    pub token: u64,
    pub acked: bool,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Lane {
    pub epoch: u64,
    pub base: u64,
    pub next: u64,
    pub settled: u64,
    /// Settled when the last acknowledged operation was submitted.
    pub settled_floor: u64,
    /// A joiner's settle dropped entries up to here.
    pub dropped: u64,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Volume {
    pub lanes: BTreeMap<u16, Lane>,
    pub promised: u64,
    pub promised_max: u64,
    /// A start, join or deletion is outstanding: lanes before and after it.
    pub changing: Option<(u64, BTreeMap<u16, Lane>)>,
}

#[derive(Debug)]
enum Asked {
    Write { volume: u64, lane: u16, range: BlockRange, settled: u64 },
    Read { volume: u64, range: BlockRange, floor: Vec<usize> },
    Map,
    Promise { volume: u64, epoch: u64 },
    Change { volume: u64 },
}

/// The run.
#[derive(Debug)]
pub struct CrashRun {
    pub(super) seed: u64,
    pub(super) prng: Prng,
    pub(super) format: FormatOptions,
    pub(super) flush: bool,
    pub(super) device: SimDevice,
    pub(super) engine: StoreEngine,
    pub(super) volumes: BTreeMap<u64, Volume>,
    pub(super) blocks: HashMap<(u64, u64), Vec<Version>>,
    asked: BTreeMap<u64, Asked>,
    pub(super) next_token: u64,
    pub(super) next_id: u64,
    pub(super) next_epoch: u64,
    /// Crashes so far.
    pub crashes: u64,
    /// Of them, while opening.
    pub open_crashes: u64,
    /// Answered writes.
    pub writes: u64,
    /// Writes refused for lack of space.
    pub full: u64,
    /// Torn writes dropped at open.
    pub dropped: u64,
    /// Checkpoints.
    pub checkpoints: u64,
}

pub(super) fn volume_id(volume: u64) -> VolumeId {
    VolumeId::from_u128(0x1000 + u128::from(volume))
}

pub(super) fn lane_key(volume: u64, lane: u16) -> LaneKey {
    LaneKey { volume: volume_id(volume), lane }
}

fn content(volume: VolumeId, range: BlockRange, id: u64) -> Body {
    let bytes = id.to_le_bytes().repeat(range.bytes() / 8);
    let checksums: Vec<u32> = block_checksums(volume, range.start, &bytes).collect();
    Body::Data { payload: Payload::copied_from(&bytes), checksums: checksums.into() }
}

impl CrashRun {
    /// A run of `seed`, on a device with hostile sizes.
    pub fn new(seed: u64) -> Self {
        let mut prng = Prng(seed);
        let format = FormatOptions {
            cluster: ClusterId::from_u128(1),
            device: DeviceId::from_u128(u128::from(seed) + 2),
            size_bytes: (2600 + prng.below(1500)) * KIB + 4096 * KIB,
            power_loss_protected: false,
            log_bytes: Some(512 * KIB),
            table_bytes: Some(64 * KIB),
        };
        let flush = !prng.one_in(4);
        let device = SimDevice::formatted(&format, flush, prng.next_u64());
        let engine = StoreEngine::open(OpenOptions::new(format.size_bytes, flush));
        let mut run = Self {
            seed,
            prng,
            format,
            flush,
            device,
            engine,
            volumes: BTreeMap::new(),
            blocks: HashMap::new(),
            asked: BTreeMap::new(),
            next_token: 1,
            next_id: 1,
            next_epoch: 1,
            crashes: 0,
            open_crashes: 0,
            writes: 0,
            full: 0,
            dropped: 0,
            checkpoints: 0,
        };
        for volume in 0..2 {
            run.volumes.insert(volume, Volume::default());
        }
        run.open_to_end();
        run
    }

    /// Runs until `crashes` power cuts have been survived.
    pub fn run(&mut self, crashes: u64) {
        let mut guard = ReplayHint { seed: self.seed, armed: true };
        while self.crashes < crashes {
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
        guard.armed = false;
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

    fn submit_random(&mut self) {
        let volume = self.prng.below(2);
        let lane = self.prng.below(u64::from(LANES)) as u16;
        let state = &self.volumes[&volume];
        if state.changing.is_some() {
            return;
        }
        let started = state.lanes.contains_key(&lane);
        match self.prng.below(100) {
            _ if !started => self.change(volume, lane, 0),
            0..=1 => self.change(volume, lane, 0),
            2 => self.change(volume, lane, 1),
            3 if self.prng.one_in(3) => self.change(volume, lane, 2),
            4..=6 => self.promise(volume),
            7..=16 => self.settle(volume, lane),
            17..=35 => self.read(volume, lane),
            36 => self.engine.checkpoint(),
            _ => self.write(volume, lane),
        }
    }

    fn random_range(&mut self, lane: u16) -> BlockRange {
        let chunk = self.prng.below(CHUNKS) * u64::from(LANES) + u64::from(lane);
        let (start, count) = match self.prng.below(4) {
            0 => (self.prng.below(USED / 16) * 16, 16 * (1 + self.prng.below(2))),
            1 => (self.prng.below(USED), 1 + self.prng.below(32)),
            _ => (self.prng.below(24), 1 + self.prng.below(3)),
        };
        BlockRange::new(chunk * CHUNK + start, count.min(USED - start) as u32)
    }

    fn write(&mut self, volume: u64, lane: u16) {
        let range = self.random_range(lane);
        let id = self.next_id;
        self.next_id += 1;
        let token = self.next_token;
        let kind = self.prng.below(20);
        let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
        let copy = kind == 0;
        let index = if copy { model.settled.max(1) } else { model.next };
        model.next += u64::from(!copy);
        let stamp = Stamp { epoch: Epoch(model.epoch), index };
        let tombstone = kind < 5;
        let origin = if copy { EntryOrigin::Copy } else { EntryOrigin::Live };
        if !copy {
            let entry = ListEntry { stamp, range, tombstone, origin, generation: 0 };
            model.entries.push(Entry { entry, token, acked: false });
        }
        let settled = model.settled;
        for block in range.blocks() {
            let id = if tombstone { 0 } else { id };
            self.blocks.entry((volume, block)).or_default().push(Version { id, stamp, token, acked: false });
        }
        let body = if tombstone { Body::Tombstone } else { content(volume_id(volume), range, id) };
        let key = lane_key(volume, lane);
        let write = Write { key, stamp, range, body, origin, listed: !copy, generation: 0 };
        self.ask(Asked::Write { volume, lane, range, settled }, Request::Write(write));
    }

    fn read(&mut self, volume: u64, lane: u16) {
        let range = self.random_range(lane);
        if self.prng.one_in(8) {
            self.ask(Asked::Map, Request::Map { volume: volume_id(volume), range });
            return;
        }
        let floor = range.blocks().map(|block| self.blocks.get(&(volume, block)).map_or(0, Vec::len)).collect();
        self.ask(Asked::Read { volume, range, floor }, Request::Read { volume: volume_id(volume), range });
    }

    fn promise(&mut self, volume: u64) {
        self.next_epoch += 1;
        let epoch = self.next_epoch;
        let state = self.volumes.get_mut(&volume).expect("there are two");
        state.promised_max = state.promised_max.max(epoch);
        self.ask(Asked::Promise { volume, epoch }, Request::Promise { volume: volume_id(volume), epoch: Epoch(epoch) });
    }

    fn settle(&mut self, volume: u64, lane: u16) {
        let key = lane_key(volume, lane);
        let Some((_, state)) = self.engine.lanes().find(|(one, _)| *one == key) else { return };
        let index = state.settled + self.prng.below(state.prefix.saturating_sub(state.settled) + 1);
        let member = !self.prng.one_in(10);
        let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
        if member {
            model.settled = model.settled.max(index);
        } else {
            model.dropped = model.dropped.max(index);
        }
        self.engine.submit(Token(0), Request::Settle { key, index, config: 1, member });
    }

    /// Start (0), join (1) or deletion (2), alone on its volume.
    fn change(&mut self, volume: u64, lane: u16, what: u64) {
        let state = &self.volumes[&volume];
        let busy = self.asked.values().any(|asked| match asked {
            Asked::Write { volume: other, .. } | Asked::Promise { volume: other, .. } => *other == volume,
            _ => false,
        });
        if busy {
            return;
        }
        let mut after = state.lanes.clone();
        let token = self.next_token;
        self.next_epoch += 1;
        let epoch = self.next_epoch;
        let key = lane_key(volume, lane);
        let request = if what == 2 {
            after.clear();
            let blocks = self.blocks.iter_mut().filter(|((owner, _), _)| *owner == volume);
            for (_, versions) in blocks {
                versions.push(Version { id: 0, stamp: Stamp::default(), token, acked: false });
            }
            Request::Forget { volume: volume_id(volume) }
        } else {
            let model = after.entry(lane).or_insert_with(|| Lane { next: 1, ..Lane::default() });
            (model.epoch, model.base) = (epoch, model.next - 1);
            let (epoch, config, base) = (Epoch(epoch), 1, model.base);
            if what == 1 {
                model.entries.clear();
                Request::JoinStart { key, epoch, config, join: epoch.0, base }
            } else {
                Request::Start { key, epoch, config, base }
            }
        };
        let state = self.volumes.get_mut(&volume).expect("there are two");
        if what != 2 {
            state.promised_max = state.promised_max.max(epoch);
        }
        state.changing = Some((token, after));
        self.ask(Asked::Change { volume }, request);
    }

    fn collect(&mut self) {
        for effect in self.device.take(&mut self.engine) {
            match effect {
                Effect::Reply { token, reply } => self.answered(token.0, reply),
                Effect::Opened => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn answered(&mut self, token: u64, reply: Reply) {
        let asked = self.asked.remove(&token).expect("answered once");
        match (asked, reply) {
            (Asked::Write { volume, lane, range, settled }, Reply::Done) => {
                self.ack_versions(volume, Some(range), token);
                self.write_acked(token, volume, lane, settled);
            }
            (Asked::Write { volume, lane, .. }, Reply::Error(StoreError::Full { .. })) => {
                self.full += 1;
                for versions in self.blocks.values_mut() {
                    versions.retain(|version| version.token != token);
                }
                for asked in self.asked.values_mut() {
                    if let Asked::Read { floor, .. } = asked {
                        floor.iter_mut().for_each(|floor| *floor = 0);
                    }
                }
                let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
                model.entries.retain(|entry| entry.token != token);
            }
            (Asked::Read { volume, range, floor }, Reply::Read(result)) => {
                assert_eq!(result.range, range);
                self.check_read(volume, &result, Some(&floor));
            }
            (Asked::Map, Reply::Map(_)) => {}
            (Asked::Promise { volume, epoch }, Reply::Sealed { promised, .. }) => {
                assert!(promised.0 >= epoch, "promise {epoch} answered with {promised}");
                let earlier = self.asked.range(..token).any(|(_, asked)| match asked {
                    Asked::Write { volume: other, .. } | Asked::Read { volume: other, .. } => *other == volume,
                    _ => false,
                });
                assert!(!earlier, "a promise passed an earlier request");
                let state = self.volumes.get_mut(&volume).expect("there are two");
                state.promised = state.promised.max(epoch);
            }
            (Asked::Change { volume }, Reply::Done) => self.change_acked(token, volume),
            (asked, reply) => panic!("{asked:?} answered with {reply:?}"),
        }
    }

    fn write_acked(&mut self, token: u64, volume: u64, lane: u16, settled: u64) {
        self.writes += 1;
        let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
        model.settled_floor = model.settled_floor.max(settled);
        for entry in model.entries.iter_mut().filter(|entry| entry.token == token) {
            entry.acked = true;
        }
    }

    fn ack_versions(&mut self, volume: u64, range: Option<BlockRange>, token: u64) {
        let mark = |versions: &mut Vec<Version>| {
            versions.iter_mut().filter(|version| version.token == token).for_each(|version| version.acked = true);
        };
        match range {
            Some(range) => range.blocks().filter_map(|block| self.blocks.get_mut(&(volume, block)).map(mark)).count(),
            None => self.blocks.values_mut().map(mark).count(),
        };
    }

    fn change_acked(&mut self, token: u64, volume: u64) {
        self.ack_versions(volume, None, token);
        let state = self.volumes.get_mut(&volume).expect("there are two");
        let (_, after) = state.changing.take().expect("it was changing");
        if after.is_empty() {
            (state.promised, state.promised_max) = (0, 0);
        }
        for (lane, model) in &after {
            // Settles meanwhile moved on.
            let old = state.lanes.get(lane);
            let mut model = model.clone();
            if let Some(old) = old {
                model.settled = old.settled;
                model.dropped = old.dropped;
            }
            state.promised = state.promised.max(model.epoch);
            state.lanes.insert(*lane, model);
        }
        if after.is_empty() {
            state.lanes.clear();
        }
    }

    fn quiesce(&mut self) {
        self.collect();
        while self.device.pending() > 0 {
            self.device.complete_one(&mut self.engine);
            self.collect();
        }
        assert!(self.asked.is_empty(), "idle, but unanswered: {:?} waiting {}", self.asked, self.engine.waiting());
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.checkpoints += self.engine.stats().checkpoints;
        self.device.crash();
        loop {
            self.engine = StoreEngine::open(OpenOptions::new(self.format.size_bytes, self.flush));
            if !self.prng.one_in(3) {
                break;
            }
            self.open_crashes += 1;
            for _ in 0..self.prng.below(30) {
                self.device.take(&mut self.engine);
                if self.device.pending() == 0 {
                    break;
                }
                self.device.complete_one(&mut self.engine);
            }
            self.device.crash();
        }
        self.open_to_end();
        self.dropped += self.engine.stats().dropped_writes;
        self.check_lanes();
        self.asked.clear();
        self.check_all();
    }

    fn open_to_end(&mut self) {
        loop {
            for effect in self.device.take(&mut self.engine) {
                match effect {
                    Effect::Opened => {}
                    other => panic!("open gave {other:?}"),
                }
            }
            if self.device.pending() == 0 {
                break;
            }
            self.device.complete_one(&mut self.engine);
        }
        assert!(self.engine.is_open(), "nothing to do, and not open");
    }
}

/// Prints how to replay a failing run.
struct ReplayHint {
    seed: u64,
    armed: bool,
}

impl Drop for ReplayHint {
    fn drop(&mut self) {
        if self.armed {
            eprintln!("replay: ASHLAR_STORE_SEED={} cargo test -p ashlar-store crashes", self.seed);
        }
    }
}
