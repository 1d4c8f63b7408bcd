//! What goes wrong, and how each fault ends.

use super::network::{Trouble, Way};
use super::script::{Class, Fault};
use super::world::{Ev, Who, World};
use crate::prng::Prng;
use ashlar::volume;
use ashlar_model::DeviceId;
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::CHUNK_BYTES;

/// Largest size that operators give the volume, in bytes.
const VOLUME_BYTES_MAX: u64 = 8 * CHUNK_BYTES as u64;

/// How many faults were injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    /// Of all classes.
    pub total: u64,
    /// Devices that failed.
    pub dead: u64,
}

impl World {
    pub fn inject(&mut self, fault: Fault) {
        if !self.faulty {
            return;
        }
        self.counts.total += 1;
        let mut prng = fault.prng();
        let machine = prng.below(self.nodes.len() as u64) as usize;
        match fault.class {
            Class::Crash => self.crash(machine, fault, &mut prng),
            Class::Power => self.lose_power(fault, &mut prng),
            Class::Reset => self.reset(machine, &mut prng),
            Class::Cut | Class::OneWay | Class::Lossy => self.trouble(machine, fault, &mut prng),
            Class::WriterCrash => self.crash_writer(),
            Class::Takeover => self.take_over(),
            Class::Close => self.close_writer(&mut prng),
            Class::Outage => self.metadata_down += 1,
            Class::Metadata => self.metadata_flaky += 1,
            Class::PauseWriter => {
                if let Some(writer) = self.some_writer(&mut prng) {
                    self.paused.insert(fault.number, Who::Writer(writer));
                    self.pause(Who::Writer(writer));
                }
            }
            Class::PauseDevice => {
                self.paused.insert(fault.number, Who::Node(machine));
                self.pause(Who::Node(machine));
            }
            Class::Slow => self.nodes[machine].slow += 1,
            Class::Rot | Class::Unreadable => self.mark_damage(fault.class == Class::Rot, &mut prng),
            Class::Full => self.fill(machine, true),
            Class::Dead => self.break_device(machine),
            Class::Eject => {
                let device = self.nodes[machine].id;
                if let Some(writer) = self.serving_writers().last().copied() {
                    self.volume_event(writer, volume::Event::Eject { device });
                }
            }
            Class::Replace => self.replace(machine),
            Class::Resize => self.resize(&mut prng),
            Class::Split => self.split(machine, fault, &mut prng),
            Class::Lost | Class::Misdirected => self.begin_lies(fault, &mut prng),
            Class::Spoilt => self.doom_metadata(fault),
            Class::Beyond => self.beyond_at_the_end = true,
            Class::Move => self.move_lanes(&mut prng),
            Class::Restore => drop(self.backups.insert(fault.number, self.metadata.backup())),
        }
        self.at(fault.lasts_us, Ev::Over { fault });
    }

    /// The fault is over, if it is one that lasts.
    pub fn end_fault(&mut self, fault: Fault) {
        let machine = fault.prng().below(self.nodes.len() as u64) as usize;
        match fault.class {
            Class::Cut | Class::OneWay | Class::Lossy | Class::Split => {
                self.network.troubles.retain(|trouble| trouble.number != fault.number);
                self.release_held();
            }
            Class::Outage => self.metadata_down = self.metadata_down.saturating_sub(1),
            Class::Metadata => self.metadata_flaky = self.metadata_flaky.saturating_sub(1),
            Class::PauseWriter | Class::PauseDevice => {
                if let Some(who) = self.paused.remove(&fault.number) {
                    self.resume(who);
                }
            }
            Class::Slow => self.nodes[machine].slow = self.nodes[machine].slow.saturating_sub(1),
            Class::Full if self.nodes[machine].full > 0 => self.fill(machine, false),
            Class::Dead => self.mend_device(machine, fault.choice.is_multiple_of(2)),
            Class::Lost | Class::Misdirected => self.end_lies(fault),
            Class::Restore => self.lose_metadata(fault),
            _ => {}
        }
    }

    fn some_writer(&self, prng: &mut Prng) -> Option<usize> {
        let serving = self.serving_writers();
        (!serving.is_empty()).then(|| *prng.pick(&serving))
    }

    fn crash(&mut self, machine: usize, fault: Fault, prng: &mut Prng) {
        self.stop(machine, false);
        if broken(Mutation::EmptyOldIdentity) && prng.chance(1, 3) {
            let id = self.nodes[machine].id;
            self.nodes[machine].format(id);
        }
        let life = self.nodes[machine].life;
        self.at(fault.lasts_us, Ev::Restart { machine, life });
    }

    /// A machine's process is gone, and with it the writers that run in it.
    pub fn stop(&mut self, machine: usize, power: bool) {
        if self.nodes[machine].store.is_some() {
            self.stop_node(machine, power);
            self.drop_links_of_node(machine, power);
        }
        if self.options.colocated {
            self.stop_writers_at(machine, power);
        }
    }

    fn stop_writers_at(&mut self, machine: usize, power: bool) {
        let here = |writer: &usize| self.writers[*writer].owner.machine == machine;
        let dead: Vec<usize> = self.serving_writers().into_iter().filter(here).collect();
        if dead.is_empty() {
            return;
        }
        for writer in dead {
            self.kill_writer(writer, power);
        }
        self.metadata.restart_daemon(machine);
        self.at(10_000, Ev::NewWriter);
    }

    fn lose_power(&mut self, fault: Fault, prng: &mut Prng) {
        let machines = self.nodes.len() + super::metadata::DISKLESS;
        let all = prng.chance(1, 3);
        for machine in 0..machines {
            if !all && prng.chance(1, 2) {
                continue;
            }
            if machine < self.nodes.len() {
                self.stop(machine, true);
                let life = self.nodes[machine].life;
                // Machines come back one after the other.
                let after_us = prng.between(fault.lasts_us / 2, fault.lasts_us);
                self.at(after_us, Ev::Restart { machine, life });
            } else {
                self.stop_writers_at(machine, true);
            }
        }
    }

    /// Connections break with everything in flight.
    fn reset(&mut self, machine: usize, prng: &mut Prng) {
        let whole = prng.chance(1, 2);
        for id in self.network.alive() {
            let link = self.network.link(id);
            if link.machine != machine || link.local || !(whole || prng.chance(1, 2)) {
                continue;
            }
            for way in Way::BOTH {
                link.end(way).held.clear();
            }
            self.close_at_writer(id);
            self.close_at_device(id);
        }
    }

    fn trouble(&mut self, machine: usize, fault: Fault, prng: &mut Prng) {
        let writer = if prng.chance(1, 2) { self.some_writer(prng) } else { None };
        let way = *prng.pick(&Way::BOTH);
        let (number, class) = (fault.number, fault.class);
        self.network.troubles.push(Trouble { number, class, machine, writer, except: None, way });
    }

    /// A writer keeps one device and loses the others; everybody else loses that one.
    fn split(&mut self, machine: usize, fault: Fault, prng: &mut Prng) {
        let Some(alone) = self.some_writer(prng) else { return };
        for other in 0..self.nodes.len() {
            let (writer, except) = if other == machine { (None, Some(alone)) } else { (Some(alone), None) };
            let (number, class, way) = (fault.number, Class::Cut, Way::ToDevice);
            self.network.troubles.push(Trouble { number, class, machine: other, writer, except, way });
        }
        self.new_writer();
    }

    fn crash_writer(&mut self) {
        if let Some(writer) = self.serving_writers().last().copied() {
            let machine = self.writers[writer].owner.machine;
            self.kill_writer(writer, false);
            self.metadata.restart_daemon(machine);
        }
        self.new_writer();
    }

    /// A new writer while the old one lives on as a zombie.
    fn take_over(&mut self) {
        let serving = self.serving_writers();
        if serving.len() >= self.options.writers_max {
            self.kill_writer(serving[0], false);
        }
        self.new_writer();
    }

    fn close_writer(&mut self, prng: &mut Prng) {
        if let Some(writer) = self.serving_writers().last().copied() {
            self.volume_event(writer, volume::Event::Close);
        }
        if prng.chance(1, 3) {
            self.new_writer();
        }
    }

    /// Every operation of the device fails from now on.
    fn break_device(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        node.dead = true;
        (node.disk.fail_reads, node.disk.fail_writes, node.disk.fail_flushes) = (true, true, true);
        self.hurt = true;
        self.counts.dead += 1;
    }

    /// The device works again, with what it had; or another one, empty, stands in its place.
    pub fn mend_device(&mut self, machine: usize, replaced: bool) {
        if !self.nodes[machine].dead || self.nodes[machine].refused {
            return;
        }
        // Without power for a moment: a device whose flush has failed may show until then what it has lost.
        self.stop(machine, true);
        let node = &mut self.nodes[machine];
        node.disk.crash(); // also where no process was left to lose it
        node.dead = false;
        (node.disk.fail_reads, node.disk.fail_writes, node.disk.fail_flushes) = (false, false, false);
        if !(replaced && self.swap(machine)) {
            self.start_node(machine);
        }
    }

    /// An operator takes a working device out and puts an empty one in its place.
    fn replace(&mut self, machine: usize) {
        if !self.nodes[machine].dead && self.can_lose(machine) {
            self.stop(machine, false);
            self.swap(machine);
            self.counts.dead += 1;
            self.hurt = true;
        }
    }

    /// An empty device takes the place of one whose process has ended; false: the metadata service would not have it,
    /// or it was the only one.
    fn swap(&mut self, machine: usize) -> bool {
        self.can_lose(machine) && self.renewed(machine)
    }

    /// The same, whoever else has what it held.
    pub fn renewed(&mut self, machine: usize) -> bool {
        let leaving = self.nodes[machine].id;
        let joining = DeviceId::from_u128(leaving.as_u128() + 0x100);
        if self.metadata_down > 0 {
            return false;
        }
        let done = match self.is_needed(machine) {
            true => self.metadata.replace(machine, leaving, joining),
            false => {
                self.metadata.add_device(machine, joining);
                true
            }
        };
        if !done {
            return false;
        }
        mark("sim: device replaced");
        self.nodes[machine].format(joining);
        self.start_node(machine);
        self.tell_writers();
        true
    }

    /// Every lane is whole, so that the others have what this device has.
    fn can_lose(&self, machine: usize) -> bool {
        !self.is_needed(machine) || self.others_have(machine)
    }

    fn others_have(&self, machine: usize) -> bool {
        self.options.devices > 1
            && !self.nodes.iter().enumerate().any(|(other, node)| other != machine && node.dead)
            && (0..self.options.lanes).all(|lane| self.is_in_sync_everywhere(lane))
    }

    /// Every member is in the lane's set and its device in use now, and no other is.
    pub fn is_in_sync_everywhere(&self, lane: u16) -> bool {
        let in_sync = self.metadata.in_sync(lane);
        let members = self.metadata.members(lane);
        let in_use = |member: &DeviceId| in_sync.contains(member) && self.holder(*member).is_some();
        !self.metadata.is_changing(lane) && in_sync.len() == members.len() && members.iter().all(in_use)
    }

    /// An operator makes the volume larger; its writers learn of it.
    fn resize(&mut self, prng: &mut Prng) {
        let size_bytes = self.metadata.spec().geometry.size_bytes + prng.between(1, 64) * 4096;
        if size_bytes <= VOLUME_BYTES_MAX {
            self.metadata.resize(size_bytes);
            self.tell_writers();
        }
    }

    /// Writers learn what the volume shall be now.
    pub fn tell_writers(&mut self) {
        for writer in self.serving_writers() {
            self.tell(writer);
        }
    }

    /// A writer learns what the volume shall be now.
    pub fn tell(&mut self, writer: usize) {
        if !self.writers[writer].closed {
            let spec = self.metadata.spec();
            self.volume_event(writer, volume::Event::Spec(spec));
        }
    }

    /// Everything works again; what is broken by then must be repaired by the cluster itself.
    pub fn heal(&mut self) {
        self.faulty = false;
        self.healed_us = self.now_us;
        (self.metadata_down, self.metadata_flaky) = (0, 0);
        self.backups.clear();
        self.network.troubles.clear();
        self.release_held();
        for who in std::mem::take(&mut self.paused).into_values() {
            self.resume(who);
        }
        for machine in 0..self.nodes.len() {
            self.nodes[machine].slow = 0;
            while self.nodes[machine].full > 0 {
                self.fill(machine, false);
            }
            self.mend_device(machine, false);
            self.renew(machine);
            self.start_node(machine);
        }
        mark("sim: healed");
        // A guest comes back last: whoever holds the volume now, a new writer takes it.
        self.new_writer();
    }
}
