//! R8 and R10: becoming a joiner, and taking copies that never overwrite live writes.

use super::engine::{Effect, LinkId, Pending, ReplicaEngine};
use super::lane::{Accepted, CopyId, Copying, JoinInfo, Transition};
use crate::wire::message::{Content, Envelope, ToWriter};
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, Epoch, LaneKey};
use ashlar_store::api::{Reply, Request, StoreError, Token};

impl ReplicaEngine {
    /// R8.
    pub(super) fn on_join_start(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        config: u64,
        join: u64,
        base: u64,
        effects: &mut Vec<Effect>,
    ) {
        let epoch = envelope.epoch;
        self.raise_promise(envelope.volume, epoch);
        let key = Self::key(envelope);
        let lane = self.lane_mut(envelope);
        let old = join < lane.join && !broken(Mutation::OldJoinAccepted);
        if lane.transition.is_some() || old || (config < lane.config && lane.current == epoch) {
            return;
        }
        lane.link = Some(link);
        if join == lane.join && lane.join_asking {
            return; // the answer is on its way
        }
        if join == lane.join {
            let message = match &lane.joining {
                Some(info) => ToWriter::JoinReady { join, settled: info.settled, suspects: info.suspects.clone() },
                None => ToWriter::JoinLost { join },
            };
            effects.push(Effect::Send { link, envelope, message });
            return;
        }
        lane.refuse_queued();
        lane.joining = None;
        lane.join_asking = false;
        lane.copies.clear();
        lane.transition = Some(Transition::JoinStart { epoch, config, join, base });
        self.try_transition(key, effects);
    }

    pub(super) fn on_transition_stored(
        &mut self,
        key: LaneKey,
        transition: Transition,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let promised = self.promise_of(key.volume);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.in_flight -= 1;
        if reply != Reply::Done {
            self.on_transition_refused(key, transition, &reply, effects);
            return;
        }
        // The store has it, so the mirror follows even if a newer epoch has been promised meanwhile.
        let (epoch, config, base) = match transition {
            Transition::Start { epoch, config, base } => (epoch, config, base),
            Transition::JoinStart { epoch, config, join, base } => {
                lane.join = join;
                (epoch, config, base)
            }
        };
        lane.current = epoch;
        lane.config = config;
        lane.prefix = base;
        lane.above.clear();
        lane.in_store.clear();
        lane.singles.clear();
        lane.patches.clear();
        lane.written.clear();
        lane.joining = None;
        lane.next_index = base + 1;
        lane.sent_at_us = 0;
        if lane.transition == Some(transition) {
            lane.transition = None;
        }
        if promised != epoch {
            self.try_transition(key, effects);
            return;
        }
        match transition {
            Transition::Start { config, base, .. } => {
                if broken(Mutation::StartDropsList) {
                    let request = Request::Settle { key, index: base, config, member: false };
                    effects.push(Effect::Store { token: Token(0), request });
                }
                lane.ack_due = true;
                self.touched.push(key);
            }
            Transition::JoinStart { join, .. } => {
                lane.join_asking = true;
                let request = Request::Promise { volume: key.volume, epoch };
                self.submit(Pending::JoinInfo { key, epoch, join }, request, effects);
            }
        }
    }

    /// The device has no room for another lane: the writer looks elsewhere, and asks again later. A newer transition that
    /// came meanwhile has its turn.
    fn on_transition_refused(
        &mut self,
        key: LaneKey,
        transition: Transition,
        reply: &Reply,
        effects: &mut Vec<Effect>,
    ) {
        let full = matches!(reply, Reply::Error(StoreError::Full { .. }));
        if !full {
            effects.push(Effect::Alarm(format!("{key:?}: the store answered {transition:?} with {reply:?}")));
        }
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.transition != Some(transition) {
            self.try_transition(key, effects);
            return;
        }
        lane.transition = None;
        if let (Transition::JoinStart { epoch, join, .. }, Some(link)) = (transition, lane.link) {
            let message = ToWriter::JoinLost { join };
            effects.push(Effect::Send { link, envelope: self.envelope(key, epoch), message });
        }
    }

    pub(super) fn on_join_info(
        &mut self,
        key: LaneKey,
        epoch: Epoch,
        join: u64,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let Reply::Sealed { lanes, .. } = reply else {
            // The writer asks again, and is told that this join came to nothing.
            if let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.join == join) {
                lane.join_asking = false;
            }
            return;
        };
        let Some((_, state)) = lanes.into_iter().find(|(lane, _)| *lane == key.lane) else { return };
        let promised = self.promise_of(key.volume);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.current != epoch || promised != epoch || lane.join != join || lane.transition.is_some() {
            return;
        }
        lane.join_asking = false;
        let (settled, mut suspects) = (state.settled, state.suspect);
        if broken(Mutation::JoinWithoutSuspects) {
            suspects.clear();
        }
        if broken(Mutation::JoinerKeepsList) {
            suspects.extend(state.list.iter().map(|entry| entry.range));
        }
        lane.settled = settled;
        lane.joining = Some(JoinInfo { settled, suspects: suspects.clone() });
        self.reply_to_writer(key, ToWriter::JoinReady { join, settled, suspects }, effects);
    }

    /// R10. Blocks written live since the join began keep what they have.
    pub(super) fn on_copy(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        mut accepted: Accepted,
        effects: &mut Vec<Effect>,
    ) {
        let key = Self::key(envelope);
        let copy = accepted.copy.expect("a copy names its request");
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.joining.is_none() || !lane.takes_copies_of(copy.join) || lane.current != envelope.epoch {
            let message = ToWriter::JoinLost { join: copy.join };
            effects.push(Effect::Send { link, envelope, message });
            return;
        }
        if lane.copies.contains_key(&(copy.join, copy.request)) {
            return; // a duplicate of one that is on its way
        }
        let live = |block| lane.written.contains(block) && !broken(Mutation::CopyOverLive);
        let parts = unwritten_runs(accepted.range, live);
        let left_to_writes = unwritten_runs(accepted.range, |block| !live(block));
        let copying = Copying { parts: parts.len(), left_to_writes, differs: None };
        lane.copies.insert((copy.join, copy.request), copying);
        lane.link = Some(link);
        self.store_parts(key, accepted.split(parts), effects);
    }

    /// Stores the parts of a copy, those without room after what waits for it already.
    pub(super) fn store_parts(&mut self, key: LaneKey, parts: Vec<Accepted>, effects: &mut Vec<Effect>) {
        for mut part in parts {
            let lane = self.lanes.get_mut(&key).expect("looked up above");
            if lane.must_wait_for_space(part.range) {
                part.park(&self.parking);
                lane.waiting_space.push(part);
                self.lacks_space = true;
            } else {
                self.store_write(key, part, effects);
            }
        }
        self.answer_copies(key, effects);
    }

    /// A copy that found no room comes again, without what has been written live since.
    pub(super) fn retry_copy(&mut self, key: LaneKey, copy: CopyId, mut accepted: Accepted, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let parts = unwritten_runs(accepted.range, |block| lane.written.contains(block));
        let Some(copying) = lane.copies.get_mut(&(copy.join, copy.request)) else { return };
        copying.parts += parts.len();
        let written = unwritten_runs(accepted.range, |block| !lane.written.contains(block));
        copying.left_to_writes.extend(written);
        for part in accepted.split(parts) {
            self.store_write(key, part, effects);
        }
        let epoch = self.lanes[&key].current;
        self.on_copy_stored(key, epoch, &accepted, effects);
    }

    pub(super) fn on_copy_stored(
        &mut self,
        key: LaneKey,
        epoch: Epoch,
        accepted: &Accepted,
        effects: &mut Vec<Effect>,
    ) {
        let Some(copy) = accepted.copy else {
            self.on_patch_stored(key, epoch, accepted.stamp.index, effects);
            return;
        };
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.current != epoch || !lane.takes_copies_of(copy.join) {
            return;
        }
        let Some(copying) = lane.copies.get_mut(&(copy.join, copy.request)) else { return };
        copying.parts -= 1;
        self.answer_copies(key, effects);
    }

    /// Answers the copies whose every block is durable here, by the copy or by the live write that superseded it.
    pub(super) fn answer_copies(&mut self, key: LaneKey, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.copies.is_empty() {
            return;
        }
        let mut copies = std::mem::take(&mut lane.copies);
        let mut done = Vec::new();
        copies.retain(|id, copying| {
            copying.left_to_writes.retain(|range| lane.awaits_write(*range));
            let open = copying.parts > 0 || !copying.left_to_writes.is_empty();
            if !open {
                done.push((*id, copying.differs.take()));
            }
            open
        });
        lane.copies = copies;
        for ((join, request), differs) in done {
            let message = match differs {
                Some(differs) => ToWriter::Confirmed { join, request, differs },
                None => ToWriter::CopyDone { join, request },
            };
            self.reply_to_writer(key, message, effects);
        }
    }
}

/// The runs of `range` whose blocks are not `written`.
pub(super) fn unwritten_runs(range: BlockRange, written: impl Fn(u64) -> bool) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for block in range.blocks().filter(|block| !written(*block)) {
        match runs.last_mut() {
            Some(run) if run.end() == block => run.count += 1,
            _ => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

/// The content of `part` of an accepted write.
pub(super) fn cut(accepted: &Accepted, part: BlockRange) -> Content {
    match &accepted.content {
        Content::Zeroes => Content::Zeroes,
        Content::Lost => Content::Lost,
        Content::Data { payload, checksums } => {
            let first = (part.start - accepted.range.start) as usize;
            let count = part.count as usize;
            Content::Data {
                payload: payload.slice(first * BLOCK_BYTES, count * BLOCK_BYTES),
                checksums: checksums[first..first + count].into(),
            }
        }
    }
}
