//! Damage beyond tolerance: every copy of a block. What is left to demand is honesty: reading it is an error, everything
//! else goes on and is right, and writing it anew makes it good.

use super::world::World;
use crate::check::liveness;
use crate::prng::Prng;
use ashlar::volume;
use ashlar_model::mutation::mark;
use ashlar_store::api::BlockState;
use std::collections::BTreeSet;

/// A guest's request takes no longer than this, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

impl World {
    /// Damages every copy of some block of a volume that is whole and silent, and judges what guests see of it.
    pub fn damage_beyond_tolerance(&mut self) {
        let mut prng = Prng::new(self.options.seed, "beyond");
        let mut looks: Vec<[u64; 2]> = self.volume_content().values().map(|held| held.values).collect();
        looks.retain(|values| *values != [0, 0]);
        if looks.is_empty() {
            return;
        }
        let values = *prng.pick(&looks);
        for node in &mut self.nodes {
            let pages = node.data_pages();
            for (offset, _) in pages.into_iter().filter(|(_, looks)| *looks == values) {
                node.damage_page(offset, prng.chance(3, 4), &mut prng);
            }
        }
        let lost = self.lost_blocks();
        if lost.is_empty() {
            return; // an overwrite that is not in its place yet: its copy in memory and log is good
        }
        mark("sim: every copy of a block is damaged");
        self.hurt = true;
        self.beyond_phase(&lost);
    }

    fn beyond_phase(&mut self, lost: &BTreeSet<u64>) {
        self.read_each(lost);
        // A volume with such a block opens as any other does.
        self.new_writer();
        // The former one is current until the new one is granted its epoch.
        let until_us = self.now_us + 1_000_000;
        self.run_until(until_us);
        self.run_until_serving();
        self.read_each(lost);
        for at in 0..self.workload.ranges().iter().map(|range| range.count as usize).sum() {
            let Some(writer) = self.current_writer() else { return };
            let request = self.workload.write_some(writer, at, 1);
            self.ask(writer, request);
        }
        self.run_until_whole();
        if !self.is_whole() {
            return self.violate("it does not become whole though every block was written anew".into());
        }
        self.finish();
    }

    /// Blocks of which no device has a good copy.
    fn lost_blocks(&mut self) -> BTreeSet<u64> {
        let mut bad_on = Vec::new();
        for machine in 0..self.nodes.len() {
            let mut bad = BTreeSet::new();
            for range in self.workload.ranges() {
                let Some(read) = self.peek(machine, range) else { continue };
                let is_bad = |state: &BlockState| matches!(state, BlockState::Bad(_) | BlockState::Unknown);
                bad.extend(range.blocks().zip(&read.states).filter(|(_, state)| is_bad(state)).map(|(block, _)| block));
            }
            self.run_node(machine);
            bad_on.push(bad);
        }
        let blocks = bad_on.iter().flatten().copied().collect::<BTreeSet<u64>>();
        let everywhere =
            |block: &u64| self.holders(self.lane_of(*block)).iter().all(|holder| bad_on[*holder].contains(block));
        blocks.into_iter().filter(everywhere).collect()
    }

    fn run_until_serving(&mut self) {
        let from_us = self.now_us;
        while self.violation.is_none() && !self.is_whole_but_for_damage() {
            if let Err(why) = liveness::check(None, self.now_us - from_us) {
                let status = self.current_writer().and_then(|w| self.writers[w].engine.as_ref().map(|e| e.status()));
                return self.violate(format!("beyond tolerance in one block, {why}: {status:?}"));
            }
            let until_us = self.now_us + 500_000;
            self.run_until(until_us);
        }
    }

    /// Reads block by block: those that are lost are errors, and no other.
    fn read_each(&mut self, lost: &BTreeSet<u64>) {
        let blocks: Vec<u64> = self.workload.ranges().iter().flat_map(|range| range.blocks()).collect();
        for (at, block) in blocks.into_iter().enumerate() {
            let Some(writer) = self.current_writer() else { return };
            let before = self.workload.failed;
            let request = self.workload.read_one(writer, at);
            self.ask(writer, request);
            let failed = self.workload.failed > before;
            if failed != lost.contains(&block) && self.violation.is_none() {
                self.violate(format!("a read of block {block} failed: {failed}; without a good copy are {lost:?}"));
            }
        }
    }

    fn ask(&mut self, writer: usize, request: volume::ClientRequest) {
        self.volume_event(writer, volume::Event::Request(request));
        let until_us = self.now_us + PATIENCE_US;
        while self.violation.is_none() && self.workload.in_flight(writer) > 0 {
            if self.now_us >= until_us {
                return self.violate("beyond tolerance in one block, a request was not answered".into());
            }
            let next_us = self.now_us + 10_000;
            self.run_until(next_us);
        }
    }
}
