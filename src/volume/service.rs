//! W8 to W12: writes, acknowledgements, settled.

use super::asking::Purpose;
use super::engine::{Active, ClientRequest, Effect, Operation, Outcome, RequestId, VolumeEngine, VolumePhase, Work};
use super::engine::{Failure, ReadRun};
use super::lane::{Lane, LanePhase, bit, quorum, slots_of};
use super::repair::is_own;
use crate::wire::message::{Content, Envelope, ToReplica};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::checksum::block_checksums;
use ashlar_model::limits::{INFLIGHT_WRITES_MAX, WRITE_BLOCKS_MAX};
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use ashlar_model::{BlockRange, Payload};
use std::collections::{BTreeMap, VecDeque};

/// Writes without an acknowledgement are sent again after this, so many at a time.
const RESEND_US: u64 = 1_000_000;
const RESEND_WRITES: u64 = 32;
/// Reads on an idle volume let the grants lapse after this long without a request.
pub(super) const IDLE_AFTER_US: u64 = 3_000_000;

impl VolumeEngine {
    pub(super) fn on_request(&mut self, request: ClientRequest) {
        self.last_request_us = self.now_us;
        match self.phase {
            VolumePhase::Fenced => self.complete(request.id.0, Outcome::Failed(Failure::Fenced)),
            VolumePhase::Closing if broken(Mutation::ServeAfterClose) => self.begin(request),
            VolumePhase::Closing | VolumePhase::Closed => {
                self.complete(request.id.0, Outcome::Failed(Failure::Closed));
            }
            _ if self.holds_requests() => self.waiting.push_back(request),
            // A read passes writes that wait: they are not in any order with it.
            VolumePhase::Serving if request.operation.is_read() => self.begin_or_park(request),
            VolumePhase::Serving if self.waiting.is_empty() && self.may_write() => self.begin_or_park(request),
            _ => self.waiting.push_back(request),
        }
    }

    /// Drops what has no place among the others yet: it waits for room, or for its lane.
    pub(super) fn on_abandoned(&mut self, requests: &[RequestId]) {
        if broken(Mutation::AbandonedGoesOn) {
            return;
        }
        let kept = |request: &ClientRequest| !requests.contains(&request.id);
        self.waiting.retain(kept);
        self.parked.retain(kept);
    }

    /// False while a write must wait: too much is in flight or retained, or too few members are in sync.
    pub(super) fn may_write(&self) -> bool {
        let retained_max = self.settings.retained_bytes_max();
        let room = |lane: &Lane| {
            lane.retained_bytes < retained_max
                && lane.retained.len() < self.settings.retained_writes_max
                && lane.in_sync.count_ones() >= u32::from(self.spec.in_sync_min)
                && !self.is_throttled(lane)
        };
        self.active.len() < INFLIGHT_WRITES_MAX && self.lanes.iter().all(room)
    }

    pub(super) fn admit_waiting(&mut self) {
        while let Some(request) = self.waiting.front() {
            if !request.operation.is_read() && !self.may_write() {
                return;
            }
            let request = self.waiting.pop_front().expect("looked at it");
            self.begin_or_park(request);
        }
    }

    /// What touches a lane that does not serve waits aside.
    fn begin_or_park(&mut self, request: ClientRequest) {
        if self.range_serves(request.operation.range()) {
            self.begin(request);
        } else {
            self.parked.push(request);
        }
    }

    pub(super) fn retry_parked(&mut self) {
        let mut writes = Vec::new();
        for request in std::mem::take(&mut self.parked) {
            if request.operation.is_read() || !self.range_serves(request.operation.range()) {
                self.begin_or_park(request);
            } else {
                writes.push(request);
            }
        }
        // The limits and the minimum of members hold for them, too. They are older than what waits.
        writes.into_iter().rev().for_each(|request| self.waiting.push_front(request));
    }

    /// Reads that came before the volume served wait for no write.
    pub(super) fn begin_waiting_reads(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let (reads, writes): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|request| request.operation.is_read());
        self.waiting = writes;
        for request in reads {
            self.begin_or_park(request);
        }
    }

    /// True while the front may hand over more; otherwise it stops reading its sockets.
    pub fn accepts(&self) -> bool {
        self.in_flight() < INFLIGHT_WRITES_MAX
    }

    fn begin(&mut self, request: ClientRequest) {
        let ClientRequest { id: RequestId(id), operation } = request;
        let range = operation.range();
        assert!(self.spec.geometry.contains(range), "the front checks ranges");
        let (since_us, blocks_left) = (self.now_us, u64::from(range.count));
        match operation {
            Operation::Read { .. } => {
                self.counters.reads += 1;
                self.counters.read_bytes += range.bytes() as u64;
                self.active
                    .insert(id, Active { since_us, range, work: Work::Read { runs: BTreeMap::new(), blocks_left } });
                for piece in range.pieces(WRITE_BLOCKS_MAX) {
                    self.begin_read(piece, Purpose::Client { request: id }, false);
                }
            }
            Operation::Map { .. } => {
                self.active
                    .insert(id, Active { since_us, range, work: Work::Map { runs: BTreeMap::new(), blocks_left } });
                for piece in range.pieces(CHUNK_BLOCKS as u32) {
                    self.begin_read(piece, Purpose::Client { request: id }, true);
                }
            }
            operation => {
                self.counters.writes += 1;
                self.counters.written_bytes += range.bytes() as u64;
                self.active.insert(id, Active { since_us, range, work: Work::Locking { operation } });
                if self.lock.acquire(range, id) {
                    self.begin_locked(id);
                }
            }
        }
    }

    /// The range is ours: read what is only changed in part, or write at once.
    pub(super) fn begin_locked(&mut self, id: u64) {
        let active = self.active.get_mut(&id).expect("a locked request is active");
        let range = active.range;
        let Work::Locking { operation } = std::mem::replace(&mut active.work, Work::Write { pieces_left: 0 }) else {
            panic!("a request takes its lock once");
        };
        match operation {
            Operation::Zero { .. } => self.issue(id, range, None),
            Operation::Write { buffer, head_bytes: 0, tail_bytes: 0, .. } => self.issue(id, range, Some(buffer)),
            Operation::Write { buffer, head_bytes, tail_bytes, .. } => {
                let (first, last) = (range.start, range.end() - 1);
                let mut edges = Vec::new();
                if head_bytes > 0 || (tail_bytes > 0 && first == last) {
                    edges.push(first);
                }
                if tail_bytes > 0 && first != last {
                    edges.push(last);
                }
                let edges_left = edges.len() as u32;
                active.work = Work::Edges { buffer, head_bytes, tail_bytes, edges_left };
                for block in edges {
                    self.begin_read(BlockRange::new(block, 1), Purpose::Edge { request: id }, false);
                }
            }
            Operation::Read { .. } | Operation::Map { .. } => unreachable!("reads take no lock"),
        }
    }

    /// Content of a block that a write changes only in part.
    pub(super) fn on_edge(&mut self, id: u64, block: u64, payload: Option<Payload>) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let range = active.range;
        let Work::Edges { buffer, head_bytes, tail_bytes, edges_left } = &mut active.work else { return };
        let zeroes = [0u8; BLOCK_BYTES];
        let old: &[u8] = payload.as_deref().unwrap_or(&zeroes);
        if block == range.start {
            let head = *head_bytes as usize;
            buffer[..head].copy_from_slice(&old[..head]);
        }
        if block == range.end() - 1 {
            let tail = *tail_bytes as usize;
            let end = buffer.len();
            buffer[end - tail..].copy_from_slice(&old[BLOCK_BYTES - tail..]);
        }
        *edges_left -= 1;
        if *edges_left == 0 {
            let work = std::mem::replace(&mut active.work, Work::Write { pieces_left: 0 });
            let Work::Edges { buffer, .. } = work else { unreachable!("matched above") };
            // A rewrite of zeroes takes no space.
            let buffer = (payload.is_some() || !is_own(id)).then_some(buffer);
            self.issue(id, range, buffer);
        }
    }

    /// W8: gives every piece its lane's next index and sends it to everybody who should have it.
    fn issue(&mut self, id: u64, range: BlockRange, buffer: Option<AlignedBuffer>) {
        let payload = buffer.map(AlignedBuffer::freeze);
        let piece_blocks_max = if payload.is_some() { WRITE_BLOCKS_MAX } else { CHUNK_BLOCKS as u32 };
        let mut pieces = 0;
        for piece in range.pieces(piece_blocks_max) {
            let content = match &payload {
                None => Content::Zeroes,
                Some(payload) => {
                    let offset = (piece.start - range.start) as usize * BLOCK_BYTES;
                    let payload = payload.slice(offset, piece.bytes());
                    let checksums = block_checksums(self.spec.id, piece.start, &payload).collect();
                    Content::Data { payload, checksums }
                }
            };
            let number = usize::from(self.spec.geometry.lane_of_block(piece.start));
            let index = self.lanes[number].retain(piece, Some(content), Some(id), 0, self.now_us);
            for slot in slots_of(self.lanes[number].destinations()) {
                self.send_retained(number, slot, index);
            }
            pieces += 1;
        }
        self.active.get_mut(&id).expect("issued requests are active").work = Work::Write { pieces_left: pieces };
    }

    /// Sends a retained write to a slot that follows the epoch and lacks it.
    pub(super) fn send_retained(&mut self, number: usize, slot: usize, index: u64) {
        let progress = self.progress(number, slot);
        let lane = &mut self.lanes[number];
        if !lane.slots[slot].started || lane.slots[slot].failed {
            return;
        }
        let Some(retained) = lane.retained_mut(index).filter(|r| r.have & bit(slot) == 0) else { return };
        let Some(content) = retained.content.clone() else { return };
        let range = retained.range;
        self.send(number, slot, ToReplica::Write { progress, index, range, content, generation: 0 });
    }

    /// An acknowledgement: durable progress and a read grant.
    pub(super) fn on_ack(&mut self, envelope: Envelope, prefix: u64, index: u64, sent_at_us: u64, full: bool) {
        let Some(lane) = self.lanes.get_mut(usize::from(envelope.lane)) else { return };
        let number = usize::from(lane.number);
        let Some(slot) = lane.slot_of(envelope.device) else { return };
        let counts = !matches!(lane.phase, LanePhase::Sealing | LanePhase::Closed)
            && lane.destinations() & bit(slot) != 0
            && lane.slots[slot].up
            && !lane.slots[slot].failed;
        if !counts {
            return;
        }
        if prefix.max(index) > lane.last {
            let (device, last) = (envelope.device, lane.last);
            self.out.push(Effect::Alarm(format!(
                "volume {} lane {number}: device {device} acknowledged index {prefix}, but only {last} were written",
                self.spec.name
            )));
            return;
        }
        let state = &mut lane.slots[slot];
        if prefix < state.prefix && !state.started {
            // I6: it acknowledged more before. It has lost data and must not be trusted or fed.
            let (device, before) = (state.device, state.prefix);
            lane.distrust(slot);
            self.counters.lost_data += 1;
            self.out.push(Effect::Alarm(format!(
                "volume {} lane {number}: device {device} acknowledged index {before} and now has only {prefix}: \
                 it has lost data",
                self.spec.name
            )));
            return;
        }
        // Over one link a lower prefix is an answer that was overtaken.
        let prefix = prefix.max(state.prefix);
        let begins = !std::mem::replace(&mut state.started, true);
        let old_prefix = std::mem::replace(&mut state.prefix, prefix);
        state.full = full;
        if begins || prefix > old_prefix || index > prefix {
            self.note_progress(number, slot);
        }
        let lane = &mut self.lanes[number];
        if begins {
            lane.told_settled = None;
        }
        let state = &mut lane.slots[slot];
        if begins && lane.phase == LanePhase::Copying {
            state.behind_since_us = None;
        }
        if sent_at_us > 0 {
            let since_us = if broken(Mutation::GrantFromReceipt) { self.now_us } else { sent_at_us };
            state.granted_us = Some(state.granted_us.unwrap_or(0).max(since_us));
        }
        let first = lane.retained.front().map_or(u64::MAX, |retained| retained.index);
        for held in (old_prefix + 1).max(first)..=prefix {
            self.note_durable(number, slot, held);
        }
        if index > prefix {
            self.note_durable(number, slot, index);
        }
        if begins {
            self.begin_following(number, slot);
            self.resend_missing(number, slot);
        }
        self.advance(number);
        self.continue_copy(number);
    }

    fn note_durable(&mut self, number: usize, slot: usize, index: u64) {
        let policy = self.spec.quorum;
        let lane = &mut self.lanes[number];
        let serving = matches!(lane.phase, LanePhase::Serving | LanePhase::Closing) && self.now_us >= lane.ready_at_us;
        let Some(retained) = lane.retained_mut(index) else { return };
        retained.have |= bit(slot);
        let (have, acked) = (retained.have, retained.acked);
        if serving && !acked && lane.has_quorum(have, policy) {
            self.acknowledge(number, index);
        }
    }

    /// W10.
    fn acknowledge(&mut self, number: usize, index: u64) {
        let retained = self.lanes[number].retained_mut(index).expect("acknowledged once");
        retained.acked = true;
        let Some(id) = retained.request else { return };
        let Some(active) = self.active.get_mut(&id) else { return };
        let Work::Write { pieces_left } = &mut active.work else { panic!("a piece of a request that is not a write") };
        *pieces_left -= 1;
        if *pieces_left == 0 {
            let range = active.range;
            self.complete(id, Outcome::Written);
            self.release_lock(range, id);
        }
    }

    pub(super) fn release_lock(&mut self, range: BlockRange, id: u64) {
        for next in self.lock.release(range, id) {
            self.begin_locked(next);
        }
    }

    pub(super) fn complete(&mut self, id: u64, outcome: Outcome) {
        let active = self.active.remove(&id);
        if is_own(id) {
            self.on_rewritten(id, &outcome);
            return;
        }
        if let Some(active) = active {
            self.pace.note(self.now_us.saturating_sub(active.since_us));
        }
        self.out.push(Effect::Complete { id: RequestId(id), outcome });
    }

    /// Everything that a slot lacks, in order: it has just begun to follow, perhaps again.
    fn resend_missing(&mut self, number: usize, slot: usize) {
        let lane = &self.lanes[number];
        let first = lane.retained.front().map_or(0, |retained| retained.index);
        let from = (lane.slots[slot].prefix + 1).max(first);
        for index in from..=lane.last {
            self.send_retained(number, slot, index);
        }
    }

    /// A member that has not got further for long is sent the next writes again: they may have been lost. What it holds
    /// or has taken it drops.
    pub(super) fn resend_late_writes(&mut self, number: usize) {
        let now_us = self.now_us;
        let first = self.lanes[number].retained.front().map_or(u64::MAX, |retained| retained.index);
        for slot in slots_of(self.lanes[number].destinations()) {
            self.lanes[number].note_lag(slot, now_us);
            let (last, state) = (self.lanes[number].last, &mut self.lanes[number].slots[slot]);
            let since_us = state.behind_since_us.map_or(now_us, |since| since.max(state.resent_us));
            // A device without room has them, and tries by itself.
            if !state.started || state.full || now_us < since_us + RESEND_US {
                continue;
            }
            mark("writes are sent again");
            state.resent_us = now_us;
            let from = (state.prefix + 1).max(first);
            for index in from..=last.min(from.saturating_add(RESEND_WRITES - 1)) {
                self.send_retained(number, slot, index);
            }
        }
    }

    /// Acknowledges what has its quorum after a change of the set, moves settled (W11) and lets go (W12).
    pub(super) fn advance(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        let early = lane.phase == LanePhase::Copying && broken(Mutation::SettledInRecovery);
        if !matches!(lane.phase, LanePhase::Serving | LanePhase::Closing) && !early {
            return;
        }
        let members = if broken(Mutation::OldSetOnly) { lane.in_sync } else { lane.members() };
        let counts = |slot: usize| lane.slots[slot].started && !lane.slots[slot].failed;
        let follow = |slot: usize| if counts(slot) { lane.slots[slot].prefix } else { 0 };
        let mut settled = slots_of(members).map(follow).min().expect("the set is never empty");
        if broken(Mutation::SettledByQuorum) {
            let mut prefixes: Vec<u64> = slots_of(members).map(follow).collect();
            prefixes.sort_unstable();
            settled = prefixes[prefixes.len() - quorum(members, self.spec.quorum) as usize];
        }
        lane.settled = lane.settled.max(settled);
        lane.release_settled();
        for slot in 0..lane.slots.len() {
            lane.note_lag(slot, self.now_us);
        }
    }

    /// After the set has changed: what waited for the other set's quorum may have it now.
    pub(super) fn acknowledge_all(&mut self, number: usize) {
        let policy = self.spec.quorum;
        let lane = &self.lanes[number];
        let ready: Vec<u64> =
            lane.retained.iter().filter(|r| !r.acked && lane.has_quorum(r.have, policy)).map(|r| r.index).collect();
        for index in ready {
            self.acknowledge(number, index);
        }
        self.advance(number);
    }

    /// Grants and settled for members that get no writes.
    pub(super) fn heartbeat_if_due(&mut self, number: usize) {
        let idle = self.in_flight() == 0
            && self.now_us > self.last_request_us + IDLE_AFTER_US
            && slots_of(self.lanes[number].members())
                .all(|s| self.lanes[number].slots[s].prefix >= self.lanes[number].last)
            && self.lanes[number].join.is_none()
            && self.lanes[number].pending.is_none();
        // A quiet volume keeps a slow pulse: it still learns of failures, at a tenth of the cost.
        let period_us = self.settings.heartbeat_us() * if idle { 10 } else { 1 };
        if self.now_us >= self.lanes[number].heartbeat_sent_us + period_us {
            self.heartbeat(number);
        }
    }

    pub(super) fn heartbeat(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        lane.heartbeat_sent_us = self.now_us;
        lane.told_settled = Some(lane.settled);
        for slot in slots_of(self.lanes[number].destinations()) {
            if self.lanes[number].slots[slot].started {
                let progress = self.progress(number, slot);
                self.send(number, slot, ToReplica::Heartbeat { progress });
            } else {
                self.send_start(number, slot);
            }
        }
    }

    /// The pieces of a finished read, in order.
    pub(super) fn finish_read(&mut self, id: u64) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let outcome = match &mut active.work {
            Work::Read { runs, blocks_left: 0 } => {
                Outcome::Read(std::mem::take(runs).into_values().collect::<Vec<ReadRun>>())
            }
            Work::Map { runs, blocks_left: 0 } => {
                let mut joined: Vec<(u32, bool)> = Vec::new();
                for written in std::mem::take(runs).into_values().flatten() {
                    match joined.last_mut() {
                        Some((blocks, kind)) if *kind == written => *blocks += 1,
                        _ => joined.push((1, written)),
                    }
                }
                Outcome::Map(joined)
            }
            _ => return,
        };
        self.complete(id, outcome);
    }
}
