//! A writer: its volume engine, its guest, its questions to the metadata service, and its clock.

use super::metadata::{DISKLESS, Owner};
use super::network::{Message, Way};
use super::world::{Answer, Ask, Ev, Stopped, World};
use crate::prng::Prng;
use ashlar::volume::{self, VolumeEngine, Wake};
use ashlar::wire::message::ToReplica;

const TICK_US: u64 = 50_000;
/// A writer without an epoch asks again after this.
const ASK_AGAIN_US: u64 = 500_000;
/// Guests go on for this long after the last fault.
const GUEST_AFTER_US: u64 = 500_000;

/// One attempt to attach, and what became of it.
pub(super) struct SimWriter {
    /// None once its process is gone.
    pub engine: Option<VolumeEngine>,
    pub owner: Owner,
    pub epoch: u64,
    pub closed: bool,
    pub stopped: Stopped,
    /// Speed of its clock, in millionths.
    clock_ppm: u64,
    /// What its clock showed when the run began, in microseconds: the age of its machine.
    clock_from_us: u64,
    guest: Prng,
}

impl SimWriter {
    /// What its clock shows.
    fn clock_us(&self, now_us: u64) -> u64 {
        self.clock_from_us + (u128::from(now_us) * u128::from(self.clock_ppm) / 1_000_000) as u64
    }
}

impl World {
    /// Another writer attaches; gives its number.
    pub fn new_writer(&mut self) -> usize {
        let machine = if self.options.colocated {
            self.machines_prng.below((self.nodes.len() + DISKLESS) as u64) as usize
        } else {
            self.nodes.len() + self.machines_prng.below(DISKLESS as u64) as usize
        };
        self.new_writer_at(machine)
    }

    /// Another writer attaches on this machine.
    pub fn new_writer_at(&mut self, machine: usize) -> usize {
        self.new_writer_with(machine, self.options.settings)
    }

    /// A writer gave way: its successor carries out what it had not begun.
    fn hand_over(&mut self, writer: usize, requests: Vec<volume::ClientRequest>) {
        let machine = self.writers[writer].owner.machine;
        let settings = self.writers[writer].engine.as_ref().expect("it has just ended").successor_settings();
        let successor = self.new_writer_with(machine, settings);
        for request in requests {
            self.workload.hand_over(request.id, successor);
            self.volume_event(successor, volume::Event::Request(request));
        }
        if self.workload.in_flight(writer) > 0 {
            self.violate("a writer that gave way neither answered a request nor handed it over".into());
        }
    }

    fn new_writer_with(&mut self, machine: usize, mut settings: volume::Settings) -> usize {
        let writer = self.writers.len();
        let seed = self.options.seed;
        let mut clock = Prng::of(seed, "clock", writer as u64);
        if clock.chance(1, 8) {
            settings.repairs_max = settings.repairs_max.min(1);
        }
        let mut engine = VolumeEngine::new(self.metadata.spec(), settings);
        if self.options.colocated {
            engine.prefer(self.nodes.get(machine).map(|node| node.id));
        }
        self.writers.push(SimWriter {
            engine: Some(engine),
            owner: self.metadata.new_owner(machine),
            epoch: 0,
            closed: false,
            stopped: Stopped::default(),
            // Two clocks drift apart by less than the assumed one percent.
            clock_ppm: clock.between(995_100, 1_004_900),
            clock_from_us: clock.between(1, 1 << 40),
            guest: Prng::of(seed, "guest", writer as u64),
        });
        self.network.add_writer(self.nodes.len());
        self.at(0, Ev::Propose { writer, ask: Ask::Grant });
        self.at(TICK_US, Ev::WriterTick { writer });
        self.at(1_000, Ev::Guest { writer });
        self.tend_links(writer);
        writer
    }

    /// A guest whose writer is gone comes again, if no other one serves it.
    pub fn come_again(&mut self) {
        if self.serving_writers().is_empty() {
            self.new_writer();
        } else if !self.faulty && self.current_writer().is_none() {
            self.new_writer(); // whoever is there has lost the volume, and may never hear of it
        }
    }

    /// Writers that live and have not closed, oldest first.
    pub fn serving_writers(&self) -> Vec<usize> {
        (0..self.writers.len()).filter(|w| self.writers[*w].engine.is_some() && !self.writers[*w].closed).collect()
    }

    /// The writer that owns the present epoch, if it lives.
    pub fn current_writer(&self) -> Option<usize> {
        let epoch = self.metadata.epoch();
        let is_current = |writer: &SimWriter| {
            writer.engine.as_ref().is_some_and(|engine| engine.epoch().0 == epoch && !engine.is_over())
        };
        self.writers.iter().position(is_current)
    }

    pub fn writer_tick(&mut self, writer: usize) {
        if self.writers[writer].engine.is_none() || self.writers[writer].closed {
            return;
        }
        self.at(TICK_US, Ev::WriterTick { writer });
        self.tend_links(writer);
        let state = &self.writers[writer];
        let clock_us = state.clock_us(self.now_us);
        let is_due = match state.engine.as_ref().map_or(Wake::Never, VolumeEngine::wake) {
            Wake::Soon => true,
            Wake::At(by_us) => clock_us >= by_us,
            Wake::Never => false,
        };
        if is_due {
            self.volume_event(writer, volume::Event::Tick);
        } else {
            self.needless_tick(writer);
        }
    }

    /// An engine at rest is told the time only in every other run: there it must not do anything.
    fn needless_tick(&mut self, writer: usize) {
        let (told, now_us) = (self.options.seed.is_multiple_of(2), self.now_us);
        let state = &mut self.writers[writer];
        let clock_us = state.clock_us(now_us);
        let Some(engine) = state.engine.as_mut().filter(|_| told) else { return };
        let (wake, mut effects) = (engine.wake(), Vec::new());
        engine.apply(clock_us, volume::Event::Tick, &mut effects);
        if !effects.is_empty() || engine.wake() != wake {
            self.violate(format!("a writer that rests ({wake:?}) did something at {clock_us}: {effects:?}"));
        }
    }

    pub fn guest(&mut self, writer: usize) {
        let goes_on = self.faulty || self.now_us < self.healed_us + GUEST_AFTER_US;
        if !goes_on || self.writers[writer].engine.as_ref().is_none_or(VolumeEngine::is_over) {
            return;
        }
        let mut prng = self.writers[writer].guest.clone();
        // Bursts and pauses: both queues and quiet times have their own faults.
        let requests = if prng.chance(1, 8) { self.options.guest_depth } else { 1 };
        for _ in 0..requests {
            if self.workload.in_flight(writer) < self.options.guest_depth {
                let request = self.workload.next(writer, &mut prng);
                self.volume_event(writer, volume::Event::Request(request));
            }
        }
        let mean_us = self.options.guest_pause_us;
        let pause_us = prng.between(mean_us / 3, mean_us * 5 / 3);
        self.writers[writer].guest = prng;
        self.at(pause_us, Ev::Guest { writer });
    }

    /// A question reaches the metadata service, or does not.
    pub fn propose(&mut self, writer: usize, ask: Ask) {
        let prng = &mut self.metadata_prng;
        let longest_us = if prng.chance(1, 20) { 200_000 } else { 3_000 };
        let delay_us = prng.between(100, longest_us);
        let late_us = delay_us + prng.between(50_000, 3_000_000);
        let fate = prng.below(8);
        // When it is committed and whether that is answered, and when it is committed once more.
        let (commit, again) = match (self.metadata_down > 0, self.metadata_flaky > 0) {
            // It waits in some queue until there is a leader, or is lost.
            (true, _) => ((fate < 4).then_some((late_us, false)), None),
            (false, true) => match fate {
                0 => (Some((late_us, false)), None),
                1 => (None, None),
                2 | 3 => (Some((delay_us, false)), None),
                4 => (Some((delay_us, true)), Some(late_us)),
                _ => (Some((delay_us, true)), None),
            },
            (false, false) => (Some((delay_us, true)), None),
        };
        let metadata_life = self.metadata.life;
        if let Some((after_us, answered)) = commit {
            self.at(after_us, Ev::Commit { writer, ask: ask.clone(), answered, metadata_life });
        }
        if let Some(after_us) = again {
            self.at(after_us, Ev::Commit { writer, ask: ask.clone(), answered: false, metadata_life });
        }
        let unanswered = commit.is_none_or(|(_, answered)| !answered);
        match ask {
            Ask::Grant => self.at(ASK_AGAIN_US, Ev::Answer { writer, answer: Answer::Unknown { lane: u16::MAX } }),
            Ask::Cas(cas) if unanswered => {
                self.at(delay_us, Ev::Answer { writer, answer: Answer::Unknown { lane: cas.lane } });
            }
            Ask::Detach if unanswered => self.at(ASK_AGAIN_US, Ev::Propose { writer, ask }),
            Ask::Detach | Ask::Cas(_) => {}
        }
    }

    /// The metadata service commits a command.
    pub fn commit(&mut self, writer: usize, ask: Ask, answered: bool) {
        let owner = self.writers[writer].owner;
        let answer = match ask {
            Ask::Detach => return self.metadata.detach(owner),
            Ask::Grant => {
                if !self.faulty && !self.serving_writers().contains(&writer) {
                    // Nobody is left to use the epoch, and who is there may never hear of it: a guest comes again.
                    self.at(1_000_000, Ev::NewWriter);
                }
                self.metadata.attach(owner).map_or(Answer::Refused, Answer::Granted)
            }
            Ask::Cas(cas) => {
                let (lane, before) = (cas.lane, self.metadata.version(cas.lane));
                match self.metadata.cas(cas) {
                    Ok(reply) => {
                        if self.metadata.version(lane) != before {
                            self.check_set(lane);
                        }
                        reply.map_or(Answer::CasRefused { lane }, |reply| Answer::Cas { lane, reply })
                    }
                    Err(why) => return self.violate(why),
                }
            }
        };
        if answered {
            let delay_us = self.metadata_prng.between(100, 2_000);
            self.at(delay_us, Ev::Answer { writer, answer });
        }
    }

    /// An answer of the metadata service reaches the writer.
    pub fn answer(&mut self, writer: usize, answer: Answer) {
        let state = &mut self.writers[writer];
        if state.engine.is_none() {
            return;
        }
        match answer {
            Answer::Granted(grant) => {
                if state.epoch == 0 {
                    state.epoch = grant.epoch.0;
                    self.volume_event(writer, volume::Event::Granted(grant));
                    // The volume may have changed since the writer began.
                    let spec = self.metadata.spec();
                    self.volume_event(writer, volume::Event::Spec(spec));
                }
            }
            Answer::Refused => {
                if state.epoch == 0 {
                    // Its daemon was started anew meanwhile; its guest comes again.
                    self.kill_writer(writer, false);
                    self.at(1_000, Ev::NewWriter);
                }
            }
            Answer::Cas { lane, reply } => {
                self.volume_event(writer, volume::Event::CasDone { lane, reply });
            }
            Answer::CasRefused { lane } => {
                self.volume_event(writer, volume::Event::CasRefused { lane });
            }
            Answer::Unknown { lane: u16::MAX } => {
                if state.epoch == 0 && !state.closed {
                    self.at(0, Ev::Propose { writer, ask: Ask::Grant });
                }
            }
            Answer::Unknown { lane } => {
                self.volume_event(writer, volume::Event::CasUnknown { lane });
            }
        }
    }

    /// The writer's process dies.
    pub fn kill_writer(&mut self, writer: usize, power: bool) {
        self.drop_links_of_writer(writer, power);
        let state = &mut self.writers[writer];
        state.engine = None;
        let epoch = state.epoch;
        self.workload.abandon(writer, epoch);
    }

    /// Gives a writer's engine an event and carries out what follows.
    pub fn volume_event(&mut self, writer: usize, event: volume::Event) {
        let state = &mut self.writers[writer];
        let clock_us = state.clock_us(self.now_us);
        let Some(engine) = &mut state.engine else { return };
        let mut effects = Vec::new();
        engine.apply(clock_us, event, &mut effects);
        for effect in effects {
            self.volume_effect(writer, effect);
        }
    }

    fn volume_effect(&mut self, writer: usize, effect: volume::Effect) {
        match effect {
            volume::Effect::Send { envelope, message } => {
                if let Some(settled) = settled_of(&message) {
                    let announced = &mut self.announced[usize::from(envelope.lane)];
                    *announced = (*announced).max(settled);
                }
                let machine = self.machine_of(envelope.device);
                let Some(id) = self.network.wire(writer, machine).link else { return };
                let now_us = self.now_us;
                self.network.link(id).owed_since_us.get_or_insert(now_us);
                self.send(id, Way::ToDevice, Message::ToReplica(envelope, message));
            }
            volume::Effect::Complete { id, outcome } => {
                let epoch = self.writers[writer].epoch;
                match self.workload.answered(id, &outcome, epoch) {
                    Ok(written) => self.note_acknowledged(&written),
                    Err(why) => self.violate(why),
                }
            }
            volume::Effect::Cas(cas) => self.at(0, Ev::Propose { writer, ask: Ask::Cas(cas) }),
            volume::Effect::Alarm(alarm) => {
                // Damage is injected on purpose and must be noticed.
                let expected = alarm.contains("damaged") || self.hurt && alarm.contains("failed");
                if !(expected || self.is_for_operator(&alarm)) {
                    self.violate(format!("writer alarm: {alarm}"));
                }
            }
            volume::Effect::Note(note) => {
                if self.options.trace {
                    println!("{} writer {writer}: {note}", self.now_us);
                }
            }
            volume::Effect::Closed { .. } => {
                let state = &mut self.writers[writer];
                state.closed = true;
                if let Some(requests) = state.engine.as_mut().and_then(VolumeEngine::take_handed_over) {
                    return self.hand_over(writer, requests);
                }
                let epoch = self.writers[writer].epoch;
                self.workload.abandon(writer, epoch);
                self.at(0, Ev::Propose { writer, ask: Ask::Detach });
                let after_us = self.writers[writer].guest.clone().between(1_000, 2_000_000);
                self.at(after_us, Ev::NewWriter);
            }
        }
    }

    /// The machine that has, or had, the device.
    pub fn machine_of(&self, device: ashlar_model::DeviceId) -> usize {
        self.nodes.iter().position(|node| node.ids.contains(&device)).expect("every device has its machine")
    }
}

/// The settled index that a message announces.
fn settled_of(message: &ToReplica) -> Option<u64> {
    match message {
        ToReplica::Write { progress, .. } | ToReplica::Heartbeat { progress } => Some(progress.settled),
        ToReplica::Copy { settled, .. } | ToReplica::Confirm { settled, .. } => Some(*settled),
        _ => None,
    }
}
