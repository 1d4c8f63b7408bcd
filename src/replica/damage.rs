//! Damage that the device's own scrub met: remembered, and told to the volume's writer, who repairs.
//!
//! Bounded, and told once to each writer and link. It must never repair by itself, nor hold anything else back.

use super::engine::{Effect, LinkId, ReplicaEngine};
use crate::wire::message::{Envelope, ToWriter};
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{BlockRange, Epoch, LaneKey, VolumeId};
use ashlar_store::api::{BlockState, ReadResult};
use std::collections::BTreeMap;

/// Damaged blocks remembered of one volume. What is beyond is found by the scrub's next pass.
pub(super) const BLOCKS_MAX: usize = 1024;

/// How far a damaged block has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Report {
    /// The writer does not know yet.
    Due,
    /// It does; nothing more is said until it has dealt with it.
    Told,
    /// It has seen the damage itself. If the scrub meets it again, it is told again.
    Seen,
}

/// Damage of one volume.
#[derive(Debug, Default)]
pub(super) struct Damage {
    blocks: BTreeMap<u64, Report>,
    /// Who knows what is told: another writer, or the same over a new link, knows nothing.
    told_to: Option<(Epoch, LinkId)>,
}

impl ReplicaEngine {
    /// The scrub met a damaged block.
    pub(super) fn on_damaged(&mut self, volume: VolumeId, block: u64) {
        if self.lanes_of(volume).next().is_none() {
            return; // of a volume that was deleted
        }
        let blocks = &mut self.damage.entry(volume).or_default().blocks;
        match blocks.get_mut(&block) {
            Some(report) if *report == Report::Seen => *report = Report::Due,
            Some(_) => {}
            None => {
                if blocks.len() >= BLOCKS_MAX {
                    let known = blocks.iter().find(|(_, report)| **report != Report::Due).map(|(block, _)| *block);
                    let Some(known) = known else { return };
                    blocks.remove(&known);
                }
                blocks.insert(block, Report::Due);
            }
        }
    }

    /// Tells every writer that is there what it does not know, neighbours together.
    pub(super) fn tell_damage(&mut self, effects: &mut Vec<Effect>) {
        let volumes: Vec<VolumeId> = self.damage.keys().copied().collect();
        for volume in volumes {
            let Some(writer) = self.writer_of(volume) else { continue };
            let damage = self.damage.get_mut(&volume).expect("listed above");
            if damage.told_to.replace(writer) != Some(writer) {
                damage.blocks.values_mut().for_each(|report| *report = Report::Due);
            }
            let mut ranges: Vec<BlockRange> = Vec::new();
            for (block, report) in damage.blocks.iter_mut().filter(|(_, report)| **report == Report::Due) {
                *report = Report::Told;
                match ranges.last_mut() {
                    Some(last) if last.end() == *block && !block.is_multiple_of(CHUNK_BLOCKS as u64) => last.count += 1,
                    _ => ranges.push(BlockRange::new(*block, 1)),
                }
            }
            let (epoch, link) = writer;
            let envelope = Envelope { volume, lane: Envelope::ALL_LANES, epoch, device: self.device };
            let tell = |range| Effect::Send { link, envelope, message: ToWriter::Damaged { range } };
            effects.extend(ranges.into_iter().map(tell));
        }
    }

    /// The writer that some lane of the volume follows now.
    fn writer_of(&self, volume: VolumeId) -> Option<(Epoch, LinkId)> {
        let promised = self.promise_of(volume);
        let follows = |lane: &&super::lane::Lane| lane.current == promised && lane.transition.is_none();
        self.lanes_of(volume).filter(follows).find_map(|lane| lane.link).map(|link| (promised, link))
    }

    fn lanes_of(&self, volume: VolumeId) -> impl Iterator<Item = &super::lane::Lane> {
        let keys = LaneKey { volume, lane: 0 }..=LaneKey { volume, lane: u16::MAX };
        self.lanes.range(keys).map(|(_, lane)| lane)
    }

    /// Other content is here, or the same again: whatever was damaged is gone.
    pub(super) fn damage_is_over(&mut self, volume: VolumeId, range: BlockRange) {
        let Some(damage) = self.damage.get_mut(&volume) else { return };
        let over: Vec<u64> = damage.blocks.range(range.start..range.end()).map(|(block, _)| *block).collect();
        for block in over {
            damage.blocks.remove(&block);
        }
        if damage.blocks.is_empty() {
            self.damage.remove(&volume);
        }
    }

    /// What a writer is about to see needs not be told.
    pub(super) fn damage_is_seen(&mut self, volume: VolumeId, read: &ReadResult) {
        if !self.damage.contains_key(&volume) {
            return;
        }
        for (block, state) in read.range.blocks().zip(&read.states) {
            match state {
                BlockState::Bad(_) | BlockState::Unknown => {
                    let damage = self.damage.get_mut(&volume);
                    if let Some(report) = damage.and_then(|damage| damage.blocks.get_mut(&block)) {
                        *report = Report::Seen;
                    }
                }
                BlockState::Data(_) | BlockState::Zero => self.damage_is_over(volume, BlockRange::new(block, 1)),
            }
        }
    }
}
