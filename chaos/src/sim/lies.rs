//! Devices that lie: writes that are acknowledged and lost, or land elsewhere, and rot of what a store keeps about itself.
//!
//! As with rot of data, one device of a run has all of it, so that there are good copies elsewhere; and nothing counts
//! before a later commit has proved what it spoils: damage of the last writes looks like a power cut before them.

use super::node::{CONVICT, FILLER, SPOIL};
use super::script::{Class, Fault};
use super::world::{Ev, World};
use crate::prng::Prng;
use ashlar_model::Epoch;
use ashlar_model::mutation::mark;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_store::api::{Request, Token};
use ashlar_store::layout::{PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};

/// Writes struck by one fault.
const LIES_MAX: u64 = 3;
/// Pages of metadata damaged by one fault.
const PAGES_MAX: u64 = 3;
/// Pause before it is asked again whether a store is idle, in microseconds.
const AGAIN_US: u64 = 1_000;

/// What a node's device lies about at present.
#[derive(Debug, Default)]
pub struct Lying {
    /// The fault that goes on, by number.
    fault: Option<usize>,
    /// Pages of metadata that will be damaged once they are proved: offset, and what is there.
    doomed: Vec<(u64, Vec<u8>)>,
    /// Its metadata was damaged: it may refuse to open.
    pub spoiled: bool,
}

impl Lying {
    /// More damage may be to come.
    pub fn is_under_way(&self) -> bool {
        self.fault.is_some()
    }

    /// The process has died: what it was not convicted of comes to nothing.
    pub fn forget(&mut self) {
        self.fault = None;
        self.doomed.clear();
    }
}

impl World {
    /// The one device of the run that is damaged.
    pub fn liar(&self) -> usize {
        (self.options.seed % self.nodes.len() as u64) as usize
    }

    /// The next writes of data are lies.
    pub fn begin_lies(&mut self, fault: Fault, prng: &mut Prng) {
        let machine = self.liar();
        let copies = self.options.devices;
        let node = &mut self.nodes[machine];
        let Some(store) = node.store.as_ref().filter(|store| store.is_open()) else { return };
        if copies < 2 || node.dead || node.lying.fault.is_some() {
            return;
        }
        let layout = store.superblock().layout;
        node.lying.fault = Some(fault.number);
        let lies = &mut node.disk.lies;
        (lies.count, lies.within) = (prng.between(1, LIES_MAX), layout.data.offset..layout.spares.end());
        lies.to.clear();
        if fault.class == Class::Misdirected {
            let pages = node.data_pages();
            let places = if pages.is_empty() { 0 } else { LIES_MAX };
            node.disk.lies.to = (0..places).map(|_| prng.pick(&pages).0).collect();
        }
    }

    /// No more lies; those that were told cannot be made good once a commit proves them.
    pub fn end_lies(&mut self, fault: Fault) {
        let machine = self.liar();
        if self.nodes[machine].lying.fault != Some(fault.number) {
            return; // its process has died meanwhile
        }
        self.nodes[machine].disk.lies.count = 0;
        self.prove(machine, CONVICT, fault);
    }

    /// Chooses pages of the store's metadata that rot.
    pub fn doom_metadata(&mut self, fault: Fault) {
        let machine = self.liar();
        let (copies, idle) = (self.options.devices, self.is_idle(machine));
        let node = &mut self.nodes[machine];
        if copies < 2 || node.dead || node.lying.fault.is_some() || !idle {
            return; // what is on its way is not proved by the next commit
        }
        node.lying.fault = Some(fault.number);
        let mut prng = fault.prng();
        let pages = node.metadata_pages(&mut prng);
        if !pages.is_empty() {
            let chosen: Vec<u64> = (0..prng.between(1, PAGES_MAX)).map(|_| *prng.pick(&pages)).collect();
            let page = |offset: u64| (offset, node.disk.bytes(offset, BLOCK_BYTES).to_vec());
            node.lying.doomed = chosen.into_iter().map(page).collect();
        }
        self.prove(machine, SPOIL, fault);
    }

    fn is_idle(&self, machine: usize) -> bool {
        let store = self.nodes[machine].store.as_ref();
        store.is_some_and(|store| store.is_open() && store.is_idle() && store.failed().is_none())
    }

    /// Commits something that proves everything before it, as soon as nothing is on its way.
    fn prove(&mut self, machine: usize, token: Token, fault: Fault) {
        if !self.is_idle(machine) {
            return self.at(AGAIN_US, Ev::Over { fault });
        }
        let Some(store) = &mut self.nodes[machine].store else { return };
        let promised = store.promises().find(|(volume, _)| *volume == FILLER).map_or(0, |(_, epoch)| epoch.0);
        store.submit(token, Request::Promise { volume: FILLER, epoch: Epoch(promised + 1) });
        self.run_node(machine);
    }

    /// The lies are proved: they stay.
    pub fn convict(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        node.lying.fault = None;
        if node.disk.lies.owed() > 0 {
            mark("sim: a write was lost or misdirected");
            node.disk.lies.convict();
            self.hurt = true;
        }
    }

    /// Metadata rots now, and the process dies: an open store would not look at it again. It is opened anew later.
    pub fn spoil(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        node.lying.fault = None;
        let mut prng = Prng::of(self.options.seed, "spoil", self.now_us);
        for (offset, bytes) in std::mem::take(&mut node.lying.doomed) {
            if node.disk.bytes(offset, BLOCK_BYTES) == bytes {
                node.disk.flip_bit(offset + prng.below(BLOCK_BYTES as u64), prng.below(8) as u8);
                node.lying.spoiled = true;
            }
        }
        if node.lying.spoiled {
            mark("sim: metadata of a store rots");
            self.hurt = true;
            let life = node.life;
            // Not at once: whoever calls is in the middle of the engines' work.
            self.at(1, Ev::Dies { machine, life });
        }
    }

    /// The process of a device with rotten metadata dies, and comes back.
    pub fn dies(&mut self, machine: usize, life: u64) {
        if self.nodes[machine].life == life && self.nodes[machine].store.is_some() {
            self.stop(machine, false);
            let life = self.nodes[machine].life;
            self.at(50_000, Ev::Restart { machine, life });
        }
    }

    /// A store noticed that its metadata is damaged and does not open: an operator puts an empty device in its place,
    /// as soon as others hold what it held.
    pub fn refused(&mut self, machine: usize) {
        mark("sim: a store with damaged metadata does not open");
        let node = &mut self.nodes[machine];
        (node.dead, node.refused) = (true, true);
        self.hurt = true;
        self.counts.dead += 1;
        self.at(1_000_000, Ev::Renew { machine });
    }

    /// Tries to put an empty device in the place of one that does not open.
    pub fn renew(&mut self, machine: usize) {
        if !self.nodes[machine].refused {
            return;
        }
        let id = self.nodes[machine].id;
        let others = (0..self.options.lanes).all(|lane| self.metadata.in_sync(lane).iter().any(|other| *other != id));
        self.stop(machine, false);
        if !(others && self.renewed(machine)) {
            self.at(1_000_000, Ev::Renew { machine });
        }
    }
}

impl super::node::SimNode {
    /// Pages of the store's own: one of its areas, and what is in use there.
    fn metadata_pages(&self, prng: &mut Prng) -> Vec<u64> {
        let Some(store) = self.store.as_ref().filter(|store| store.is_open()) else { return Vec::new() };
        let sb = store.superblock();
        let layout = sb.layout;
        let pages = |from: u64, to: u64| (from..to).step_by(PAGE_BYTES as usize);
        let starts = |offset: &u64, magic: &[u8]| self.disk.bytes(*offset, 8) == magic;
        match prng.below(8) {
            0 => vec![*prng.pick(&[SUPERBLOCK_A, SUPERBLOCK_B])],
            1 | 2 => {
                let copy = prng.below(2);
                let first = layout.table_offset(sb.table_half, copy);
                pages(first, first + sb.table_bytes.max(1).next_multiple_of(PAGE_BYTES)).collect()
            }
            3 => pages(layout.log.offset, layout.log.end()).filter(|page| starts(page, b"ASHLARLG")).collect(),
            _ => {
                let map = pages(layout.slots.offset, layout.slots.end()).filter(|page| starts(page, b"ASHLARMP"));
                let checksums = prng.chance(1, 2);
                map.map(|page| page + if checksums { PAGE_BYTES } else { 0 }).collect()
            }
        }
    }
}
