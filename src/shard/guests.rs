//! Guests: NBD connections, and their way to the volume that they opened.

use super::connections::{Connection, Role};
use super::control::AttachFor;
use super::core::{Shard, Work};
use crate::front::nbd::{NbdDoor, Want};
use crate::front::policy::Verdict;
use crate::front::tls::TlsLayer;
use crate::volume::{Event, Outcome, RequestId};
use ashlar_model::VolumeId;
use ashlar_model::limits::INFLIGHT_BYTES_MAX;
use ashlar_nbd::export::Refusal;
use ashlar_nbd::hangup::{ends_with_goodbye, has_hung_up, left_with_goodbye};
use std::os::fd::AsFd;

/// A guest that opens a volume waits so long for what those that hung up before have left; then that is dropped.
const PREDECESSORS_US: u64 = 1_000_000;

/// The other end has hung up without a goodbye. `bytes`: what was received of it and not yet taken.
pub(super) fn is_lost(connection: &Connection, bytes: &[u8]) -> bool {
    let socket = connection.fd.as_fd();
    if !has_hung_up(socket) {
        return false;
    }
    !match &connection.role {
        Role::Guest { tls: Some(_), .. } => ends_with_goodbye(bytes), // what is in the socket are records
        Role::Guest { tls: None, .. } => left_with_goodbye(socket, bytes),
        Role::Incoming { .. } | Role::Outgoing { .. } => false,
    }
}

impl Shard {
    /// The door of a guest's connection, with what it needs around it.
    fn with_door<T>(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut NbdDoor, &mut crate::reactor::Outbox, &mut Vec<Want>, &mut u64) -> T,
    ) -> Option<T> {
        let connection = self.connections.get_mut(&id).filter(|connection| connection.is_open())?;
        let Role::Guest { door, tls, .. } = &mut connection.role else { return None };
        let outbox = tls.as_mut().map_or(&mut connection.outbox, |tls| &mut tls.plain);
        let mut wants = std::mem::take(&mut self.scratch.wants);
        let value = act(door, outbox, &mut wants, &mut self.next_request);
        self.dirty.insert(id);
        for want in wants.drain(..) {
            self.guest_wants(id, want);
        }
        self.scratch.wants = wants;
        Some(value)
    }

    pub fn guest_bytes(&mut self, id: u64, bytes: &[u8]) {
        match self.decrypted(id, bytes) {
            Some(plain) => self.plain_bytes(id, &plain),
            None => self.plain_bytes(id, bytes),
        }
    }

    /// What the session does not take now is unread.
    fn plain_bytes(&mut self, id: u64, bytes: &[u8]) {
        let taken = self.offer(id, bytes).unwrap_or(bytes.len());
        if taken < bytes.len()
            && !self.first_records(id, &bytes[taken..])
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.unread.extend_from_slice(&bytes[taken..]);
        }
    }

    /// Gives TLS that has just begun what came behind the option that starts it; false if it has not.
    fn first_records(&mut self, id: u64, bytes: &[u8]) -> bool {
        let role = self.connections.get(&id).map(|connection| &connection.role);
        let begins = matches!(role, Some(Role::Guest { tls: Some(tls), .. }) if tls.is_new());
        if begins {
            self.guest_bytes(id, bytes);
        }
        begins
    }

    /// What is inside the TLS of a guest that has started it; nothing if it broke it.
    fn decrypted(&mut self, id: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let connection = self.connections.get_mut(&id)?;
        let Role::Guest { tls: Some(tls), visitor, .. } = &mut connection.role else { return None };
        self.dirty.insert(id); // TLS has things to say by itself
        match tls.decrypt(bytes, &mut connection.outbox) {
            Ok(plain) => {
                if visitor.tls.is_none() {
                    visitor.tls = tls.peer_names();
                }
                Some(plain)
            }
            Err(reason) => {
                if let Some(count) = self.turned_away.out_of_step.due(self.now_us) {
                    tracing::warn!(count, "closing an NBD connection from {}: {reason}", visitor.origin);
                }
                self.finish(id);
                Some(Vec::new())
            }
        }
    }

    fn start_tls(&mut self, id: u64) {
        let Some(doors) = &self.options.doors.tls else { return };
        let layer = TlsLayer::new(doors.config.clone());
        let Some(Role::Guest { tls, .. }) = self.connections.get_mut(&id).map(|connection| &mut connection.role) else {
            return;
        };
        match layer {
            Ok(layer) => *tls = Some(Box::new(layer)),
            Err(reason) => self.close(id, &reason),
        }
    }

    fn offer(&mut self, id: u64, bytes: &[u8]) -> Option<usize> {
        let connection = self.connections.get(&id)?;
        let Role::Guest { door, .. } = &connection.role else { return None };
        let volume = door.volume();
        // What the volume takes is decided before the connection is borrowed; requests of this batch count themselves.
        let attached = volume.and_then(|volume| self.attached.get(&volume));
        // A guest with several connections sends again on one that lives what it had sent on one that is lost.
        let has_others = attached.is_some_and(|attached| attached.guests.len() > 1);
        if has_others && !bytes.is_empty() && is_lost(connection, bytes) {
            self.close(id, "the guest is gone");
            return None;
        }
        let elsewhere: usize = attached.filter(|_| !bytes.is_empty()).map_or(0, |attached| {
            let others = attached.guests.iter().filter(|guest| **guest != id);
            others.map(|guest| self.guest_bytes_in_flight(*guest)).sum()
        });
        let accepts = attached.is_none_or(|attached| attached.engine.accepts());
        // One request of each connection is always taken: no guest can keep another one from any.
        let room = move |own: usize| accepts && (own == 0 || elsewhere + own < INFLIGHT_BYTES_MAX);
        self.with_door(id, |door, outbox, wants, next_id| door.receive(bytes, outbox, wants, next_id, room))
    }

    /// A guest that is being finished is told of no outcome any more: what it asked for goes on without its counting.
    fn guest_bytes_in_flight(&self, id: u64) -> usize {
        let open = self.connections.get(&id).filter(|connection| connection.is_open());
        match open.map(|connection| &connection.role) {
            Some(Role::Guest { door, .. }) => door.bytes_in_flight(),
            _ => 0,
        }
    }

    /// Takes again what had to wait.
    pub fn retry_unread(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !matches!(connection.role, Role::Guest { .. }) {
            return;
        }
        let unread = std::mem::take(&mut connection.unread);
        let taken = self.offer(id, &unread).unwrap_or(unread.len());
        if (taken == unread.len() || !self.first_records(id, &unread[taken..]))
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.unread = unread;
            connection.unread.drain(..taken);
        }
        if taken > 0 {
            self.run_engines();
        }
    }

    fn guest_wants(&mut self, id: u64, want: Want) {
        match want {
            Want::Request(request) => {
                let Some(volume) = self.guest_volume(id) else { return };
                self.owners.insert(request.id, id);
                self.work.push_back(Work::Volume(volume, Event::Request(request)));
            }
            Want::List => {
                let names = self.specs.values().map(|spec| &spec.name);
                let names: Vec<String> =
                    names.filter(|name| matches!(self.judge(id, name), Verdict::Admitted { .. })).cloned().collect();
                self.with_door(id, |door, outbox, _, _| door.exports(names.into_iter(), outbox));
            }
            Want::Find { name } => self.guest_asks(id, &name),
            Want::Open { name } => self.guest_opens(id, &name),
            Want::StartTls => self.start_tls(id),
            Want::Close { reason, orderly } => {
                if !orderly && let Some(count) = self.turned_away.out_of_step.due(self.now_us) {
                    tracing::warn!(count, "closing an NBD connection: {reason}");
                }
                self.finish(id);
            }
        }
    }

    fn guest_volume(&self, id: u64) -> Option<VolumeId> {
        match &self.connections.get(&id)?.role {
            Role::Guest { door, .. } => door.volume(),
            _ => None,
        }
    }

    fn guest_asks(&mut self, id: u64, name: &str) {
        let Some(bytes) = self.spec_by_name(name).map(|spec| spec.geometry.size_bytes) else {
            self.guest_unknown(id, name);
            return;
        };
        if let Some(read_only) = self.admitted(id, name) {
            self.with_door(id, |door, outbox, _, _| door.export(name, bytes, read_only, outbox));
        }
    }

    fn judge(&self, id: u64, name: &str) -> Verdict {
        match self.connections.get(&id).map(|connection| &connection.role) {
            Some(Role::Guest { visitor, .. }) => self.options.doors.policy.judge(name, visitor),
            _ => Verdict::Refused("the connection has ended"),
        }
    }

    /// Whether the guest may open the export, and then whether only to read; otherwise it has been told.
    fn admitted(&mut self, id: u64, name: &str) -> Option<bool> {
        let (refusal, message) = match self.judge(id, name) {
            Verdict::Admitted { read_only } => return Some(read_only),
            Verdict::TlsRequired => (Refusal::TlsRequired, "start TLS first"),
            Verdict::Refused(why) => (Refusal::Policy, why),
        };
        if refusal == Refusal::Policy
            && let Some(Role::Guest { visitor, .. }) = self.connections.get(&id).map(|connection| &connection.role)
            && let Some(count) = self.turned_away.by_a_rule.due(self.now_us)
        {
            tracing::warn!(count, "an NBD client from {} may not open export '{name}': {message}", visitor.origin);
        }
        self.with_door(id, |door, outbox, wants, _| door.refuse(refusal, message, outbox, wants));
        None
    }

    fn guest_unknown(&mut self, id: u64, name: &str) {
        let message = format!("there is no volume '{name}'; 'ashlar volume list' names them");
        self.with_door(id, |door, outbox, wants, _| door.refuse(Refusal::Unknown, &message, outbox, wants));
    }

    /// Opens an export for a guest, here or on the shard that has the volume.
    pub fn guest_opens(&mut self, id: u64, name: &str) {
        let Some(volume) = self.spec_by_name(name).map(|spec| spec.id) else {
            self.guest_unknown(id, name);
            return;
        };
        if self.shutdown.is_some() {
            let message = "this node is shutting down";
            self.with_door(id, |door, outbox, wants, _| door.refuse(Refusal::ShuttingDown, message, outbox, wants));
            return;
        }
        if self.admitted(id, name).is_none() {
            return;
        }
        match self.home_of(volume) {
            Some(shard) if shard != self.siblings.number => self.depart(id, shard, volume, name),
            _ => {
                // One that hung up on its way elsewhere, before the volume came here, must not come behind this one.
                self.drop_departures(volume);
                self.guest_opens_here(id, volume, name);
                self.leave_home(volume);
            }
        }
    }

    /// The volume is at home on this shard.
    fn guest_opens_here(&mut self, id: u64, volume: VolumeId, name: &str) {
        if let Err(full) = self.options.doors.limits.admit_to_export(self.guests_of(volume)) {
            if let Some(count) = self.turned_away.by_the_export.due(self.now_us) {
                tracing::warn!(count, "refused an NBD client of export '{name}': {full}");
            }
            self.guest_refused(id, &full.to_string());
            return;
        }
        let Some(attached) = self.attach(volume, AttachFor::Guests) else { return };
        if attached.serves_guests() {
            self.guest_opened(id, volume);
        } else {
            attached.waiting_guests.push(id);
            self.set_waiting(id, true);
        }
    }

    pub fn set_waiting(&mut self, id: u64, waits: bool) {
        let now_us = self.now_us;
        if let Some(connection) = self.connections.get_mut(&id)
            && let Role::Guest { door, waits_for_us, since_us, seat, .. } = &mut connection.role
        {
            // The time that it waits for us does not count as its own.
            if waits != *waits_for_us {
                *since_us = now_us;
            }
            *waits_for_us = waits;
            seat.set_handshake(door.is_negotiating() && !waits);
        }
    }

    /// Other guests of the volume that have hung up, and are not through with what they sent.
    fn predecessors(&self, id: u64, volume: VolumeId) -> impl Iterator<Item = u64> {
        let guests = self.attached.get(&volume).into_iter().flat_map(|attached| &attached.guests);
        let lingers = move |guest: &&u64| {
            let connection = self.connections.get(guest).filter(|connection| !connection.is_closed());
            **guest != id && connection.is_some_and(|connection| has_hung_up(connection.fd.as_fd()))
        };
        guests.filter(lingers).copied()
    }

    fn has_predecessors(&self, id: u64, volume: VolumeId) -> bool {
        self.predecessors(id, volume).next().is_some()
    }

    /// Drops what hung up guests have left, if those who open the volume have waited long enough for it.
    fn tend_predecessors(&mut self) {
        let waited = |id: &u64| match self.connections.get(id).map(|connection| &connection.role) {
            Some(Role::Guest { since_us, .. }) => self.now_us > since_us + PREDECESSORS_US,
            _ => false,
        };
        let opening = self.attached.iter().filter(|(_, attached)| attached.serves_guests());
        let late = opening.filter_map(|(volume, attached)| {
            attached.waiting_guests.iter().find(|id| waited(id)).map(|id| (*id, *volume))
        });
        let gone: Vec<u64> = late.flat_map(|(id, volume)| self.predecessors(id, volume)).collect();
        for id in gone {
            tracing::warn!("an NBD client hung up, and what it left could not be done within 1 s: it is dropped");
            self.close(id, "another guest has waited for its end");
        }
    }

    /// A guest takes no more replies. If it has hung up, it may have said goodbye: what it asked for before that is
    /// carried out, unheard. False: there is nothing more to be done for it.
    pub fn guest_is_unheard(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let Role::Guest { door, .. } = &connection.role else { return false };
        connection.unheard = connection.is_open() && !door.is_negotiating() && has_hung_up(connection.fd.as_fd());
        connection.unheard
    }

    pub fn guest_opened(&mut self, id: u64, volume: VolumeId) {
        // Before it begins, what those that hung up have left is done, or dropped.
        let waits = self.has_predecessors(id, volume);
        self.set_waiting(id, waits);
        let Some(attached) = self.attached.get_mut(&volume) else { return };
        if waits {
            attached.waiting_guests.push(id);
            return;
        }
        let (name, bytes) = (attached.engine.spec().name.clone(), attached.engine.spec().geometry.size_bytes);
        let Some(read_only) = self.admitted(id, &name) else { return };
        let serves = self.with_door(id, |door, outbox, _, _| {
            door.opened(volume, &name, bytes, read_only, outbox);
            door.volume().is_some()
        });
        self.set_waiting(id, false); // whether it is in its handshake may have changed
        if serves == Some(true)
            && let Some(attached) = self.attached.get_mut(&volume)
        {
            attached.guests.insert(id);
        }
    }

    pub fn guest_refused(&mut self, id: u64, message: &str) {
        self.set_waiting(id, false);
        self.with_door(id, |door, outbox, wants, _| door.refuse(Refusal::Policy, message, outbox, wants));
    }

    pub fn guest_outcome(&mut self, request: RequestId, outcome: Outcome) {
        let Some(id) = self.owners.remove(&request) else { return };
        // Its next step would come behind what it has sent again elsewhere. Without unread bytes a receive tells that it
        // is gone.
        let gone = |connection: &&Connection| !connection.unread.is_empty() && is_lost(connection, &connection.unread);
        if self.connections.get(&id).filter(gone).is_some() {
            self.close(id, "the guest is gone");
            return;
        }
        self.with_door(id, |door, outbox, wants, next_id| door.outcome(request, outcome, outbox, wants, next_id));
    }

    pub fn guest_left(&mut self, id: u64, why: &str) {
        tracing::debug!("an NBD connection ended: {why}");
        let mut volume = None;
        for (of, attached) in &mut self.attached {
            if attached.guests.remove(&id) && !attached.waiting_guests.is_empty() {
                volume = Some(*of);
            }
            attached.waiting_guests.retain(|guest| *guest != id);
        }
        let asked: Vec<RequestId> =
            self.owners.extract_if(|_, owner| *owner == id).map(|(request, _)| request).collect();
        if let Some(of) = self.guest_volume(id)
            && !asked.is_empty()
        {
            self.work.push_back(Work::Volume(of, Event::Abandoned(asked)));
        }
        if let Some(volume) = volume {
            self.serve_waiting(volume); // they may have waited for its end
        }
    }

    /// Ends handshakes that take too long.
    pub fn tend_guests(&mut self) {
        let (now_us, handshake_us) = (self.now_us, self.options.doors.limits.handshake_us);
        let late = |role: &Role| match role {
            Role::Guest { door, since_us, waits_for_us, .. } => {
                door.is_negotiating() && !waits_for_us && now_us > since_us + handshake_us
            }
            _ => false,
        };
        let late: Vec<u64> = self.connections.iter().filter(|(_, c)| late(&c.role)).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(count) = self.turned_away.late.due(now_us) {
                let seconds = handshake_us / 1_000_000;
                tracing::warn!(
                    count,
                    "closed an NBD connection: it opened no export within {seconds} s (nbd.handshake_timeout)"
                );
            }
            self.close(id, "the handshake took too long");
        }
        self.tend_predecessors();
        self.tend_departures();
        // A guest that is gone has nothing more to say: what it left unread must not run after its successor's writes.
        let gone = |c: &Connection| !c.unread.is_empty() && is_lost(c, &c.unread);
        let gone: Vec<u64> = self.connections.iter().filter(|(_, c)| gone(c)).map(|(id, _)| *id).collect();
        for id in gone {
            self.close(id, "the guest is gone");
        }
        // Volumes that had no room may have some now, without anything having happened on the connection.
        let unread = self.connections.iter().filter(|(_, connection)| !connection.unread.is_empty());
        self.dirty.extend(unread.map(|(id, _)| *id));
    }

    /// Guests that have the volume open or wait for it, and have not hung up.
    fn guests_of(&self, volume: VolumeId) -> usize {
        let Some(attached) = self.attached.get(&volume) else { return 0 };
        let all = attached.guests.iter().chain(&attached.waiting_guests);
        let connected = all.filter_map(|guest| self.connections.get(guest));
        connected.filter(|connection| connection.is_open() && !has_hung_up(connection.fd.as_fd())).count()
    }

    /// No further guest may come in now, on whichever shard the others are.
    pub fn is_full_of_guests(&mut self) -> bool {
        let seats = &self.siblings.seats;
        let Err(full) = self.options.doors.limits.admit(seats.taken(), seats.handshakes()) else { return false };
        if let Some(count) = self.turned_away.at_the_door.due(self.now_us) {
            tracing::warn!(count, "closed NBD connections at once: {full}");
        }
        true
    }

    pub fn guest_count(&self) -> usize {
        self.connections.values().filter(|connection| matches!(connection.role, Role::Guest { .. })).count()
    }
}
