//! Links to other nodes: one to each node that holds a device of an attached volume, made anew when it breaks.

use super::attached::Attached;
use super::connections::{Connection, Role};
use super::control::DeviceRoute;
use super::core::{Shard, Work};
use crate::peer::{PeerEvent, PeerLink};
use crate::reactor::{Outbox, socket};
use crate::replica::{self, LinkId};
use crate::volume;
use crate::wire::encode_to_writer;
use crate::wire::message::{Envelope, ToReplica, ToWriter};
use ashlar_model::{DeviceId, NodeId, VolumeId};
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

/// Pause before a broken link is made anew.
const RECONNECT_US: u64 = 100_000;
/// A peer that owes an answer for this long is given up: its process may be stopped, its machine gone.
const SILENCE_US: u64 = 1_500_000;

/// A link on which nothing was said for this long is tried.
const PULSE_US: u64 = 2_000_000;

/// Our link to a node.
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
            if moved && let Some(id) = self.outgoing.get(&route.node).and_then(|outgoing| outgoing.connection) {
                self.close(id, "the node has another address now");
            }
        }
        self.routes = routes.into_iter().map(|route| (route.device, route)).collect();
        self.announce_links();
    }

    /// True if messages reach the device.
    fn is_reachable(&self, device: DeviceId) -> bool {
        if self.store_of(device).is_some() {
            return true;
        }
        let Some(route) = self.routes.get(&device) else { return false };
        route.node != self.options.node && self.outgoing.get(&route.node).is_some_and(|outgoing| outgoing.ready)
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
        for node in self.needed_nodes() {
            let outgoing = self.outgoing.entry(node).or_default();
            match outgoing.connection {
                None if self.now_us >= outgoing.retry_at_us => self.call(node),
                Some(id) if outgoing.owed_since_us.is_some_and(|since| self.now_us > since + SILENCE_US) => {
                    self.close(id, "no answer for 1.5 s");
                }
                Some(_) if outgoing.is_silent(self.now_us) => self.pulse(node),
                _ => {}
            }
        }
    }

    /// Other nodes that attached volumes need.
    fn needed_nodes(&self) -> BTreeSet<NodeId> {
        let nodes = self.users.devices().filter_map(|device| self.routes.get(&device).map(|route| route.node));
        nodes.filter(|node| *node != self.options.node).collect()
    }

    /// Every link that is needed is there, and owes us nothing.
    pub fn peers_rest(&self) -> bool {
        let rests = |outgoing: &Outgoing| outgoing.ready && outgoing.owed_since_us.is_none();
        self.needed_nodes().iter().all(|node| self.outgoing.get(node).is_some_and(rests))
    }

    /// Volumes at rest send next to nothing: one of them says something, so that a node that is gone is noticed.
    fn pulse(&mut self, node: NodeId) {
        let on_node = |device: &DeviceId| self.routes.get(device).is_some_and(|route| route.node == node);
        let user = |attached: &Attached| attached.granted.is_some() && attached.devices.iter().any(on_node);
        let user = self.attached.iter().find(|(_, attached)| user(attached)).map(|(id, _)| *id);
        self.work.extend(user.map(|id| Work::Volume(id, volume::Event::Pulse)));
    }

    fn call(&mut self, node: NodeId) {
        let Some(address) = self.routes.values().find(|route| route.node == node).map(|route| route.address) else {
            return;
        };
        let fd = match socket::tcp_socket(address) {
            Ok(fd) => fd,
            Err(error) => {
                tracing::warn!("failed to make a socket: {error}");
                return;
            }
        };
        socket::widen(fd.as_raw_fd());
        let raw = fd.as_raw_fd();
        let id = self.add_connection(Connection::new(fd, Role::Outgoing { node, link: None }, true));
        let outgoing = self.outgoing.get_mut(&node).expect("made by the caller");
        outgoing.connection = Some(id);
        outgoing.owed_since_us = Some(self.now_us);
        self.reactor.connect(id, raw, address);
    }

    /// The connection is made: say who we are.
    pub fn greet_peer(&mut self, id: u64) {
        let (cluster, us) = (self.options.cluster, self.options.node);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Role::Outgoing { node, link } = &mut connection.role {
            *link = Some(PeerLink::call(cluster, us, *node, &mut connection.outbox));
            self.dirty.insert(id);
        }
    }

    pub fn peer_bytes(&mut self, id: u64, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut events = std::mem::take(&mut self.scratch.peer);
        let outbox: &mut Outbox = &mut connection.outbox;
        let result = match &mut connection.role {
            Role::Incoming { link, .. } => link.receive(bytes, outbox, &mut events),
            Role::Outgoing { node, link: Some(link) } => {
                if let Some(outgoing) = self.outgoing.get_mut(node) {
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
            Role::Outgoing { .. } => {
                let outgoing = self.outgoing.entry(node).or_default();
                outgoing.ready = true;
                outgoing.complained = false;
                tracing::info!(peer = %node, "link is up");
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
            Role::Outgoing { node, .. } => {
                let node = *node;
                let outgoing = self.outgoing.entry(node).or_default();
                if outgoing.connection != Some(id) {
                    return;
                }
                self.count_waits(id);
                let outgoing = self.outgoing.get_mut(&node).expect("just looked at");
                let complained = std::mem::replace(&mut outgoing.complained, true);
                *outgoing =
                    Outgoing { retry_at_us: self.now_us + RECONNECT_US, complained: true, ..Outgoing::default() };
                if !complained {
                    tracing::warn!(peer = %node, "link is down: {why}; trying again every 100 ms");
                }
                self.announce_links();
            }
            Role::Guest { .. } => {}
        }
    }

    /// Sends a writer's message to a device on another node, or lets it wait on the link for credits.
    pub fn send_to_replica(&mut self, envelope: Envelope, message: ToReplica) {
        let Some(node) = self.routes.get(&envelope.device).map(|route| route.node) else { return };
        let Some(outgoing) = self.outgoing.get_mut(&node).filter(|outgoing| outgoing.ready) else { return };
        let Some(id) = outgoing.connection else { return };
        outgoing.owed_since_us.get_or_insert(self.now_us);
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.is_open()) else { return };
        let Role::Outgoing { link: Some(link), .. } = &mut connection.role else { return };
        match link.send(envelope, message, &mut connection.outbox) {
            Ok(()) => drop(self.dirty.insert(id)),
            Err(reason) => self.close(id, &reason),
        }
    }

    /// Returns to the nodes that called us the credits that are due, behind the answers of this round; or all that are
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

    /// Sends a replica's answer to a writer on another node.
    pub fn send_to_writer(&mut self, link: LinkId, envelope: Envelope, message: &ToWriter) {
        let Some(connection) = self.connections.get_mut(&link.0).filter(|connection| connection.is_open()) else {
            return;
        };
        if let Some(payload) = connection.outbox.append(|out| encode_to_writer(envelope, message, out)) {
            connection.outbox.shared(&payload, 0, payload.len());
        }
        self.dirty.insert(link.0);
    }

    pub fn ready_peers(&self) -> Vec<NodeId> {
        self.outgoing.iter().filter(|(_, outgoing)| outgoing.ready).map(|(node, _)| *node).collect()
    }
}
