//! A machine with one device: the store engine on a simulated device, and the replica engine above it, driven as the
//! daemon drives them.

use super::lies::Lying;
use super::options::Options;
use super::shadow::Shadow;
use super::world::{Ev, Stopped, VOLUME, World};
use crate::prng::Prng;
use ashlar::replica::{self, ReplicaEngine};
use ashlar_model::{BlockRange, ClusterId, DeviceId, VolumeId};
use ashlar_store::api::{Body, ReadResult, Reply, Request, Token};
use ashlar_store::device::{Device, DeviceOp};
use ashlar_store::engine::{self, FormatOptions, OpenOptions, StoreEngine};
use ashlar_store::testing::SimDevice;
use std::collections::VecDeque;

const KIB: u64 = 1024;
/// Bytes of a device: a log that wraps, and data space for some dozen granules.
const SIZE_BYTES: u64 = 4096 * KIB;
const TICK_US: u64 = 200_000;
/// What a scrub may read each time on a device that is nearly empty.
const SCRUB_BYTES_MIN: u64 = 512 * KIB;
/// Tokens from here on are the simulator's own.
const OWN: u64 = 1 << 62;
const PEEK: Token = Token(OWN);
const FILL: Token = Token(OWN + 1);
pub(super) const PROVE: Token = Token(OWN + 2);
pub(super) const CONVICT: Token = Token(OWN + 3);
pub(super) const SPOIL: Token = Token(OWN + 4);
/// The other volume on the device: it takes the space, and its promises move the log.
pub(super) const FILLER: VolumeId = VolumeId::from_u128(0xF1);

/// A machine's device and process.
pub(super) struct SimNode {
    /// Present identity of the device.
    pub id: DeviceId,
    /// Every identity that this machine's device has had.
    pub ids: Vec<DeviceId>,
    pub disk: SimDevice,
    /// There while the process runs.
    pub store: Option<StoreEngine>,
    /// There once the store is open.
    pub replica: Option<ReplicaEngine>,
    /// Counts runs of the process: what belongs to an earlier one is void.
    pub life: u64,
    pub shadow: Shadow,
    pub stopped: Stopped,
    /// Faults that make the device slow.
    pub slow: u32,
    /// Faults that keep the device full.
    pub full: u32,
    /// It has freed what it was told to, and the metadata does not know yet.
    pub freed: bool,
    /// When its agent told it to free something and has not heard of it.
    pub freeing_since_us: Option<u64>,
    /// It cannot be opened, or its device is broken.
    pub dead: bool,
    /// Its store does not open because of damage that was injected.
    pub refused: bool,
    pub lying: Lying,
    /// Where bits will flip once later commits have proved the content complete: (offset, what is there, flip).
    pub marked: Vec<(u64, u64, bool)>,
    options: OpenOptions,
    timing: Prng,
    inbox: VecDeque<replica::Event>,
}

impl SimNode {
    pub fn new(options: &Options, machine: usize) -> Self {
        let mut timing = Prng::of(options.seed, "disk", machine as u64);
        let id = DeviceId::from_u128(0xD000 + machine as u128);
        let mut open = OpenOptions::new(SIZE_BYTES, options.volatile_cache);
        open.atomic = options.atomic_pages;
        open.restart_log_bytes = options.restart_log_bytes;
        open.checksum_cache_bytes = *timing.pick(&[16 * KIB, 256 * KIB]);
        open.pinned_bytes_max = *timing.pick(&[32 * KIB, 4096 * KIB]);
        open.busy_operations = timing.between(2, 16) as usize;
        // A device as small as this one would have no chunk with moved blocks.
        open.map_bytes_per_granule *= 10;
        let mut node = Self {
            id,
            ids: vec![id],
            disk: SimDevice::blank(4 * KIB, false, 0),
            store: None,
            replica: None,
            life: 0,
            shadow: Shadow::default(),
            stopped: Stopped::default(),
            slow: 0,
            full: 0,
            freed: false,
            freeing_since_us: None,
            dead: false,
            refused: false,
            lying: Lying::default(),
            marked: Vec::new(),
            options: open,
            timing,
            inbox: VecDeque::new(),
        };
        node.format(id);
        node
    }

    /// An empty device takes the place of the present one.
    pub fn format(&mut self, id: DeviceId) {
        let format = FormatOptions {
            cluster: ClusterId::from_u128(0xC1),
            device: id,
            size_bytes: SIZE_BYTES,
            power_loss_protected: false,
            atomic_declared: false,
            log_bytes: Some(512 * KIB),
            table_bytes: Some(64 * KIB),
        };
        self.disk = SimDevice::formatted(&format, self.options.flush_needed, self.timing.next());
        if self.options.atomic {
            self.disk.atomic_write_bytes = 4096;
        }
        self.shadow = Shadow::default();
        self.marked.clear();
        (self.dead, self.refused, self.lying) = (false, false, Lying::default());
        self.id = id;
        if !self.ids.contains(&id) {
            self.ids.push(id);
        }
    }

    fn delay_us(&mut self) -> u64 {
        let longest = if self.timing.chance(1, 30) { 5_000 } else { 200 };
        let delay_us = self.timing.between(10, longest);
        if self.slow > 0 { delay_us * 100 } else { delay_us }
    }

    /// Some store request has not been answered.
    pub fn is_busy(&self) -> bool {
        self.store.as_ref().is_none_or(|store| !store.is_idle())
    }
}

impl World {
    pub fn start_ticks(&mut self, machine: usize) {
        let first_us = self.nodes[machine].timing.between(1, TICK_US);
        self.at(first_us, Ev::NodeTick { machine });
        self.at(first_us * 5, Ev::Scrub { machine });
    }

    /// The process starts and opens its device.
    pub fn start_node(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        if node.store.is_some() || node.dead {
            return;
        }
        node.options.nonce = node.timing.next();
        node.store = Some(StoreEngine::open(node.options.clone()));
        self.run_node(machine);
    }

    /// The process is gone; with `power` the machine lost power, otherwise the device is as it was.
    pub fn stop_node(&mut self, machine: usize, power: bool) {
        let node = &mut self.nodes[machine];
        if power {
            node.disk.crash();
        } else {
            node.disk.kill();
        }
        node.store = None;
        node.replica = None;
        node.life += 1;
        node.inbox.clear();
        node.marked.clear();
        node.lying.forget();
        (node.freed, node.freeing_since_us) = (false, None);
    }

    pub fn node_tick(&mut self, machine: usize) {
        self.at(TICK_US, Ev::NodeTick { machine });
        self.reclaim(machine);
        self.node_event(machine, replica::Event::Tick);
    }

    /// Lets the device's scrub go round once.
    pub fn scrub(&mut self, machine: usize) {
        self.at(TICK_US * 5, Ev::Scrub { machine });
        let node = &mut self.nodes[machine];
        if let Some(store) = node.store.as_mut().filter(|store| store.is_open() && store.failed().is_none()) {
            // A chunk whose map is damaged has no space of its own, and is looked at all the same.
            store.scrub(store.stats().used_bytes.max(SCRUB_BYTES_MIN));
            self.run_node(machine);
        }
    }

    pub fn disk_step(&mut self, machine: usize, life: u64) {
        let node = &mut self.nodes[machine];
        if let Some(store) = node.store.as_mut().filter(|_| node.life == life) {
            node.disk.complete_one(store);
            self.run_node(machine);
        }
    }

    pub fn node_event(&mut self, machine: usize, event: replica::Event) {
        self.nodes[machine].inbox.push_back(event);
        self.run_node(machine);
    }

    /// Runs both engines until nothing is left to do.
    pub fn run_node(&mut self, machine: usize) {
        loop {
            let node = &mut self.nodes[machine];
            let mut effects = Vec::new();
            if let Some(replica) = &mut node.replica {
                for event in node.inbox.drain(..) {
                    replica.apply(event, &mut effects);
                }
                replica.settle(&mut effects);
            }
            node.inbox.clear();
            for effect in effects {
                self.replica_effect(machine, effect);
            }
            self.run_store(machine);
            if self.nodes[machine].inbox.is_empty() {
                return;
            }
        }
    }

    fn replica_effect(&mut self, machine: usize, effect: replica::Effect) {
        match effect {
            replica::Effect::Store { token, request } => {
                if let Request::Write(write) = &request
                    && write.body == Body::Lost
                {
                    self.judge_write_off(write);
                }
                let node = &mut self.nodes[machine];
                node.shadow.submitted(token, &request);
                node.store.as_mut().expect("the replica lives with its store").submit(token, request);
            }
            replica::Effect::Send { link, envelope, message } => {
                self.send(link, super::network::Way::ToWriter, super::network::Message::ToWriter(envelope, message));
            }
            replica::Effect::Forgotten { .. } => self.has_freed(machine),
            replica::Effect::Alarm(alarm) => {
                if !(self.nodes[machine].dead && alarm.contains("failed")) {
                    self.violate(format!("replica alarm of machine {machine}: {alarm}"));
                }
            }
        }
    }

    fn run_store(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        let Some(store) = &mut node.store else { return };
        let mut effects = Vec::new();
        store.effects(&mut effects);
        // What the store asks of its device comes first: the opening looks at what is there.
        let opened = effects.iter().position(|effect| *effect == engine::Effect::Opened);
        let opened = opened.map(|at| effects.remove(at));
        for effect in effects.into_iter().chain(opened) {
            self.store_effect(machine, effect);
        }
    }

    fn store_effect(&mut self, machine: usize, effect: engine::Effect) {
        let effect = match DeviceOp::from_effect(effect) {
            Ok(op) => {
                let node = &mut self.nodes[machine];
                node.disk.submit(op);
                let (after_us, life) = (node.delay_us(), node.life);
                return self.at(after_us, Ev::DiskStep { machine, life });
            }
            Err(effect) => effect,
        };
        match effect {
            engine::Effect::Reply { token: PROVE, reply: Reply::Sealed { .. } } => self.flip_marked(machine),
            engine::Effect::Reply { token: CONVICT, reply: Reply::Sealed { .. } } => self.convict(machine),
            engine::Effect::Reply { token: SPOIL, reply: Reply::Sealed { .. } } => self.spoil(machine),
            // Nothing was proved: the device has failed.
            engine::Effect::Reply { token: PROVE, .. } => self.nodes[machine].marked.clear(),
            engine::Effect::Reply { token: CONVICT | SPOIL, .. } => self.nodes[machine].lying.forget(),
            engine::Effect::Reply { token, .. } if token.0 >= OWN => {}
            engine::Effect::Reply { token, reply } => self.stored(machine, token, reply),
            engine::Effect::Damaged { volume, block, .. } => {
                self.nodes[machine].inbox.push_back(replica::Event::Damaged { volume, block });
            }
            engine::Effect::Opened => self.opened(machine),
            engine::Effect::OpenFailed(error) => {
                if self.nodes[machine].lying.spoiled && !self.nodes[machine].dead {
                    self.refused(machine);
                } else if !self.nodes[machine].dead {
                    self.violate(format!("machine {machine} cannot open its device: {error}"));
                }
                self.nodes[machine].dead = true;
            }
            engine::Effect::Read { .. } | engine::Effect::Write { .. } | engine::Effect::Flush { .. } => {
                unreachable!("operations are taken above")
            }
        }
    }

    fn stored(&mut self, machine: usize, token: Token, reply: Reply) {
        let durable = self.nodes[machine].shadow.answered(token, &reply);
        self.note_durable(&durable);
        self.nodes[machine].inbox.push_back(replica::Event::Stored { token, reply });
    }

    /// The store is open: what it holds must be what it had acknowledged, and the replica begins with that.
    fn opened(&mut self, machine: usize) {
        for range in self.workload.ranges() {
            let read = self.peek(machine, range);
            if self.options.trace {
                println!("{} machine {machine} is open, and holds {read:?}", self.now_us);
            }
            // A device that began to fail while it was opened: acknowledged blocks that it could not read passed for torn.
            if let Some(read) = read.filter(|_| !self.nodes[machine].dead) {
                let verdict = self.nodes[machine].shadow.reopened(&read);
                self.judge(verdict.map_err(|why| format!("machine {machine}: {why}")));
            }
        }
        let unanswered = self.nodes[machine].shadow.unanswered();
        self.note_durable(&unanswered);
        let node = &mut self.nodes[machine];
        node.shadow.forget_asked();
        let store = node.store.as_mut().expect("it has just been opened");
        let promised = store.promises().find(|(volume, _)| *volume == VOLUME).map_or(0, |(_, epoch)| epoch.0);
        let verdict = node.shadow.still_promised(promised);
        let lanes: Vec<_> = store.lanes().map(|(key, state)| (key, state.clone())).collect();
        if node.full == 0 && lanes.iter().any(|(key, _)| key.volume == FILLER) {
            store.submit(FILL, Request::Forget { volume: FILLER });
        }
        node.replica = Some(ReplicaEngine::new(node.id, store.promises(), lanes));
        node.inbox.push_back(replica::Event::Tick);
        self.judge(verdict.map_err(|why| format!("machine {machine}: {why}")));
    }

    /// Reads what a device's store holds, in no time at all; `None`: it does not answer.
    pub fn peek(&mut self, machine: usize, range: BlockRange) -> Option<ReadResult> {
        self.nodes[machine].store.as_mut()?.submit(PEEK, Request::Read { volume: VOLUME, range });
        loop {
            let mut effects = Vec::new();
            self.nodes[machine].store.as_mut()?.effects(&mut effects);
            let mut found = None;
            for effect in effects {
                match effect {
                    engine::Effect::Reply { token: PEEK, reply } => found = Some(reply),
                    other => self.store_effect(machine, other),
                }
            }
            match found {
                Some(Reply::Read(read)) => return Some(read),
                Some(_) => return None,
                None => {}
            }
            let node = &mut self.nodes[machine];
            if node.disk.pending() == 0 {
                return None;
            }
            node.disk.complete_one(node.store.as_mut()?);
        }
    }

    /// The other volume takes all space of the device, or gives it back.
    pub fn fill(&mut self, machine: usize, full: bool) {
        let node = &mut self.nodes[machine];
        node.full = if full { node.full + 1 } else { node.full.saturating_sub(1) };
        let Some(store) = node.store.as_mut().filter(|store| store.is_open()) else { return };
        for request in super::filler::requests(&store.stats(), full, node.full) {
            store.submit(FILL, request);
        }
        self.run_node(machine);
    }
}
