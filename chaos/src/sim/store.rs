//! A store as the replica sees it: requests become durable after a while, in any order that the contract allows, and a
//! crash keeps any subset of what was not answered that the contract allows.
//!
//! This is the naive model of the store's contract; the real store engine has its own crash tests.

use crate::prng::Prng;
use ashlar_model::checksum::block_checksum;
use ashlar_model::lane::{EntryOrigin, LaneState, ListEntry};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, Epoch, LaneKey, Payload, Stamp, VolumeId};
use ashlar_store::api::{BlockState, Body, MapResult, ReadResult, Reply, Request, StoreError, Token, Write};
use std::collections::{BTreeMap, BTreeSet};

/// Content of a block.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Block {
    /// Version.
    pub stamp: Stamp,
    /// Bytes; `None`: zeroes.
    pub data: Option<Payload>,
}

/// Everything durable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Durable {
    /// Promise per volume.
    pub promised: BTreeMap<VolumeId, Epoch>,
    /// Lanes.
    pub lanes: BTreeMap<LaneKey, LaneState>,
    /// Blocks; absent: never written.
    pub blocks: BTreeMap<u64, Block>,
}

/// The simulated store of one device.
#[derive(Debug, Default)]
pub struct SimStore {
    /// What survives a crash.
    pub durable: Durable,
    pending: Vec<(Token, Request)>,
    /// Blocks whose bytes have rotted, with the checksum that is recorded for them.
    pub rotten: BTreeMap<u64, u32>,
    /// Blocks whose content is not known any more: their metadata is damaged.
    pub unknown: BTreeSet<u64>,
    /// Refuse allocating writes.
    pub full: bool,
}

impl SimStore {
    /// Accepts a request. `Settle` takes effect at once, as it may.
    pub fn submit(&mut self, token: Token, request: Request) {
        if let Request::Settle { key, index, config, member } = request {
            self.settle(key, index, config, member);
        } else {
            self.pending.push((token, request));
        }
    }

    /// True if something can be answered.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Makes one of the requests that may come next durable, and answers it.
    pub fn complete_one(&mut self, prng: &mut Prng) -> Option<(Token, Reply)> {
        let ready: Vec<usize> = (0..self.pending.len()).filter(|i| !self.must_wait(*i)).collect();
        if ready.is_empty() {
            return None;
        }
        let at = *prng.pick(&ready);
        let (token, request) = self.pending.remove(at);
        Some((token, self.perform(request)))
    }

    /// A crash: of what was not answered any allowed subset has become durable.
    pub fn crash(&mut self, prng: &mut Prng) {
        let keep_all = prng.chance(1, 4);
        while !self.pending.is_empty() {
            if prng.chance(1, 2) && !keep_all {
                let at = prng.below(self.pending.len() as u64) as usize;
                self.drop_with_followers(at);
            } else {
                self.complete_one(prng);
            }
        }
    }

    /// A request is lost together with everything that needs it. A later write of the same blocks may survive: its
    /// bytes reached the medium and the earlier one's did not.
    fn drop_with_followers(&mut self, at: usize) {
        let mut lost = vec![self.pending.remove(at).1];
        let mut i = at;
        while i < self.pending.len() {
            let later = &self.pending[i].1;
            if lost.iter().any(|earlier| is_barrier(earlier) || is_barrier(later)) {
                lost.push(self.pending.remove(i).1);
            } else {
                i += 1;
            }
        }
    }

    fn must_wait(&self, at: usize) -> bool {
        self.pending[..at].iter().any(|(_, earlier)| ordered(earlier, &self.pending[at].1))
    }

    fn perform(&mut self, request: Request) -> Reply {
        match request {
            Request::Write(write) => self.write(write),
            Request::Read { volume, range } => self.read(volume, range),
            Request::Map { range, .. } => self.map(range),
            Request::Promise { volume, epoch } => {
                let promised = self.promise(volume, epoch);
                let of_volume = self.durable.lanes.iter().filter(|(key, _)| key.volume == volume);
                let lanes = of_volume.map(|(key, state)| (key.lane, state.clone())).collect();
                Reply::Sealed { promised, lanes }
            }
            Request::Start { key, epoch, config, base } => {
                self.promise(key.volume, epoch);
                let lane = self.durable.lanes.entry(key).or_default();
                (lane.current, lane.config, lane.prefix) = (epoch, config, base);
                Reply::Done
            }
            Request::JoinStart { key, epoch, config, join, base } => {
                self.promise(key.volume, epoch);
                let lane = self.durable.lanes.entry(key).or_default();
                (lane.current, lane.config, lane.join, lane.prefix) = (epoch, config, join, base);
                let list = std::mem::take(&mut lane.list);
                lane.suspect.extend(list.iter().map(|entry| entry.range));
                Reply::Done
            }
            Request::Repair { volume, block, checksum, payload } => self.repair(volume, block, checksum, payload),
            Request::Forget { volume } => {
                self.durable.lanes.retain(|key, _| key.volume != volume);
                self.durable.blocks.clear();
                Reply::Done
            }
            Request::Settle { .. } => unreachable!("takes effect when submitted"),
            Request::ReadSnapshot { .. } | Request::DropGeneration { .. } => {
                unreachable!("no engine asks for snapshots yet")
            }
        }
    }

    fn promise(&mut self, volume: VolumeId, epoch: Epoch) -> Epoch {
        let promised = self.durable.promised.entry(volume).or_default();
        *promised = (*promised).max(epoch);
        *promised
    }

    fn write(&mut self, write: Write) -> Reply {
        if self.full && matches!(write.body, Body::Data { .. }) {
            let fresh = |block| self.durable.blocks.get(&block).is_none_or(|b| b.data.is_none());
            if write.range.blocks().any(fresh) {
                return Reply::Error(StoreError::Full { used_bytes: 1, total_bytes: 1 });
            }
        }
        for (i, block) in write.range.blocks().enumerate() {
            if write.body == Body::Held {
                break;
            }
            let data = match &write.body {
                Body::Tombstone | Body::Held => None,
                Body::Data { payload, checksums } => {
                    assert_eq!(block_checksum(write.key.volume, block, payload.block(i)), checksums[i]);
                    Some(payload.slice(i * BLOCK_BYTES, BLOCK_BYTES))
                }
            };
            self.rotten.remove(&block);
            self.unknown.remove(&block);
            self.durable.blocks.insert(block, Block { stamp: write.stamp, data });
        }
        let lane = self.durable.lanes.entry(write.key).or_default();
        if write.listed && write.stamp.index > lane.settled {
            lane.list.push(ListEntry {
                stamp: write.stamp,
                range: write.range,
                tombstone: write.body == Body::Tombstone,
                origin: write.origin,
                generation: write.generation,
            });
        }
        if write.origin == EntryOrigin::Live && write.stamp.epoch == lane.current {
            while lane.list.iter().any(|e| {
                e.origin == EntryOrigin::Live && e.stamp == Stamp { epoch: lane.current, index: lane.prefix + 1 }
            }) {
                lane.prefix += 1;
            }
        }
        Reply::Done
    }

    fn settle(&mut self, key: LaneKey, index: u64, config: u64, member: bool) {
        let lane = self.durable.lanes.entry(key).or_default();
        lane.config = lane.config.max(config);
        if member {
            assert!(index <= lane.prefix, "settled {index} is above the prefix {}", lane.prefix);
            lane.settled = lane.settled.max(index);
            lane.suspect.clear();
        }
        lane.list.retain(|entry| entry.stamp.index > index);
    }

    fn read(&self, volume: VolumeId, range: BlockRange) -> Reply {
        let mut bytes = Vec::with_capacity(range.bytes());
        let (mut states, mut stamps) = (Vec::new(), Vec::new());
        for block in range.blocks() {
            let content = self.durable.blocks.get(&block).cloned().unwrap_or_default();
            stamps.push(content.stamp);
            let state = match (&content.data, self.rotten.get(&block)) {
                _ if self.unknown.contains(&block) => BlockState::Unknown,
                (Some(_), Some(recorded)) => BlockState::Bad(*recorded),
                (Some(data), None) => BlockState::Data(block_checksum(volume, block, data)),
                (None, _) => BlockState::Zero,
            };
            states.push(state);
            match content.data {
                Some(data) if matches!(state, BlockState::Data(_)) => bytes.extend_from_slice(&data),
                _ => bytes.extend_from_slice(&[0; BLOCK_BYTES]),
            }
        }
        let any = states.iter().any(|state| matches!(state, BlockState::Data(_)));
        let payload = any.then(|| Payload::copied_from(&bytes));
        Reply::Read(ReadResult { range, payload, states, stamps })
    }

    fn map(&self, range: BlockRange) -> Reply {
        let block = |block| self.durable.blocks.get(&block);
        let has_data = |b| block(b).is_some_and(|b| b.data.is_some()) || self.unknown.contains(&b);
        let written = range.blocks().map(has_data).collect();
        let stamps = range.blocks().map(|b| block(b).map_or(Stamp::default(), |b| b.stamp)).collect();
        Reply::Map(MapResult { range, written, stamps })
    }

    fn repair(&mut self, volume: VolumeId, block: u64, checksum: u32, payload: Payload) -> Reply {
        let known = !self.unknown.contains(&block);
        let Some(Block { data: Some(data), .. }) = self.durable.blocks.get_mut(&block).filter(|_| known) else {
            return Reply::Error(StoreError::Refused("no data here".into()));
        };
        let recorded = self.rotten.get(&block).copied().unwrap_or_else(|| block_checksum(volume, block, data));
        if recorded != checksum {
            return Reply::Error(StoreError::Refused("another version".into()));
        }
        *data = payload;
        self.rotten.remove(&block);
        Reply::Done
    }

    /// Rots a block that holds data, or loses its metadata; gives the block if there is one.
    pub fn rot(&mut self, volume: VolumeId, prng: &mut Prng) -> Option<u64> {
        let data: Vec<u64> = self.durable.blocks.iter().filter(|(_, b)| b.data.is_some()).map(|(n, _)| *n).collect();
        if data.is_empty() {
            return None;
        }
        let block = *prng.pick(&data);
        self.damage(volume, block, prng.chance(1, 4));
        Some(block)
    }

    /// Damages a block: its bytes, or what is recorded about it.
    pub fn damage(&mut self, volume: VolumeId, block: u64, metadata: bool) {
        if metadata {
            self.rotten.remove(&block);
            self.unknown.insert(block);
            return;
        }
        if let Some(Block { data: Some(payload), .. }) = self.durable.blocks.get(&block)
            && !self.unknown.contains(&block)
        {
            let recorded = block_checksum(volume, block, payload);
            self.rotten.entry(block).or_insert(recorded);
        }
    }

    /// What a scrub finds.
    pub fn damaged_blocks(&self) -> BTreeSet<u64> {
        self.rotten.keys().chain(&self.unknown).copied().collect()
    }
}

/// True if `later`, submitted after `earlier`, must not become durable before it.
fn ordered(earlier: &Request, later: &Request) -> bool {
    if is_barrier(earlier) || is_barrier(later) {
        return true;
    }
    match (range_of(earlier), range_of(later)) {
        (Some((a, a_writes)), Some((b, b_writes))) => a.overlaps(b) && (a_writes || b_writes),
        _ => false,
    }
}

fn is_barrier(request: &Request) -> bool {
    matches!(
        request,
        Request::Promise { .. } | Request::Start { .. } | Request::JoinStart { .. } | Request::Forget { .. }
    )
}

fn range_of(request: &Request) -> Option<(BlockRange, bool)> {
    match request {
        Request::Write(write) => Some((write.range, true)),
        Request::Read { range, .. } | Request::Map { range, .. } => Some((*range, false)),
        Request::Repair { block, .. } => Some((BlockRange::new(*block, 1), true)),
        _ => None,
    }
}
