//! The volume table: promises and lane states, and how requests change them.
//!
//! The same functions serve the running engine and the replay of the log, so both end in the same state. It must never know
//! about blocks' data.

use crate::record::{Reader, WriteRecord, Writer};
use ashlar_model::lane::{EntryOrigin, LaneState, ListEntry};
use ashlar_model::{BlockRange, Epoch, LaneKey, Stamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a list entry.
pub const ENTRY_BYTES: usize = 34;
const SUSPECT_BYTES: usize = 12;
const LANE_BYTES: usize = 18 + 5 * 8 + 8;
const VOLUME_BYTES: usize = 24;
/// Bytes of a slot in use.
pub const DIRECTORY_BYTES: usize = 43;
const FIXED_BYTES: usize = 64;

/// A lane as the store keeps it.
#[derive(Clone, Default, Debug)]
struct Lane {
    state: LaneState,
    /// Durable live writes of `current` above `prefix`.
    ahead: BTreeSet<u64>,
}

/// A layer of a chunk and its slot: which page is the one that counts, and what is lost if it is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// The lane, for the version of an unknown range.
    pub key: LaneKey,
    /// The chunk.
    pub chunk: u64,
    /// Snapshot generation of the layer.
    pub generation: u32,
    /// Its slot.
    pub slot: u32,
    /// The half of the slot with its page.
    pub half: bool,
    /// The checkpoint that wrote the page.
    pub as_of: u64,
}

/// What a volume table's bytes say.
#[derive(Debug)]
pub struct TableContent {
    /// Promises and lanes.
    pub table: VolumeTable,
    /// Slots in use.
    pub directory: Vec<DirectoryEntry>,
    /// Granules in use, one bit each.
    pub granules: Vec<u64>,
}

/// Promises and lanes.
#[derive(Clone, Default, Debug)]
pub struct VolumeTable {
    promises: BTreeMap<VolumeId, Epoch>,
    lanes: BTreeMap<LaneKey, Lane>,
    entries: usize,
    suspects: usize,
}

impl VolumeTable {
    /// Promise of a volume; zero if none.
    pub fn promised(&self, volume: VolumeId) -> Epoch {
        self.promises.get(&volume).copied().unwrap_or_default()
    }

    /// All promises.
    pub fn promises(&self) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.promises.iter().map(|(volume, epoch)| (*volume, *epoch))
    }

    /// All lanes.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneKey, &LaneState)> + '_ {
        self.lanes.iter().map(|(key, lane)| (*key, &lane.state))
    }

    /// One lane.
    pub fn lane(&self, key: LaneKey) -> Option<&LaneState> {
        self.lanes.get(&key).map(|lane| &lane.state)
    }

    /// Lanes of one volume.
    pub fn lanes_of(&self, volume: VolumeId) -> Vec<(u16, LaneState)> {
        let keys = LaneKey { volume, lane: 0 }..=LaneKey { volume, lane: u16::MAX };
        self.lanes.range(keys).map(|(key, lane)| (key.lane, lane.state.clone())).collect()
    }

    /// Upper bound of the bytes of [`Self::encode`] with `slots` slots in use, on a device of `granules`.
    pub fn bytes(&self, slots: usize, granules: u32) -> usize {
        FIXED_BYTES
            + granules.div_ceil(64) as usize * 8
            + self.promises.len() * VOLUME_BYTES
            + self.lanes.len() * LANE_BYTES
            + self.entries * ENTRY_BYTES
            + self.suspects * SUSPECT_BYTES
            + slots * DIRECTORY_BYTES
    }

    /// Bytes that a promise of a volume adds.
    pub fn promise_bytes(&self, volume: VolumeId) -> usize {
        if self.promises.contains_key(&volume) { 0 } else { VOLUME_BYTES }
    }

    /// Bytes that the start of a lane adds.
    pub fn start_bytes(&self, key: LaneKey) -> usize {
        let lane = if self.lanes.contains_key(&key) { 0 } else { LANE_BYTES };
        lane + self.promise_bytes(key.volume)
    }

    /// Raises a promise.
    pub fn promise(&mut self, volume: VolumeId, epoch: Epoch) {
        let promise = self.promises.entry(volume).or_default();
        *promise = (*promise).max(epoch);
    }

    /// See `Request::Start`.
    pub fn start(&mut self, key: LaneKey, epoch: Epoch, config: u64, base: u64) {
        self.promise(key.volume, epoch);
        let lane = self.lanes.entry(key).or_default();
        lane.state.current = epoch;
        lane.state.config = config;
        lane.state.prefix = base;
        lane.ahead.clear();
    }

    /// See `Request::JoinStart`. Gives the entries that left the list.
    pub fn join_start(&mut self, key: LaneKey, epoch: Epoch, config: u64, join: u64, base: u64) -> Vec<ListEntry> {
        self.start(key, epoch, config, base);
        let lane = self.lanes.get_mut(&key).expect("just started");
        lane.state.join = join;
        let list = std::mem::take(&mut lane.state.list);
        let old_suspects = lane.state.suspect.len();
        lane.state.suspect.extend(list.iter().map(|entry| entry.range));
        merge_ranges(&mut lane.state.suspect);
        self.entries -= list.len();
        self.suspects = self.suspects + lane.state.suspect.len() - old_suspects;
        list
    }

    /// See `Request::Settle`. Appends the entries that left the list.
    pub fn settle(&mut self, key: LaneKey, index: u64, config: u64, member: bool, gone: &mut Vec<ListEntry>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.state.config = lane.state.config.max(config);
        if member {
            lane.state.settled = lane.state.settled.max(index);
            self.suspects -= lane.state.suspect.len();
            lane.state.suspect.clear();
        }
        let leaves = listed_up_to(&lane.state.list, index).len();
        self.entries -= leaves;
        gone.extend(lane.state.list.drain(..leaves));
    }

    /// Adds the list entry of a write.
    pub fn add_entry(&mut self, write: &WriteRecord) {
        let tombstone = matches!(write.content, crate::record::Content::Tombstone);
        let (stamp, range, origin, generation) = (write.stamp, write.range, write.origin, write.generation);
        let lane = self.lanes.entry(write.key).or_default();
        let entry = ListEntry { stamp, range, tombstone, origin, generation };
        // Live writes come in this order; copies of a join may not.
        let last = lane.state.list.last().is_none_or(|last| last.stamp.index <= stamp.index);
        let at = if last { lane.state.list.len() } else { listed_up_to(&lane.state.list, stamp.index).len() };
        lane.state.list.insert(at, entry);
        self.entries += 1;
    }

    /// A live write became durable: extends the prefix.
    pub fn live_done(&mut self, key: LaneKey, stamp: Stamp) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if stamp.epoch == lane.state.current && stamp.index > lane.state.prefix {
            lane.ahead_or_next(stamp.index);
        }
    }

    /// Removes a volume.
    pub fn forget(&mut self, volume: VolumeId) {
        self.promises.remove(&volume);
        let (entries, suspects) = (&mut self.entries, &mut self.suspects);
        self.lanes.retain(|key, lane| {
            if key.volume == volume {
                *entries -= lane.state.list.len();
                *suspects -= lane.state.suspect.len();
            }
            key.volume != volume
        });
    }

    /// Removes a volume, but not its promise.
    pub fn release(&mut self, volume: VolumeId, epoch: Epoch) {
        let promised = self.promised(volume);
        self.forget(volume);
        self.promise(volume, promised.max(epoch));
    }

    /// The table's bytes. `slots`: how many entries `directory` gives.
    pub fn encode(&self, slots: usize, directory: impl Iterator<Item = DirectoryEntry>, granules: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes(slots, granules.len() as u32 * 64));
        let mut w = Writer(&mut bytes);
        w.u32(self.promises.len() as u32).u32(self.lanes.len() as u32).u32(slots as u32).u32(granules.len() as u32);
        for (volume, epoch) in &self.promises {
            w.volume(*volume).u64(epoch.0);
        }
        for (key, Lane { state, .. }) in &self.lanes {
            w.key(*key).u64(state.current.0).u64(state.config).u64(state.prefix).u64(state.settled).u64(state.join);
            w.u32(state.list.len() as u32).u32(state.suspect.len() as u32);
            for entry in &state.list {
                let flags = u8::from(entry.tombstone) | u8::from(entry.origin == EntryOrigin::Copy) << 1;
                w.u64(entry.stamp.epoch.0).u64(entry.stamp.index).range(entry.range).u8(flags).u32(entry.generation);
            }
            for range in &state.suspect {
                w.range(*range);
            }
        }
        for entry in directory {
            w.key(entry.key).u64(entry.chunk).u32(entry.generation).u32(entry.slot).u8(u8::from(entry.half));
            w.u64(entry.as_of);
        }
        for word in granules {
            w.u64(*word);
        }
        bytes
    }

    /// Reads a table; `None` if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<TableContent> {
        let mut r = Reader(bytes);
        let mut table = Self::default();
        let (promises, lanes, slots, words) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        for _ in 0..promises {
            let twice = table.promises.insert(r.volume()?, Epoch(r.u64()?));
            if twice.is_some() {
                return None;
            }
        }
        for _ in 0..lanes {
            let key = r.key()?;
            let mut lane = decode_lane(&mut r)?;
            lane.extend();
            table.entries += lane.state.list.len();
            table.suspects += lane.state.suspect.len();
            if table.lanes.insert(key, lane).is_some() {
                return None;
            }
        }
        let mut directory = Vec::new();
        for _ in 0..slots {
            let (key, chunk, generation) = (r.key()?, r.u64()?, r.u32()?);
            let (slot, half, as_of) = (r.u32()?, r.u8()?, r.u64()?);
            directory.push(DirectoryEntry { key, chunk, generation, slot, half: half == 1, as_of });
        }
        let mut granules = Vec::new();
        for _ in 0..words {
            granules.push(r.u64()?);
        }
        r.0.is_empty().then_some(TableContent { table, directory, granules })
    }
}

impl Lane {
    /// A live write above the prefix is durable: mostly the next one.
    fn ahead_or_next(&mut self, index: u64) {
        if index - self.state.prefix > 1 {
            self.ahead.insert(index);
            return;
        }
        self.state.prefix = index;
        if !self.ahead.is_empty() {
            self.extend();
        }
    }

    fn extend(&mut self) {
        // The largest index has no next one.
        while let Some(next) = self.state.prefix.checked_add(1)
            && self.ahead.remove(&next)
        {
            self.state.prefix = next;
        }
    }
}

fn decode_lane(r: &mut Reader<'_>) -> Option<Lane> {
    let mut state = LaneState { current: Epoch(r.u64()?), config: r.u64()?, prefix: r.u64()?, ..Default::default() };
    state.settled = r.u64()?;
    state.join = r.u64()?;
    let (entries, suspects) = (r.u32()?, r.u32()?);
    for _ in 0..entries {
        let stamp = Stamp { epoch: Epoch(r.u64()?), index: r.u64()? };
        let (range, flags, generation) = (r.range()?, r.u8()?, r.u32()?);
        let origin = if flags & 2 != 0 { EntryOrigin::Copy } else { EntryOrigin::Live };
        state.list.push(ListEntry { stamp, range, tombstone: flags & 1 != 0, origin, generation });
    }
    // It is searched by index.
    if !state.list.is_sorted_by_key(|entry| entry.stamp.index) {
        return None;
    }
    for _ in 0..suspects {
        state.suspect.push(r.any_range()?);
    }
    let live = |e: &&ListEntry| e.origin == EntryOrigin::Live && e.stamp.epoch == state.current;
    let ahead = state.list.iter().filter(live).map(|e| e.stamp.index).filter(|i| *i > state.prefix).collect();
    Some(Lane { ahead, state })
}

/// The entries of a list that a settle at `index` drops: a list is kept in order of index, then of arrival.
pub fn listed_up_to(list: &[ListEntry], index: u64) -> &[ListEntry] {
    &list[..list.partition_point(|entry| entry.stamp.index <= index)]
}

/// Sorts ranges and joins those that touch.
fn merge_ranges(ranges: &mut Vec<BlockRange>) {
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end() && range.end() - last.start <= u64::from(u32::MAX) => {
                last.count = (last.end().max(range.end()) - last.start) as u32;
            }
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}
