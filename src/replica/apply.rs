//! R3 and R4: accepting writes, giving them to the store in index order, and what waits for space.

use super::engine::{Effect, LinkId, Pending, ReplicaEngine};
use super::join::unwritten_runs;
use super::lane::Accepted;
use crate::wire::Permit;
use crate::wire::message::{Content, Envelope, Progress, ToWriter};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{Epoch, LaneKey};
use ashlar_store::api::{Body, Reply, Request, StoreError, Write};

impl ReplicaEngine {
    /// R3.
    pub(super) fn on_write(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        progress: Progress,
        accepted: Accepted,
        effects: &mut Vec<Effect>,
    ) {
        if self.note_progress(link, envelope, progress, effects).is_none() {
            return;
        }
        let queue_writes_max = self.queue_writes_max;
        let key = Self::key(envelope);
        let lane = self.lane_mut(envelope);
        let index = accepted.stamp.index;
        if lane.holds(index) {
            lane.ack_due = true;
            if index > lane.prefix {
                lane.singles.push(index);
            }
            return;
        }
        if lane.accepted(index) || lane.queue.len() >= queue_writes_max {
            return;
        }
        if broken(Mutation::ArrivalOrder) {
            self.store_write(key, accepted, effects);
            return;
        }
        if index == lane.next_index && lane.queue.is_empty() {
            // In order, as nearly all are.
            self.take_next(key, accepted, effects);
            return;
        }
        lane.queue.insert(index, accepted);
        self.pump(key, effects);
        self.park_queued(key, index);
    }

    /// A write that waits for an earlier one gives its link's credits back: the earlier one may need them. Without room
    /// it is dropped, and sent again.
    fn park_queued(&mut self, key: LaneKey, index: u64) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let Some(accepted) = lane.queue.get_mut(&index) else { return };
        if !accepted.park(&self.parking) {
            lane.queue.remove(&index);
        }
    }

    /// R4: gives queued writes to the store, in index order and without gaps.
    pub(super) fn pump(&mut self, key: LaneKey, effects: &mut Vec<Effect>) {
        loop {
            let Some(lane) = self.lanes.get_mut(&key) else { return };
            while lane.holds(lane.next_index) {
                lane.next_index += 1;
            }
            let Some(accepted) = lane.queue.remove(&lane.next_index) else { return };
            self.take_next(key, accepted, effects);
        }
    }

    /// The write of the next index.
    fn take_next(&mut self, key: LaneKey, mut accepted: Accepted, effects: &mut Vec<Effect>) {
        let lane = self.lanes.get_mut(&key).expect("the lane of an accepted write exists");
        lane.next_index += 1;
        if lane.joining.is_some() {
            lane.written.insert(accepted.range);
        }
        if lane.must_wait_for_space(accepted.range) {
            accepted.park(&self.parking);
            lane.waiting_space.push(accepted);
            self.lacks_space = true;
            return;
        }
        self.store_in_order(key, accepted, effects);
    }

    /// A write that a crash lost comes again, and a later one of the same blocks is durable already: only what the
    /// later one left is written, then the list entry of the whole.
    fn store_in_order(&mut self, key: LaneKey, accepted: Accepted, effects: &mut Vec<Effect>) {
        let lane = self.lanes.get_mut(&key).expect("the lane of an accepted write exists");
        let index = accepted.stamp.index;
        let newer = accepted.range.blocks().any(|block| lane.has_newer(block, index));
        if !newer || broken(Mutation::LateWriteWins) {
            self.store_write(key, accepted, effects);
            return;
        }
        let parts = unwritten_runs(accepted.range, |block| lane.has_newer(block, index));
        if parts.is_empty() {
            self.store_write(key, Accepted { held: true, ..accepted }, effects);
            return;
        }
        let patch = |range| Accepted { origin: EntryOrigin::Copy, ..accepted.part(range, Permit::none()) };
        let patches: Vec<Accepted> = parts.into_iter().map(patch).collect();
        lane.in_store.insert(index, accepted.range);
        lane.patches.insert(index, (patches.len(), Accepted { held: true, ..accepted }));
        for patch in patches {
            self.store_write(key, patch, effects);
        }
    }

    pub(super) fn on_patch_stored(&mut self, key: LaneKey, epoch: Epoch, index: u64, effects: &mut Vec<Effect>) {
        if self.promise_of(key.volume) != epoch {
            return; // sealed meanwhile: nothing more becomes durable
        }
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.current == epoch) else { return };
        let Some((left, _)) = lane.patches.get_mut(&index) else { return };
        *left -= 1;
        if *left == 0 {
            let (_, whole) = lane.patches.remove(&index).expect("looked at it");
            self.store_write(key, whole, effects);
        }
    }

    pub(super) fn store_write(&mut self, key: LaneKey, accepted: Accepted, effects: &mut Vec<Effect>) {
        let lane = self.lanes.get_mut(&key).expect("the lane of an accepted write exists");
        if accepted.origin == EntryOrigin::Live {
            lane.in_store.insert(accepted.stamp.index, accepted.range);
        }
        lane.in_flight += 1;
        let (epoch, life) = (lane.current, lane.life);
        let body = match &accepted.content {
            _ if accepted.held => Body::Held,
            Content::Data { payload, checksums } => {
                Body::Data { payload: payload.clone(), checksums: checksums.clone() }
            }
            Content::Zeroes => Body::Tombstone,
            Content::Lost => Body::Lost,
        };
        let write = Write {
            key,
            stamp: accepted.stamp,
            range: accepted.range,
            body,
            origin: accepted.origin,
            listed: accepted.listed,
            generation: accepted.generation,
        };
        self.submit(Pending::Write { key, life, epoch, accepted }, Request::Write(write), effects);
    }

    pub(super) fn on_write_stored(
        &mut self,
        key: LaneKey,
        epoch: Epoch,
        mut accepted: Accepted,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        let promised = self.promise_of(key.volume);
        if reply == Reply::Done && !accepted.held {
            self.damage_is_over(key.volume, accepted.range);
        }
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.in_flight -= 1;
        self.touched.push(key);
        match reply {
            Reply::Done if accepted.origin == EntryOrigin::Live && lane.current == epoch => {
                lane.make_durable(accepted.stamp.index, accepted.range);
                self.answer_copies(key, effects);
            }
            Reply::Done => self.on_copy_stored(key, epoch, &accepted, effects),
            Reply::Error(StoreError::Full { .. }) => {
                lane.in_store.remove(&accepted.stamp.index);
                if promised == epoch && lane.transition.is_none() {
                    // In order of index: a later write to the same blocks waits behind it.
                    accepted.park(&self.parking);
                    let at = lane.waiting_space.partition_point(|w| w.stamp < accepted.stamp);
                    lane.waiting_space.insert(at, accepted);
                    lane.ack_due = true;
                    self.lacks_space = true;
                }
            }
            other => {
                lane.in_store.remove(&accepted.stamp.index); // the writer may send it again
                effects.push(Effect::Alarm(format!("{key:?}: the store answered a write with {other:?}")));
            }
        }
        self.try_transition(key, effects);
    }

    /// Space may have come back: tries again what waits for it.
    pub(super) fn retry_waiting(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.lacks_space) {
            return;
        }
        let waiting: Vec<LaneKey> =
            self.lanes.iter().filter(|(_, lane)| !lane.waiting_space.is_empty()).map(|(key, _)| *key).collect();
        for key in waiting {
            let lane = self.lanes.get_mut(&key).expect("listed above");
            let mut taken: Vec<Accepted> = Vec::new();
            let mut kept: Vec<Accepted> = Vec::new();
            for accepted in std::mem::take(&mut lane.waiting_space) {
                let behind = taken.iter().chain(&kept).any(|earlier| earlier.range.overlaps(accepted.range));
                // A later write of the same blocks that had room decides first.
                let overtaken = accepted.origin == EntryOrigin::Live
                    && lane.has_newer_in_store(accepted.range, accepted.stamp.index);
                if behind || overtaken { kept.push(accepted) } else { taken.push(accepted) }
            }
            self.lacks_space |= !kept.is_empty();
            lane.waiting_space = kept;
            for accepted in taken {
                match accepted.copy {
                    Some(copy) => self.retry_copy(key, copy, accepted, effects),
                    None if accepted.origin == EntryOrigin::Live && !accepted.held => {
                        self.store_in_order(key, accepted, effects);
                    }
                    None => self.store_write(key, accepted, effects),
                }
            }
        }
    }

    pub(super) fn reply_to_writer(&self, key: LaneKey, message: ToWriter, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get(&key) else { return };
        let Some(link) = lane.link else { return };
        effects.push(Effect::Send { link, envelope: self.envelope(key, lane.current), message });
    }
}
