//! What the workload makes of the answers.

use super::{Asked, CrashRun, LOST, VOLUMES, Version, volume_id};
use crate::api::{Reply, StoreError};
use crate::engine::Effect;
use ashlar_model::{BlockRange, VolumeId};

impl CrashRun {
    pub(super) fn collect(&mut self) {
        for effect in self.device.take(&mut self.engine) {
            match effect {
                Effect::Reply { token, reply } => self.answered(token.0, reply),
                Effect::Damaged { volume, block, .. } if self.expects_damage(volume, block) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// A scrub may say so of a block that was written off.
    pub(super) fn expects_damage(&self, volume: VolumeId, block: u64) -> bool {
        let written_off = |versions: &Vec<Version>| versions.iter().any(|version| version.id == LOST);
        let number = (0..VOLUMES).find(|number| volume_id(*number) == volume);
        self.lenient || number.is_some_and(|number| self.blocks.get(&(number, block)).is_some_and(written_off))
    }

    fn answered(&mut self, token: u64, reply: Reply) {
        let asked = self.asked.remove(&token).expect("answered once");
        if let Reply::Error(StoreError::Failed(reason)) = &reply {
            assert!(self.lenient, "the device failed: {reason}");
            return;
        }
        match (asked, reply) {
            (Asked::Write { volume, lane, range, settled }, Reply::Done) => {
                self.ack_versions(volume, Some(range), token);
                self.write_acked(token, volume, lane, settled);
            }
            (Asked::Write { volume, lane, .. }, Reply::Error(StoreError::Full { .. })) => {
                self.coverage.full += 1;
                for versions in self.blocks.values_mut() {
                    versions.retain(|version| version.token != token);
                }
                for asked in self.asked.values_mut() {
                    if let Asked::Read { floor, .. } = asked {
                        floor.iter_mut().for_each(|floor| *floor = 0);
                    }
                }
                let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
                model.entries.retain(|entry| entry.token != token);
            }
            (Asked::Read { volume, floor, generation }, Reply::Read(result)) => {
                self.check_read(volume, &result, Some(&floor), generation);
            }
            (Asked::Drop { volume }, Reply::Done) => self.dropped(volume),
            (Asked::Map, Reply::Map(_)) => {}
            (Asked::Promise { volume, epoch }, Reply::Sealed { promised, .. }) => {
                assert!(promised.0 >= epoch, "promise {epoch} answered with {promised}");
                let earlier = self.asked.range(..token).any(|(_, asked)| match asked {
                    Asked::Write { volume: other, .. } | Asked::Read { volume: other, .. } => *other == volume,
                    _ => false,
                });
                assert!(!earlier, "a promise passed an earlier request");
                let state = self.volumes.get_mut(&volume).expect("there are two");
                state.promised = state.promised.max(epoch);
            }
            (Asked::Change { volume }, Reply::Done) => self.change_acked(token, volume),
            (asked, reply) => panic!("{asked:?} answered with {reply:?}"),
        }
    }

    fn write_acked(&mut self, token: u64, volume: u64, lane: u16, settled: u64) {
        self.coverage.writes += 1;
        let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
        model.settled_floor = model.settled_floor.max(settled);
        for entry in model.entries.iter_mut().filter(|entry| entry.token == token) {
            entry.acked = true;
        }
    }

    fn ack_versions(&mut self, volume: u64, range: Option<BlockRange>, token: u64) {
        let mark = |versions: &mut Vec<Version>| {
            versions.iter_mut().filter(|version| version.token == token).for_each(|version| version.acked = true);
        };
        match range {
            Some(range) => range.blocks().filter_map(|block| self.blocks.get_mut(&(volume, block)).map(mark)).count(),
            None => self.blocks.values_mut().map(mark).count(),
        };
    }

    fn change_acked(&mut self, token: u64, volume: u64) {
        self.ack_versions(volume, None, token);
        let state = self.volumes.get_mut(&volume).expect("there are two");
        let (_, after) = state.changing.take().expect("it was changing");
        if after.is_empty() {
            state.deleted();
            state.promised_max = state.promised;
            state.snapshots.clear();
            self.blocks.retain(|(owner, _), _| *owner != volume);
        }
        for (lane, model) in &after {
            // Settles meanwhile moved on.
            let old = state.lanes.get(lane);
            let mut model = model.clone();
            if let Some(old) = old {
                model.settled = old.settled;
                model.dropped = old.dropped;
            }
            state.promised = state.promised.max(model.epoch);
            state.lanes.insert(*lane, model);
        }
        if after.is_empty() {
            state.lanes.clear();
        }
    }

    /// Nothing has the generation any more: what it had belongs to the one it went into.
    fn dropped(&mut self, volume: u64) {
        self.coverage.generations += 1;
        let state = self.volumes.get_mut(&volume).expect("there are two");
        let (generation, into) = state.dropping.take().expect("it was asked for");
        let blocks = self.blocks.iter_mut().filter(|((owner, _), _)| *owner == volume);
        for version in blocks.flat_map(|(_, versions)| versions).filter(|version| version.generation == generation) {
            version.generation = into;
        }
    }
}
