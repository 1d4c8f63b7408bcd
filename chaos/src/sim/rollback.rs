//! All metadata is lost and restored from a backup, and an operator does what is left to people then.
//!
//! The operator knows the truth: which devices were in sync when the metadata was lost. A backup is used only if it names
//! enough of them: what else is lost nobody can find (docs/operations/metadata.md). The operator speaks only when a lane
//! waits, and never in the place of a device without which acknowledged writes may be missing.

use super::script::Fault;
use super::world::{Ev, World};
use ashlar_model::DeviceId;
use ashlar_model::mutation::mark;
use std::collections::BTreeSet;

/// The operator looks this often, in microseconds.
const LOOK_US: u64 = 1_000_000;
/// Lanes get this long to decide by themselves, in microseconds.
const PATIENCE_US: u64 = 4_000_000;
/// Until the daemons are started again, in microseconds.
const STARTED_US: u64 = 300_000;

/// What an operator keeps in mind after a restore.
#[derive(Debug)]
pub(super) struct Restored {
    /// Per lane, the devices that were in sync when the metadata was lost.
    in_sync: Vec<Vec<DeviceId>>,
    /// Devices that lanes have said they wait for.
    named: BTreeSet<DeviceId>,
    /// Devices of which the operator has said that a lane does not have to wait for them.
    disregarded: BTreeSet<(u16, DeviceId)>,
    /// When the operator last did something.
    acted_us: u64,
}

/// Fewest of so many devices that meet every quorum of them.
fn enough(in_sync: usize) -> usize {
    in_sync - in_sync.min(2) + 1
}

impl World {
    /// The metadata is lost with all that runs, and restored.
    pub fn lose_metadata(&mut self, fault: Fault) {
        let Some(backup) = self.backups.remove(&fault.number) else { return };
        let unverified = (0..self.options.lanes).any(|lane| self.metadata.is_unverified(lane));
        if unverified || self.restored.is_some() {
            return;
        }
        let in_sync: Vec<Vec<DeviceId>> = (0..self.options.lanes).map(|lane| self.metadata.in_sync(lane)).collect();
        let lost = self.metadata.backup();
        self.metadata.restore(backup);
        let named_enough = |(lane, in_sync): (usize, &Vec<DeviceId>)| {
            let named = self.metadata.devices_of(lane as u16);
            in_sync.iter().filter(|device| named.contains(device)).count() >= enough(in_sync.len())
        };
        if !in_sync.iter().enumerate().all(named_enough) {
            return self.metadata.take_back(lost);
        }
        mark("sim: metadata restored");
        if self.options.trace {
            println!("{} metadata is restored; in sync was {in_sync:?}", self.now_us);
        }
        let acted_us = self.now_us;
        self.restored = Some(Restored { in_sync, named: BTreeSet::new(), disregarded: BTreeSet::new(), acted_us });
        self.stop_everything();
        self.at(LOOK_US, Ev::Operator);
    }

    fn stop_everything(&mut self) {
        for writer in self.serving_writers() {
            self.kill_writer(writer, false);
        }
        for machine in 0..self.nodes.len() {
            if !self.nodes[machine].dead {
                self.stop(machine, false);
            }
            let life = self.nodes[machine].life;
            self.at(STARTED_US, Ev::Restart { machine, life });
            if !self.metadata.knows(self.nodes[machine].id) {
                // Its node finds it when it starts.
                self.metadata.add_device(machine, self.nodes[machine].id);
            }
        }
        self.at(STARTED_US * 2, Ev::NewWriter);
    }

    /// What a lane says to an operator after a restore; writers of before may say it late.
    pub fn is_for_operator(&mut self, alarm: &str) -> bool {
        if let Some(restored) = &mut self.restored {
            let ids = self.nodes.iter().flat_map(|node| &node.ids);
            restored.named.extend(ids.filter(|id| alarm.contains(&id.to_string())));
        }
        self.metadata.life > 0 && alarm.contains("after the restore")
    }

    /// A lane waits for a word that the operator cannot give: a writer that died before it had recorded whom it trusts has
    /// hidden from the next one what the others followed.
    pub fn is_undecided(&self) -> bool {
        let Some(restored) = &self.restored else { return false };
        let waits = |lane: &u16| self.metadata.is_unverified(*lane) && self.dispensable(restored, *lane).is_none();
        let waits = (0..self.options.lanes).any(|lane| waits(&lane)) && !restored.named.is_empty();
        if waits {
            mark("sim: a restored lane stays undecided");
        }
        waits
    }

    /// The operator looks what is left to do.
    pub fn operate(&mut self) {
        let Some(mut restored) = self.restored.take() else { return };
        let done = match self.metadata_down == 0 && self.now_us >= restored.acted_us + PATIENCE_US {
            true => self.tend_restored(&mut restored),
            false => false,
        };
        if !done {
            self.restored = Some(restored);
            self.at(LOOK_US, Ev::Operator);
        }
    }

    /// True if every lane has decided and names devices that there are.
    fn tend_restored(&mut self, restored: &mut Restored) -> bool {
        let waiting: Vec<u16> = (0..self.options.lanes).filter(|lane| self.metadata.is_unverified(*lane)).collect();
        if !waiting.is_empty() {
            for lane in waiting {
                let Some(device) = self.dispensable(restored, lane) else { continue };
                mark("sim: an operator disregards a device");
                self.metadata.disregard(device, lane);
                restored.disregarded.insert((lane, device));
            }
            restored.acted_us = self.now_us;
            // A caretaker attaches: whoever opened the lanes before is fenced, and may not hear of it.
            self.new_writer();
            return false;
        }
        let members = (0..self.options.lanes).flat_map(|lane| self.metadata.members(lane));
        let gone: BTreeSet<DeviceId> = members.filter(|member| self.holder(*member).is_none()).collect();
        for device in &gone {
            let machine = self.machine_of(*device);
            if self.metadata.replace_by(*device, self.nodes[machine].id) {
                self.tell_writers();
            }
        }
        gone.is_empty()
    }

    /// A device for which a lane does not have to wait: it is gone, it was not in sync, or the lane asks about it, and those
    /// that were in sync and are left have every acknowledged write.
    fn dispensable(&self, restored: &Restored, lane: u16) -> Option<DeviceId> {
        let in_sync = &restored.in_sync[usize::from(lane)];
        let held = self.metadata.in_sync(lane);
        let held = held.iter().filter(|device| !restored.disregarded.contains(&(lane, **device)));
        let is_known = |device: &DeviceId| in_sync.contains(device) && self.holder(*device).is_some();
        let known = held.clone().filter(|device| is_known(device)).count();
        let mut may_go = held.filter(|device| known - usize::from(is_known(device)) >= enough(in_sync.len()));
        may_go.find(|device| !is_known(device) || restored.named.contains(device)).copied()
    }
}
