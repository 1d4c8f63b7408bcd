//! What a joiner holds already needs not be copied: digests of a source's blocks, and taking over their versions where the
//! own bytes are the same.
//!
//! Versions are kept per 64 KiB granule once they are settled, so most of what a source calls newer than the joiner's
//! settled was not written at all.

use super::engine::{Effect, LinkId, Pending, ReplicaEngine};
use super::join::unwritten_runs;
use super::lane::{Accepted, CopyId, Copying};
use crate::wire::Permit;
use crate::wire::message::{Content, Envelope, ToWriter, checksum_of_digest};
use ashlar_model::checksum::block_digest;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, LaneKey, Stamp};
use ashlar_store::api::{BlockState, ReadResult, Reply, Request};
use std::sync::Arc;

/// What a joiner is asked to compare.
#[derive(Debug)]
pub(super) struct Confirm {
    pub copy: CopyId,
    pub range: BlockRange,
    pub seed: u64,
    /// Version and digest at the source, one per block.
    pub blocks: Arc<[(Stamp, u128)]>,
    pub settled: u64,
}

/// The answer to a question for digests.
pub(super) fn digests_of(request: u64, seed: u64, reply: Reply) -> ToWriter {
    let Reply::Read(read) = reply else { return ToWriter::ReadRefused { request } };
    let digests = (0..read.range.count as usize).map(|at| digest_at(&read, seed, at).unwrap_or(0));
    let blocks = read.stamps.iter().copied().zip(digests).collect();
    ToWriter::Digests { request, range: read.range, blocks }
}

/// Digest of a block that holds good data.
fn digest_at(read: &ReadResult, seed: u64, at: usize) -> Option<u128> {
    let payload = read.payload.as_ref().filter(|_| matches!(read.states[at], BlockState::Data(_)))?;
    Some(block_digest(seed, payload.block(at)))
}

impl ReplicaEngine {
    pub(super) fn on_confirm(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        confirm: Confirm,
        permit: Permit,
        effects: &mut Vec<Effect>,
    ) {
        let key = Self::key(envelope);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let copy = confirm.copy;
        let joins = lane.joining.is_some() && lane.takes_copies_of(copy.join) && lane.current == envelope.epoch;
        if !joins || confirm.blocks.len() != confirm.range.count as usize {
            effects.push(Effect::Send { link, envelope, message: ToWriter::JoinLost { join: copy.join } });
            return;
        }
        if lane.copies.contains_key(&(copy.join, copy.request)) {
            return; // a duplicate of one that is on its way
        }
        // The comparison itself is the first part.
        lane.copies.insert((copy.join, copy.request), Copying { parts: 1, ..Copying::default() });
        lane.link = Some(link);
        lane.in_flight += 1;
        let life = lane.life;
        let request = Request::Read { volume: key.volume, range: confirm.range };
        let epoch = envelope.epoch;
        self.submit(Pending::Confirm { key, life, epoch, confirm: Box::new(confirm), permit }, request, effects);
    }

    /// The own bytes are here: what is the same is stored again under the source's version.
    pub(super) fn on_compared(
        &mut self,
        key: LaneKey,
        confirm: &Confirm,
        permit: &mut Permit,
        reply: &Reply,
        effects: &mut Vec<Effect>,
    ) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let id = (confirm.copy.join, confirm.copy.request);
        if !lane.takes_copies_of(confirm.copy.join) || !lane.copies.contains_key(&id) {
            return;
        }
        let at = |block: u64| (block - confirm.range.start) as usize;
        let same = |block: u64| {
            let Reply::Read(read) = reply else { return false };
            match confirm.blocks[at(block)].1 {
                0 => false,
                digest => match checksum_of_digest(digest) {
                    // Damaged at every source: what verifies here with the checksum of that version is a good copy of it.
                    Some(checksum) => read.states[at(block)] == BlockState::Data(checksum),
                    None => digest_at(read, confirm.seed, at(block)) == Some(digest),
                },
            }
        };
        let written = |block: u64| lane.written.contains(block) && !broken(Mutation::CopyOverLive);
        let differs = unwritten_runs(confirm.range, |block| written(block) || same(block));
        let left_to_writes = unwritten_runs(confirm.range, |block| !written(block));
        let equal = unwritten_runs(confirm.range, |block| written(block) || !same(block));
        let mut parts = Vec::new();
        if let Reply::Read(read) = reply {
            for run in equal.into_iter().flat_map(|run| of_one_version(run, |block| confirm.blocks[at(block)].0)) {
                mark("a block that a joiner held already is confirmed");
                parts.push(confirm.part(run, read, permit));
            }
        }
        let copying = lane.copies.get_mut(&id).expect("looked at it");
        copying.parts = parts.len();
        copying.left_to_writes = left_to_writes;
        copying.differs = Some(differs);
        self.store_parts(key, parts, effects);
    }
}

impl Confirm {
    /// Own bytes, to be stored again under the version that they have at the source.
    fn part(&self, run: BlockRange, read: &ReadResult, permit: &mut Permit) -> Accepted {
        let first = (run.start - self.range.start) as usize;
        let stamp = self.blocks[first].0;
        let payload = read.payload.as_ref().expect("equal blocks have data");
        let checksum = |state: &BlockState| match state {
            BlockState::Data(checksum) => *checksum,
            BlockState::Zero | BlockState::Bad(_) | BlockState::Unknown => unreachable!("only data is equal"),
        };
        let checksums = read.states[first..first + run.count as usize].iter().map(checksum).collect();
        Accepted {
            stamp,
            range: run,
            content: Content::Data { payload: payload.slice(first * BLOCK_BYTES, run.bytes()), checksums },
            generation: 0,
            origin: EntryOrigin::Copy,
            listed: stamp.index > self.settled && !broken(Mutation::CopyUnlisted),
            copy: Some(self.copy),
            held: false,
            permit: permit.share(run.bytes() as u64),
        }
    }
}

/// Parts of a run whose blocks have the same version.
fn of_one_version(run: BlockRange, version: impl Fn(u64) -> Stamp) -> Vec<BlockRange> {
    let mut parts: Vec<BlockRange> = Vec::new();
    for block in run.blocks() {
        match parts.last_mut() {
            Some(part) if version(part.start) == version(block) => part.count += 1,
            _ => parts.push(BlockRange::new(block, 1)),
        }
    }
    parts
}
