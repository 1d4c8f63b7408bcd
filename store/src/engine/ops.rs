//! Accepted operations until they are answered: when they are durable, who waits for them, and promises.
//!
//! It must never know how an operation becomes durable.

use super::StoreEngine;
use crate::api::{Reply, Token};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, Epoch, LaneKey, Payload, Stamp, VolumeId};

/// An accepted, unanswered operation.
#[derive(Debug)]
pub(super) struct Op {
    pub token: Option<Token>,
    pub volume: VolumeId,
    pub kind: OpKind,
    /// Data writes that are not done.
    pub data_left: u32,
    /// Its group, zero while it has none.
    pub lsn: u64,
    pub granules_freed: Vec<u32>,
    pub slots_freed: Vec<u32>,
    /// Granules that it moved content to: until it is durable, a crash may bring the old ones back.
    pub redirected: Vec<u32>,
    /// The granule in which it put a block elsewhere.
    pub moved_in: Option<u32>,
    /// Reads that wait for it.
    pub readers: Vec<u64>,
}

/// What an operation is.
#[derive(Debug)]
pub(super) enum OpKind {
    Write {
        range: BlockRange,
        payload: Option<Payload>,
        live: Option<(LaneKey, Stamp)>,
        slot: u32,
        /// Physical block that is written once the record is durable.
        intent: Option<u64>,
    },
    Other,
}

/// A promise that waits for what was accepted before it.
#[derive(Debug)]
pub(super) struct PromiseWait {
    pub token: Token,
    volume: VolumeId,
    /// What it makes durable; a higher one may have been accepted since.
    promised: Epoch,
    id: u64,
    /// Operations and reads of the volume before it, and its own record.
    left: usize,
}

impl Op {
    /// Blocks of a write.
    pub fn range(&self) -> Option<BlockRange> {
        match &self.kind {
            OpKind::Write { range, .. } => Some(*range),
            OpKind::Other => None,
        }
    }

    /// The layer that a write goes to.
    pub fn slot(&self) -> Option<u32> {
        match &self.kind {
            OpKind::Write { slot, .. } => Some(*slot),
            OpKind::Other => None,
        }
    }

    /// A block's bytes, if the operation wrote them.
    pub fn block(&self, block: u64) -> Option<Payload> {
        match &self.kind {
            OpKind::Write { range, payload: Some(payload), .. } if range.contains(block) => {
                Some(payload.slice((block - range.start) as usize * BLOCK_BYTES, BLOCK_BYTES))
            }
            _ => None,
        }
    }

    /// True for a write that leaves no data.
    pub fn is_tombstone(&self) -> bool {
        matches!(self.kind, OpKind::Write { payload: None, .. })
    }
}

impl StoreEngine {
    pub(super) fn new_op(&mut self, token: Option<Token>, volume: VolumeId, kind: OpKind) -> u64 {
        let id = self.next_op;
        self.next_op += 1;
        let op = Op {
            token,
            volume,
            kind,
            data_left: 0,
            lsn: 0,
            granules_freed: vec![],
            slots_freed: vec![],
            redirected: vec![],
            moved_in: None,
            readers: vec![],
        };
        self.ops.insert(id, op);
        id
    }

    /// Accepts a promise: its record is an operation of its own, without an answer.
    pub(super) fn new_promise(&mut self, token: Token, volume: VolumeId) -> u64 {
        let earlier = self.ops.values().filter(|op| op.volume == volume).count()
            + self.reads.values().filter(|read| read.volume == volume).count();
        let id = self.new_op(None, volume, OpKind::Other);
        let promised = self.table.promised(volume);
        self.promises.push_back(PromiseWait { token, volume, promised, id, left: earlier + 1 });
        id
    }

    /// An operation is durable: answers it, and whatever waited only for it.
    pub(super) fn op_durable(&mut self, id: u64) {
        let op = self.ops.remove(id).expect("durable once");
        self.assert_replayable(op.lsn);
        self.limbo.extend(op.granules_freed);
        for granule in op.redirected {
            // It may have gone on to another chunk meanwhile.
            if self.young.get(&granule) == Some(&id) {
                self.young.remove(&granule);
            }
        }
        if let Some(granule) = op.moved_in
            && self.moving.get(&granule) == Some(&id)
        {
            self.moving.remove(&granule);
        }
        for slot in op.slots_freed {
            self.slots.release(slot);
        }
        if let OpKind::Write { range, live, .. } = op.kind {
            let place = (op.volume, range.chunk());
            let inflight = self.inflight.get_mut(&place).expect("it was in flight");
            inflight.retain(|one| *one != id);
            if inflight.is_empty() {
                self.inflight.remove(&place);
            }
            if let Some((key, stamp)) = live {
                self.live_write_done(key, stamp);
            }
        }
        if let Some(token) = op.token {
            self.reply(token, Reply::Done);
        }
        self.op_gone(op.volume, id);
        for read in op.readers {
            self.read_unblocked(read);
        }
    }

    fn live_write_done(&mut self, key: LaneKey, stamp: Stamp) {
        let left = self.live.get_mut(&(key, stamp.index)).expect("it was in flight");
        *left -= 1;
        if *left == 0 {
            self.live.remove(&(key, stamp.index));
            self.table.live_done(key, stamp);
        }
    }

    /// An operation or a read was answered: promises may have waited for it.
    pub(super) fn op_gone(&mut self, volume: VolumeId, id: u64) {
        if self.promises.is_empty() {
            return;
        }
        for promise in self.promises.iter_mut().filter(|one| one.volume == volume && id <= one.id) {
            promise.left -= 1;
        }
        // A later promise of a volume waits for an earlier one's record, so it is never ready before it.
        while let Some(at) = self.promises.iter().position(|promise| promise.left == 0) {
            let Some(PromiseWait { token, volume, promised, .. }) = self.promises.remove(at) else { break };
            let lanes = self.table.lanes_of(volume);
            self.reply(token, Reply::Sealed { promised, lanes });
        }
    }
}
