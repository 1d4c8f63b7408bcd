//! What goes wrong, and how it is put right before the liveness phase.

use super::world::{Ev, VOLUME, World};
use ashlar::replica::ReplicaEngine;
use ashlar::volume;

/// How often each fault was injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    pub crashes: u64,
    pub cuts: u64,
    pub writer_crashes: u64,
    pub takeovers: u64,
    pub closes: u64,
    pub meta_outages: u64,
    pub rot: u64,
    pub full: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        let Counts { crashes, cuts, writer_crashes, takeovers, closes, meta_outages, rot, full } = *self;
        crashes + cuts + writer_crashes + takeovers + closes + meta_outages + rot + full
    }
}

impl World {
    pub fn inject_fault(&mut self) {
        match self.faults.below(20) {
            0..=4 => self.crash_some_device(),
            5..=8 => self.cut_some_link(),
            9..=10 => self.heal_links(),
            11..=12 => self.crash_writer_and_attach_again(),
            13..=14 => self.take_over(),
            15 => self.close_and_attach_again(),
            16 => {
                self.meta.up = !self.meta.up;
                self.counts.meta_outages += 1;
            }
            17 => self.power_cut(),
            18 => {
                // Damage stays within what the copies can heal.
                if self.devices.len() > 2 && self.devices[0].store.rot(VOLUME, &mut self.faults).is_some() {
                    self.counts.rot += 1;
                }
            }
            _ => {
                let device = self.faults.below(self.devices.len() as u64) as usize;
                self.devices[device].store.full = !self.devices[device].store.full;
                self.counts.full += 1;
            }
        }
    }

    fn crash_some_device(&mut self) {
        let device = self.faults.below(self.devices.len() as u64) as usize;
        self.crash_device(device);
    }

    fn crash_device(&mut self, device: usize) {
        if self.devices[device].engine.is_none() {
            return;
        }
        self.counts.crashes += 1;
        self.devices[device].store.crash(&mut self.disks);
        self.devices[device].engine = None;
        self.devices[device].life += 1;
        for writer in 0..self.writers.len() {
            self.disconnect(writer, device);
        }
        let after = self.faults.between(1_000, 8_000_000);
        self.at(after, Ev::Restart { device });
    }

    pub fn restart_device(&mut self, device: usize) {
        let state = &mut self.devices[device];
        if state.engine.is_none() {
            let durable = state.store.durable.clone();
            state.engine = Some(ReplicaEngine::new(state.id, durable.promised, durable.lanes));
        }
    }

    fn power_cut(&mut self) {
        for device in 0..self.devices.len() {
            self.crash_device(device);
        }
        if let Some(writer) = self.current_writer() {
            self.crash_writer(writer);
            self.new_writer();
        }
    }

    fn cut_some_link(&mut self) {
        let device = self.faults.below(self.devices.len() as u64) as usize;
        let whole_device = self.faults.chance(1, 2);
        let ends: Vec<_> = self.network.ends().into_iter().filter(|(_, d)| *d == device).collect();
        for (writer, device) in ends {
            if whole_device || self.faults.chance(1, 2) {
                let stays = self.faults.chance(2, 3);
                self.counts.cuts += 1;
                self.network.link(writer, device).cut = stays;
                self.disconnect(writer, device);
            }
        }
    }

    fn heal_links(&mut self) {
        for (writer, device) in self.network.ends() {
            self.network.link(writer, device).cut = false;
        }
    }

    fn crash_writer(&mut self, writer: usize) {
        self.counts.writer_crashes += 1;
        for device in 0..self.devices.len() {
            self.disconnect(writer, device);
        }
        let epoch = self.writers[writer].epoch;
        self.writers[writer].engine = None;
        self.workload.abandon(writer, epoch);
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.writers.len()).filter(|w| self.writers[*w].engine.is_some() && !self.writers[*w].closed).collect()
    }

    fn crash_writer_and_attach_again(&mut self) {
        if let Some(writer) = self.alive().last().copied() {
            self.crash_writer(writer);
        }
        self.new_writer();
    }

    /// A new writer while the old one lives on as a zombie.
    fn take_over(&mut self) {
        let alive = self.alive();
        if alive.len() >= self.options.writers_max {
            self.crash_writer(alive[0]);
        }
        self.counts.takeovers += 1;
        self.new_writer();
    }

    fn close_and_attach_again(&mut self) {
        if let Some(writer) = self.alive().last().copied() {
            self.counts.closes += 1;
            self.volume_event(writer, volume::Event::Close);
        }
        if self.faults.chance(1, 2) {
            self.new_writer();
        }
    }

    /// Damages blocks of devices that are all in sync, and leaves a good copy of each.
    pub fn rot_within_tolerance(&mut self) {
        let blocks: Vec<u64> = self.devices[0].store.durable.blocks.keys().copied().collect();
        for block in blocks {
            let good = self.faults.below(self.devices.len() as u64) as usize;
            for device in (0..self.devices.len()).filter(|device| *device != good) {
                if self.faults.chance(1, 2) {
                    let metadata = self.faults.chance(1, 4);
                    self.devices[device].store.damage(VOLUME, block, metadata);
                }
            }
        }
        self.latent = self.devices.iter().map(|device| device.store.damaged_blocks().len() as u64).sum();
    }

    /// Everything works again; what is broken by then must be repaired by the cluster itself.
    pub fn heal(&mut self) {
        self.faulty = false;
        self.meta.up = true;
        self.heal_links();
        for device in 0..self.devices.len() {
            self.devices[device].store.full = false;
            self.restart_device(device);
        }
        // A guest comes back last: whoever holds the volume now, a new writer takes it.
        self.new_writer();
    }
}
