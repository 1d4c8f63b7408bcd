//! The phases of a run: faults, healing, liveness, silent damage, and the end; and what a run reports.

use super::options::Options;
use super::world::{VOLUME, World};
use crate::check::liveness;
use ashlar::volume::{self, Health};
use ashlar_model::mutation;
use std::collections::BTreeMap;

/// What a run showed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The first violation.
    pub violation: Option<String>,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Events handled.
    pub steps: u64,
    /// Guest requests answered well.
    pub acknowledged: u64,
    /// Hash over every event: equal for equal seeds.
    pub trace_hash: u64,
    /// Epochs granted.
    pub epochs: u64,
    /// Ejections seen by writers that live at the end.
    pub ejections: u64,
    /// Members that came back in.
    pub joins: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Blocks damaged after the last guest's request, with good copies elsewhere.
    pub latent: u64,
    /// Repairs seen by the writers that live at the end.
    pub repaired: u64,
    /// Damage hit the only copy that counted: the run ends without demanding that everything becomes whole.
    pub beyond_tolerance: bool,
    /// How often rare branches were taken.
    pub marks: BTreeMap<&'static str, u64>,
}

/// Runs one seed to its end.
pub fn run(options: Options) -> Report {
    mutation::activate(options.mutation);
    mutation::take_marks();
    let mut world = World::new(options);
    let faulty_us = world.options.faulty_us;
    world.run_until(faulty_us);
    world.heal();
    world.run_until_whole();
    if world.violation.is_none() && world.is_whole() {
        // Guests are silent from here on: nobody but the scrub comes across this.
        world.damage_within_tolerance();
        world.run_until_whole();
    }
    world.finish();
    if world.violation.is_none() && !world.beyond_tolerance && world.beyond_at_the_end {
        world.damage_beyond_tolerance();
    }
    mutation::activate(None);
    world.report()
}

/// Pause between two looks, in microseconds: with no period in common with a node's, which would be met busy each time.
const LOOK_US: u64 = 487_651;
/// Repairs of all blocks take no longer than this, in microseconds.
const REPAIRS_US_MAX: u64 = 1_200_000_000;

impl World {
    pub(super) fn run_until_whole(&mut self) {
        let mut from_us = self.now_us;
        // The guests of the healed cluster come first.
        let until_us = from_us + 1_000_000;
        self.run_until(until_us);
        let last_us = from_us + REPAIRS_US_MAX;
        let mut repaired = 0;
        while self.violation.is_none() && !self.is_whole() {
            // A damaged map page hides a thousand blocks, which come back one by one: the bound is for each of them.
            let now_repaired = self.repaired();
            if now_repaired > repaired && self.now_us < last_us {
                (repaired, from_us) = (now_repaired, self.now_us);
            }
            if liveness::check(None, self.now_us - from_us).is_err() {
                return;
            }
            let until_us = self.now_us + LOOK_US;
            self.run_until(until_us);
        }
    }

    /// Liveness: one writer serves, every device is in sync, nothing is in flight, and no block is damaged anywhere.
    pub(super) fn is_whole(&mut self) -> bool {
        self.is_whole_but_for_damage() && (self.has_lost() || self.damaged_blocks() == 0)
    }

    /// Blocks that the present writer has repaired.
    fn repaired(&self) -> u64 {
        let engine = self.current_writer().and_then(|writer| self.writers[writer].engine.as_ref());
        engine.map_or(0, |engine| engine.counters().repaired_blocks)
    }

    /// A block was written off: no good copy of its unsettled content was left.
    fn has_lost(&self) -> bool {
        self.nodes.iter().any(|node| node.shadow.lost)
    }

    pub(super) fn is_whole_but_for_damage(&self) -> bool {
        let Some(writer) = self.current_writer() else { return false };
        let engine = self.writers[writer].engine.as_ref().expect("the current writer lives");
        let has_left = |node: &super::node::SimNode, key: ashlar_model::LaneKey| {
            key.volume == VOLUME && !self.metadata.members(key.lane).contains(&node.id)
        };
        let lanes_are_empty = |node: &super::node::SimNode| {
            let store = node.store.as_ref();
            store.is_some_and(|store| store.lanes().all(|(key, lane)| lane.list.is_empty() || has_left(node, key)))
        };
        let freed = |node: &super::node::SimNode| !self.metadata.shall_free(node.id);
        engine.in_flight() == 0
            && (0..self.options.lanes).all(|lane| self.is_in_sync_everywhere(lane))
            && self.restored.is_none()
            && self.nodes.iter().all(|node| !node.is_busy() && !node.lying.is_under_way())
            && self.nodes.iter().all(|node| lanes_are_empty(node) && freed(node))
            && {
                let status = engine.status();
                status.health == Health::Healthy && status.lanes.iter().all(|lane| lane.settled == lane.last)
            }
    }

    /// Looks more often for a moment: a scrub that goes on for ever, over damage that nobody repairs, is no reason to fail.
    fn is_whole_soon(&mut self) -> bool {
        (0..100).any(|_| {
            let whole = self.is_whole_but_for_damage();
            if !whole {
                let until_us = self.now_us + LOOK_US / 48;
                self.run_until(until_us);
            }
            whole
        })
    }

    pub(super) fn finish(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let whole = self.is_whole_soon();
        let damaged = self.damaged_blocks(); // of this moment: a repair may have ended meanwhile
        // Without a good copy of what was unsettled a block is written off: that is beyond tolerance, and all else is not.
        let lost = self.has_lost();
        let undecided = !whole && self.is_undecided();
        self.beyond_tolerance = lost || undecided || (!whole && self.counts.dead > 0);
        if whole && damaged > 0 && !lost {
            let places = self.damaged_places();
            return self
                .violate(format!("damage is left though every block has a good copy: {damaged} blocks: {places}"));
        }
        if self.beyond_tolerance && (damaged > 0 || !whole) {
            // What guests saw must still be right. The only copy that counted may be gone: then the volume waits.
            let verdict = self.workload.check();
            self.judge(verdict);
            if !whole && !undecided && self.counts.dead == 0 {
                let status = self.current_writer().and_then(|w| self.writers[w].engine.as_ref().map(|e| e.status()));
                self.violate(format!("a block that nobody holds keeps the volume from becoming whole: {status:?}"));
            }
            return;
        }
        if !whole {
            let status = self.current_writer().and_then(|w| self.writers[w].engine.as_ref().map(|e| e.status()));
            let verdict = liveness::check(None, liveness::BOUND_US).map_err(|why| format!("{why}: {status:?}"));
            return self.judge(verdict);
        }
        let writer = self.current_writer().expect("a whole world has one");
        let request = self.workload.read_all(writer);
        self.volume_event(writer, volume::Event::Request(request));
        let until_us = self.now_us + 10_000_000;
        self.run_until(until_us);
        if self.workload.in_flight(writer) != 0 {
            self.violate("the last read was not answered".into());
        }
        let verdict = self.workload.check();
        self.judge(verdict);
        self.check_contents();
    }

    fn report(&self) -> Report {
        let engines = self.writers.iter().filter_map(|writer| writer.engine.as_ref());
        let counters: Vec<_> = engines.map(|engine| engine.counters()).collect();
        Report {
            violation: self.violation.clone(),
            virtual_us: self.now_us,
            steps: self.steps,
            acknowledged: self.workload.acknowledged,
            trace_hash: self.hash,
            epochs: self.metadata.epoch(),
            ejections: counters.iter().map(|c| c.ejections).sum(),
            joins: counters.iter().map(|c| c.joins).sum(),
            faults: self.counts.total,
            latent: self.latent,
            repaired: counters.iter().map(|c| c.repaired_blocks).sum(),
            beyond_tolerance: self.beyond_tolerance,
            marks: mutation::take_marks(),
        }
    }
}
