//! Bits that flip and sectors that cannot be read: in data that is stored, never in the only good copy.

use super::node::{FILLER, PROVE, SimNode};
use super::workload::values_of;
use super::world::World;
use crate::prng::Prng;
use ashlar_model::Epoch;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_store::api::Request;

/// Guests' values are below this: other pages are no data of theirs.
const VALUE_MAX: u64 = 1 << 40;
/// Pages damaged by one fault.
const PAGES_MAX: u64 = 2;

impl SimNode {
    /// Pages that hold guests' data, live or stale: offset, and what is there.
    pub fn data_pages(&self) -> Vec<(u64, [u64; 2])> {
        let Some(store) = self.store.as_ref().filter(|store| store.is_open()) else { return Vec::new() };
        let layout = store.superblock().layout;
        let page = |offset: u64| {
            let bytes = self.disk.bytes(offset, BLOCK_BYTES);
            let word = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            let values = (word < VALUE_MAX).then(|| values_of(bytes)).flatten()?;
            (values != [0, 0] && values[1] < VALUE_MAX).then_some((offset, values))
        };
        (layout.data.offset..layout.spares.end()).step_by(BLOCK_BYTES).filter_map(page).collect()
    }

    pub fn damage_page(&mut self, offset: u64, flip: bool, prng: &mut Prng) {
        if flip {
            self.disk.flip_bit(offset + prng.below(BLOCK_BYTES as u64), prng.below(8) as u8);
        } else {
            self.disk.unreadable.insert(offset);
        }
    }
}

impl World {
    /// Chooses pages of the run's one victim. They are damaged once a later commit is durable: damage of what a crash
    /// may have torn looks like a torn write, and no store can tell them apart.
    pub fn mark_damage(&mut self, flip: bool, prng: &mut Prng) {
        if self.options.devices < 2 {
            return;
        }
        let machine = self.liar();
        let node = &mut self.nodes[machine];
        let mut pages = node.data_pages();
        // The commit that is waited for proves what was acknowledged before it, and nothing else.
        pages.retain(|(_, values)| node.shadow.content.values().any(|held| held.values == *values));
        if pages.is_empty() || node.dead || !node.marked.is_empty() {
            return;
        }
        for _ in 0..prng.between(1, PAGES_MAX) {
            let (offset, values) = *prng.pick(&pages);
            node.marked.push((offset, values[0], flip));
        }
        let Some(store) = &mut node.store else { return };
        let promised = store.promises().find(|(volume, _)| *volume == FILLER).map_or(0, |(_, epoch)| epoch.0);
        store.submit(PROVE, Request::Promise { volume: FILLER, epoch: Epoch(promised + 1) });
        self.run_node(machine);
    }

    /// What was chosen is damaged now, unless it has changed.
    pub fn flip_marked(&mut self, machine: usize) {
        let node = &mut self.nodes[machine];
        let mut prng = Prng::of(self.options.seed, "flip", self.now_us);
        for (offset, word, flip) in std::mem::take(&mut node.marked) {
            if node.disk.bytes(offset, 8) == word.to_le_bytes() {
                node.damage_page(offset, flip, &mut prng);
                self.hurt = true;
            }
        }
    }

    /// Damages blocks of devices that are all in sync, and leaves a good copy of each.
    pub fn damage_within_tolerance(&mut self) {
        let (count, spread) = (self.nodes.len(), self.options.spares > 0);
        let mut prng = Prng::new(self.options.seed, "latent");
        // Blocks of equal content share their pages' looks: one choice for all of them.
        let mut looks: Vec<[u64; 2]> = self.volume_content().values().map(|held| held.values).collect();
        looks.sort_unstable();
        looks.dedup();
        for values in looks.into_iter().filter(|values| *values != [0, 0]) {
            // All but one are damaged, or, where not every device has every lane, that one only.
            let chosen = prng.below(count as u64) as usize;
            for machine in (0..count).filter(|machine| (*machine == chosen) == spread) {
                if prng.chance(1, 2) || self.options.devices < 2 {
                    continue;
                }
                let pages = self.nodes[machine].data_pages();
                for (offset, _) in pages.into_iter().filter(|(_, looks)| *looks == values) {
                    let flip = prng.chance(3, 4);
                    self.nodes[machine].damage_page(offset, flip, &mut prng);
                }
            }
        }
        self.latent = self.damaged_blocks();
    }
}
