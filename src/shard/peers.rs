//! Links to other shards, of other nodes and of this one: one to each that holds a device of an attached volume, made anew
//! when it breaks.

use super::connections::{Connection, Role};
use super::control::{DeviceRoute, ShardCommand};
use super::core::{Shard, Work};
use super::parcel::Parcel;
use crate::peer::{PeerEvent, PeerLink};
use crate::reactor::{Outbox, socket};
use crate::replica::{self, LinkId};
use crate::volume;
use crate::wire::encode_to_writer;
use crate::wire::message::{Envelope, ToReplica, ToWriter};
use ashlar_model::{DeviceId, NodeId, ShardId, VolumeId};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

/// Pause before a broken link is made anew.
const RECONNECT_US: u64 = 100_000;
/// A peer that owes an answer for this long is given up: its process may be stopped, its machine gone.
const SILENCE_US: u64 = 1_500_000;

/// A link on which nothing was said for this long is tried.
const PULSE_US: u64 = 2_000_000;

/// Our link to a shard.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    connection: Option<u64>,
    ready: bool,
    retry_at_us: u64,
    /// Since when we wait for the peer to say anything.
    owed_since_us: Option<u64>,
    /// When it said something last.
    heard_us: u64,
    /// The last failure has been logged.
    complained: bool,
}

impl Outgoing {
    /// Nothing was asked and nothing said for a while.
    fn is_silent(&self, now_us: u64) -> bool {
        self.ready && self.owed_since_us.is_none() && now_us >= self.heard_us + PULSE_US
    }
}

impl Shard {
    pub fn set_routes(&mut self, routes: Vec<DeviceRoute>) {
        for route in &routes {
            let moved = self.routes.get(&route.device).is_some_and(|old| old.address != route.address);
            if moved && let Some(id) = self.outgoing.get(&route.at).and_then(|outgoing| outgoing.connection) {
                self.close(id, "the node has another address now");
            }
        }
        self.routes = routes.into_iter().map(|route| (route.device, route)).collect();
        self.prefer_near_devices();
        self.announce_links();
    }

    /// True if messages reach the device.
    fn is_reachable(&self, device: DeviceId) -> bool {
        if self.store_of(device).is_some() {
            return true;
        }
        let Some(route) = self.routes.get(&device) else { return false };
        route.at != self.here() && self.outgoing.get(&route.at).is_some_and(|outgoing| outgoing.ready)
    }

    /// Tells every writer which of its devices can be reached now.
    pub fn announce_links(&mut self) {
        for id in self.attached.keys().copied().collect::<Vec<_>>() {
            self.announce_links_to(id);
        }
    }

    /// Tells one writer.
    pub fn announce_links_to(&mut self, id: VolumeId) {
        if let Some(attached) = self.attached.get(&id) {
            for device in attached.devices.iter().copied() {
                let event = if self.is_reachable(device) {
                    volume::Event::LinkUp { device }
                } else {
                    volume::Event::LinkDown { device }
                };
                self.work.push_back(Work::Volume(id, event));
            }
        }
    }

    /// Makes the links that attached volumes need.
    pub fn tend_peers(&mut self) {
        self.return_credits(true);
        for id in self.outgoing.values().filter_map(|outgoing| outgoing.connection).collect::<Vec<_>>() {
            self.count_waits(id);
        }
        for shard in self.needed_shards() {
            let outgoing = self.outgoing.entry(shard).or_default();
            match outgoing.connection {
                None if self.now_us >= outgoing.retry_at_us => self.call(shard),
                Some(id) if outgoing.owed_since_us.is_some_and(|since| self.now_us > since + SILENCE_US) => {
                    self.close(id, "no answer for 1.5 s");
                }
                Some(_) if outgoing.is_silent(self.now_us) => self.pulse(shard),
                _ => {}
            }
        }
    }

    /// Other shards that attached volumes need.
    fn needed_shards(&self) -> BTreeSet<ShardId> {
        let here = self.here();
        let shards = self.users.devices().filter_map(|device| self.routes.get(&device).map(|route| route.at));
        shards.filter(|shard| *shard != here).collect()
    }

    /// Every link that is needed is there, and owes us nothing.
    pub fn peers_rest(&self) -> bool {
        let rests = |outgoing: &Outgoing| outgoing.ready && outgoing.owed_since_us.is_none();
        self.needed_shards().iter().all(|shard| self.outgoing.get(shard).is_some_and(rests))
    }

    /// Volumes at rest send next to nothing: one of them says something, so that a node that is gone is noticed.
    fn pulse(&mut self, shard: ShardId) {
        let there = self.routes.values().filter(|route| route.at == shard);
        let devices: Vec<DeviceId> = there.map(|route| route.device).collect();
        let user = self.attached.iter().find(|(_, attached)| attached.engine.hears_from(&devices)).map(|(id, _)| *id);
        match (user, self.outgoing.get_mut(&shard)) {
            (Some(id), _) => self.work.push_back(Work::Volume(id, volume::Event::Pulse { devices })),
            // Nobody has anything to say there, for instance because its device has failed: asked again after a while.
            (None, Some(outgoing)) => outgoing.heard_us = self.now_us,
            (None, None) => {}
        }
    }

    fn call(&mut self, to: ShardId) {
        let called = if to.node == self.options.node { self.call_sibling(to) } else { self.call_node(to) };
        match called {
            Ok(id) => {
                let outgoing = self.outgoing.get_mut(&to).expect("made by the caller");
                outgoing.connection = Some(id);
                outgoing.owed_since_us = Some(self.now_us);
            }
            Err(error) => {
                tracing::warn!("failed to call shard {to}: {error}");
                let retry_at_us = self.now_us + RECONNECT_US;
                self.outgoing.get_mut(&to).expect("made by the caller").retry_at_us = retry_at_us;
            }
        }
    }

    fn call_node(&mut self, to: ShardId) -> io::Result<u64> {
        let route = self.routes.values().find(|route| route.at == to);
        let address = route.map(|route| route.address).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let fd = socket::tcp_socket(address)?;
        socket::widen(fd.as_raw_fd());
        let raw = fd.as_raw_fd();
        let id = self.add_connection(Connection::new(fd, Role::Outgoing { to, link: None }, true));
        self.reactor.connect(id, raw, address);
        Ok(id)
    }

    /// The other end of the link goes to the other shard as if it had been accepted: from there on it is like any other.
    fn call_sibling(&mut self, to: ShardId) -> io::Result<u64> {
        let (ours, theirs) = socket::pair()?;
        socket::widen(ours.as_raw_fd());
        socket::widen(theirs.as_raw_fd());
        let parcel = Parcel::link(theirs, Vec::new());
        if to.shard >= self.siblings.count() || self.siblings.send(to.shard, ShardCommand::Adopt(parcel)).is_err() {
            return Err(io::Error::other("there is none, or it takes no more now"));
        }
        let id = self.add_connection(Connection::new(ours, Role::Outgoing { to, link: None }, false));
        self.greet_peer(id);
        self.receive_next(id);
        Ok(id)
    }

    /// The connection is made: say who we are.
    pub fn greet_peer(&mut self, id: u64) {
        let (cluster, here) = (self.options.cluster, self.here());
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Role::Outgoing { to, link } = &mut connection.role {
            *link = Some(PeerLink::call(cluster, here, *to, &mut connection.outbox));
            self.dirty.insert(id);
        }
    }

    pub fn peer_bytes(&mut self, id: u64, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut events = std::mem::take(&mut self.scratch.peer);
        let outbox: &mut Outbox = &mut connection.outbox;
        let result = match &mut connection.role {
            Role::Incoming { link, .. } => link.receive(bytes, outbox, &mut events),
            Role::Outgoing { to, link: Some(link) } => {
                if let Some(outgoing) = self.outgoing.get_mut(to) {
                    outgoing.owed_since_us = None;
                    outgoing.heard_us = self.now_us;
                }
                link.receive(bytes, outbox, &mut events)
            }
            Role::Outgoing { link: None, .. } | Role::Guest { .. } => return,
        };
        self.dirty.insert(id);
        for event in events.drain(..) {
            self.peer_event(id, event);
        }
        self.scratch.peer = events;
        if let Err(reason) = result {
            tracing::warn!("closing a peer's link: {reason}");
            self.finish(id);
        }
    }

    fn peer_event(&mut self, id: u64, event: PeerEvent) {
        match event {
            PeerEvent::Ready { peer } => self.peer_ready(id, peer),
            PeerEvent::Elsewhere { shard, bytes } => self.forward_link(id, shard, bytes),
            PeerEvent::Request { envelope, message, permit } => match self.store_of(envelope.device) {
                Some(at) => {
                    let event = replica::Event::Message { link: LinkId(id), envelope, message, permit };
                    self.work.push_back(Work::Replica(at, event));
                }
                None => self.send_to_writer(LinkId(id), envelope, &ToWriter::NotServed),
            },
            PeerEvent::Answer { envelope, message } => {
                let event = volume::Event::Message { envelope, message };
                self.work.push_back(Work::Volume(envelope.volume, event));
            }
        }
    }

    fn peer_ready(&mut self, id: u64, node: NodeId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match &mut connection.role {
            Role::Incoming { peer, .. } => {
                *peer = Some(node);
                self.callers.insert(id);
            }
            Role::Outgoing { to, .. } => {
                let outgoing = self.outgoing.entry(*to).or_default();
                outgoing.ready = true;
                outgoing.complained = false;
                tracing::info!(peer = %to, "link is up");
                self.announce_links();
            }
            Role::Guest { .. } => {}
        }
    }

    pub fn peer_left(&mut self, id: u64, why: &str) {
        let Some(connection) = self.connections.get(&id) else { return };
        match &connection.role {
            Role::Incoming { .. } => {
                self.callers.remove(&id);
                for at in 0..self.stores.len() {
                    self.work.push_back(Work::Replica(at, replica::Event::LinkClosed { link: LinkId(id) }));
                }
            }
            Role::Outgoing { to, .. } => {
                let to = *to;
                let outgoing = self.outgoing.entry(to).or_default();
                if outgoing.connection != Some(id) {
                    return;
                }
                self.count_waits(id);
                let outgoing = self.outgoing.get_mut(&to).expect("just looked at");
                let complained = std::mem::replace(&mut outgoing.complained, true);
                *outgoing =
                    Outgoing { retry_at_us: self.now_us + RECONNECT_US, complained: true, ..Outgoing::default() };
                if !complained {
                    tracing::warn!(peer = %to, "link is down: {why}; trying again every 100 ms");
                }
                self.announce_links();
            }
            Role::Guest { .. } => {}
        }
    }

    /// Sends a writer's message to a device of another shard, or lets it wait on the link for credits.
    pub fn send_to_replica(&mut self, envelope: Envelope, message: ToReplica) {
        let Some(to) = self.routes.get(&envelope.device).map(|route| route.at) else { return };
        let Some(outgoing) = self.outgoing.get_mut(&to).filter(|outgoing| outgoing.ready) else { return };
        let Some(id) = outgoing.connection else { return };
        outgoing.owed_since_us.get_or_insert(self.now_us);
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.is_open()) else { return };
        let Role::Outgoing { link: Some(link), .. } = &mut connection.role else { return };
        match link.send(envelope, message, &mut connection.outbox) {
            Ok(()) => drop(self.dirty.insert(id)),
            Err(reason) => self.close(id, &reason),
        }
    }

    /// Returns to those who called us the credits that are due, behind the answers of this round; or all that are
    /// free, so that slow requests do not keep for long what quick ones have released.
    pub fn return_credits(&mut self, all: bool) {
        for id in &self.callers {
            let Some(connection) = self.connections.get_mut(id).filter(|connection| connection.is_open()) else {
                continue;
            };
            let Role::Incoming { link, .. } = &mut connection.role else { continue };
            let before = connection.outbox.len();
            link.return_credits(all, &mut connection.outbox);
            if connection.outbox.len() > before {
                self.dirty.insert(*id);
            }
        }
    }

    /// Adds to the totals how often the requests of a link have waited.
    fn count_waits(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Role::Outgoing { link: Some(link), .. } = &mut connection.role else { return };
        let [foreground, background] = link.take_waits();
        self.credit_waits.foreground += foreground;
        self.credit_waits.background += background;
    }

    /// Sends a replica's answer to a writer on another shard.
    pub fn send_to_writer(&mut self, link: LinkId, envelope: Envelope, message: &ToWriter) {
        let Some(connection) = self.connections.get_mut(&link.0).filter(|connection| connection.is_open()) else {
            return;
        };
        if let Some(payload) = connection.outbox.append(|out| encode_to_writer(envelope, message, out)) {
            connection.outbox.shared(&payload, 0, payload.len());
        }
        self.dirty.insert(link.0);
    }

    /// Other nodes with a link that is ready.
    pub fn ready_peers(&self) -> Vec<NodeId> {
        let ready = self.outgoing.iter().filter(|(_, outgoing)| outgoing.ready).map(|(to, _)| to.node);
        let mut nodes: Vec<NodeId> = ready.filter(|node| *node != self.options.node).collect();
        nodes.dedup();
        nodes
    }
}
