//! C3: taking a device back in. It gets every new write at once and what it missed from a member, chunk by chunk.

use super::asking::{Purpose, Read};
use super::engine::{Effect, VolumeEngine};
use super::lane::{Copied, Copying, Join, JoinRun, bit, weight_blocks};
use super::reads::checksum_of;
use crate::wire::message::{BlockCondition, Content, Envelope, ReadReply, ToReplica, recorded_digest};
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use ashlar_model::{BlockRange, DeviceId, Stamp};
use std::collections::{BTreeMap, VecDeque};

/// A join that came to nothing is tried again after this.
const RETRY_PAUSE_US: u64 = 1_000_000;
/// After a damaged source, later: somebody has to look.
const DAMAGED_PAUSE_US: u64 = 30_000_000;
/// A joiner that has not begun by then is left alone for a while.
const ANSWER_PATIENCE_US: u64 = 5_000_000;
/// After joins that came to nothing the pause doubles, up to this.
const RETRY_PAUSE_US_MAX: u64 = 60_000_000;
/// A copy without an answer is sent again after this.
const RESEND_US: u64 = 1_000_000;
/// JoinStart is repeated after this without an answer.
const ASK_AGAIN_US: u64 = 1_000_000;

impl VolumeEngine {
    pub(super) fn begin_join_if_possible(&mut self, number: usize) {
        if self.lanes.iter().filter(|lane| lane.join.is_some()).count() >= self.settings.joins_max {
            return;
        }
        let now_us = self.now_us;
        let epoch = self.epoch;
        let lane = &self.lanes[number];
        let wanted = |slot: &usize| {
            let state = &lane.slots[*slot];
            lane.copyset & !lane.in_sync & bit(*slot) != 0
                && state.up
                && !state.failed
                && now_us >= state.join_not_before_us
                && !self.is_left_alone(lane, *slot)
                && !self.is_on_trial_elsewhere(lane, *slot)
        };
        let Some(slot) = (0..lane.slots.len()).find(wanted) else { return };
        let lane = &mut self.lanes[number];
        lane.joins_begun += 1;
        // Ordered over all joins of the device: by epoch, then by count.
        let join = (epoch.0 << 24) + lane.joins_begun;
        let base = lane.last;
        let state = &mut lane.slots[slot];
        state.started = false;
        state.prefix = 0;
        state.granted_us = None;
        for retained in &mut lane.retained {
            retained.have &= !bit(slot);
        }
        lane.join = Some(Join {
            slot,
            join,
            base,
            info: None,
            whole: state.distrusted,
            next_chunk: 0,
            reads: 0,
            read_blocks: 0,
            copies: BTreeMap::new(),
            todo: VecDeque::new(),
            copied_bytes: 0,
            compared: (0, 0),
            runs: 0,
            compared_bytes: 0,
            asked_us: 0,
            since_us: now_us,
        });
        self.ask_join(number);
    }

    fn ask_join(&mut self, number: usize) {
        let now_us = self.now_us;
        let config = self.lanes[number].version;
        let Some(join) = &mut self.lanes[number].join else { return };
        join.asked_us = now_us;
        let (slot, message) = (join.slot, ToReplica::JoinStart { config, join: join.join, base: join.base });
        self.send(number, slot, message);
    }

    /// The lane and the join that an answer of a joiner is about.
    fn join_of(&mut self, envelope: Envelope, join: u64) -> Option<(usize, &mut Join)> {
        let number = usize::from(envelope.lane);
        let lane = self.lanes.get_mut(number)?;
        let slot = lane.slot_of(envelope.device)?;
        let current = lane.join.as_mut().filter(|current| current.join == join && current.slot == slot)?;
        Some((number, current))
    }

    pub(super) fn on_join_ready(&mut self, envelope: Envelope, join: u64, settled: u64, suspects: Vec<BlockRange>) {
        let Some((number, current)) = self.join_of(envelope, join) else { return };
        if current.info.is_some() {
            return;
        }
        current.info = Some((settled, suspects));
        let (slot, base, whole) = (current.slot, current.base, current.whole);
        let lane = &mut self.lanes[number];
        lane.slots[slot].started = true;
        lane.slots[slot].progressed_us = self.now_us;
        lane.slots[slot].prefix = base;
        for retained in lane.retained.iter_mut().filter(|retained| retained.index <= base) {
            retained.have |= bit(slot);
        }
        self.begin_following(number, slot);
        let lane = &self.lanes[number];
        let (device, last) = (lane.slots[slot].device, lane.last);
        let has = match whole {
            true => "everything is compared: it may hold writes from before the restore of the metadata".to_owned(),
            false => format!("it has everything up to index {settled}"),
        };
        self.out
            .push(Effect::Note(format!("volume {} lane {number}: device {device} is joining; {has}", self.spec.name)));
        for index in base + 1..=last {
            self.send_retained(number, slot, index);
        }
        self.drive_join(number);
    }

    /// The node is there, and does not serve the device: nobody waits for it to join.
    pub(super) fn on_not_served(&mut self, device: DeviceId) {
        for number in 0..self.lanes.len() {
            if let Some(slot) = self.lanes[number].slot_of(device) {
                self.drop_join_of(number, slot);
            }
        }
    }

    pub(super) fn on_join_lost(&mut self, envelope: Envelope, join: u64) {
        let Some((number, current)) = self.join_of(envelope, join) else { return };
        let slot = current.slot;
        self.drop_join_of(number, slot);
    }

    /// C3 d: begins again later with a new number, and each time later. A promotion that is out is not taken back: its
    /// outcome decides.
    pub(super) fn drop_join_of(&mut self, number: usize, slot: usize) {
        let needed = self.is_needed(&self.lanes[number]);
        let lane = &mut self.lanes[number];
        let promoting = lane.pending.is_some_and(|pending| pending & bit(slot) != 0);
        if promoting || lane.join.as_ref().is_none_or(|join| join.slot != slot) {
            return;
        }
        let dropped = lane.join.take().expect("just seen");
        lane.slots[slot].started = false;
        let state = &mut lane.slots[slot];
        let times = if needed { 0 } else { state.joins_failed.min(6) };
        state.join_not_before_us = self.now_us + (RETRY_PAUSE_US << times).min(RETRY_PAUSE_US_MAX);
        state.joins_failed += 1;
        let of_join = |purpose: Purpose| match purpose {
            Purpose::JoinMap { join } | Purpose::JoinDigest { join } | Purpose::JoinData { join } => {
                join == dropped.join
            }
            _ => false,
        };
        self.reads.retain(|_, read| read.number != number || !of_join(read.purpose));
        self.lanes[number].release_settled();
    }

    pub(super) fn give_up_join(&mut self, number: usize, join: u64) {
        let lane = &self.lanes[number];
        let Some(slot) = lane.join.as_ref().filter(|current| current.join == join).map(|current| current.slot) else {
            return;
        };
        self.drop_join_of(number, slot);
        self.lanes[number].slots[slot].join_not_before_us = self.now_us + DAMAGED_PAUSE_US;
    }

    /// Keeps the window full: first what is known to be needed, then the next chunk.
    pub(super) fn drive_join(&mut self, number: usize) {
        let now_us = self.now_us;
        let geometry = self.spec.geometry;
        loop {
            let Some(join) = &mut self.lanes[number].join else { return };
            if join.info.is_none() {
                let (slot, since_us, asked_us) = (join.slot, join.since_us, join.asked_us);
                let retained_bytes = self.lanes[number].retained_bytes as u64;
                if now_us >= since_us + ANSWER_PATIENCE_US || retained_bytes > self.settings.throttle_lag_bytes() {
                    // Its device hangs or does not serve. Writes that are kept for it would hold up the others.
                    mark("a joiner does not answer");
                    self.drop_join_of(number, slot);
                } else if now_us >= asked_us + ASK_AGAIN_US {
                    self.ask_join(number);
                }
                return;
            }
            let has_room = join.in_flight() < self.settings.join_window.max(1);
            if !has_room || !join.has_more(number, geometry) || !self.pace.allows(now_us) {
                return;
            }
            let purpose_join = join.join;
            if let Some(run) = join.todo.pop_front() {
                self.pace.begun(now_us, weight_blocks(run.range));
                match run.zeroes {
                    Some(stamp) => self.begin_copy_of(number, run.range, Copied::Content(stamp, Content::Zeroes)),
                    None => {
                        join.read_begins(run.range);
                        let compare = self.settings.join_compares && !run.differs && join.should_compare();
                        let join = purpose_join;
                        let purpose = if compare { Purpose::JoinDigest { join } } else { Purpose::JoinData { join } };
                        self.begin_read(run.range, purpose, false);
                    }
                }
                continue;
            }
            let chunk = join.chunk(number, geometry);
            join.next_chunk += 1;
            let start = chunk * CHUNK_BLOCKS as u64;
            let count = (geometry.block_count() - start).min(CHUNK_BLOCKS as u64) as u32;
            let range = BlockRange::new(start, count);
            self.pace.begun(now_us, weight_blocks(BlockRange::new(start, 1))); // a map reads no data
            if let Some(join) = &mut self.lanes[number].join {
                join.read_begins(range);
            }
            self.begin_read(range, Purpose::JoinMap { join: purpose_join }, true);
        }
    }

    /// R9 on the writer's side: what is newer than the joiner's settled, or suspect there.
    pub(super) fn on_join_map(&mut self, number: usize, join: u64, reply: &ReadReply) {
        let Some(current) = self.lanes[number].join.as_mut().filter(|current| current.join == join) else { return };
        current.read_ends(reply.range);
        let (settled, suspects) = current.info.as_ref().expect("maps are asked after the joiner answered");
        let whole = current.whole && !broken(Mutation::JoinerTrusted);
        let suspects: Vec<&BlockRange> = suspects.iter().filter(|suspect| suspect.overlaps(reply.range)).collect();
        let mut last: Option<JoinRun> = None;
        for (block, (condition, stamp)) in reply.range.blocks().zip(reply.conditions.iter().zip(&reply.stamps)) {
            if !whole && stamp.index <= *settled && !suspects.iter().any(|suspect| suspect.contains(block)) {
                continue;
            }
            let zeroes = (*condition == BlockCondition::Zero).then_some(*stamp);
            match &mut last {
                Some(run)
                    if run.range.end() == block
                        && run.zeroes == zeroes
                        && (zeroes.is_some() || run.range.count < WRITE_BLOCKS_MAX) =>
                {
                    run.range.count += 1;
                }
                _ => current.todo.extend(last.replace(JoinRun {
                    range: BlockRange::new(block, 1),
                    zeroes,
                    differs: false,
                })),
            }
        }
        current.todo.extend(last);
        self.drive_join(number);
        self.try_promote_now(number);
    }

    pub(super) fn on_join_data(&mut self, read: Read, slot: usize, join: u64, reply: ReadReply) {
        let number = read.number;
        if self.lanes[number].join.as_ref().is_none_or(|current| current.join != join) {
            return;
        }
        let checked = self.check_blocks(read.range, &reply);
        let mut start = 0;
        let (mut copies, mut damaged) = (Vec::new(), Vec::new());
        while start < checked.len() {
            let same = |i: &usize| checked[*i] == checked[start] && reply.stamps[*i] == reply.stamps[start];
            let end = start + (start..checked.len()).take_while(same).count();
            let range = BlockRange::new(read.range.start + start as u64, (end - start) as u32);
            let content = if checked[start].is_none() {
                damaged.extend(start..end);
                start = end;
                continue;
            } else if checked[start] == Some(true) {
                let payload = reply.payload.as_ref().expect("data comes with bytes");
                let checksums = reply.conditions[start..end].iter().map(checksum_of).collect();
                Content::Data { payload: payload.slice(start * BLOCK_BYTES, range.bytes()), checksums }
            } else {
                Content::Zeroes
            };
            copies.push((range, reply.stamps[start], content));
            start = end;
        }
        let current = self.lanes[number].join.as_mut().expect("looked up above");
        current.read_ends(read.range);
        for (range, stamp, content) in copies {
            self.begin_copy_of(number, range, Copied::Content(stamp, content));
        }
        for at in damaged {
            self.on_source_damaged(&read, slot, at, reply.stamps[at], reply.conditions[at]);
        }
    }

    /// What a source holds of a run: the joiner may hold it, too.
    pub(super) fn on_digests(&mut self, device: DeviceId, id: u64, range: BlockRange, blocks: Vec<(Stamp, u128)>) {
        let Some((slot, read)) = self.take_answered(device, id) else { return };
        let (Purpose::JoinDigest { join }, true) = (read.purpose, range == read.range) else {
            self.out.push(Effect::Alarm(format!("device {device} answered a read of {:?} wrongly", read.range)));
            self.read_again(read, slot);
            return;
        };
        let number = read.number;
        let Some(current) = self.lanes[number].join.as_mut().filter(|current| current.join == join) else { return };
        current.read_ends(range);
        self.begin_copy_of(number, range, Copied::Digests(blocks.into()));
    }

    pub(super) fn begin_copy_of(&mut self, number: usize, range: BlockRange, what: Copied) {
        let (request, sent_us) = (self.next_read, self.now_us);
        self.next_read += 1;
        let current = self.lanes[number].join.as_mut().expect("copies belong to a join");
        if matches!(what, Copied::Content(_, Content::Data { .. })) {
            current.copied_bytes += range.bytes() as u64;
            self.counters.join_bytes += range.bytes() as u64;
        }
        current.copies.insert(request, Copying { range, what, sent_us, is_outdated: false });
        self.send_copy(number, request);
    }

    fn send_copy(&mut self, number: usize, request: u64) {
        let now_us = self.now_us;
        let seed = self.digest_seed(number);
        let settled = self.lanes[number].settled;
        let Some(join) = &mut self.lanes[number].join else { return };
        let Some(copying) = join.copies.get_mut(&request) else { return };
        copying.sent_us = now_us;
        let Copying { range, what, .. } = copying.clone();
        let (slot, join) = (join.slot, join.join);
        let message = match what {
            Copied::Content(stamp, content) => ToReplica::Copy { join, request, range, stamp, content, settled },
            Copied::Digests(blocks) => ToReplica::Confirm { join, request, range, seed, blocks, settled },
            Copied::Recorded(stamp, checksum) => {
                let blocks = [(stamp, recorded_digest(checksum))].into();
                ToReplica::Confirm { join, request, range, seed, blocks, settled }
            }
        };
        self.send(number, slot, message);
    }

    /// Seed of the digests of a lane's join.
    pub(super) fn digest_seed(&self, number: usize) -> u64 {
        let join = self.lanes[number].join.as_ref().map_or(0, |join| join.join);
        metadata_checksum(self.spec.id.as_u128(), join, b"digest") >> 2 // numbers on the wire have 62 bits
    }

    /// The joiner has compared: what it does not hold is copied next.
    pub(super) fn on_confirmed(&mut self, envelope: Envelope, join: u64, request: u64, differs: &[BlockRange]) {
        let Some((number, current)) = self.join_of(envelope, join) else { return };
        let Some(copying) = current.copies.remove(&request) else { return };
        if let Copied::Recorded(version, _) = copying.what {
            if copying.is_outdated {
                current.todo.push_front(JoinRun { range: copying.range, zeroes: None, differs: true });
            } else if !differs.is_empty() {
                self.copy_lost(number, copying.range, version);
            }
            return self.go_on_joining(number);
        }
        let known = |block: &u64| copying.range.contains(*block);
        let mut different = 0;
        for run in differs {
            let blocks = run.blocks().take(WRITE_BLOCKS_MAX as usize).filter(known).count() as u32;
            if blocks > 0 && known(&run.start) {
                different += u64::from(blocks);
                let range = BlockRange::new(run.start, blocks);
                current.todo.push_front(JoinRun { range, zeroes: None, differs: true });
            }
        }
        let blocks = u64::from(copying.range.count);
        let equal = blocks.saturating_sub(different);
        current.note_compared(blocks, equal);
        current.compared_bytes += equal * BLOCK_BYTES as u64;
        self.go_on_joining(number);
    }

    /// A rest is over.
    pub(super) fn drive_joins(&mut self) {
        // In turn, so that the first one does not take the whole rate.
        let (count, first) = (self.lanes.len(), self.pace.turn());
        for at in 0..count {
            let number = (first + at) % count;
            if self.lanes[number].join.is_some() {
                self.drive_join(number);
            }
        }
    }

    pub(super) fn go_on_joining(&mut self, number: usize) {
        self.drive_join(number);
        self.try_promote_now(number);
    }

    /// Copies without an answer are sent again: they, or their answers, may have been lost.
    pub(super) fn resend_late_copies(&mut self, number: usize) {
        let Some(join) = &self.lanes[number].join else { return };
        let late = |copying: &Copying| self.now_us >= copying.sent_us + RESEND_US;
        let late: Vec<u64> = join.copies.iter().filter(|(_, c)| late(c)).map(|(request, _)| *request).collect();
        for request in late {
            mark("a copy is sent again");
            self.send_copy(number, request);
        }
    }

    pub(super) fn on_copy_done(&mut self, envelope: Envelope, join: u64, request: u64) {
        let Some((number, current)) = self.join_of(envelope, join) else { return };
        let Some(copying) = current.copies.remove(&request) else {
            return; // answered before: it had been sent twice
        };
        if copying.is_outdated {
            current.todo.push_front(JoinRun { range: copying.range, zeroes: None, differs: true });
        }
        self.drive_join(number);
        self.try_promote_now(number);
    }

    fn try_promote_now(&mut self, number: usize) {
        if self.lanes[number].pending.is_none() {
            self.try_promote(number);
        }
    }

    /// C3 e: everything is copied and the joiner has caught up.
    pub(super) fn try_promote(&mut self, number: usize) {
        let geometry = self.spec.geometry;
        let lane = &self.lanes[number];
        let Some(join) = &lane.join else { return };
        if join.info.is_some() && join.is_idle() && !join.has_more(number, geometry) {
            let new = lane.set_with(join.slot);
            self.propose(number, new);
        }
    }
}
