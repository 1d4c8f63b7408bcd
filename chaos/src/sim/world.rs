//! The world of one run: its event queue, and how effects of the engines become later events.

use super::meta::Meta;
use super::network::{Message, Network};
use super::options::Options;
use super::store::SimStore;
use super::workload::Workload;
use crate::prng::Prng;
use ashlar::replica::{self, LinkId, ReplicaEngine};
use ashlar::volume::{self, Health, VolumeEngine};
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply, QuorumPolicy, VolumeSpec};
use ashlar_model::units::CHUNK_BYTES;
use ashlar_model::{DeviceId, VolumeGeometry, VolumeId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(super) const VOLUME: VolumeId = VolumeId::from_u128(0xA5);
const TICK_US: u64 = 50_000;
const DEVICE_TICK_US: u64 = 200_000;
/// A scrub goes round this often.
const SCRUB_US: u64 = 1_000_000;
const RECONNECT_US: u64 = 100_000;
const GUEST_US: u64 = 3_000;
/// More events than this at one instant: engines feed each other for ever.
const STEPS_AT_ONCE_MAX: u64 = 100_000;
/// After faults have stopped, everything is whole again within this.
const LIVENESS_US: u64 = 120_000_000;

/// What will happen.
#[derive(Clone, Debug)]
pub(super) enum Ev {
    Deliver { link: LinkId, message: Message },
    StoreStep { device: usize, life: u64 },
    WriterTick { writer: usize },
    DeviceTick,
    Scrub,
    Reconnect,
    Guest { writer: usize },
    AskGrant { writer: usize },
    GotGrant { writer: usize, grant: AttachGrant },
    AskCas { writer: usize, cas: LaneCas },
    GotCas { writer: usize, lane: u16, reply: LaneCasReply },
    CasLost { writer: usize, lane: u16 },
    Fault,
    Restart { device: usize },
}

pub(super) struct SimDevice {
    pub id: DeviceId,
    pub store: SimStore,
    pub engine: Option<ReplicaEngine>,
    /// Counts crashes: steps of an earlier life do nothing.
    pub life: u64,
}

pub(super) struct SimWriter {
    pub engine: Option<VolumeEngine>,
    /// Speed of its clock, in millionths.
    pub clock_ppm: u64,
    pub epoch: u64,
    pub closed: bool,
}

/// One run.
pub(super) struct World {
    pub options: Options,
    pub now_us: u64,
    pub devices: Vec<SimDevice>,
    pub writers: Vec<SimWriter>,
    pub network: Network,
    pub meta: Meta,
    pub workload: Workload,
    pub faults: Prng,
    pub timing: Prng,
    pub guests: Prng,
    pub disks: Prng,
    pub faulty: bool,
    pub counts: super::faults::Counts,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, Ev>,
    next_event: u64,
    steps: u64,
    steps_at_once: u64,
    hash: u64,
    violation: Option<String>,
    beyond_tolerance: bool,
    /// Blocks damaged after the last guest's request.
    pub latent: u64,
}

/// What a run showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The first violation.
    pub violation: Option<String>,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Events handled.
    pub steps: u64,
    /// Guest requests answered well.
    pub acknowledged: u64,
    /// Hash over every event: equal for equal seeds.
    pub trace_hash: u64,
    /// Epochs granted.
    pub epochs: u64,
    /// Ejections, joins and repairs seen by writers.
    pub ejections: u64,
    /// Members that came back in.
    pub joins: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Blocks damaged after the last guest's request, with good copies elsewhere.
    pub latent: u64,
    /// Repairs seen by the writers that live at the end.
    pub repaired: u64,
    /// Damage hit the only copy that counted: the run ends without demanding that everything becomes whole.
    pub beyond_tolerance: bool,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> Report {
    let mut world = World::new(options);
    let faulty_us = world.options.faulty_us;
    world.run_until(faulty_us);
    world.heal();
    world.run_until_whole();
    if world.is_whole() {
        // Guests are silent from here on: nobody but the scrub comes across this.
        world.rot_within_tolerance();
        world.run_until_whole();
    }
    world.finish();
    world.report()
}

impl World {
    fn new(options: Options) -> Self {
        let seed = options.seed;
        let id = |i: usize| DeviceId::from_u128(0xD000 + i as u128);
        let devices: Vec<SimDevice> = (0..options.devices)
            .map(|i| SimDevice {
                id: id(i),
                store: SimStore::default(),
                engine: Some(ReplicaEngine::new(id(i), [], [])),
                life: 0,
            })
            .collect();
        let copyset: Vec<DeviceId> = devices.iter().map(|device| device.id).collect();
        let mut world = Self {
            meta: Meta::new(VOLUME, options.lanes, &copyset),
            workload: Workload::new(&options),
            faults: Prng::new(seed, "faults"),
            timing: Prng::new(seed, "timing"),
            guests: Prng::new(seed, "guests"),
            disks: Prng::new(seed, "disks"),
            now_us: 0,
            devices,
            writers: Vec::new(),
            network: Network::default(),
            faulty: true,
            counts: Default::default(),
            queue: BinaryHeap::new(),
            events: Default::default(),
            next_event: 0,
            steps: 0,
            steps_at_once: 0,
            hash: seed,
            violation: None,
            beyond_tolerance: false,
            latent: 0,
            options,
        };
        world.new_writer();
        world.at(0, Ev::Reconnect);
        world.at(0, Ev::DeviceTick);
        world.at(SCRUB_US, Ev::Scrub);
        world.at(world.options.fault_every_us, Ev::Fault);
        world
    }

    pub fn new_writer(&mut self) {
        let lane_count = self.options.lanes;
        let size_bytes = 3 * CHUNK_BYTES as u64 + 12 * 4096;
        let copyset: Vec<DeviceId> = self.devices.iter().map(|device| device.id).collect();
        let spec = VolumeSpec {
            id: VOLUME,
            name: "vol".into(),
            geometry: VolumeGeometry { size_bytes, lane_count },
            replicas: self.devices.len() as u8,
            quorum: QuorumPolicy::Majority,
            in_sync_min: 1,
            lanes: vec![copyset; usize::from(lane_count)],
        };
        let engine = VolumeEngine::new(spec, self.options.settings);
        // Within the assumed drift of one percent.
        let clock_ppm = self.timing.between(995_000, 1_005_000);
        let writer = self.writers.len();
        self.writers.push(SimWriter { engine: Some(engine), clock_ppm, epoch: 0, closed: false });
        self.at(0, Ev::AskGrant { writer });
        self.at(TICK_US, Ev::WriterTick { writer });
        self.at(GUEST_US, Ev::Guest { writer });
        self.connect_all();
    }

    fn run_until_whole(&mut self) {
        let until_us = self.now_us + LIVENESS_US;
        while self.violation.is_none() && self.now_us < until_us && !self.is_whole() {
            let until = self.now_us + 1_000_000;
            self.run_until(until);
        }
    }

    /// Schedules an event `after_us` from now.
    pub fn at(&mut self, after_us: u64, event: Ev) {
        self.at_time(self.now_us + after_us, event);
    }

    fn at_time(&mut self, time_us: u64, event: Ev) {
        self.next_event += 1;
        self.queue.push(Reverse((time_us, self.next_event)));
        self.events.insert(self.next_event, event);
    }

    pub fn delay_us(&mut self) -> u64 {
        if self.options.instant && self.timing.chance(2, 3) {
            return 0;
        }
        let longest = if self.timing.chance(1, 20) { self.options.delay_us_max } else { 300 };
        self.timing.between(20, longest.max(21))
    }

    fn run_until(&mut self, until_us: u64) {
        while self.violation.is_none() {
            let Some(Reverse((time_us, id))) = self.queue.peek().copied() else { return };
            if time_us > until_us {
                self.now_us = until_us;
                return;
            }
            self.queue.pop();
            self.steps_at_once = if time_us > self.now_us { 0 } else { self.steps_at_once + 1 };
            self.now_us = self.now_us.max(time_us);
            if self.steps_at_once > STEPS_AT_ONCE_MAX {
                self.violate(format!("livelock: {STEPS_AT_ONCE_MAX} events without time passing"));
            }
            let event = self.events.remove(&id).expect("queued events are stored");
            self.steps += 1;
            self.note(&event);
            self.handle(event);
        }
    }

    fn note(&mut self, event: &Ev) {
        let line = format!("{} {event:?}", self.now_us);
        if self.options.trace {
            println!("{line}");
        }
        self.hash = ashlar_model::checksum::metadata_checksum(u128::from(self.hash), self.steps, line.as_bytes());
    }

    fn handle(&mut self, event: Ev) {
        match event {
            Ev::Deliver { link, message } => self.deliver(link, message),
            Ev::StoreStep { device, life } => {
                if self.devices[device].life == life
                    && let Some((token, reply)) = self.devices[device].store.complete_one(&mut self.disks)
                {
                    self.replica_event(device, replica::Event::Stored { token, reply });
                }
            }
            Ev::WriterTick { writer } => {
                if self.volume_event(writer, volume::Event::Tick) {
                    self.at(TICK_US, Ev::WriterTick { writer });
                }
            }
            Ev::DeviceTick => {
                for device in 0..self.devices.len() {
                    self.replica_event(device, replica::Event::Tick);
                }
                self.at(DEVICE_TICK_US, Ev::DeviceTick);
            }
            Ev::Scrub => {
                for device in 0..self.devices.len() {
                    for block in self.devices[device].store.damaged_blocks() {
                        self.replica_event(device, replica::Event::Damaged { volume: VOLUME, block });
                    }
                }
                self.at(SCRUB_US, Ev::Scrub);
            }
            Ev::Reconnect => {
                self.connect_all();
                self.at(RECONNECT_US, Ev::Reconnect);
            }
            Ev::Guest { writer } => self.guest(writer),
            Ev::AskGrant { writer } => self.ask_grant(writer),
            Ev::GotGrant { writer, grant } => {
                self.writers[writer].epoch = grant.epoch.0;
                self.volume_event(writer, volume::Event::Granted(grant));
            }
            Ev::AskCas { writer, cas } => self.ask_cas(writer, cas),
            Ev::GotCas { writer, lane, reply } => {
                self.volume_event(writer, volume::Event::CasDone { lane, reply });
            }
            Ev::CasLost { writer, lane } => {
                self.volume_event(writer, volume::Event::CasUnknown { lane });
            }
            Ev::Fault => {
                if self.faulty {
                    self.inject_fault();
                    let every = self.options.fault_every_us;
                    let after = self.faults.between(every / 2, every * 3 / 2);
                    self.at(after, Ev::Fault);
                }
            }
            Ev::Restart { device } => self.restart_device(device),
        }
    }

    fn ask_grant(&mut self, writer: usize) {
        if self.writers[writer].engine.is_none() {
            return;
        }
        let delay = self.delay_us();
        if !self.meta.up {
            self.at(100_000, Ev::AskGrant { writer });
        } else if let Some(grant) = self.meta.open(writer as u64 + 1) {
            self.at(delay, Ev::GotGrant { writer, grant });
        }
    }

    fn ask_cas(&mut self, writer: usize, cas: LaneCas) {
        let delay = self.delay_us();
        let lane = cas.lane;
        if !self.meta.up {
            self.at(delay, Ev::CasLost { writer, lane });
            return;
        }
        let reply = self.meta.cas(&cas);
        // Sometimes it is done and the answer gets lost.
        if self.faulty && self.timing.chance(1, 6) {
            self.at(delay, Ev::CasLost { writer, lane });
        } else {
            self.at(delay, Ev::GotCas { writer, lane, reply });
        }
    }

    fn guest(&mut self, writer: usize) {
        let Some(engine) = &self.writers[writer].engine else { return };
        if engine.is_over() {
            return;
        }
        if self.faulty && self.workload.in_flight(writer) < self.options.guest_depth {
            let request = self.workload.next(writer, &mut self.guests);
            self.volume_event(writer, volume::Event::Request(request));
        }
        let pause = self.guests.between(GUEST_US / 3, GUEST_US * 3);
        self.at(pause, Ev::Guest { writer });
    }

    fn deliver(&mut self, link: LinkId, message: Message) {
        let Some((writer, device)) = self.network.find(link) else { return };
        match message {
            Message::ToReplica(envelope, message) => {
                self.replica_event(device, replica::Event::Message { link, envelope, message });
            }
            Message::ToWriter(envelope, message) => {
                self.volume_event(writer, volume::Event::Message { envelope, message });
            }
        }
    }

    /// Gives a device's engine an event and carries out what follows.
    pub fn replica_event(&mut self, device: usize, event: replica::Event) {
        let mut effects = Vec::new();
        let Some(engine) = &mut self.devices[device].engine else { return };
        engine.apply(event, &mut effects);
        engine.settle(&mut effects);
        for effect in effects {
            match effect {
                replica::Effect::Store { token, request } => {
                    self.devices[device].store.submit(token, request);
                    let (after, life) = (self.delay_us(), self.devices[device].life);
                    self.at(after, Ev::StoreStep { device, life });
                }
                replica::Effect::Send { link, envelope, message } => {
                    let delay = self.delay_us();
                    let Some((writer, device)) = self.network.find(link) else { continue };
                    let at = &mut self.network.link(writer, device).to_writer_at_us;
                    *at = (*at).max(self.now_us + delay);
                    let at = *at;
                    self.at_time(at, Ev::Deliver { link, message: Message::ToWriter(envelope, message) });
                }
                replica::Effect::Forgotten { .. } => {}
                replica::Effect::Alarm(alarm) => self.violate(format!("replica alarm: {alarm}")),
            }
        }
    }

    /// Gives a writer's engine an event and carries out what follows. False if the writer is gone.
    pub fn volume_event(&mut self, writer: usize, event: volume::Event) -> bool {
        let mut effects = Vec::new();
        let now_us = self.now_us;
        let state = &mut self.writers[writer];
        let Some(engine) = &mut state.engine else { return false };
        let clock_us = 1_000_000 + (u128::from(now_us) * u128::from(state.clock_ppm) / 1_000_000) as u64;
        engine.apply(clock_us, event, &mut effects);
        let epoch = state.epoch;
        for effect in effects {
            self.volume_effect(writer, epoch, effect);
        }
        true
    }

    fn volume_effect(&mut self, writer: usize, epoch: u64, effect: volume::Effect) {
        match effect {
            volume::Effect::Send { envelope, message } => {
                let device = self.devices.iter().position(|d| d.id == envelope.device).expect("known devices only");
                let delay = self.delay_us();
                let now_us = self.now_us;
                let link = self.network.link(writer, device);
                let Some(id) = link.id else { return };
                link.to_replica_at_us = link.to_replica_at_us.max(now_us + delay);
                let at = link.to_replica_at_us;
                self.at_time(at, Ev::Deliver { link: id, message: Message::ToReplica(envelope, message) });
            }
            volume::Effect::Complete { id, outcome } => {
                if let Err(why) = self.workload.answered(id, &outcome, epoch) {
                    self.violate(why);
                }
            }
            volume::Effect::Cas(cas) => {
                let delay = self.delay_us();
                self.at(delay, Ev::AskCas { writer, cas });
            }
            volume::Effect::Alarm(alarm) => {
                // Rot is injected on purpose and must be noticed.
                if !alarm.contains("damaged") {
                    self.violate(format!("writer alarm: {alarm}"));
                }
            }
            volume::Effect::Note(note) => {
                if self.options.trace {
                    println!("{} writer {writer}: {note}", self.now_us);
                }
            }
            volume::Effect::Closed { .. } => {
                self.writers[writer].closed = true;
                self.workload.abandon(writer, epoch);
            }
        }
    }

    /// Connects every living writer with every living device, unless faults forbid it.
    pub fn connect_all(&mut self) {
        for writer in 0..self.writers.len() {
            for device in 0..self.devices.len() {
                let alive = self.writers[writer].engine.is_some() && self.devices[device].engine.is_some();
                let link = self.network.link(writer, device);
                if alive && !link.cut && link.id.is_none() {
                    let id = self.network.new_id();
                    self.network.link(writer, device).id = Some(id);
                    let device = self.devices[device].id;
                    self.volume_event(writer, volume::Event::LinkUp { device });
                }
            }
        }
    }

    /// Cuts a connection with everything in flight on it.
    pub fn disconnect(&mut self, writer: usize, device: usize) {
        let Some(link) = self.network.link(writer, device).id.take() else { return };
        self.replica_event(device, replica::Event::LinkClosed { link });
        let device = self.devices[device].id;
        self.volume_event(writer, volume::Event::LinkDown { device });
    }

    pub fn violate(&mut self, why: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at {} us: {why}", self.now_us));
        }
    }

    /// Liveness: one writer serves, every device is in sync, nothing is in flight, and no block is damaged anywhere.
    fn is_whole(&self) -> bool {
        !self.damage_is_left() && self.is_whole_but_for_damage()
    }

    fn is_whole_but_for_damage(&self) -> bool {
        let Some(writer) = self.current_writer() else { return false };
        let engine = self.writers[writer].engine.as_ref().expect("the current writer lives");
        let settled = engine.status().lanes.iter().all(|lane| lane.settled == lane.last);
        engine.status().health == Health::Healthy
            && engine.in_flight() == 0
            && settled
            && (0..usize::from(self.options.lanes)).all(|lane| self.meta.in_sync(lane).len() == self.devices.len())
            && self
                .devices
                .iter()
                .all(|d| !d.store.is_busy() && d.store.durable.lanes.values().all(|l| l.list.is_empty()))
    }

    pub fn current_writer(&self) -> Option<usize> {
        self.writers.iter().position(|w| w.engine.as_ref().is_some_and(|e| self.meta.is_current(e) && !e.is_over()))
    }

    fn finish(&mut self) {
        if self.violation.is_some() {
            return;
        }
        if self.is_whole_but_for_damage() && self.damage_is_left() {
            let left: Vec<_> = self.devices.iter().map(|device| device.store.damaged_blocks()).collect();
            self.violate(format!("damage is left though every block has a good copy: {left:?}"));
            return;
        }
        if !self.is_whole() && self.damage_is_left() {
            // Damage hit the only copy that counted: beyond tolerance. The volume waits and says so; what guests saw
            // must still be right.
            self.beyond_tolerance = true;
            if let Err(why) = self.workload.check() {
                self.violate(why);
            }
            return;
        }
        if !self.is_whole() {
            let status = self.current_writer().and_then(|w| self.writers[w].engine.as_ref().map(|e| e.status()));
            self.violate(format!("not whole {LIVENESS_US} us after the last fault: {status:?}"));
            return;
        }
        let writer = self.current_writer().expect("a whole world has one");
        let request = self.workload.read_all(writer);
        self.volume_event(writer, volume::Event::Request(request));
        let until = self.now_us + 10_000_000;
        self.run_until(until);
        if self.workload.in_flight(writer) != 0 {
            self.violate("the last read was not answered".into());
        }
        if let Err(why) = self.workload.check() {
            self.violate(why);
        }
        self.check_equal();
    }

    fn damage_is_left(&self) -> bool {
        self.devices.iter().any(|device| !device.store.damaged_blocks().is_empty())
    }

    /// O3: every member holds the same bytes.
    fn check_equal(&mut self) {
        let contents: Vec<Vec<(u64, Vec<u8>)>> = self
            .devices
            .iter()
            .map(|device| {
                let blocks = device.store.durable.blocks.iter();
                blocks.filter_map(|(n, b)| b.data.as_ref().map(|data| (*n, data.to_vec()))).collect()
            })
            .collect();
        if let Some(device) = contents.iter().position(|content| *content != contents[0]) {
            self.violate(format!("device {device} holds other bytes than device 0"));
        }
    }

    fn report(&self) -> Report {
        let engines = self.writers.iter().filter_map(|writer| writer.engine.as_ref());
        let counters: Vec<_> = engines.map(|engine| engine.counters()).collect();
        Report {
            violation: self.violation.clone(),
            virtual_us: self.now_us,
            steps: self.steps,
            acknowledged: self.workload.acknowledged,
            trace_hash: self.hash,
            epochs: self.meta.epoch().0,
            ejections: counters.iter().map(|c| c.ejections).sum(),
            joins: counters.iter().map(|c| c.joins).sum(),
            faults: self.counts.total(),
            latent: self.latent,
            repaired: counters.iter().map(|c| c.repaired_blocks).sum(),
            beyond_tolerance: self.beyond_tolerance,
        }
    }
}
