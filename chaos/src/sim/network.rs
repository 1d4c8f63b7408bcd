//! Connections between writers and devices' machines: ordered while they last, slow, cut in silence, broken with
//! everything in flight, and outlived by what was sent through them.
//!
//! It must never know what the messages mean.

use super::script::Class;
use crate::prng::Prng;
use ashlar::replica::LinkId;
use ashlar::wire::message::{Envelope, ToReplica, ToWriter};

/// Pause before a broken connection is made anew, in microseconds.
pub const RECONNECT_US: u64 = 100_000;
/// A device that owes an answer for this long is given up, in microseconds.
pub const SILENCE_US: u64 = 1_500_000;
/// A connection on which nothing was asked and nothing said for this long is tried, in microseconds.
pub const PULSE_US: u64 = 2_000_000;

/// A message on its way.
#[derive(Clone, Debug)]
pub enum Message {
    /// To a device.
    ToReplica(Envelope, ToReplica),
    /// To a writer.
    ToWriter(Envelope, ToWriter),
    /// The other end closed the connection.
    Closed,
}

/// Which way a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the writer to the device.
    ToDevice,
    /// Back.
    ToWriter,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::ToDevice, Self::ToWriter];
}

/// One end's view of a connection, and what travels towards it.
#[derive(Debug)]
pub struct End {
    /// This end has not closed it.
    pub open: bool,
    /// Arrival times never go back, in microseconds.
    pub arrives_us: u64,
    /// Sent while the way was cut: arrives when it heals.
    pub held: Vec<Message>,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    /// Its writer.
    pub writer: usize,
    /// Its device's machine.
    pub machine: usize,
    /// Both are one process: no wire, no faults.
    pub local: bool,
    /// The device's end, and the writer's.
    ends: [End; 2],
    /// Since when the writer waits for the device to say anything, in microseconds.
    pub owed_since_us: Option<u64>,
    /// When the device said something last, in microseconds.
    pub heard_us: u64,
    /// Randomness of its messages.
    pub prng: Prng,
}

impl Link {
    /// The end that a message reaches.
    pub fn end(&mut self, way: Way) -> &mut End {
        &mut self.ends[way as usize]
    }

    /// Some end has not closed it.
    fn is_open(&self) -> bool {
        self.ends.iter().any(|end| end.open)
    }
}

/// A running fault on wires.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// Number of the fault.
    pub number: usize,
    /// [`Class::Cut`], [`Class::OneWay`] or [`Class::Lossy`].
    pub class: Class,
    /// The machine at whose wires it is.
    pub machine: usize,
    /// Only the wire to this writer; `None`: to every one, later ones too.
    pub writer: Option<usize>,
    /// Not the wire to this writer.
    pub except: Option<usize>,
    /// The way that is cut one way.
    pub way: Way,
}

impl Trouble {
    fn is_on(&self, writer: usize, machine: usize) -> bool {
        self.machine == machine && self.writer.is_none_or(|only| only == writer) && self.except != Some(writer)
    }
}

/// The connection in use between a writer and a machine.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// The connection.
    pub link: Option<LinkId>,
    /// When the writer may try again, in microseconds.
    pub retry_at_us: u64,
    /// Connections made so far.
    met: u64,
}

/// Every connection that has been, and every wire.
#[derive(Debug, Default)]
pub struct Network {
    links: Vec<Link>,
    /// By writer, then by machine.
    wires: Vec<Vec<Wire>>,
    /// Faults that run.
    pub troubles: Vec<Trouble>,
}

impl Network {
    /// Makes wires for a new writer.
    pub fn add_writer(&mut self, machines: usize) {
        self.wires.push(vec![Wire::default(); machines]);
    }

    /// The wire between a writer and a machine.
    pub fn wire(&mut self, writer: usize, machine: usize) -> &mut Wire {
        &mut self.wires[writer][machine]
    }

    /// The connection in use between a writer and a machine.
    pub fn linked(&self, writer: usize, machine: usize) -> Option<LinkId> {
        self.wires[writer][machine].link
    }

    /// A new connection.
    pub fn connect(&mut self, seed: u64, writer: usize, machine: usize, local: bool) -> LinkId {
        let id = LinkId(self.links.len() as u64 + 1);
        let end = || End { open: true, arrives_us: 0, held: Vec::new() };
        let wire = self.wire(writer, machine);
        wire.link = Some(id);
        wire.met += 1;
        // The stream depends on who talks and how often they met, not on what others do.
        let entity = (writer as u64) << 32 | (machine as u64) << 24 | wire.met;
        let prng = Prng::of(seed, "link", entity);
        self.links.push(Link { writer, machine, local, ends: [end(), end()], owed_since_us: None, heard_us: 0, prng });
        id
    }

    /// A connection, closed or not.
    pub fn link(&mut self, id: LinkId) -> &mut Link {
        &mut self.links[id.0 as usize - 1]
    }

    /// The ends of a connection: writer and machine.
    pub fn ends(&self, id: LinkId) -> (usize, usize) {
        let link = &self.links[id.0 as usize - 1];
        (link.writer, link.machine)
    }

    /// Connections of which some end is open, or something is held.
    pub fn alive(&self) -> Vec<LinkId> {
        let alive = |link: &Link| link.is_open() || link.ends.iter().any(|end| !end.held.is_empty());
        self.links.iter().zip(1..).filter(|(link, _)| alive(link)).map(|(_, id)| LinkId(id)).collect()
    }

    /// True while nothing passes this way.
    pub fn is_cut(&self, writer: usize, machine: usize, way: Way) -> bool {
        let cuts = |trouble: &Trouble| match trouble.class {
            Class::Cut => true,
            Class::OneWay => trouble.way == way,
            _ => false,
        };
        self.troubles.iter().any(|trouble| cuts(trouble) && trouble.is_on(writer, machine))
    }

    /// True while messages are lost, repeated and reordered.
    pub fn is_lossy(&self, writer: usize, machine: usize) -> bool {
        self.troubles.iter().any(|trouble| trouble.class == Class::Lossy && trouble.is_on(writer, machine))
    }
}
