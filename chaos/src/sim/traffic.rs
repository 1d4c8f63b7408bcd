//! How messages travel: sent, delayed, lost, repeated, held back, delivered; and how connections come and go.

use super::network::{Message, PULSE_US, RECONNECT_US, SILENCE_US, Way};
use super::world::{Ev, World};
use ashlar::replica::{self, LinkId};
use ashlar::volume;
use ashlar::wire::Permit;
use ashlar::wire::message::ToWriter;

impl Message {
    /// A number per kind, for the hash of the trace.
    pub(super) fn kind(&self) -> u64 {
        match self {
            Message::ToReplica(envelope, _) => 1 | u64::from(envelope.lane & 0x1F) << 2,
            Message::ToWriter(envelope, _) => 2 | u64::from(envelope.lane & 0x1F) << 2,
            Message::Closed => 3,
        }
    }
}

impl World {
    /// Time on the wire, in microseconds.
    fn travel_us(&mut self, link: LinkId) -> u64 {
        let (instant, longest) = (self.options.instant, self.options.delay_us_max);
        let link = self.network.link(link);
        if link.local {
            return if instant { 0 } else { 5 };
        }
        if link.prng.chance(1, 500) {
            return link.prng.between(0, longest * 10);
        }
        let longest = if link.prng.chance(1, 20) { longest } else { 300 };
        link.prng.between(20, longest.max(21))
    }

    /// Sends a message through a connection, whatever becomes of it.
    pub fn send(&mut self, id: LinkId, way: Way, message: Message) {
        let (writer, machine) = self.network.ends(id);
        let local = self.network.link(id).local;
        if !local && self.network.is_cut(writer, machine, way) {
            self.network.link(id).end(way).held.push(message);
            return;
        }
        let delay_us = self.travel_us(id);
        let now_us = self.now_us;
        // The end of a connection is no message: it stays behind everything that was sent before.
        let lossy = !local && !matches!(message, Message::Closed) && self.network.is_lossy(writer, machine);
        let link = self.network.link(id);
        if lossy {
            if link.prng.chance(1, 8) {
                return;
            }
            if link.prng.chance(1, 8) {
                let late_us = now_us + link.prng.between(0, 300_000);
                self.at_time(late_us, Ev::Arrive { link: id, way, message: message.clone() });
            }
            let link = self.network.link(id);
            if link.prng.chance(1, 8) {
                let late_us = now_us + delay_us + link.prng.between(0, 50_000);
                return self.at_time(late_us, Ev::Arrive { link: id, way, message });
            }
        }
        let end = self.network.link(id).end(way);
        end.arrives_us = end.arrives_us.max(now_us + delay_us);
        let arrives_us = end.arrives_us;
        self.at_time(arrives_us, Ev::Arrive { link: id, way, message });
    }

    /// A message has arrived.
    pub fn arrive(&mut self, id: LinkId, way: Way, message: Message) {
        if !self.network.link(id).end(way).open {
            return;
        }
        let (writer, machine) = self.network.ends(id);
        match message {
            Message::Closed if way == Way::ToDevice => self.close_at_device(id),
            Message::Closed => self.close_at_writer(id),
            Message::ToReplica(envelope, message) => {
                let node = &self.nodes[machine];
                if node.replica.is_none() || node.id != envelope.device {
                    let message = Message::ToWriter(envelope, ToWriter::NotServed);
                    return self.send(id, Way::ToWriter, message);
                }
                self.node_event(
                    machine,
                    replica::Event::Message { link: id, envelope, message, permit: Permit::none() },
                );
            }
            Message::ToWriter(envelope, message) => {
                let link = self.network.link(id);
                (link.owed_since_us, link.heard_us) = (None, self.now_us);
                self.volume_event(writer, volume::Event::Message { envelope, message });
            }
        }
    }

    /// The writer's end closes; the device learns it after all that was sent before.
    pub fn close_at_writer(&mut self, id: LinkId) {
        let (writer, machine) = self.network.ends(id);
        if !std::mem::replace(&mut self.network.link(id).end(Way::ToWriter).open, false) {
            return;
        }
        self.send(id, Way::ToDevice, Message::Closed);
        let retry_at_us = self.now_us + RECONNECT_US;
        let wire = self.network.wire(writer, machine);
        if wire.link == Some(id) {
            wire.link = None;
            wire.retry_at_us = retry_at_us;
            for device in self.nodes[machine].ids.clone() {
                self.volume_event(writer, volume::Event::LinkDown { device });
            }
        }
    }

    /// The device's end closes.
    pub fn close_at_device(&mut self, id: LinkId) {
        let machine = self.network.ends(id).1;
        if std::mem::replace(&mut self.network.link(id).end(Way::ToDevice).open, false) {
            self.node_event(machine, replica::Event::LinkClosed { link: id });
            self.send(id, Way::ToWriter, Message::Closed);
        }
    }

    /// The machine's process is gone. Without power nobody says so to the other ends.
    pub fn drop_links_of_node(&mut self, machine: usize, power: bool) {
        for id in self.network.alive() {
            if self.network.ends(id).1 != machine {
                continue;
            }
            let end = self.network.link(id).end(Way::ToDevice);
            end.held.clear();
            if std::mem::replace(&mut end.open, false) && !power {
                self.send(id, Way::ToWriter, Message::Closed);
            }
        }
    }

    /// The writer's process is gone.
    pub fn drop_links_of_writer(&mut self, writer: usize, power: bool) {
        for id in self.network.alive() {
            if self.network.ends(id).0 != writer {
                continue;
            }
            let end = self.network.link(id).end(Way::ToWriter);
            end.held.clear();
            if std::mem::replace(&mut end.open, false) && !power {
                self.send(id, Way::ToDevice, Message::Closed);
            }
        }
        for machine in 0..self.nodes.len() {
            self.network.wire(writer, machine).link = None;
        }
    }

    /// A fault on wires is over: what was held back arrives. Of a connection that is closed it may be lost as well.
    pub fn release_held(&mut self) {
        for id in self.network.alive() {
            let (writer, machine) = self.network.ends(id);
            for way in Way::BOTH {
                if self.network.is_cut(writer, machine, way) {
                    continue;
                }
                let other = if way == Way::ToDevice { Way::ToWriter } else { Way::ToDevice };
                let link = self.network.link(id);
                let held = std::mem::take(&mut link.end(way).held);
                let lost = !link.end(other).open && link.prng.chance(1, 2);
                for message in held {
                    if !lost || matches!(message, Message::Closed) {
                        self.send(id, way, message);
                    }
                }
            }
        }
    }

    /// Makes the connections that a writer lacks, and gives up those that are silent for too long.
    pub fn tend_links(&mut self, writer: usize) {
        for machine in 0..self.nodes.len() {
            let wire = self.network.wire(writer, machine).clone();
            match wire.link {
                Some(id) => {
                    let link = self.network.link(id);
                    let owed = link.owed_since_us.filter(|_| !link.local);
                    if owed.is_some_and(|since_us| self.now_us > since_us + SILENCE_US) {
                        ashlar_model::mutation::mark("sim: silent link given up");
                        self.close_at_writer(id);
                    } else if !link.local && owed.is_none() && self.now_us >= link.heard_us + PULSE_US {
                        let devices = vec![self.nodes[machine].id];
                        self.volume_event(writer, volume::Event::Pulse { devices });
                    }
                }
                None if self.now_us >= wire.retry_at_us => self.try_connect(writer, machine),
                None => {}
            }
        }
    }

    fn try_connect(&mut self, writer: usize, machine: usize) {
        let node = &self.nodes[machine];
        let answers = node.store.is_some() && node.stopped.faults == 0;
        let cut = Way::BOTH.into_iter().any(|way| self.network.is_cut(writer, machine, way));
        let local = self.writers[writer].owner.machine == machine && self.options.colocated;
        if answers && (local || !cut) {
            let id = self.network.connect(self.options.seed, writer, machine, local);
            self.network.link(id).heard_us = self.now_us;
            for device in self.nodes[machine].ids.clone() {
                self.volume_event(writer, volume::Event::LinkUp { device });
            }
        }
    }
}
