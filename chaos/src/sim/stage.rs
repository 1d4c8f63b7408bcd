//! The world without chance: no faults and no guests but those that a script asks for, one step after the other.

use super::network::{Message, Trouble, Way};
use super::options::Options;
use super::script::Class;
use super::world::{VOLUME, Who, World};
use ashlar::replica::LinkId;
use ashlar::volume::{self, RequestId};
use ashlar::wire::message::{Content, ToReplica, ToWriter};
use ashlar_model::cluster::LaneCas;
use ashlar_model::{Epoch, Stamp};
use ashlar_raft::State;
use std::collections::{BTreeMap, BTreeSet};

/// Longest time that a script waits for anything, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

/// A message taken off its wire.
#[derive(Clone)]
pub struct Kept {
    link: LinkId,
    way: Way,
    message: Message,
}

impl Kept {
    /// It carries what a guest reads.
    pub fn is_read_answer(&self) -> bool {
        matches!(self.message, Message::ToWriter(_, ToWriter::ReadDone { .. }))
    }

    /// It is a guest's write.
    pub fn is_write(&self) -> bool {
        matches!(self.message, Message::ToReplica(_, ToReplica::Write { .. }))
    }

    /// It begins a join.
    pub fn is_join_start(&self) -> bool {
        matches!(self.message, Message::ToReplica(_, ToReplica::JoinStart { .. }))
    }

    /// It carries data to a joiner.
    pub fn is_copy(&self) -> bool {
        matches!(self.message, Message::ToReplica(_, ToReplica::Copy { content: Content::Data { .. }, .. }))
    }

    /// It says that one of these copies is durable.
    pub fn is_done(&self, copies: &[Self]) -> bool {
        let Message::ToWriter(_, ToWriter::CopyDone { join, request }) = self.message else { return false };
        let name = |kept: &Self| match kept.message {
            Message::ToReplica(_, ToReplica::Copy { join, request, .. }) => Some((join, request)),
            _ => None,
        };
        copies.iter().any(|copy| name(copy) == Some((join, request)))
    }
}

/// What is known at some time: of the metadata a backup, of guests what they were promised.
pub struct Backup {
    metadata: State,
    acknowledged: BTreeMap<u64, Stamp>,
    announced: Vec<u64>,
    clock: u64,
}

/// A world in the hands of a script.
pub struct Stage {
    world: World,
}

impl Stage {
    /// Devices with an empty volume of one lane, and nobody who uses it but writer 0, which serves.
    pub fn new(devices: usize, trace: bool) -> Self {
        Self::with_blocks(devices, 4, trace)
    }

    /// The same with two lanes: guests have two blocks in each.
    pub fn with_two_lanes(devices: usize, trace: bool) -> Self {
        Self::begin(devices, 2, 4, trace)
    }

    /// The same, for guests with so many blocks, of which the middle ones are on both sides of a chunk border.
    pub fn with_blocks(devices: usize, blocks: u64, trace: bool) -> Self {
        Self::begin(devices, 1, blocks, trace)
    }

    fn begin(devices: usize, lanes: u16, blocks: u64, trace: bool) -> Self {
        let mut options = Options::from_seed(1);
        options.settings = volume::Settings { seal_patience_us: 0, ..volume::Settings::default() };
        options.keep = Some(BTreeSet::new());
        (options.devices, options.lanes, options.blocks) = (devices, lanes, blocks);
        options.spares = 0;
        (options.guest_depth, options.delay_us_max) = (0, 500);
        (options.instant, options.colocated, options.trace) = (false, false, trace);
        let mut stage = Self { world: World::new(options) };
        stage.write(0, 0);
        stage.answered(0);
        stage.pass(300_000); // by now every device follows
        stage
    }

    /// Time passes.
    pub fn pass(&mut self, time_us: u64) {
        let until_us = self.world.now_us + time_us;
        self.world.run_until(until_us);
    }

    /// Another writer attaches, and is granted its epoch.
    pub fn attach(&mut self) -> usize {
        let writer = self.world.new_writer();
        self.wait(|world| world.writers[writer].epoch > 0);
        writer
    }

    /// Number of the writer that attaches next.
    pub fn next_writer(&self) -> usize {
        self.world.writers.len()
    }

    /// A guest writes a block, which may be answered later.
    pub fn write(&mut self, writer: usize, block: usize) {
        self.write_blocks(writer, block, 1);
    }

    /// The same, of several blocks.
    pub fn write_blocks(&mut self, writer: usize, first: usize, count: u32) -> RequestId {
        let request = self.world.workload.write_some(writer, first, count);
        let id = request.id;
        self.world.volume_event(writer, volume::Event::Request(request));
        id
    }

    /// The guest's connection dies before the volume has begun with the request.
    pub fn abandon(&mut self, writer: usize, request: RequestId) {
        self.world.workload.leave(request);
        self.world.volume_event(writer, volume::Event::Abandoned(vec![request]));
    }

    /// A guest reads a block, which may be answered later.
    pub fn read(&mut self, writer: usize, block: usize) {
        let request = self.world.workload.read_one(writer, block);
        self.world.volume_event(writer, volume::Event::Request(request));
    }

    /// Waits until the writer owes its guest nothing.
    pub fn answered(&mut self, writer: usize) {
        self.wait(|world| world.workload.in_flight(writer) == 0);
    }

    fn wait(&mut self, until: impl Fn(&World) -> bool) {
        let end_us = self.world.now_us + PATIENCE_US;
        while self.world.violation.is_none() && !until(&self.world) {
            if self.world.now_us > end_us {
                return self.world.violate("the script waits in vain".into());
            }
            self.pass(100);
        }
    }

    /// Holds back what goes this way between a writer and a machine.
    pub fn cut(&mut self, writer: usize, machine: usize, way: Way) {
        let (number, class) = (usize::MAX, Class::OneWay);
        self.world.network.troubles.push(Trouble { number, class, machine, writer: Some(writer), except: None, way });
    }

    /// The same, both ways.
    pub fn cut_off(&mut self, writer: usize, machine: usize) {
        Way::BOTH.into_iter().for_each(|way| self.cut(writer, machine, way));
    }

    /// Takes what is held back this way off the wire: it comes when the script says so, or never. Of connections that
    /// have been given up too.
    pub fn take(&mut self, writer: usize, machine: usize, way: Way) -> Vec<Kept> {
        let links = self.world.network.alive();
        let between = links.into_iter().filter(|link| self.world.network.ends(*link) == (writer, machine));
        let mut kept = Vec::new();
        for link in between.collect::<Vec<_>>() {
            let held = std::mem::take(&mut self.world.network.link(link).end(way).held);
            kept.extend(held.into_iter().map(|message| Kept { link, way, message }));
        }
        kept
    }

    /// Lets pass what is held back this way until the first message that is `wanted`: that one is taken.
    pub fn take_first(&mut self, writer: usize, machine: usize, way: Way, wanted: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        let end_us = self.world.now_us + PATIENCE_US;
        while self.world.violation.is_none() {
            let mut held = self.take(writer, machine, way);
            let found = held.iter().position(&wanted).map(|at| held.remove(at));
            self.deliver(held);
            if let Some(found) = found {
                return vec![found];
            }
            if self.world.now_us > end_us {
                self.world.violate("the script waits for a message in vain".into());
            }
            self.pass(100);
        }
        Vec::new()
    }

    /// The way is free again; what is still held there travels on.
    pub fn mend(&mut self, writer: usize, machine: usize) {
        let here = |trouble: &Trouble| trouble.writer == Some(writer) && trouble.machine == machine;
        self.world.network.troubles.retain(|trouble| !here(trouble));
        self.world.release_held();
    }

    /// Messages that were taken arrive now.
    pub fn deliver(&mut self, messages: Vec<Kept>) {
        for Kept { link, way, message } in messages {
            self.world.arrive(link, way, message);
        }
    }

    /// Nothing passes between a writer and a machine until the writer gives the connection up. What was on the wire
    /// stays there.
    pub fn break_off(&mut self, writer: usize, machine: usize) {
        self.cut_off(writer, machine);
        let link = self.world.network.linked(writer, machine);
        self.wait(|world| world.network.linked(writer, machine) != link);
    }

    /// Both are connected anew. What a broken connection holds is lost.
    pub fn reconnect(&mut self, writer: usize, machine: usize) {
        Way::BOTH.into_iter().for_each(|way| drop(self.take(writer, machine, way)));
        self.mend(writer, machine);
        self.wait(|world| world.network.linked(writer, machine).is_some());
    }

    /// An operator ejects the machine's device; it is out, and the writer knows.
    pub fn eject(&mut self, writer: usize, machine: usize) {
        let device = self.world.nodes[machine].id;
        self.world.volume_event(writer, volume::Event::Eject { device });
        self.wait(|world| !world.metadata.in_sync(0).contains(&device));
        self.pass(5_000);
    }

    /// An operator puts an empty device in the place of the machine's one; writer 0 knows, and is connected to it.
    pub fn replace(&mut self, machine: usize) {
        let link = self.world.network.linked(0, machine);
        self.world.stop(machine, false);
        if !self.world.renewed(machine) {
            return self.world.violate("the script asks for a replacement that is refused".into());
        }
        self.wait(|world| world.network.linked(0, machine).is_some_and(|new| Some(new) != link));
    }

    /// Writer 0 ejects all but this machine's device from one lane, and dies before it hears that it has.
    pub fn die_alone_with(&mut self, machine: usize, lane: u16) {
        let cas = LaneCas {
            volume: VOLUME,
            lane,
            epoch: Epoch(self.world.metadata.epoch()),
            version: self.world.metadata.version(lane),
            in_sync: vec![self.world.nodes[machine].id],
            clean: None,
            base: None,
        };
        let verdict = self.world.metadata.cas(cas).map(drop);
        self.world.judge(verdict);
        self.world.check_set(lane);
        self.kill(0);
    }

    /// A backup of the metadata.
    pub fn backup(&self) -> Backup {
        Backup {
            metadata: self.world.metadata.backup(),
            acknowledged: self.world.acknowledged.clone(),
            announced: self.world.announced.clone(),
            clock: self.world.workload.clock(),
        }
    }

    /// The machine `lost` is gone, and all metadata. The rest starts with the backup; an operator says that nothing waits for
    /// what is lost, and guests know that what they were promised since the backup is. A writer attaches; gives its number.
    pub fn go_on_without(&mut self, lost: usize, backup: Backup) -> usize {
        self.world.metadata.restore(backup.metadata);
        (self.world.acknowledged, self.world.announced) = (backup.acknowledged, backup.announced);
        self.world.workload.disown_since(backup.clock);
        for writer in self.world.serving_writers() {
            self.world.kill_writer(writer, false);
        }
        self.world.network.troubles.clear();
        for machine in 0..self.world.nodes.len() {
            self.world.stop(machine, false);
        }
        for machine in (0..self.world.nodes.len()).filter(|machine| *machine != lost) {
            self.start(machine);
        }
        self.world.metadata.disregard(self.world.nodes[lost].id, 0);
        self.attach()
    }

    /// The machine's process starts.
    pub fn start(&mut self, machine: usize) {
        self.world.start_node(machine);
        self.wait(|world| world.nodes[machine].replica.is_some());
    }

    /// Waits until every member is in the set of lane 0.
    pub fn whole(&mut self) {
        self.wait(|world| world.is_in_sync_everywhere(0));
    }

    /// The writer is told to close.
    pub fn close(&mut self, writer: usize) {
        self.world.volume_event(writer, volume::Event::Close);
    }

    /// The writer's process dies, and with it what it had not sent.
    pub fn kill(&mut self, writer: usize) {
        self.world.kill_writer(writer, false);
    }

    /// The machine's process is stopped until the end.
    pub fn freeze(&mut self, machine: usize) {
        let number = usize::MAX - machine;
        self.world.paused.insert(number, Who::Node(machine));
        self.world.pause(Who::Node(machine));
    }

    /// Another volume takes all space of the machine's device, or gives it back.
    pub fn fill(&mut self, machine: usize, full: bool) {
        self.world.fill(machine, full);
        self.pass(5_000);
    }

    /// The machine's process dies and another one opens the device.
    pub fn restart(&mut self, machine: usize) {
        self.world.stop(machine, false);
        self.world.start_node(machine);
        self.wait(|world| world.nodes[machine].replica.is_some());
    }

    /// Everything is mended, must become whole, and is judged as any other run is.
    pub fn judge(mut self) -> Option<String> {
        if self.world.violation.is_none() {
            self.world.heal();
            self.world.run_until_whole();
            self.world.finish();
        }
        self.world.violation
    }
}
