//! What the model of the workload says about the store's answers.
//!
//! It must never look into the engine.

use super::{CHUNK, CHUNKS, CrashRun, LANES, LOST, Lane, STEPS_TO_IDLE, USED, VOLUMES, Version, lane_key, volume_id};
use crate::api::{BlockState, ReadResult, Reply, Request, Token};
use crate::engine::Effect;
use ashlar_model::lane::{LaneState, ListEntry};
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS, GRANULE_BYTES};
use ashlar_model::{BlockRange, LaneKey, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// The versions that a generation sees.
pub(super) fn seen(versions: &[Version], generation: u32) -> impl DoubleEndedIterator<Item = &Version> {
    versions.iter().filter(move |version| version.generation <= generation)
}

impl CrashRun {
    /// The versions that a block may show: from `floor` (how many had been submitted) or the last acknowledged one on.
    pub(super) fn check_read(&self, volume: u64, result: &ReadResult, floor: Option<&[usize]>, generation: u32) {
        for (i, block) in result.range.blocks().enumerate() {
            let all = self.blocks.get(&(volume, block)).map_or(&[][..], Vec::as_slice);
            let versions: Vec<&Version> = seen(all, generation).collect();
            let acked = versions.iter().rposition(|version| version.acked).map_or(0, |at| at + 1);
            let from = floor.map_or(acked, |floor| floor[i]);
            let allowed = versions.iter().skip(from.saturating_sub(1));
            let mut ids: Vec<u64> = allowed.map(|version| version.id).collect();
            if from == 0 {
                ids.push(0);
            }
            let bad = matches!(result.states[i], BlockState::Bad(_) | BlockState::Unknown);
            if bad && self.lenient {
                continue;
            }
            if bad && !(result.states[i] == BlockState::Unknown && ids.contains(&LOST)) {
                panic!("volume {volume} block {block} is {:?}, of {versions:?}", result.states[i]);
            }
            let shown = shown_id(result, i);
            assert!(
                ids.contains(&shown),
                "volume {volume} block {block} shows {shown} to {generation}, allowed {ids:?} of {versions:?}; state {:?}",
                result.states[i]
            );
        }
    }

    /// After a crash: compares lanes, then takes the store's state as the new truth.
    pub(super) fn check_lanes(&mut self) {
        let promises: BTreeMap<_, _> = self.engine.promises().collect();
        let found: BTreeMap<LaneKey, LaneState> =
            self.engine.lanes().map(|(key, state)| (key, state.clone())).collect();
        for (volume, state) in &mut self.volumes {
            let id = volume_id(*volume);
            let promise = promises.get(&id).map_or(0, |epoch| epoch.0);
            let mut lanes: BTreeMap<u16, &LaneState> = BTreeMap::new();
            for (key, lane) in found.range(lane_key(*volume, 0)..=lane_key(*volume, LANES)) {
                lanes.insert(key.lane, lane);
            }
            if let Some((_, after)) = state.changing.take() {
                let happened =
                    |(lane, model): (&u16, &Lane)| lanes.get(lane).is_some_and(|l| l.current.0 == model.epoch);
                if lanes.len() == after.len() && after.iter().all(happened) {
                    if after.is_empty() {
                        state.deleted();
                        state.snapshots.clear();
                        self.blocks.retain(|(owner, _), _| owner != volume);
                    }
                    state.lanes = after;
                }
            }
            assert!(promise >= state.promised && promise <= state.promised_max, "promise {promise} of {state:?}");
            assert_eq!(lanes.keys().collect::<Vec<_>>(), state.lanes.keys().collect::<Vec<_>>(), "volume {volume}");
            state.promised = promise;
            for (number, model) in &mut state.lanes {
                check_lane(model, lanes[number]);
            }
        }
    }

    /// Reads everything as every generation sees it, and compares; what is seen is the new truth. Then the space.
    pub(super) fn check_all(&mut self) {
        for volume in 0..VOLUMES {
            let snapshots: Vec<u32> = self.volumes[&volume].snapshots.iter().copied().collect();
            for generation in snapshots.into_iter().chain([u32::MAX]) {
                for chunk in 0..CHUNKS * u64::from(LANES) {
                    self.check_chunk(volume, chunk, generation);
                }
            }
        }
        let (counted, found) = self.engine.ordered_layers();
        assert_eq!(counted, found, "layers with moved blocks");
        if self.lenient {
            return;
        }
        let stats = self.engine.stats();
        assert_eq!((stats.leaked_granules, stats.unread_slots), (0, 0), "after reading everything");
        let data = self.space_of(certain);
        // What was written off keeps the place that it had, if it had one.
        let possible = self.space_of(|id| id != 0);
        assert!((data..=possible).contains(&stats.used_bytes), "{data}, {possible}: {} in use", stats.used_bytes);
    }

    /// Bytes of the granules that hold such a block.
    fn space_of(&self, held: impl Fn(u64) -> bool) -> u64 {
        let granules = self.blocks.iter().flat_map(|((volume, block), all)| {
            let held = layers(all).into_iter().filter(|(_, id)| held(*id));
            held.map(|(generation, _)| (*volume, *block / GRANULE_BLOCKS as u64, generation))
        });
        granules.collect::<BTreeSet<_>>().len() as u64 * GRANULE_BYTES as u64
    }

    fn check_chunk(&mut self, volume: u64, chunk: u64, generation: u32) {
        let range = BlockRange::new(chunk * CHUNK, USED as u32);
        let token = self.next_token;
        self.next_token += 1;
        let id = volume_id(volume);
        let request = match generation {
            u32::MAX => Request::Read { volume: id, range },
            generation => Request::ReadSnapshot { volume: id, range, generation },
        };
        self.engine.submit(Token(token), request);
        let result = self.finish_one(token);
        self.check_read(volume, &result, None, generation);
        if !self.lenient {
            if generation == u32::MAX {
                self.check_stamps(volume, &result);
            }
            self.adopt(volume, &result, generation);
        }
    }

    fn finish_one(&mut self, token: u64) -> ReadResult {
        let mut result = None;
        for _ in 0..STEPS_TO_IDLE {
            for effect in self.device.take(&mut self.engine) {
                match effect {
                    Effect::Reply { token: one, reply: Reply::Read(read) } if one.0 == token => result = Some(read),
                    Effect::Damaged { volume, block, .. } if self.expects_damage(volume, block) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            if self.device.pending() == 0 {
                return result.expect("idle, so answered");
            }
            self.device.complete_one(&mut self.engine);
        }
        panic!("it never comes to rest");
    }

    fn check_stamps(&self, volume: u64, result: &ReadResult) {
        let lane = (result.range.start / CHUNK % u64::from(LANES)) as u16;
        let key = lane_key(volume, lane);
        let state = self.engine.lanes().find(|(one, _)| *one == key).map(|(_, state)| state);
        for (i, block) in result.range.blocks().enumerate() {
            let versions = self.blocks.get(&(volume, block)).map_or(&[][..], Vec::as_slice);
            let id = shown_id(result, i);
            let Some(version) = versions.iter().rev().find(|v| v.id == id && (certain(id) || v.acked)) else {
                continue;
            };
            let listed = state
                .is_some_and(|state| state.list.iter().any(|e| e.stamp == version.stamp && e.range.contains(block)));
            if listed && certain(id) {
                assert_eq!(result.stamps[i], version.stamp, "volume {volume} block {block} of {versions:?}");
            } else if certain(id) && !self.joined(volume, lane, version.stamp) {
                assert!(result.stamps[i] >= version.stamp, "block {block}: {:?} for {version:?}", result.stamps[i]);
            }
        }
    }

    /// A join emptied the list: versions above settled from before it are forgotten, as the protocol says.
    fn joined(&self, volume: u64, lane: u16, stamp: Stamp) -> bool {
        let lane = self.volumes[&volume].lanes.get(&lane);
        lane.is_none_or(|lane| stamp.epoch.0 < lane.epoch)
    }

    fn adopt(&mut self, volume: u64, result: &ReadResult, generation: u32) {
        for (i, block) in result.range.blocks().enumerate() {
            let id = shown_id(result, i);
            let Some(versions) = self.blocks.get_mut(&(volume, block)) else { continue };
            let seen = |version: &Version| version.generation <= generation;
            let at = versions.iter().rposition(|version| seen(version) && version.id == id);
            let mut index = 0;
            versions.retain(|version| {
                index += 1;
                !seen(version) || at.is_some_and(|at| index <= at + 1)
            });
            versions
                .iter_mut()
                .filter(|version| version.generation <= generation)
                .for_each(|version| version.acked = true);
        }
    }
}

/// What each generation wrote last of a block: (generation, id).
fn layers(versions: &[Version]) -> BTreeMap<u32, u64> {
    versions.iter().map(|version| (version.generation, version.id)).collect()
}

/// True for content that one write only has left.
fn certain(id: u64) -> bool {
    id != 0 && id != LOST
}

fn shown_id(result: &ReadResult, i: usize) -> u64 {
    match result.states[i] {
        BlockState::Zero => 0,
        BlockState::Unknown => LOST,
        BlockState::Data(_) => {
            let bytes = &result.payload.as_ref().expect("there is data")[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES];
            let id = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            assert!(bytes[8..] == bytes[..BLOCK_BYTES - 8], "a torn block was given as data");
            id
        }
        other => panic!("block {} is {other:?}", result.range.start + i as u64),
    }
}

fn check_lane(model: &mut Lane, found: &LaneState) {
    assert_eq!(found.current.0, model.epoch, "current epoch");
    let settled = found.settled;
    assert!(settled >= model.settled_floor && settled <= model.settled, "settled {settled} of {model:?}");
    for entry in model.entries.iter().filter(|e| e.acked && e.entry.stamp.index > settled.max(model.dropped)) {
        assert!(found.list.contains(&entry.entry), "acknowledged {:?} is not in {:?}", entry.entry, found.list);
    }
    for entry in &found.list {
        assert!(model.entries.iter().any(|one| one.entry == *entry), "{entry:?} is not known to {model:?}");
    }
    let live = |index| {
        let known = |e: &ListEntry| e.stamp.index == index && e.stamp.epoch == found.current;
        found.list.iter().any(known)
    };
    let mut acked = model.base;
    while model
        .entries
        .iter()
        .any(|e| e.acked && e.entry.stamp.index == acked + 1 && e.entry.stamp.epoch.0 == model.epoch)
    {
        acked += 1;
    }
    assert!(found.prefix >= acked, "prefix {} below {acked}", found.prefix);
    for index in acked.max(settled).max(model.dropped) + 1..=found.prefix {
        assert!(live(index), "prefix {} without {index}", found.prefix);
    }
    assert!(!live(found.prefix + 1), "prefix {} could go on", found.prefix);
    model.settled = settled;
    model.settled_floor = settled;
    model.entries.retain(|one| found.list.contains(&one.entry));
    for entry in &mut model.entries {
        entry.acked = true;
    }
    // The lane goes on only in a new epoch: the writer starts above everything seen.
    let top = found.list.iter().map(|e| e.stamp.index).max().unwrap_or(0);
    model.next = model.next.max(top + 1).max(found.prefix + 1);
}
