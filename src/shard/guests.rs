//! Guests: NBD connections, and their way to the volume that they opened.

use super::connections::Role;
use super::control::AttachFor;
use super::core::{Shard, Work};
use crate::front::nbd::{NbdDoor, Want};
use crate::volume::{Event, Outcome, RequestId};
use ashlar_model::VolumeId;
use ashlar_nbd::export::Refusal;
use std::os::fd::AsRawFd;

/// A handshake takes at most this long.
const HANDSHAKE_US: u64 = 10_000_000;

impl Shard {
    /// The door of a guest's connection, with what it needs around it.
    fn with_door<T>(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut NbdDoor, &mut crate::reactor::Outbox, &mut Vec<Want>, &mut u64) -> T,
    ) -> Option<T> {
        let mut wants = Vec::new();
        let connection = self.connections.get_mut(&id)?;
        if !connection.is_open() {
            return None;
        }
        let Role::Guest { door, .. } = &mut connection.role else { return None };
        let value = act(door, &mut connection.outbox, &mut wants, &mut self.next_request);
        self.dirty.insert(id);
        for want in wants {
            self.guest_wants(id, want);
        }
        Some(value)
    }

    pub fn guest_bytes(&mut self, id: u64, bytes: &[u8]) {
        let taken = self.offer(id, bytes).unwrap_or(bytes.len());
        if taken < bytes.len()
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.unread.extend_from_slice(&bytes[taken..]);
        }
    }

    fn offer(&mut self, id: u64, bytes: &[u8]) -> Option<usize> {
        let Role::Guest { door, .. } = &self.connections.get(&id)?.role else { return None };
        let volume = door.volume();
        // What the volume takes is decided before the connection is borrowed; requests of this batch count themselves.
        let attached = volume.and_then(|volume| self.attached.get(&volume));
        let elsewhere: usize = attached.map_or(0, |attached| {
            let others = attached.guests.iter().filter(|guest| **guest != id);
            others.map(|guest| self.guest_bytes_in_flight(*guest)).sum()
        });
        let accepts = attached.is_none_or(|attached| attached.engine.accepts(elsewhere));
        let room = move |own: usize| accepts && elsewhere + own < ashlar_model::limits::INFLIGHT_BYTES_MAX;
        self.with_door(id, |door, outbox, wants, next_id| door.receive(bytes, outbox, wants, next_id, room))
    }

    fn guest_bytes_in_flight(&self, id: u64) -> usize {
        match self.connections.get(&id).map(|connection| &connection.role) {
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
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.unread = unread;
            connection.unread.drain(..taken);
        }
        self.run_engines();
    }

    fn guest_wants(&mut self, id: u64, want: Want) {
        match want {
            Want::Request(request) => {
                let Some(volume) = self.guest_volume(id) else { return };
                self.owners.insert(request.id, id);
                self.work.push_back(Work::Volume(volume, Event::Request(request)));
            }
            Want::List => {
                let names: Vec<String> = self.specs.values().map(|spec| spec.name.clone()).collect();
                self.with_door(id, |door, outbox, _, _| door.exports(names.into_iter(), outbox));
            }
            Want::Find { name } => self.guest_asks(id, &name),
            Want::Open { name } => self.guest_opens(id, &name),
            Want::Close { reason, orderly } => {
                if !orderly {
                    tracing::warn!("closing an NBD connection: {reason}");
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
        match self.spec_by_name(name).map(|spec| spec.geometry.size_bytes) {
            Some(bytes) => {
                self.with_door(id, |door, outbox, _, _| door.export(name, bytes, outbox));
            }
            None => self.guest_unknown(id, name),
        }
    }

    fn guest_unknown(&mut self, id: u64, name: &str) {
        let message = format!("there is no volume '{name}'; 'ashlar volume list' names them");
        self.with_door(id, |door, outbox, wants, _| door.refuse(Refusal::Unknown, &message, outbox, wants));
    }

    fn guest_opens(&mut self, id: u64, name: &str) {
        let Some(volume) = self.spec_by_name(name).map(|spec| spec.id) else {
            self.guest_unknown(id, name);
            return;
        };
        if self.shutdown.is_some() {
            let message = "this node is shutting down";
            self.with_door(id, |door, outbox, wants, _| door.refuse(Refusal::ShuttingDown, message, outbox, wants));
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

    fn set_waiting(&mut self, id: u64, waits: bool) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Role::Guest { waits_for_us, .. } = &mut connection.role
        {
            *waits_for_us = waits;
        }
    }

    pub fn guest_opened(&mut self, id: u64, volume: VolumeId) {
        self.set_waiting(id, false);
        let Some(attached) = self.attached.get_mut(&volume) else { return };
        let (name, bytes) = (attached.engine.spec().name.clone(), attached.engine.spec().geometry.size_bytes);
        let serves = self.with_door(id, |door, outbox, _, _| {
            door.opened(volume, &name, bytes, outbox);
            door.volume().is_some()
        });
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
        self.with_door(id, |door, outbox, wants, next_id| door.outcome(request, outcome, outbox, wants, next_id));
    }

    pub fn guest_left(&mut self, id: u64, why: &str) {
        tracing::debug!("an NBD connection ended: {why}");
        for attached in self.attached.values_mut() {
            attached.guests.remove(&id);
            attached.waiting_guests.retain(|guest| *guest != id);
        }
        self.owners.retain(|_, owner| *owner != id);
    }

    /// Ends handshakes that take too long.
    pub fn tend_guests(&mut self) {
        let now_us = self.now_us;
        let late = |role: &Role| match role {
            Role::Guest { door, since_us, waits_for_us } => {
                door.is_negotiating() && !waits_for_us && now_us > since_us + HANDSHAKE_US
            }
            _ => false,
        };
        let late: Vec<u64> = self.connections.iter().filter(|(_, c)| late(&c.role)).map(|(id, _)| *id).collect();
        for id in late {
            self.close(id, "the handshake took longer than 10 s");
        }
        // A guest that is gone has nothing more to say: what it left unread must not run after its successor's writes.
        let gone = |c: &super::connections::Connection| {
            !c.unread.is_empty() && crate::reactor::socket::has_hung_up(c.fd.as_raw_fd())
        };
        let gone: Vec<u64> = self.connections.iter().filter(|(_, c)| gone(c)).map(|(id, _)| *id).collect();
        for id in gone {
            self.close(id, "the guest is gone");
        }
        // Volumes that had no room may have some now, without anything having happened on the connection.
        let unread = self.connections.iter().filter(|(_, connection)| !connection.unread.is_empty());
        self.dirty.extend(unread.map(|(id, _)| *id));
    }

    pub fn guest_count(&self) -> usize {
        self.connections.values().filter(|connection| matches!(connection.role, Role::Guest { .. })).count()
    }
}
