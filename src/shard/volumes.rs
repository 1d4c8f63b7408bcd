//! Volumes attached to this node: asking for an epoch, serving, detaching.

use super::attached::{Attached, Waiter};
use super::control::{AttachDone, AttachFor, AttachRefusal, AttachedVolume, ShardCommand, ShardRequest};
use super::core::{LOCAL, Shard, Work};
use crate::replica;
use crate::volume::{self, ClientRequest, Effect, Event, Settings, VolumeEngine};
use crate::wire::Permit;
use ashlar_model::cluster::{AttachGrant, VolumeSpec};
use ashlar_model::{Epoch, VolumeId};
use tokio::sync::oneshot;

/// An unanswered question for an epoch is asked again after this.
const ASK_AGAIN_US: u64 = 1_000_000;
/// A volume that a guest attached by opening it is detached this long after the last guest has gone.
const LINGER_US: u64 = 2_000_000;

impl Shard {
    /// The metadata's volumes.
    pub fn set_volumes(&mut self, specs: Vec<VolumeSpec>) {
        self.specs = specs.into_iter().map(|spec| (spec.id, spec)).collect();
        // A deleted volume has no replicas any more: its writer would wait for ever.
        let mut changed = false;
        for (id, attached) in &mut self.attached {
            match self.specs.get(id) {
                Some(spec) if spec != attached.engine.spec() => {
                    changed = true;
                    self.work.push_back(Work::Volume(*id, Event::Spec(spec.clone())));
                }
                None if !attached.closing => {
                    attached.closing = true;
                    self.work.push_back(Work::Volume(*id, Event::Close));
                }
                _ => {}
            }
        }
        if changed {
            // A new member needs a link, and the engine hears whether there is one.
            self.run_engines();
            self.tend_peers();
            self.announce_links();
        }
    }

    pub fn spec_by_name(&self, name: &str) -> Option<&VolumeSpec> {
        self.specs.values().find(|spec| spec.name == name)
    }

    /// The attached volume, attached now if it was not; for guests or a takeover also if it was being maintained.
    pub fn attach(&mut self, volume: VolumeId, purpose: AttachFor) -> Option<&mut Attached> {
        self.attach_with(volume, purpose, Settings::default())
    }

    fn attach_with(&mut self, volume: VolumeId, purpose: AttachFor, settings: Settings) -> Option<&mut Attached> {
        if !self.attached.contains_key(&volume) {
            let spec = self.specs.get(&volume)?.clone();
            self.siblings.homes.attached(volume, self.siblings.number);
            let attempt = self.siblings.homes.next_attempt();
            let mut engine = VolumeEngine::new(spec, settings);
            engine.prefer(self.near_devices());
            let mut attached = Attached::new(engine, attempt, purpose, self.now_us);
            attached.count_devices(&mut self.users);
            self.attached.insert(volume, attached);
            self.ask_control(ShardRequest::Attach { volume, attempt, purpose });
            self.tend_peers();
            self.announce_links_to(volume);
        }
        let now_us = self.now_us;
        let attached = self.attached.get_mut(&volume)?;
        let more = attached.is_maintenance() || (attached.granted.is_none() && purpose == AttachFor::Takeover);
        if more && !attached.closing && purpose != AttachFor::Maintenance && attached.asked != purpose {
            (attached.asked, attached.asked_at_us) = (purpose, now_us);
            let attempt = attached.attempt;
            self.ask_control(ShardRequest::Attach { volume, attempt, purpose });
        }
        self.attached.get_mut(&volume)
    }

    pub fn attach_by_command(&mut self, volume: VolumeId, takeover: bool, done: Waiter) {
        if let Err((done, message)) = self.begin_attach(volume, takeover, done) {
            let _ = done.send(Err(AttachRefusal { message, retry: true }));
        }
        self.leave_home(volume);
    }

    /// Whoever asked is told once it is attached, or gets its channel back with the reason why not.
    fn begin_attach(&mut self, volume: VolumeId, takeover: bool, done: Waiter) -> Result<(), (Waiter, String)> {
        if self.shutdown.is_some() {
            return Err((done, "this node is shutting down".into()));
        }
        let purpose = if takeover { AttachFor::Takeover } else { AttachFor::Guests };
        let Some(attached) = self.attach(volume, purpose) else {
            return Err((done, format!("this node does not know volume {volume} yet")));
        };
        if attached.closing {
            return Err((done, "the volume is being detached".into()));
        }
        attached.pinned = true;
        if attached.serves_guests() {
            let _ = done.send(Ok(AttachDone { clean: true }));
        } else {
            attached.waiters.push(done);
        }
        Ok(())
    }

    /// Attaches what is to be brought in sync and is not attached here; [`Self::tend_volumes`] lets go of the others.
    pub fn maintain(&mut self, volumes: Vec<VolumeId>) {
        self.maintained = volumes.iter().copied().collect();
        // Every shard has the list, to let go of what is no longer on it; one of them sees to it that each is attached.
        if self.siblings.number == 0 {
            for command in volumes.into_iter().map(ShardCommand::Keep) {
                if let Some(ShardCommand::Keep(volume)) = self.pass_on(command) {
                    self.keep(volume);
                }
            }
        }
    }

    /// Brings a volume in sync, which is at home here.
    pub fn keep(&mut self, volume: VolumeId) {
        if self.shutdown.is_none() && self.maintained.contains(&volume) {
            self.attach(volume, AttachFor::Maintenance);
        }
        self.leave_home(volume);
    }

    pub fn on_granted(&mut self, attempt: u64, purpose: AttachFor, grant: AttachGrant) {
        let volume = grant.volume;
        let Some(attached) = self.attached.get_mut(&volume).filter(|attached| attached.attempt == attempt) else {
            return;
        };
        let first = attached.granted.is_none();
        if !first && (attached.granted != Some(AttachFor::Maintenance) || purpose == AttachFor::Maintenance) {
            return; // repeated
        }
        attached.granted = Some(purpose);
        let clean = grant.lanes.iter().all(|lane| lane.clean.is_some());
        if first {
            attached.predecessor = None;
            let name = &attached.engine.spec().name;
            tracing::info!(volume = %name, epoch = %grant.epoch, ?purpose, clean, "volume is attached");
            attached.opened_clean = clean;
            self.work.push_back(Work::Volume(volume, Event::Granted(grant)));
            self.announce_links_to(volume);
        }
        // From here on they wait for those who were here before, if for anybody.
        for guest in self.attached.get(&volume).map_or_else(Vec::new, |attached| attached.waiting_guests.clone()) {
            self.set_waiting(guest, false);
        }
        self.serve_waiting(volume);
    }

    /// Those that waited for the volume get it, if it is theirs.
    pub fn serve_waiting(&mut self, volume: VolumeId) {
        let Some(attached) = self.attached.get_mut(&volume).filter(|attached| attached.serves_guests()) else { return };
        for waiter in attached.waiters.drain(..) {
            let _ = waiter.send(Ok(AttachDone { clean: attached.opened_clean }));
        }
        for guest in std::mem::take(&mut attached.waiting_guests) {
            self.guest_opened(guest, volume);
        }
    }

    pub fn on_attach_refused(&mut self, volume: VolumeId, attempt: u64, purpose: AttachFor, refusal: &AttachRefusal) {
        let of_writer = |attached: &&mut Attached| {
            // What was asked for meanwhile has its own answer.
            attached.attempt == attempt && attached.asked == purpose && attached.is_asking()
        };
        let Some(attached) = self.attached.get_mut(&volume).filter(of_writer) else { return };
        tracing::warn!(volume = %attached.engine.spec().name, "attach refused: {}", refusal.message);
        let (waiters, guests) = (std::mem::take(&mut attached.waiters), std::mem::take(&mut attached.waiting_guests));
        attached.pinned = false;
        if attached.granted.is_some() {
            // It is maintained here and somebody else was faster: its writer hears that from the replicas.
            attached.asked = AttachFor::Maintenance;
        } else {
            let gone = self.remove_attached(volume).expect("looked at it");
            if gone.predecessor.is_some() {
                self.say_detached(volume, &gone, false);
            }
            for done in gone.detach_waiters {
                let _ = done.send(false);
            }
            // Of a writer before it, which gave way.
            for guest in gone.guests {
                self.finish(guest);
            }
        }
        for waiter in waiters {
            let _ = waiter.send(Err(refusal.clone()));
        }
        for guest in guests {
            self.guest_refused(guest, &refusal.message);
        }
        self.leave_home(volume);
    }

    pub fn detach_by_command(&mut self, volume: VolumeId, done: oneshot::Sender<bool>) {
        let Some(attached) = self.attached.get_mut(&volume) else {
            let _ = done.send(false);
            return;
        };
        attached.detach_waiters.push(done);
        attached.closing = true;
        self.work.push_back(Work::Volume(volume, Event::Close));
    }

    /// Another node wants the volume.
    pub fn release(&mut self, volume: VolumeId, epoch: Epoch, maintenance_only: bool, done: oneshot::Sender<bool>) {
        let attached = self.attached.get(&volume);
        if attached.is_some_and(|attached| attached.may_be_released(epoch, maintenance_only)) {
            self.detach_by_command(volume, done);
        } else {
            let _ = done.send(false);
        }
    }

    pub fn volume_event(&mut self, id: VolumeId, event: Event) {
        let Some(attached) = self.attached.get_mut(&id) else { return };
        let mut effects = std::mem::take(&mut self.scratch.volume);
        let is_tick = matches!(event, Event::Tick);
        let changes_devices = matches!(event, Event::Granted(_) | Event::Spec(_));
        attached.engine.apply(self.now_us, event, &mut effects);
        if is_tick {
            attached.ticks = self.clock.told(id, attached.engine.wake());
        } else if !std::mem::replace(&mut attached.ticks, true) {
            self.clock.stir(id);
        }
        // A grant may name members that the specification lacks: the engine hears whether there are links to them.
        if changes_devices && attached.count_devices(&mut self.users) {
            self.announce_links_to(id);
        }
        for effect in effects.drain(..) {
            self.volume_effect(id, effect);
        }
        self.scratch.volume = effects;
    }

    fn volume_effect(&mut self, id: VolumeId, effect: Effect) {
        match effect {
            Effect::Send { envelope, message } => match self.store_of(envelope.device) {
                Some(at) => {
                    let event = replica::Event::Message { link: LOCAL, envelope, message, permit: Permit::none() };
                    self.work.push_back(Work::Replica(at, event));
                }
                None => self.send_to_replica(envelope, message),
            },
            Effect::Complete { id: request, outcome } => {
                self.answered += 1;
                self.guest_outcome(request, outcome);
            }
            Effect::Cas(cas) => self.ask_control(ShardRequest::Cas(cas)),
            Effect::Alarm(alarm) => tracing::error!("{alarm}"),
            Effect::Note(note) => tracing::info!("{note}"),
            Effect::Closed { clean } => self.on_volume_closed(id, clean),
        }
    }

    fn remove_attached(&mut self, id: VolumeId) -> Option<Attached> {
        let mut gone = self.attached.remove(&id)?;
        gone.release_devices(&mut self.users);
        self.clock.forget(id);
        Some(gone)
    }

    fn on_volume_closed(&mut self, id: VolumeId, clean: bool) {
        let Some(mut attached) = self.remove_attached(id) else { return };
        let name = attached.engine.spec().name.clone();
        if clean {
            tracing::info!(volume = %name, "volume is detached, clean");
        } else {
            tracing::warn!(volume = %name, "volume is detached without the clean mark; the next open recovers it");
        }
        let goes_on = self.shutdown.is_none() && !attached.closing;
        match attached.engine.take_handed_over().filter(|_| goes_on && self.specs.contains_key(&id)) {
            Some(requests) => self.attach_again(id, &mut attached, requests),
            None => self.say_detached(id, &attached, clean),
        }
        for done in attached.detach_waiters {
            let _ = done.send(clean);
        }
        let message = "the volume was detached from this node".to_string();
        for waiter in attached.waiters {
            let _ = waiter.send(Err(AttachRefusal { message: message.clone(), retry: true }));
        }
        for guest in attached.guests {
            self.finish(guest);
        }
        // Guests that came while it was closing get a new writer.
        for guest in attached.waiting_guests {
            if self.shutdown.is_some() {
                self.guest_refused(guest, &message);
            } else if let Some(attached) = self.attach(id, AttachFor::Guests) {
                attached.waiting_guests.push(guest);
            } else {
                self.guest_refused(guest, &message);
            }
        }
        self.leave_home(id);
    }

    /// The volume is free for other nodes. A writer without a grant may have one that has not arrived, or may not: then it
    /// is its predecessor that has the volume.
    fn say_detached(&mut self, id: VolumeId, ended: &Attached, clean: bool) {
        for attempt in ended.predecessor.into_iter().chain([ended.attempt]) {
            self.ask_control(ShardRequest::Detached { volume: id, attempt, clean });
        }
    }

    /// The writer ended so that another one opens the volume: guests and whoever waits for it notice a pause at most. It is
    /// not free meanwhile: the successor's grant takes the place of this one.
    fn attach_again(&mut self, id: VolumeId, ended: &mut Attached, requests: Vec<ClientRequest>) {
        // Who took it over has it; if another node takes it over now, that is the later wish.
        let taken_over = ended.granted == Some(AttachFor::Takeover);
        let purpose = if taken_over { AttachFor::Guests } else { ended.asked };
        let settings = ended.engine.successor_settings();
        let Some(attached) = self.attach_with(id, purpose, settings) else { return };
        attached.predecessor = Some(ended.attempt);
        attached.pinned = ended.pinned;
        attached.waiters.append(&mut ended.waiters);
        attached.guests.append(&mut ended.guests);
        // Before anything newer; and nothing of a guest that is gone.
        for request in requests.into_iter().rev().filter(|request| self.owners.contains_key(&request.id)) {
            self.work.push_front(Work::Volume(id, Event::Request(request)));
        }
    }

    /// Asks again for epochs, and lets go of volumes that nobody uses.
    pub fn tend_volumes(&mut self) {
        let now_us = self.now_us;
        let mut ask = Vec::new();
        let mut close = Vec::new();
        for (id, attached) in &mut self.attached {
            if attached.is_asking() && now_us >= attached.asked_at_us + ASK_AGAIN_US {
                attached.asked_at_us = now_us;
                let (attempt, purpose) = (attached.attempt, attached.asked);
                ask.push(ShardRequest::Attach { volume: *id, attempt, purpose });
            }
            let is_maintained = attached.is_maintenance() && self.maintained.contains(id);
            if attached.is_used() || is_maintained || attached.granted.is_none() {
                attached.quiet_since_us = now_us;
            }
            let linger_us = if attached.is_maintenance() { 0 } else { LINGER_US };
            if now_us > attached.quiet_since_us + linger_us && !attached.closing {
                attached.closing = true;
                close.push(*id);
            }
        }
        for request in ask {
            self.ask_control(request);
        }
        for id in close {
            self.work.push_back(Work::Volume(id, volume::Event::Close));
        }
    }

    pub fn volume_statuses(&self) -> Vec<AttachedVolume> {
        let status = |(id, attached): (&VolumeId, &Attached)| AttachedVolume {
            id: *id,
            name: attached.engine.spec().name.clone(),
            connections: attached.guests.len(),
            maintenance: attached.is_maintenance(),
            status: attached.engine.status(),
        };
        self.attached.iter().map(status).collect()
    }
}
