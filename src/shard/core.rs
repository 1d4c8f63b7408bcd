//! The loop: completions in, engines until nothing is left to do, sends and submissions out. One system call a round, and
//! a few more where a device would have nothing to do until its end.

use super::attached::{Attached, Users};
use super::clock::{Clock, READS_TICK_US, TICK_US};
use super::connections::{Connection, Listener};
use super::control::{CreditWaits, DeviceRoute, ShardCommand, ShardLoad, ShardOptions, ShardRequest, ShardStatus};
use super::devices::LocalStore;
use super::peers::Outgoing;
use super::siblings::Siblings;
use crate::front::doors::TurnedAway;
use crate::reactor::{Completion, Reactor, socket};
use crate::replica::{self, LinkId};
use crate::volume;
use crate::wire::message::Envelope;
use anyhow::Result;
use ashlar_model::cluster::VolumeSpec;
use ashlar_model::{DeviceId, ShardId, VolumeId};
use crossbeam::channel::Receiver;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tokio::sync::{mpsc, oneshot};

/// Commands of one round: those who send them must not keep guests and devices waiting. The rest comes in the next one.
const COMMANDS_MAX: usize = 16;
/// Completions after which the engines run, so that devices get their next work before a long round ends. What goes to
/// sockets is still gathered for the whole round.
const COMPLETIONS_MAX: usize = 8;
/// The link of writers on this shard to replicas on this shard: no socket in between.
pub(super) const LOCAL: LinkId = LinkId(u64::MAX);
/// A shutdown that cannot be clean ends after this.
const SHUTDOWN_US: u64 = 6_000_000;

/// An engine's next event.
pub(super) enum Work {
    Replica(usize, replica::Event),
    Volume(VolumeId, volume::Event),
}

/// Where engines put their effects, event by event: empty in between, so that none asks for memory of its own.
#[derive(Default)]
pub(super) struct Scratch {
    pub volume: Vec<volume::Effect>,
    pub replica: Vec<replica::Effect>,
    pub store: Vec<ashlar_store::engine::Effect>,
    pub peer: Vec<crate::peer::PeerEvent>,
    pub wants: Vec<crate::front::nbd::Want>,
}

/// One data-plane thread's state.
pub(super) struct Shard {
    pub options: ShardOptions,
    pub siblings: Siblings,
    pub reactor: Reactor,
    pub now_us: u64,
    pub commands: Receiver<ShardCommand>,
    pub requests: mpsc::Sender<ShardRequest>,
    /// Requests that found the queue full; each is also repeated by its engine, so this stays small.
    pub unsent: VecDeque<ShardRequest>,
    pub listeners: Vec<Listener>,
    /// For the log.
    pub turned_away: TurnedAway,
    pub connections: FxHashMap<u64, Connection>,
    pub next_connection: u64,
    /// Connections with something to send or to take again.
    pub dirty: BTreeSet<u64>,
    /// Peers that are not read while the devices have enough to do: the links' credits bound what one shard may ask,
    /// this what all together.
    pub paused: BTreeSet<u64>,
    /// Guests that go to another shard as soon as nothing of theirs is under way here, in order of asking.
    pub departures: Vec<u64>,
    pub routes: BTreeMap<DeviceId, DeviceRoute>,
    pub specs: BTreeMap<VolumeId, VolumeSpec>,
    pub outgoing: BTreeMap<ShardId, Outgoing>,
    /// Connections of nodes that called us and said who they are.
    pub callers: BTreeSet<u64>,
    pub credit_waits: CreditWaits,
    pub stores: Vec<LocalStore>,
    pub attached: BTreeMap<VolumeId, Attached>,
    /// What they need links to.
    pub users: Users,
    /// Volumes that this node shall bring in sync while nobody uses them.
    pub maintained: BTreeSet<VolumeId>,
    pub next_request: u64,
    /// Guest requests in flight: which connection asked.
    pub owners: FxHashMap<volume::RequestId, u64>,
    pub work: VecDeque<Work>,
    pub scratch: Scratch,
    pub clock: Clock,
    pub ticks: u64,
    pub ticked_us: u64,
    pub answered: u64,
    pub shutdown: Option<(oneshot::Sender<()>, u64)>,
    /// The volumes are gone; the devices finish.
    pub closing_stores: bool,
}

impl Shard {
    pub fn new(
        reactor: Reactor,
        options: ShardOptions,
        siblings: Siblings,
        commands: Receiver<ShardCommand>,
        requests: mpsc::Sender<ShardRequest>,
    ) -> Result<Self> {
        let listeners = if siblings.number == 0 { Listener::open_all(&options)? } else { Vec::new() };
        Ok(Self {
            options,
            siblings,
            reactor,
            now_us: socket::now_us(),
            commands,
            requests,
            unsent: VecDeque::new(),
            listeners,
            turned_away: TurnedAway::default(),
            connections: FxHashMap::default(),
            next_connection: Connection::FIRST_KEY,
            dirty: BTreeSet::new(),
            paused: BTreeSet::new(),
            departures: Vec::new(),
            routes: BTreeMap::new(),
            specs: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            callers: BTreeSet::new(),
            credit_waits: CreditWaits::default(),
            stores: Vec::new(),
            attached: BTreeMap::new(),
            users: Users::default(),
            maintained: BTreeSet::new(),
            next_request: 0,
            owners: FxHashMap::default(),
            work: VecDeque::new(),
            scratch: Scratch::default(),
            clock: Clock::default(),
            ticks: 0,
            ticked_us: 0,
            answered: 0,
            shutdown: None,
            closing_stores: false,
        })
    }

    /// Runs until a shutdown is complete.
    pub fn run(mut self) {
        for at in 0..self.listeners.len() {
            self.accept_next(at);
        }
        self.clock.restless = true;
        self.start_timer();
        let mut completions = Vec::new();
        while !self.is_over() {
            if let Err(error) = self.reactor.wait(&mut completions) {
                // Half a data plane would keep what is its own from everybody. A start recovers.
                tracing::error!("failed to wait for io_uring: {error}; the daemon ends");
                std::process::exit(1);
            }
            self.now_us = socket::now_us();
            for (n, completion) in completions.drain(..).enumerate() {
                self.on_completion(completion);
                if (n + 1).is_multiple_of(COMPLETIONS_MAX) {
                    self.run_engines();
                }
            }
            self.take_commands();
            self.run_engines();
            self.flush_connections();
            self.send_departures();
            self.continue_shutdown();
            self.start_timer();
        }
        if let Some((done, _)) = self.shutdown.take() {
            let _ = done.send(());
        }
    }

    fn is_over(&self) -> bool {
        let Some((_, since_us)) = &self.shutdown else { return false };
        let quiet = self.closing_stores && self.stores.iter().all(LocalStore::is_quiet);
        quiet || self.now_us > since_us + SHUTDOWN_US
    }

    /// Sees to it that the next tick comes in time.
    fn start_timer(&mut self) {
        if let Some(after_us) = self.clock.next_timer_us(self.now_us) {
            self.reactor.timer(after_us);
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        self.clock.restless |= !matches!(completion, Completion::Expired);
        match completion {
            Completion::Accepted { key, result } => self.on_accepted(key, result),
            Completion::Connected { key, result } => self.on_connected(key, result),
            Completion::Received { key, buffer, result } => self.on_received(key, buffer, result),
            Completion::Sent { key, result } => self.on_sent(key, result),
            Completion::Read { key, buffer, result } => self.on_device_read(key, buffer, result),
            Completion::Written { key, result } => self.on_device_written(key, result),
            Completion::Flushed { key, result } => self.on_device_flushed(key, result),
            Completion::Discarded { key, result } => self.on_device_discarded(key, result),
            Completion::Rung => {}
            Completion::Expired => {
                self.clock.expired();
                self.tick();
            }
        }
    }

    /// Once in a while for everything, more often for reads only.
    fn tick(&mut self) {
        let due = self.now_us >= self.ticked_us + TICK_US - READS_TICK_US / 2;
        let volumes = if due { self.clock.due(self.now_us) } else { self.clock.ticking() };
        // Reads that wait for answers need a finer clock: a late one is asked of another member.
        let awaits = |id: &VolumeId| self.attached.get(id).is_some_and(|attached| attached.engine.awaits_reads());
        self.clock.awaits_reads = volumes.iter().any(awaits);
        for id in volumes {
            let event = if due { volume::Event::Tick } else { volume::Event::Late };
            self.work.push_back(Work::Volume(id, event));
        }
        if due {
            self.ticked_us = self.now_us;
            self.tend();
            self.clock.restless = !self.is_at_rest();
        }
    }

    /// Nothing here waits for time to pass that could not wait for half a second more.
    fn is_at_rest(&self) -> bool {
        self.unsent.is_empty()
            && self.shutdown.is_none()
            && self.paused.is_empty()
            && self.departures.is_empty()
            && self.peers_rest()
            && self.stores.iter().all(LocalStore::rests)
            && self.connections.values().all(Connection::rests)
            && self.attached.values().all(Attached::rests)
    }

    fn tend(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(4) {
            for at in 0..self.stores.len() {
                self.work.push_back(Work::Replica(at, replica::Event::Tick));
            }
        }
        while let Some(request) = self.unsent.pop_front() {
            if let Err(error) = self.requests.try_send(request) {
                self.unsent.push_front(error.into_inner());
                break;
            }
        }
        self.tend_scrubs();
        self.tend_volumes();
        self.tend_peers();
        self.tend_guests();
        self.tend_listeners();
    }

    pub fn ask_control(&mut self, request: ShardRequest) {
        if let Err(error) = self.requests.try_send(request) {
            self.unsent.push_back(error.into_inner());
        }
    }

    fn take_commands(&mut self) {
        for taken in 0.. {
            if taken == COMMANDS_MAX {
                self.reactor.ring();
                return;
            }
            let Ok(command) = self.commands.try_recv() else { return };
            if let Some(command) = self.pass_on(command) {
                self.take_command(command);
            }
        }
    }

    fn take_command(&mut self, command: ShardCommand) {
        match command {
            ShardCommand::Routes(routes) => self.set_routes(routes),
            ShardCommand::Volumes(specs) => self.set_volumes(specs),
            ShardCommand::OpenDevice { device, shard: _, done } => self.open_device(device, done),
            ShardCommand::Attach { volume, takeover, done } => self.attach_by_command(volume, takeover, done),
            ShardCommand::Maintain(volumes) => self.maintain(volumes),
            ShardCommand::Keep(volume) => self.keep(volume),
            ShardCommand::Adopt(parcel) => self.adopt(parcel),
            ShardCommand::Eject { volume, device, done } => {
                self.work.push_back(Work::Volume(volume, volume::Event::Eject { device }));
                let _ = done.send(self.attached.contains_key(&volume));
            }
            ShardCommand::Granted { attempt, purpose, grant } => self.on_granted(attempt, purpose, grant),
            ShardCommand::AttachRefused { volume, attempt, purpose, refusal } => {
                self.on_attach_refused(volume, attempt, purpose, &refusal);
            }
            ShardCommand::CasDone { volume, lane, reply } => {
                self.work.push_back(Work::Volume(volume, volume::Event::CasDone { lane, reply }));
            }
            ShardCommand::CasRefused { volume, lane } => {
                self.work.push_back(Work::Volume(volume, volume::Event::CasRefused { lane }));
            }
            ShardCommand::CasUnknown { volume, lane } => {
                self.work.push_back(Work::Volume(volume, volume::Event::CasUnknown { lane }));
            }
            ShardCommand::Detach { volume, done } => self.detach_by_command(volume, done),
            ShardCommand::Release { volume, epoch, maintenance_only, done } => {
                self.release(volume, epoch, maintenance_only, done);
            }
            ShardCommand::Reclaim { device, volume, promise, done } => self.reclaim(device, volume, promise, done),
            ShardCommand::LeftVolumes(done) => {
                let _ = done.send(self.left_volumes());
            }
            ShardCommand::Status(done) => {
                let _ = done.send(self.status());
            }
            ShardCommand::Shutdown(done) => self.begin_shutdown(done),
        }
    }

    fn begin_shutdown(&mut self, done: oneshot::Sender<()>) {
        self.shutdown = Some((done, self.now_us));
        self.clock.restless = true;
        for id in self.attached.keys().copied().collect::<Vec<_>>() {
            self.work.push_back(Work::Volume(id, volume::Event::Close));
        }
    }

    /// Volumes first; then nobody is served any more, and a checkpoint records what is complete.
    fn continue_shutdown(&mut self) {
        if self.shutdown.is_none() || self.closing_stores || !self.attached.is_empty() || !self.have_all_left() {
            return;
        }
        self.closing_stores = true;
        self.close_incoming();
        for store in &mut self.stores {
            store.engine.checkpoint();
        }
        self.run_engines();
    }

    /// Gives events to engines and carries out their effects until nothing is left to do.
    pub fn run_engines(&mut self) {
        loop {
            while let Some(work) = self.work.pop_front() {
                match work {
                    Work::Replica(at, event) => self.replica_event(at, event),
                    Work::Volume(id, event) => self.volume_event(id, event),
                }
            }
            for at in 0..self.stores.len() {
                self.settle_store(at);
            }
            if self.work.is_empty() {
                return;
            }
        }
    }

    /// Brings a message to a writer's engine, here or over a link.
    pub fn answer_writer(&mut self, link: LinkId, envelope: Envelope, message: crate::wire::message::ToWriter) {
        if link == LOCAL {
            let event = volume::Event::Message { envelope, message };
            self.work.push_back(Work::Volume(envelope.volume, event));
        } else {
            self.send_to_writer(link, envelope, &message);
        }
    }

    fn status(&self) -> ShardStatus {
        ShardStatus {
            volumes: self.volume_statuses(),
            devices: self.stores.iter().filter_map(LocalStore::status).collect(),
            peers_connected: self.ready_peers(),
            credit_waits: self.credit_waits,
            shards: vec![ShardLoad {
                number: self.siblings.number,
                volumes: self.attached.len(),
                devices: self.stores.iter().filter(|store| store.replica.is_some()).count(),
                nbd_connections: self.guest_count(),
                requests: self.answered,
                enters: self.reactor.enters(),
            }],
        }
    }
}
