//! Lanes that move between devices, and devices that free what has left them, as the cluster's agents do it.

use super::world::{Ev, VOLUME, World};
use crate::prng::Prng;
use ashlar::replica;
use ashlar_model::mutation::mark;
use ashlar_model::{DeviceId, Epoch};

/// Longest time until a writer learns of a change, in microseconds.
const TOLD_US_MAX: u64 = 500_000;
/// An agent that hears nothing of what it asked its device asks again, after this many microseconds.
const ASK_AGAIN_US: u64 = 10_000_000;

impl World {
    /// Some lane counts on the machine's device, or will.
    pub fn is_needed(&self, machine: usize) -> bool {
        let id = self.nodes[machine].id;
        (0..self.options.lanes).any(|lane| self.metadata.devices_of(lane).contains(&id))
    }

    /// Some lanes shall move from one device to another, or a change under way is taken back.
    pub fn move_lanes(&mut self, prng: &mut Prng) {
        if self.metadata_down > 0 || self.options.spares == 0 {
            return;
        }
        let lane = prng.below(u64::from(self.options.lanes)) as u16;
        if prng.chance(1, 4) {
            if self.metadata.cancel_move(lane) {
                mark("sim: a move of lanes is taken back");
                self.tell_writers_later(prng);
            }
            return;
        }
        let holders = self.metadata.devices_of(lane);
        let free = self.nodes.iter().filter(|node| !node.dead && !holders.contains(&node.id));
        let free: Vec<DeviceId> = free.map(|node| node.id).collect();
        if free.is_empty() {
            return;
        }
        let (leaving, joining) = (*prng.pick(&self.metadata.members(lane)), *prng.pick(&free));
        let lanes = (0..self.options.lanes).filter(|other| *other == lane || prng.chance(1, 2)).collect();
        if self.metadata.move_lanes(lanes, leaving, joining) {
            mark("sim: lanes move");
            self.tell_writers_later(prng);
        }
    }

    /// Each writer learns of a change in its own time.
    fn tell_writers_later(&mut self, prng: &mut Prng) {
        for writer in self.serving_writers() {
            self.at(prng.between(0, TOLD_US_MAX), Ev::Tell { writer });
        }
    }

    /// The agent of a machine looks whether its device shall free something, or has.
    pub fn reclaim(&mut self, machine: usize) {
        let (id, now_us) = (self.nodes[machine].id, self.now_us);
        if self.metadata_down > 0 || self.nodes[machine].replica.is_none() {
            return;
        }
        if !self.metadata.shall_free(id) {
            (self.nodes[machine].freed, self.nodes[machine].freeing_since_us) = (false, None);
            return;
        }
        if self.nodes[machine].freed {
            return self.report_freed(id);
        }
        if self.nodes[machine].freeing_since_us.is_some_and(|since_us| now_us < since_us + ASK_AGAIN_US) {
            return;
        }
        let Some(promise) = self.metadata.may_free(id) else { return };
        self.nodes[machine].freeing_since_us = Some(now_us);
        let (after_us, life) = (self.metadata_prng.between(100, 100_000), self.nodes[machine].life);
        self.at(after_us, Ev::Release { machine, life, promise });
    }

    /// The metadata service is told, which may take long, happen twice or not at all.
    fn report_freed(&mut self, device: DeviceId) {
        let (prng, metadata_life) = (&mut self.metadata_prng, self.metadata.life);
        let fate = if self.metadata_flaky > 0 { prng.below(4) } else { 3 };
        let (soon_us, late_us) = (prng.between(100, 3_000), prng.between(50_000, 3_000_000));
        if fate != 0 {
            self.at(soon_us, Ev::Reclaimed { device, metadata_life });
        }
        if fate == 1 {
            self.at(late_us, Ev::Reclaimed { device, metadata_life });
        }
    }

    /// A device is told to free what it holds of the volume.
    pub fn release(&mut self, machine: usize, life: u64, promise: Epoch) {
        if self.nodes[machine].life == life {
            self.node_event(machine, replica::Event::Release { volume: VOLUME, promise });
        }
    }

    /// A device has freed it.
    pub fn has_freed(&mut self, machine: usize) {
        mark("sim: a device has freed what had left it");
        self.nodes[machine].freed = true;
    }

    /// The metadata service commits that a device has freed what it held.
    pub fn reclaimed(&mut self, device: DeviceId, metadata_life: u64) {
        if self.metadata.life == metadata_life {
            self.metadata.freed(device);
        }
    }
}
