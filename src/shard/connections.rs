//! Sockets of a shard: accepting, receiving, sending, closing. A slot lives until its last operation has been answered.

use super::control::ShardOptions;
use super::core::Shard;
use super::parcel::Departure;
use crate::front::nbd::NbdDoor;
use crate::front::policy::{Origin, Visitor};
use crate::front::seats::{Seat, Seats};
use crate::front::tls::TlsLayer;
use crate::peer::PeerLink;
use crate::reactor::{Outbox, socket};
use crate::wire::Windows;
use anyhow::Result;
use ashlar_model::{NodeId, ShardId};
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of one receive: many small frames at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// The same of a guest that says little: many guests that are idle hold little memory.
const RECEIVE_LITTLE_BYTES: usize = 8 << 10;
/// After so many receives in a row that little would have been enough for, a guest says little.
const LITTLE_RECEIVES: u32 = 64;
/// The last that a connection is sent goes out within this time.
const FINISH_US: u64 = 60_000_000;
/// A caller says who it is within this time.
const HELLO_US: u64 = 10_000_000;
/// Links from and to other shards that a shard has room for besides all guests: each node has one for each of its shards.
const LINKS_MAX: usize = 2048;
/// Connections of all kinds on a shard; more are closed at once.
const CONNECTIONS_MAX: usize = crate::front::doors::GUESTS_MAX as usize + LINKS_MAX;

/// What a listener's connections are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Door {
    Peer,
    Guest,
}

/// A listening socket.
pub(super) struct Listener {
    fd: OwnedFd,
    door: Door,
    /// Only this machine reaches it.
    is_local: bool,
    /// Accepting failed; the tick tries again.
    idle: bool,
}

impl Listener {
    pub fn open_all(options: &ShardOptions) -> Result<Vec<Self>> {
        let listener = |fd, door| Self { fd, door, is_local: false, idle: false };
        let mut listeners = vec![listener(socket::listen_tcp(options.data_address)?, Door::Peer)];
        if let Some(path) = &options.nbd_socket {
            listeners.push(Self { is_local: true, ..listener(socket::listen_unix(path)?, Door::Guest) });
        }
        if let Some(address) = options.nbd_address {
            listeners.push(listener(socket::listen_tcp(address)?, Door::Guest));
        }
        Ok(listeners)
    }
}

/// Where a guest comes from. An IPv4 address is one, whatever the listener's family.
fn origin(fd: &OwnedFd, is_local: bool) -> Origin {
    if is_local {
        return Origin::Unix;
    }
    let peer = fd.try_clone().and_then(|fd| TcpStream::from(fd).peer_addr());
    // One that is gone already has no address, and gets none that a network could be meant for.
    Origin::Tcp(peer.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| peer.ip().to_canonical()))
}

/// What is at the other end.
pub(super) enum Role {
    /// A shard that called us: its writers talk to our replicas.
    Incoming { link: PeerLink, peer: Option<NodeId> },
    /// A shard that we called: our writers talk to its replicas. No link until the connection is made.
    Outgoing { to: ShardId, link: Option<PeerLink> },
    Guest {
        door: Box<NbdDoor>,
        /// Once the guest has started it.
        tls: Option<Box<TlsLayer>>,
        visitor: Visitor,
        seat: Seat,
        since_us: u64,
        waits_for_us: bool,
    },
}

/// One connection.
pub(super) struct Connection {
    pub fd: OwnedFd,
    pub role: Role,
    pub outbox: Outbox,
    pub opened_us: u64,
    /// Received and not taken yet: the other end is ahead of us.
    pub unread: Vec<u8>,
    /// It is about to go to another shard: nothing is received on it any more.
    pub departure: Option<Departure>,
    buffer: Option<Vec<u8>>,
    /// Receives in a row that a little buffer would have been enough for.
    little_receives: u32,
    receiving: bool,
    sending: bool,
    connecting: bool,
    /// The other end takes nothing more: what there is to send is dropped.
    pub unheard: bool,
    /// Nothing more comes; what came before is carried out.
    ended: bool,
    /// What is left to be sent goes out by then, or not at all.
    finish_by_us: u64,
    /// Close as soon as the outbox is empty.
    finishing: bool,
    closed: bool,
}

impl Connection {
    /// Lower keys are listeners.
    pub const FIRST_KEY: u64 = 16;

    pub fn new(fd: OwnedFd, role: Role, connecting: bool) -> Self {
        let receive_bytes = if matches!(role, Role::Guest { .. }) { RECEIVE_LITTLE_BYTES } else { RECEIVE_BYTES };
        Self {
            fd,
            role,
            outbox: Outbox::default(),
            opened_us: 0,
            unread: Vec::new(),
            departure: None,
            buffer: Some(vec![0; receive_bytes]),
            little_receives: 0,
            receiving: false,
            sending: false,
            connecting,
            unheard: false,
            ended: false,
            finish_by_us: u64::MAX,
            finishing: false,
            closed: false,
        }
    }

    /// Makes what is to be sent ready for it.
    fn fill_outbox(&mut self) {
        if let Role::Guest { tls: Some(tls), .. } = &mut self.role {
            if self.finishing {
                tls.finish();
            }
            if self.unheard {
                tls.plain.clear();
            }
            tls.encrypt(&mut self.outbox);
        }
        if self.unheard {
            self.outbox.clear();
        }
    }

    /// Takes back the buffer that so many bytes came in, or one of the size that they call for.
    fn keep_buffer(&mut self, buffer: Vec<u8>, received_bytes: usize) {
        let little = received_bytes < RECEIVE_LITTLE_BYTES;
        self.little_receives = if little { self.little_receives.saturating_add(1) } else { 0 };
        let is_guest = matches!(self.role, Role::Guest { .. });
        let wanted_bytes = match (is_guest, little) {
            (false, _) | (true, false) => RECEIVE_BYTES,
            (true, true) if self.little_receives >= LITTLE_RECEIVES => RECEIVE_LITTLE_BYTES,
            (true, true) => buffer.len(),
        };
        self.buffer = Some(if buffer.len() == wanted_bytes { buffer } else { vec![0; wanted_bytes] });
    }

    /// It has been ended by us: its slot waits for the kernel only.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn is_open(&self) -> bool {
        !self.closed && !self.finishing
    }

    /// Nothing of it waits for time to pass.
    pub fn rests(&self) -> bool {
        let is_known = match &self.role {
            Role::Incoming { peer, .. } => peer.is_some(),
            Role::Outgoing { .. } => true,
            Role::Guest { door, .. } => !door.is_negotiating(),
        };
        is_known && !self.finishing && !self.ended && self.unread.is_empty()
    }

    /// The kernel has nothing of it.
    pub fn is_at_rest(&self) -> bool {
        !self.receiving && !self.sending && !self.connecting
    }
}

impl Shard {
    pub fn accept_next(&mut self, listener: usize) {
        let fd = self.listeners[listener].fd.as_raw_fd();
        self.reactor.accept(listener as u64, fd);
    }

    pub fn on_accepted(&mut self, key: u64, result: io::Result<OwnedFd>) {
        let listener = key as usize;
        match result {
            Ok(_) if self.listeners[listener].door == Door::Guest && self.is_full_of_guests() => {}
            Ok(fd) if !self.is_full() && self.shutdown.is_none() => {
                socket::tune(fd.as_raw_fd());
                socket::widen(fd.as_raw_fd());
                let mut outbox = Outbox::default();
                let role = match self.listeners[listener].door {
                    Door::Peer => {
                        socket::tune_peer(fd.as_raw_fd());
                        let (here, shards) = (self.here(), self.siblings.count());
                        let link = PeerLink::answer(self.options.cluster, here, shards, Windows::DEFAULT);
                        Role::Incoming { link, peer: None }
                    }
                    Door::Guest => {
                        let door = Box::new(NbdDoor::new(&mut outbox, self.options.doors.tls()));
                        let origin = origin(&fd, self.listeners[listener].is_local);
                        let visitor = Visitor { origin, tls: None };
                        let seat = Seats::take(&self.siblings.seats);
                        Role::Guest { door, tls: None, visitor, seat, since_us: self.now_us, waits_for_us: false }
                    }
                };
                let id = self.add_connection(Connection { outbox, ..Connection::new(fd, role, false) });
                self.receive_next(id);
            }
            Ok(_) => tracing::warn!("refused a connection: {}", self.full_or_closing()),
            Err(error) => {
                tracing::warn!("failed to accept a connection: {error}");
                self.listeners[listener].idle = true; // the tick tries again
                return;
            }
        }
        self.accept_next(listener);
    }

    pub fn is_full(&self) -> bool {
        self.connections.len() >= CONNECTIONS_MAX
    }

    /// Why no connection is taken.
    pub fn full_or_closing(&self) -> String {
        if self.is_full() { format!("{CONNECTIONS_MAX} are open") } else { "this node is shutting down".into() }
    }

    /// Listens again after a failure, and drops callers who never say who they are.
    pub fn tend_listeners(&mut self) {
        for at in 0..self.listeners.len() {
            if std::mem::take(&mut self.listeners[at].idle) {
                self.accept_next(at);
            }
        }
        self.tend_finishing();
        let now_us = self.now_us;
        let silent = |c: &Connection| {
            matches!(c.role, Role::Incoming { peer: None, .. }) && c.is_open() && now_us > c.opened_us + HELLO_US
        };
        let silent: Vec<u64> = self.connections.iter().filter(|(_, c)| silent(c)).map(|(id, _)| *id).collect();
        for id in silent {
            self.close(id, "no hello for 10 s");
        }
    }

    /// Ends every link of other shards' writers.
    pub fn close_incoming(&mut self) {
        let incoming = |c: &Connection| matches!(c.role, Role::Incoming { .. });
        let ids: Vec<u64> = self.connections.iter().filter(|(_, c)| incoming(c)).map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id, "this node is shutting down");
        }
    }

    pub fn add_connection(&mut self, connection: Connection) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, Connection { opened_us: self.now_us, ..connection });
        self.dirty.insert(id);
        id
    }

    /// Asks for more bytes, unless some are still unread.
    pub fn receive_next(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.closed
            || connection.ended
            || connection.receiving
            || connection.connecting
            || connection.departure.is_some()
            || !connection.unread.is_empty()
        {
            return;
        }
        let buffer = connection.buffer.take().expect("the buffer is here while nothing is received");
        connection.receiving = true;
        let fd = connection.fd.as_raw_fd();
        self.reactor.receive(id, fd, buffer);
    }

    pub fn on_received(&mut self, id: u64, buffer: Vec<u8>, result: io::Result<usize>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.receiving = false;
        let bytes = match result {
            // Nothing more is taken, but what waits to be sent still goes out.
            Ok(bytes) if bytes > 0 && connection.finishing && !connection.closed => {
                connection.buffer = Some(buffer);
                self.dirty.insert(id);
                return;
            }
            Ok(bytes) if bytes > 0 && connection.is_open() => bytes,
            Ok(_) => {
                connection.buffer = Some(buffer);
                self.end_of_stream(id, "the other side closed the connection");
                return;
            }
            Err(error) => {
                connection.buffer = Some(buffer);
                self.end_of_stream(id, &error.to_string());
                return;
            }
        };
        match connection.role {
            Role::Incoming { .. } | Role::Outgoing { .. } => self.peer_bytes(id, &buffer[..bytes]),
            Role::Guest { .. } => self.guest_bytes(id, &buffer[..bytes]),
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.keep_buffer(buffer, bytes);
        }
        self.receive_or_pause(id);
    }

    /// Nothing more is received. A guest that has said goodbye is owed what it asked for before, heard or unheard.
    fn end_of_stream(&mut self, id: u64, why: &str) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let owed = matches!(&connection.role, Role::Guest { door, .. } if door.is_disconnecting());
        if owed && connection.is_open() {
            connection.ended = true;
            self.dirty.insert(id);
        } else {
            self.close(id, why);
        }
    }

    fn receive_or_pause(&mut self, id: u64) {
        let pause = match self.connections.get(&id).map(|connection| &connection.role) {
            Some(Role::Incoming { .. }) => self.replicas_are_full(),
            _ => false,
        };
        if pause {
            self.paused.insert(id);
        } else {
            self.receive_next(id);
        }
        self.reap(id);
    }

    pub fn on_connected(&mut self, id: u64, result: io::Result<()>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.connecting = false;
        match result {
            Ok(()) if connection.is_open() => {
                self.greet_peer(id);
                self.receive_next(id);
            }
            Ok(()) => self.reap(id),
            Err(error) => self.close(id, &error.to_string()),
        }
    }

    pub fn on_sent(&mut self, id: u64, result: io::Result<usize>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.sending = false;
        match result {
            Ok(_) => {
                self.dirty.insert(id);
                self.reap(id);
            }
            Err(_) if self.guest_is_unheard(id) => {
                self.dirty.insert(id);
            }
            Err(error) => self.close(id, &error.to_string()),
        }
    }

    /// Sends what there is and takes again what had to wait.
    pub fn flush_connections(&mut self) {
        self.return_credits(false);
        if !self.replicas_are_full() {
            self.dirty.append(&mut self.paused);
        }
        while let Some(id) = self.dirty.first().copied() {
            self.retry_unread(id);
            self.dirty.remove(&id);
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.fill_outbox();
            if !connection.sending && !connection.connecting && !connection.closed && connection.departure.is_none() {
                let fd = connection.fd.as_raw_fd();
                connection.sending = self.reactor.send(id, fd, &mut connection.outbox);
            }
            if connection.finishing && !connection.sending && connection.outbox.is_empty() {
                self.close(id, "finished");
            } else if !connection.receiving && !connection.finishing {
                self.receive_or_pause(id);
            }
        }
    }

    /// Closes after what waits has been sent: a refusal, say.
    pub fn finish(&mut self, id: u64) {
        let now_us = self.now_us;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.finishing = true;
            connection.finish_by_us = connection.finish_by_us.min(now_us + FINISH_US);
            self.dirty.insert(id);
        }
    }

    /// Ends connections that do not take what was left to be sent.
    fn tend_finishing(&mut self) {
        let stuck = |c: &Connection| !c.closed && self.now_us > c.finish_by_us;
        let stuck: Vec<u64> = self.connections.iter().filter(|(_, c)| stuck(c)).map(|(id, _)| *id).collect();
        for id in stuck {
            self.close(id, "it does not take what is left to be sent");
        }
    }

    /// Ends a connection. Its slot goes when the kernel has answered everything.
    pub fn close(&mut self, id: u64, why: &str) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.closed {
            connection.closed = true;
            connection.outbox.clear();
            connection.unread.clear();
            socket::shut_down(connection.fd.as_raw_fd());
            match connection.role {
                Role::Guest { .. } => self.guest_left(id, why),
                Role::Incoming { .. } | Role::Outgoing { .. } => self.peer_left(id, why),
            }
        }
        self.reap(id);
    }

    fn reap(&mut self, id: u64) {
        let idle = |c: &Connection| c.closed && c.is_at_rest();
        if self.connections.get(&id).is_some_and(idle) {
            self.connections.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Connection {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        let door = Box::new(NbdDoor::new(&mut outbox, crate::front::doors::Doors::default().tls()));
        let visitor = Visitor { origin: Origin::Unix, tls: None };
        let seat = Seats::take(&std::sync::Arc::default());
        let role = Role::Guest { door, tls: None, visitor, seat, since_us: 0, waits_for_us: false };
        Connection::new(ours.into(), role, false)
    }

    /// The connection receives so many bytes; gives the size of its next buffer.
    fn receive(connection: &mut Connection, bytes: usize) -> usize {
        let buffer = connection.buffer.take().unwrap();
        connection.keep_buffer(buffer, bytes);
        connection.buffer.as_ref().unwrap().len()
    }

    #[test]
    fn a_guest_has_a_large_buffer_while_it_says_much() {
        let mut guest = guest();
        assert_eq!(receive(&mut guest, RECEIVE_LITTLE_BYTES - 1), RECEIVE_LITTLE_BYTES);
        assert_eq!(receive(&mut guest, RECEIVE_LITTLE_BYTES), RECEIVE_BYTES);
        for _ in 1..LITTLE_RECEIVES {
            assert_eq!(receive(&mut guest, 28), RECEIVE_BYTES);
        }
        assert_eq!(receive(&mut guest, 28), RECEIVE_LITTLE_BYTES);
        assert_eq!(receive(&mut guest, 28), RECEIVE_LITTLE_BYTES);
    }
}
