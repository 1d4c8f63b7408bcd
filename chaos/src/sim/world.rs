//! The world of one run: what is in it, its queue of events, and who handles which.

use super::faults::Counts;
use super::metadata::Metadata;
use super::network::{Message, Network, Way};
use super::node::SimNode;
use super::options::Options;
use super::queue::Queue;
use super::rollback::Restored;
use super::script::{Fault, draw};
use super::workload::Workload;
use super::writer::SimWriter;
use crate::prng::Prng;
use ashlar::replica::LinkId;
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply};
use ashlar_model::units::CHUNK_BYTES;
use ashlar_model::{DeviceId, Epoch, Stamp, VolumeId};
use ashlar_raft::State;
use std::collections::{BTreeMap, HashMap};

pub(super) const VOLUME: VolumeId = VolumeId::from_u128(0xA5);
/// Size of the volume at first, in bytes.
const SIZE_BYTES: u64 = 3 * CHUNK_BYTES as u64 + 12 * 4096;
/// More events than this at one instant: engines feed each other for ever.
const STEPS_AT_ONCE_MAX: u64 = 100_000;

/// A process that can be stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// The one with this machine's device.
    Node(usize),
    /// A writer.
    Writer(usize),
}

/// Whether a process is stopped.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    /// Faults that keep it stopped.
    pub faults: u32,
    /// What came meanwhile.
    backlog: Vec<Ev>,
}

/// A question to the metadata service.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Grant,
    Cas(LaneCas),
    Detach,
}

/// Its answer.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Granted(AttachGrant),
    Refused,
    Cas { lane: u16, reply: LaneCasReply },
    CasRefused { lane: u16 },
    Unknown { lane: u16 },
}

/// What will happen.
#[derive(Clone, Debug)]
pub(super) enum Ev {
    Arrive { link: LinkId, way: Way, message: Message },
    DiskStep { machine: usize, life: u64 },
    NodeTick { machine: usize },
    Scrub { machine: usize },
    WriterTick { writer: usize },
    Guest { writer: usize },
    Propose { writer: usize, ask: Ask },
    Commit { writer: usize, ask: Ask, answered: bool, metadata_life: u64 },
    Answer { writer: usize, answer: Answer },
    Fault { at: usize },
    Over { fault: Fault },
    Restart { machine: usize, life: u64 },
    NewWriter,
    Dies { machine: usize, life: u64 },
    Renew { machine: usize },
    Tell { writer: usize },
    Release { machine: usize, life: u64, promise: Epoch },
    Reclaimed { device: DeviceId, metadata_life: u64 },
    Operator,
}

/// One run.
pub(super) struct World {
    pub options: Options,
    pub now_us: u64,
    pub nodes: Vec<SimNode>,
    pub writers: Vec<SimWriter>,
    pub network: Network,
    pub metadata: Metadata,
    /// Faults that keep it from answering.
    pub metadata_down: u32,
    /// Answers get lost and commands repeated; counts the faults that say so.
    pub metadata_flaky: u32,
    pub metadata_prng: Prng,
    pub workload: Workload,
    pub script: Vec<Fault>,
    /// Who is stopped, by the number of the fault that does it.
    pub paused: BTreeMap<usize, Who>,
    pub machines_prng: Prng,
    pub faulty: bool,
    pub healed_us: u64,
    pub counts: Counts,
    /// What each register's values were first durable as: (block, register, value).
    pub first_stamps: HashMap<(u64, usize, u64), Stamp>,
    /// Per block, the newest version under which an acknowledged value was first durable.
    pub acknowledged: BTreeMap<u64, Stamp>,
    /// Per lane, the highest settled index that any writer announced.
    pub announced: Vec<u64>,
    /// Damage of blocks was injected, or a device was lost.
    pub hurt: bool,
    /// Every copy of a block will be damaged at the end.
    pub beyond_at_the_end: bool,
    pub steps: u64,
    pub hash: u64,
    pub violation: Option<String>,
    pub beyond_tolerance: bool,
    /// Backups by the number of the fault that restores them.
    pub backups: BTreeMap<usize, State>,
    /// There while something is left to do for an operator after a restore.
    pub restored: Option<Restored>,
    /// Blocks damaged after the last guest's request.
    pub latent: u64,
    queue: Queue<Ev>,
    steps_at_once: u64,
}

impl World {
    pub fn new(options: Options) -> Self {
        let seed = options.seed;
        let nodes: Vec<SimNode> =
            (0..options.devices + options.spares).map(|machine| SimNode::new(&options, machine)).collect();
        let devices: Vec<DeviceId> = nodes.iter().map(|node| node.id).collect();
        let mut world = Self {
            metadata: Metadata::new(&options, VOLUME, SIZE_BYTES, &devices),
            metadata_down: 0,
            paused: BTreeMap::new(),
            metadata_flaky: 0,
            metadata_prng: Prng::new(seed, "metadata"),
            workload: Workload::new(&options),
            script: draw(&options),
            machines_prng: Prng::new(seed, "machines"),
            now_us: 0,
            nodes,
            writers: Vec::new(),
            network: Network::default(),
            faulty: true,
            healed_us: 0,
            counts: Counts::default(),
            first_stamps: HashMap::new(),
            acknowledged: BTreeMap::new(),
            announced: vec![0; usize::from(options.lanes)],
            hurt: false,
            beyond_at_the_end: false,
            steps: 0,
            hash: seed,
            violation: None,
            beyond_tolerance: false,
            backups: BTreeMap::new(),
            restored: None,
            latent: 0,
            queue: Queue::default(),
            steps_at_once: 0,
            options,
        };
        for machine in 0..world.nodes.len() {
            world.start_node(machine);
            world.start_ticks(machine);
        }
        for at in 0..world.script.len() {
            world.at_time(world.script[at].at_us, Ev::Fault { at });
        }
        world.new_writer();
        world
    }

    /// Schedules an event `after_us` from now.
    pub fn at(&mut self, after_us: u64, event: Ev) {
        self.at_time(self.now_us + after_us, event);
    }

    pub fn at_time(&mut self, time_us: u64, event: Ev) {
        self.queue.push(time_us, event);
    }

    pub fn run_until(&mut self, until_us: u64) {
        while self.violation.is_none() {
            let Some(time_us) = self.queue.next_at_us() else { return };
            if time_us > until_us {
                self.now_us = until_us;
                return;
            }
            let event = self.queue.pop().expect("it was there");
            self.steps_at_once = if time_us > self.now_us { 0 } else { self.steps_at_once + 1 };
            self.now_us = self.now_us.max(time_us);
            if self.steps_at_once > STEPS_AT_ONCE_MAX {
                self.violate(format!("livelock: {STEPS_AT_ONCE_MAX} events without time passing"));
            }
            self.steps += 1;
            self.note(&event);
            self.deliver(event);
        }
    }

    /// Hands an event to its process, or keeps it while that is stopped.
    fn deliver(&mut self, event: Ev) {
        if let Some(who) = self.target(&event) {
            let stopped = self.stopped(who);
            if stopped.faults > 0 {
                stopped.backlog.push(event);
                return;
            }
        }
        self.handle(event);
    }

    fn target(&self, event: &Ev) -> Option<Who> {
        match event {
            Ev::Arrive { link, way, .. } => {
                let (writer, machine) = self.network.ends(*link);
                Some(match way {
                    Way::ToDevice => Who::Node(machine),
                    Way::ToWriter => Who::Writer(writer),
                })
            }
            Ev::DiskStep { machine, .. }
            | Ev::NodeTick { machine }
            | Ev::Scrub { machine }
            | Ev::Release { machine, .. } => Some(Who::Node(*machine)),
            Ev::WriterTick { writer } | Ev::Guest { writer } | Ev::Answer { writer, .. } | Ev::Tell { writer } => {
                Some(Who::Writer(*writer))
            }
            Ev::Propose { .. }
            | Ev::Commit { .. }
            | Ev::Fault { .. }
            | Ev::Over { .. }
            | Ev::Restart { .. }
            | Ev::NewWriter
            | Ev::Dies { .. }
            | Ev::Renew { .. }
            | Ev::Reclaimed { .. }
            | Ev::Operator => None,
        }
    }

    fn handle(&mut self, event: Ev) {
        match event {
            Ev::Arrive { link, way, message } => self.arrive(link, way, message),
            Ev::DiskStep { machine, life } => self.disk_step(machine, life),
            Ev::NodeTick { machine } => self.node_tick(machine),
            Ev::Scrub { machine } => self.scrub(machine),
            Ev::WriterTick { writer } => self.writer_tick(writer),
            Ev::Guest { writer } => self.guest(writer),
            Ev::Propose { writer, ask } => self.propose(writer, ask),
            Ev::Commit { writer, ask, answered, metadata_life } => {
                if metadata_life == self.metadata.life {
                    self.commit(writer, ask, answered);
                }
            }
            Ev::Answer { writer, answer } => self.answer(writer, answer),
            Ev::Fault { at } => self.inject(self.script[at]),
            Ev::Over { fault } => self.end_fault(fault),
            Ev::Restart { machine, life } => {
                if self.nodes[machine].life == life && self.nodes[machine].store.is_none() {
                    self.start_node(machine);
                }
            }
            Ev::NewWriter => self.come_again(),
            Ev::Dies { machine, life } => self.dies(machine, life),
            Ev::Renew { machine } => self.renew(machine),
            Ev::Tell { writer } => self.tell(writer),
            Ev::Release { machine, life, promise } => self.release(machine, life, promise),
            Ev::Reclaimed { device, metadata_life } => self.reclaimed(device, metadata_life),
            Ev::Operator => self.operate(),
        }
    }

    /// Stops a process.
    pub fn pause(&mut self, who: Who) {
        self.stopped(who).faults += 1;
    }

    /// Lets it go on: everything that piled up is handled at once, in the order in which it came.
    pub fn resume(&mut self, who: Who) {
        let stopped = self.stopped(who);
        stopped.faults = stopped.faults.saturating_sub(1);
        if stopped.faults == 0 {
            for event in std::mem::take(&mut stopped.backlog) {
                self.handle(event);
            }
        }
    }

    fn stopped(&mut self, who: Who) -> &mut Stopped {
        match who {
            Who::Node(machine) => &mut self.nodes[machine].stopped,
            Who::Writer(writer) => &mut self.writers[writer].stopped,
        }
    }

    /// Mixes an event into the hash of the trace.
    fn note(&mut self, event: &Ev) {
        if self.options.trace {
            println!("{} {event:?}", self.now_us);
        }
        let (kind, detail) = match event {
            Ev::Arrive { link, message, .. } => (1, link.0 << 8 | message.kind()),
            Ev::DiskStep { machine, life } => (2, *life << 8 | *machine as u64),
            Ev::NodeTick { machine } => (3, *machine as u64),
            Ev::Scrub { machine } => (4, *machine as u64),
            Ev::WriterTick { writer } => (5, *writer as u64),
            Ev::Guest { writer } => (6, *writer as u64),
            Ev::Propose { writer, .. } => (7, *writer as u64),
            Ev::Commit { writer, answered, .. } => (8, (*writer as u64) << 1 | u64::from(*answered)),
            Ev::Answer { writer, answer } => {
                (9, (*writer as u64) << 1 | u64::from(matches!(answer, Answer::Cas { .. })))
            }
            Ev::Fault { at } => (10, *at as u64),
            Ev::Over { fault } => (11, fault.number as u64),
            Ev::Restart { machine, .. } => (12, *machine as u64),
            Ev::NewWriter => (13, 0),
            Ev::Dies { machine, .. } => (14, *machine as u64),
            Ev::Renew { machine } => (15, *machine as u64),
            Ev::Tell { writer } => (16, *writer as u64),
            Ev::Release { machine, .. } => (17, *machine as u64),
            Ev::Reclaimed { .. } => (18, 0),
            Ev::Operator => (19, 0),
        };
        for word in [self.now_us, kind << 56 ^ detail] {
            self.hash = (self.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }

    pub fn violate(&mut self, why: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at {} us: {why}", self.now_us));
        }
    }

    /// Takes a checker's verdict.
    pub fn judge(&mut self, verdict: Result<(), String>) {
        if let Err(why) = verdict {
            self.violate(why);
        }
    }
}
