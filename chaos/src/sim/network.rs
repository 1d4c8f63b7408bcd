//! Links between writers and devices: ordered while they last, slow, and cut at any moment with everything in flight.

use ashlar::replica::LinkId;
use ashlar::wire::message::{Envelope, ToReplica, ToWriter};
use std::collections::BTreeMap;

/// One link of a writer to a device.
#[derive(Debug, Default)]
pub struct Link {
    /// Set while the link is up.
    pub id: Option<LinkId>,
    /// Faults keep it down.
    pub cut: bool,
    /// Arrival times never go back within a link.
    pub to_replica_at_us: u64,
    /// The same for answers.
    pub to_writer_at_us: u64,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub enum Message {
    /// To a device.
    ToReplica(Envelope, ToReplica),
    /// To a writer.
    ToWriter(Envelope, ToWriter),
}

/// Every link, by (writer, device).
#[derive(Debug, Default)]
pub struct Network {
    links: BTreeMap<(usize, usize), Link>,
    next_link: u64,
}

impl Network {
    /// The link between a writer and a device.
    pub fn link(&mut self, writer: usize, device: usize) -> &mut Link {
        self.links.entry((writer, device)).or_default()
    }

    /// A name for a new connection.
    pub fn new_id(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }

    /// The writer and device of a connection that is up.
    pub fn find(&self, id: LinkId) -> Option<(usize, usize)> {
        self.links.iter().find(|(_, link)| link.id == Some(id)).map(|(ends, _)| *ends)
    }

    /// Every pair that has ever met.
    pub fn ends(&self) -> Vec<(usize, usize)> {
        self.links.keys().copied().collect()
    }
}
