//! Connections on their way from one shard of the daemon to another.
//!
//! A connection moves when nothing of it is in the old shard's ring any more, with everything that belongs to it: what was
//! received and not taken, what is to be sent, its session and its TLS. Parcels come in the order in which they were sent.

use super::connections::{Connection, Role};
use super::control::ShardCommand;
use super::core::Shard;
use super::guests::is_lost;
use crate::front::nbd::NbdDoor;
use crate::front::policy::Visitor;
use crate::front::seats::Seat;
use crate::front::tls::TlsLayer;
use crate::peer::PeerLink;
use crate::reactor::Outbox;
use crate::wire::Windows;
use ashlar_model::VolumeId;
use ashlar_nbd::hangup::has_hung_up;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// A departing guest that has hung up is waited for so long by those that want the same volume, as at the volume itself.
const DEPARTURE_US: u64 = 1_000_000;

/// A connection for another shard.
pub struct Parcel(Moving);

enum Moving {
    /// Of a shard that calls, with the hello and whatever came behind it.
    Link {
        fd: OwnedFd,
        received: Vec<u8>,
    },
    Guest(Box<MovingGuest>),
}

/// A guest that has chosen its export and not been answered.
struct MovingGuest {
    fd: OwnedFd,
    door: Box<NbdDoor>,
    tls: Option<Box<TlsLayer>>,
    visitor: Visitor,
    seat: Seat,
    /// Since when it is in its handshake.
    since_us: u64,
    outbox: Outbox,
    unread: Vec<u8>,
    export: String,
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Moving::Link { received, .. } => write!(f, "Parcel(a link, {} bytes)", received.len()),
            Moving::Guest(guest) => write!(f, "Parcel(a guest of '{}')", guest.export),
        }
    }
}

impl Parcel {
    /// A link, with what was received on it.
    pub(super) fn link(fd: OwnedFd, received: Vec<u8>) -> Self {
        Self(Moving::Link { fd, received })
    }
}

/// Where a guest's connection is to go.
#[derive(Debug)]
pub(super) struct Departure {
    shard: u16,
    volume: VolumeId,
    export: String,
    since_us: u64,
}

impl Shard {
    /// Gives a caller's connection to the shard that it wants. Nothing has been sent on it.
    pub fn forward_link(&mut self, id: u64, shard: u16, received: Vec<u8>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        assert!(connection.is_at_rest(), "it was just received from, and had nothing to send");
        let parcel = Parcel::link(connection.fd, received);
        if self.siblings.send(shard, ShardCommand::Adopt(parcel)).is_err() {
            tracing::warn!(shard, "closed a peer's link: the shard takes no more now");
        }
    }

    /// The guest goes to the shard that has the volume, as soon as nothing of it is under way here.
    pub fn depart(&mut self, id: u64, shard: u16, volume: VolumeId, export: &str) {
        let since_us = self.now_us;
        if let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.is_open()) {
            connection.departure = Some(Departure { shard, volume, export: export.to_owned(), since_us });
            self.departures.push(id);
            self.dirty.insert(id);
        }
    }

    /// Sends guests on their way. Called at the end of each round.
    pub fn send_departures(&mut self) {
        if self.departures.is_empty() {
            return;
        }
        let mut waiting: Vec<u64> = Vec::new();
        for id in std::mem::take(&mut self.departures) {
            let Some(connection) = self.connections.get(&id).filter(|connection| connection.is_open()) else {
                continue;
            };
            let Some(departure) = &connection.departure else { continue };
            // One that has hung up may have left requests: who comes behind it for the same volume must not overtake it.
            if connection.is_at_rest() && !waiting.iter().any(|before| self.has_left_for(*before, departure.volume)) {
                self.send_guest(id);
            } else {
                waiting.push(id);
            }
        }
        self.departures = waiting;
    }

    fn has_left_for(&self, id: u64, volume: VolumeId) -> bool {
        self.connections.get(&id).is_some_and(|connection| {
            connection.departure.as_ref().is_some_and(|departure| departure.volume == volume)
                && has_hung_up(connection.fd.as_fd())
        })
    }

    /// Ends what those that hung up on their way have left. Called with each tick.
    pub fn tend_departures(&mut self) {
        let late = |id: &&u64| {
            self.connections.get(id).is_some_and(|connection| {
                let since_us = connection.departure.as_ref().map(|departure| departure.since_us);
                since_us.is_some_and(|since_us| self.now_us > since_us + DEPARTURE_US)
                    && has_hung_up(connection.fd.as_fd())
            })
        };
        for id in self.departures.iter().filter(late).copied().collect::<Vec<_>>() {
            self.close(id, "the guest is gone");
        }
    }

    /// Ends those that have hung up and are on their way to a former home of the volume.
    pub fn drop_departures(&mut self, volume: VolumeId) {
        let left = self.departures.iter().filter(|id| self.has_left_for(**id, volume));
        for id in left.copied().collect::<Vec<_>>() {
            self.close(id, "the guest is gone");
        }
    }

    fn send_guest(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Connection { fd, role, outbox, unread, departure, .. } = connection;
        let (Role::Guest { door, tls, visitor, since_us, seat, .. }, Some(Departure { shard, export, .. })) =
            (role, departure)
        else {
            unreachable!("only guests depart")
        };
        let guest = MovingGuest { fd, door, tls, visitor, seat, since_us, outbox, unread, export };
        let command = ShardCommand::Adopt(Parcel(Moving::Guest(Box::new(guest))));
        if self.siblings.send(shard, command).is_err() {
            tracing::warn!(shard, "closed an NBD connection: the shard of its volume takes no more now");
        }
    }

    /// Takes over a connection from another shard.
    pub fn adopt(&mut self, parcel: Parcel) {
        if self.is_full() || self.closing_stores {
            tracing::warn!("closed a connection from another shard: {}", self.full_or_closing());
            return;
        }
        match parcel.0 {
            Moving::Link { fd, received } => {
                let (here, shards) = (self.here(), self.siblings.count());
                let link = PeerLink::answer(self.options.cluster, here, shards, Windows::DEFAULT);
                let id = self.add_connection(Connection::new(fd, Role::Incoming { link, peer: None }, false));
                self.peer_bytes(id, &received);
                self.receive_next(id);
            }
            Moving::Guest(guest) => self.adopt_guest(*guest),
        }
    }

    /// Bytes that the guest has sent are taken when its export is open; until then it may say goodbye at most.
    fn adopt_guest(&mut self, guest: MovingGuest) {
        let MovingGuest { fd, door, tls, visitor, seat, since_us, outbox, unread, export } = guest;
        let role = Role::Guest { door, tls, visitor, seat, since_us, waits_for_us: false };
        let mut connection = Connection::new(fd, role, false);
        (connection.outbox, connection.unread) = (outbox, unread);
        let id = self.add_connection(connection);
        // Nothing was answered to it, and what it left would come behind what others have done since.
        if self.connections.get(&id).is_some_and(|connection| is_lost(connection, &connection.unread)) {
            self.close(id, "the guest is gone");
        } else {
            self.guest_opens(id, &export);
        }
    }
}
