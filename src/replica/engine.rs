//! The engine: fences, promises and answers. One `match` over messages, one settling pass.

use super::confirm::{Confirm, digests_of};
use super::damage::Damage;
use super::lane::{Accepted, CopyId, Lane, Transition};
use crate::wire::message::{BlockCondition, Envelope, Progress, ReadReply, ToReplica, ToWriter};
use crate::wire::{Ledger, Permit, Window, Windows};
use ashlar_model::lane::{EntryOrigin, LaneState};
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{BlockRange, DeviceId, Epoch, LaneKey, Stamp, VolumeId};
use ashlar_store::api::{BlockState, Reply, Request, StoreError, Token};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Writes and copies of one device that wait for an earlier write or for space. Here they hold no credits of their links:
/// what cannot go on must not keep other volumes' requests from the link, least of all the write that it waits for.
/// Without room a write that came out of order is dropped, and what waits for space keeps its credits.
const PARKING: Windows = {
    let whole = Window { operations: 1 << 16, bytes: 256 << 20 };
    Windows { foreground: whole, background: whole }
};

/// One connection from a writer; never reused while the engine lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u64);

/// What happens to a replica.
#[derive(Debug)]
pub enum Event {
    /// A writer sent a message.
    Message {
        /// Where answers go.
        link: LinkId,
        /// Address of the message.
        envelope: Envelope,
        /// The message.
        message: ToReplica,
        /// The credits of its link that it holds until it is done.
        permit: Permit,
    },
    /// The store answered.
    Stored {
        /// Which request.
        token: Token,
        /// Its answer.
        reply: Reply,
    },
    /// A connection is gone.
    LinkClosed {
        /// Which.
        link: LinkId,
    },
    /// Time passes: retry what waits for space.
    Tick,
    /// The device's scrub met a damaged block: the volume's writer should repair it.
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// The block.
        block: u64,
    },
    /// The volume was deleted: drop everything of it.
    Forget {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume has moved to other devices: drop its data and keep the promise, so that a writer which was cut off
    /// long ago finds no device here that knows nothing of its successors.
    Release {
        /// The volume.
        volume: VolumeId,
        /// Its present epoch.
        promise: Epoch,
    },
}

/// What the replica wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Give this to the store.
    Store {
        /// Comes back with the answer; unused for requests without one.
        token: Token,
        /// The request.
        request: Request,
    },
    /// Send this to a writer, if the link is still there.
    Send {
        /// The link.
        link: LinkId,
        /// Address of the answer.
        envelope: Envelope,
        /// The answer.
        message: ToWriter,
    },
    /// Everything of the volume is deleted, durably.
    Forgotten {
        /// The volume.
        volume: VolumeId,
    },
    /// Something that must not happen did: a person should look.
    Alarm(String),
}

/// What a store request was for. Credits that it holds go back when it is dropped.
#[derive(Debug)]
pub(super) enum Pending {
    Write {
        key: LaneKey,
        life: u64,
        epoch: Epoch,
        accepted: Accepted,
    },
    Transition {
        key: LaneKey,
        life: u64,
        transition: Transition,
    },
    /// The barrier of a seal.
    Seal {
        volume: VolumeId,
        epoch: Epoch,
        link: LinkId,
    },
    /// The question for a joiner's settled and suspects.
    JoinInfo {
        key: LaneKey,
        epoch: Epoch,
        join: u64,
    },
    /// A joiner's own bytes, to be compared.
    Confirm {
        key: LaneKey,
        life: u64,
        epoch: Epoch,
        confirm: Box<Confirm>,
        permit: Permit,
    },
    Read {
        link: LinkId,
        envelope: Envelope,
        request: u64,
        /// Digests are wanted, not bytes.
        digest_seed: Option<u64>,
        _permit: Permit,
    },
    Repair {
        link: LinkId,
        envelope: Envelope,
        block: u64,
        _permit: Permit,
    },
    Forget {
        volume: VolumeId,
    },
    /// As `Forget`, but for the promise.
    Release {
        volume: VolumeId,
    },
}

/// Replica side of every lane on one device.
pub struct ReplicaEngine {
    pub(super) device: DeviceId,
    /// Promise per volume; raised in memory before it is durable, so that nothing older slips in meanwhile.
    pub(super) promised: FxHashMap<VolumeId, Epoch>,
    pub(super) lanes: BTreeMap<LaneKey, Lane>,
    pub(super) pending: FxHashMap<Token, Pending>,
    /// Volumes that this device was told to drop since it was opened, and under which promise.
    pub(super) released: FxHashMap<VolumeId, Epoch>,
    /// Damage that is not repaired, of volumes that have any.
    pub(super) damage: BTreeMap<VolumeId, Damage>,
    /// Something may wait for space.
    pub(super) lacks_space: bool,
    /// Lanes that the next settling pass looks at.
    pub(super) touched: Vec<LaneKey>,
    next_token: u64,
    failed: Option<String>,
    /// Writes accepted out of order that one lane may hold back; more are dropped and sent again.
    pub(super) queue_writes_max: usize,
    /// Room for what waits for something other than the medium.
    pub(super) parking: Rc<Ledger>,
}

impl ReplicaEngine {
    /// A replica with what its store found when it was opened.
    pub fn new(
        device: DeviceId,
        promises: impl IntoIterator<Item = (VolumeId, Epoch)>,
        lanes: impl IntoIterator<Item = (LaneKey, LaneState)>,
    ) -> Self {
        Self {
            device,
            promised: promises.into_iter().collect(),
            lanes: lanes.into_iter().map(|(key, state)| (key, Lane::from_durable(&state))).collect(),
            pending: FxHashMap::default(),
            released: FxHashMap::default(),
            damage: BTreeMap::new(),
            lacks_space: false,
            touched: Vec::new(),
            next_token: 1,
            failed: None,
            queue_writes_max: 8192,
            parking: Ledger::of_pool(PARKING),
        }
    }

    /// Requests in the store: the driver stops reading from links above its limit.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// True while something may wait for space: it is retried with each tick.
    pub fn lacks_space(&self) -> bool {
        self.lacks_space
    }

    /// Why the device no longer takes part, if so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Handles one event. Call [`Self::settle`] after a batch of events.
    pub fn apply(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Message { link, envelope, message, permit } => {
                self.on_message(link, envelope, message, permit, effects);
            }
            Event::Stored { token, reply } => self.on_stored(token, reply, effects),
            Event::LinkClosed { link } => {
                for lane in self.lanes.values_mut().filter(|lane| lane.link == Some(link)) {
                    lane.link = None;
                }
            }
            Event::Tick => self.retry_waiting(effects),
            Event::Damaged { volume, block } => self.on_damaged(volume, block),
            Event::Forget { volume } => self.forget(volume, effects),
            Event::Release { volume, promise } => self.release(volume, promise, effects),
        }
    }

    fn on_message(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        message: ToReplica,
        permit: Permit,
        effects: &mut Vec<Effect>,
    ) {
        if envelope.device != self.device {
            effects.push(Effect::Alarm(format!("a message for device {} reached {}", envelope.device, self.device)));
            return;
        }
        if let Some(reason) = self.failed.clone() {
            effects.push(Effect::Send { link, envelope, message: ToWriter::DeviceFailed { reason } });
            return;
        }
        let promised = self.promise_of(envelope.volume);
        if envelope.epoch < promised && !broken(Mutation::EpochsIgnored) {
            effects.push(Effect::Send { link, envelope, message: ToWriter::Fenced { promised } });
            return;
        }
        match message {
            ToReplica::Seal => self.on_seal(link, envelope, effects),
            ToReplica::Start { config, base, clean } => {
                let start = Transition::Start { epoch: envelope.epoch, config, base };
                self.on_start(link, envelope, start, clean, effects);
            }
            ToReplica::Write { progress, index, range, content, generation } => {
                let stamp = Stamp { epoch: envelope.epoch, index };
                let (origin, listed, copy, held) = (EntryOrigin::Live, true, None, false);
                let accepted = Accepted { stamp, range, content, generation, origin, listed, copy, held, permit };
                self.on_write(link, envelope, progress, accepted, effects);
            }
            ToReplica::Heartbeat { progress } => {
                if self.note_progress(link, envelope, progress, effects).is_some() {
                    self.lane_mut(envelope).ack_due = true;
                }
            }
            ToReplica::Read { request, range, map_only, prefix_min, background: _ } => {
                let pending = Pending::Read { link, envelope, request, digest_seed: None, _permit: permit };
                self.on_read(pending, range, map_only, prefix_min, effects);
            }
            ToReplica::Digest { request, range, seed, prefix_min } => {
                let pending = Pending::Read { link, envelope, request, digest_seed: Some(seed), _permit: permit };
                self.on_read(pending, range, false, prefix_min, effects);
            }
            ToReplica::Confirm { join, request, range, seed, blocks, settled } => {
                let copy = CopyId { join, request };
                let confirm = Confirm { copy, range, seed, blocks, settled };
                self.on_confirm(link, envelope, confirm, permit, effects);
            }
            ToReplica::JoinStart { config, join, base } => {
                self.on_join_start(link, envelope, config, join, base, effects);
            }
            ToReplica::Copy { join, request, range, stamp, content, settled } => {
                let (generation, origin, held) = (0, EntryOrigin::Copy, false);
                let listed = stamp.index > settled && !broken(Mutation::CopyUnlisted);
                let copy = Some(CopyId { join, request });
                let accepted = Accepted { stamp, range, content, generation, origin, listed, copy, held, permit };
                self.on_copy(link, envelope, accepted, effects);
            }
            ToReplica::Repair { block, checksum, payload } => {
                let request = Request::Repair { volume: envelope.volume, block, checksum, payload };
                self.submit(Pending::Repair { link, envelope, block, _permit: permit }, request, effects);
            }
        }
    }

    /// R1: promise, then a barrier, then the whole list.
    fn on_seal(&mut self, link: LinkId, envelope: Envelope, effects: &mut Vec<Effect>) {
        let (volume, epoch) = (envelope.volume, envelope.epoch);
        self.raise_promise(volume, epoch);
        let durable = if broken(Mutation::VolatilePromise) { Epoch(0) } else { epoch };
        let request = Request::Promise { volume, epoch: durable };
        self.submit(Pending::Seal { volume, epoch, link }, request, effects);
    }

    /// Fences everything older, in memory: what is queued under an older epoch never becomes durable.
    pub(super) fn raise_promise(&mut self, volume: VolumeId, epoch: Epoch) {
        let promised = self.promised.entry(volume).or_default();
        if epoch > *promised {
            *promised = epoch;
            let lanes = LaneKey { volume, lane: 0 }..=LaneKey { volume, lane: u16::MAX };
            for (_, lane) in self.lanes.range_mut(lanes) {
                if !broken(Mutation::QueueSurvivesSeal) {
                    lane.refuse_queued();
                }
                lane.transition = None;
                lane.link = None;
            }
        }
    }

    /// R2.
    fn on_start(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        start: Transition,
        clean: bool,
        effects: &mut Vec<Effect>,
    ) {
        let epoch = envelope.epoch;
        if self.has_dropped(envelope) {
            effects.push(Effect::Send { link, envelope, message: ToWriter::NotServed });
            return;
        }
        self.raise_promise(envelope.volume, epoch);
        let lane = self.lane_mut(envelope);
        lane.link = Some(link);
        let Transition::Start { base, .. } = start else { unreachable!("made by the caller") };
        if lane.current == epoch {
            lane.ack_due = true;
        } else if clean && lane.prefix < base {
            // A clean close means that every member had everything: what this one had is gone.
            let prefix = lane.prefix;
            effects.push(Effect::Alarm(format!("{envelope:?}: only {prefix} of {base} acknowledged writes are left")));
            effects.push(Effect::Send { link, envelope, message: ToWriter::LostData { prefix } });
        } else if lane.transition.is_none() {
            lane.refuse_queued();
            lane.transition = Some(start);
            self.try_transition(Self::key(envelope), effects);
        }
    }

    /// Begins a waiting change of epoch once nothing of the lane is in the store.
    pub(super) fn try_transition(&mut self, key: LaneKey, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let Some(transition) = lane.transition.filter(|_| lane.in_flight == 0) else { return };
        let request = match transition {
            Transition::Start { epoch, config, base } => Request::Start { key, epoch, config, base },
            Transition::JoinStart { epoch, config, base, .. } if broken(Mutation::JoinerKeepsList) => {
                Request::Start { key, epoch, config, base }
            }
            Transition::JoinStart { epoch, config, join, base } => {
                Request::JoinStart { key, epoch, config, join, base }
            }
        };
        lane.in_flight += 1;
        let life = lane.life;
        self.submit(Pending::Transition { key, life, transition }, request, effects);
    }

    /// R5 and the grant that the next acknowledgement carries. `None`: the message does not apply here.
    pub(super) fn note_progress(
        &mut self,
        link: LinkId,
        envelope: Envelope,
        progress: Progress,
        effects: &mut Vec<Effect>,
    ) -> Option<()> {
        let lane = self.lanes.get_mut(&Self::key(envelope))?;
        if broken(Mutation::EpochsIgnored) {
            lane.current = envelope.epoch;
        }
        if lane.current != envelope.epoch || lane.transition.is_some() || progress.config < lane.config {
            return None;
        }
        lane.config = progress.config;
        lane.link = Some(link);
        lane.sent_at_us = lane.sent_at_us.max(progress.sent_at_us);
        if progress.member {
            let promoted = lane.joining.take().is_some();
            if promoted {
                lane.written.clear();
            }
            if progress.settled > lane.prefix {
                effects.push(Effect::Alarm(format!(
                    "{envelope:?}: settled {} is above the own prefix {}",
                    progress.settled, lane.prefix
                )));
            } else if progress.settled > lane.settled || promoted {
                lane.settled = progress.settled;
                lane.settle_due = Some((progress.settled, true));
            }
        } else if progress.settled.min(lane.prefix) > lane.settled {
            lane.settle_due = Some((progress.settled.min(lane.prefix), broken(Mutation::JoinerSettles)));
        }
        self.touched.push(Self::key(envelope));
        Some(())
    }

    /// R7 and R9.
    fn on_read(
        &mut self,
        pending: Pending,
        range: BlockRange,
        map_only: bool,
        prefix_min: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Pending::Read { link, envelope, request, .. } = pending else { unreachable!("made by the caller") };
        let serves = self.lanes.get(&Self::key(envelope)).is_some_and(|lane| {
            lane.current == envelope.epoch
                && lane.joining.is_none()
                && lane.transition.is_none()
                && (lane.prefix >= prefix_min || broken(Mutation::SourceBehind))
        });
        let current = self.promise_of(envelope.volume) == envelope.epoch || broken(Mutation::EpochsIgnored);
        if !serves || !current || !range.is_within_chunk() {
            effects.push(Effect::Send { link, envelope, message: ToWriter::ReadRefused { request } });
            return;
        }
        let volume = envelope.volume;
        let store = if map_only { Request::Map { volume, range } } else { Request::Read { volume, range } };
        self.submit(pending, store, effects);
    }

    fn on_stored(&mut self, token: Token, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.remove(&token) else {
            effects.push(Effect::Alarm(format!("the store answered {token:?}, which nobody asked")));
            return;
        };
        if let Reply::Error(StoreError::Failed(reason)) = &reply {
            self.fail(reason.clone(), pending, effects);
            return;
        }
        match pending {
            // An answer for a lane that was deleted says nothing of a new one with the same name.
            Pending::Write { key, life, .. }
            | Pending::Transition { key, life, .. }
            | Pending::Confirm { key, life, .. }
                if self.lanes.get(&key).is_none_or(|lane| lane.life != life) => {}
            Pending::Write { key, epoch, accepted, .. } => {
                self.on_write_stored(key, epoch, accepted, reply, effects);
            }
            Pending::Transition { key, transition, .. } => {
                self.on_transition_stored(key, transition, reply, effects);
            }
            Pending::Seal { volume, epoch, link } => {
                if let Reply::Sealed { mut lanes, .. } = reply
                    && self.promise_of(volume) == epoch
                {
                    if broken(Mutation::TrimWithoutTombstone) {
                        lanes.iter_mut().for_each(|(_, state)| state.list.retain(|entry| !entry.tombstone));
                    }
                    let envelope = Envelope { volume, lane: Envelope::ALL_LANES, epoch, device: self.device };
                    effects.push(Effect::Send { link, envelope, message: ToWriter::Sealed { lanes } });
                }
            }
            Pending::JoinInfo { key, epoch, join } => self.on_join_info(key, epoch, join, reply, effects),
            Pending::Confirm { key, epoch, confirm, mut permit, .. } => {
                let Some(lane) = self.lanes.get_mut(&key) else { return };
                lane.in_flight -= 1;
                if lane.current == epoch && self.promise_of(key.volume) == epoch {
                    self.on_compared(key, &confirm, &mut permit, &reply, effects);
                }
                self.try_transition(key, effects);
            }
            Pending::Read { link, envelope, request, digest_seed, _permit } => {
                if let Reply::Read(read) = &reply {
                    self.damage_is_seen(envelope.volume, read);
                }
                let message = match digest_seed {
                    Some(seed) => digests_of(request, seed, reply),
                    None => read_answer(request, reply),
                };
                effects.push(Effect::Send { link, envelope, message });
            }
            Pending::Repair { link, envelope, block, _permit } => {
                self.damage_is_over(envelope.volume, BlockRange::new(block, 1));
                if reply == Reply::Done {
                    effects.push(Effect::Send { link, envelope, message: ToWriter::Repaired { block } });
                }
            }
            Pending::Forget { volume } => {
                self.released.remove(&volume);
                effects.push(Effect::Forgotten { volume });
            }
            // Without room for the promise nothing is said, and the agent asks again.
            Pending::Release { volume } => {
                effects.extend((reply == Reply::Done).then_some(Effect::Forgotten { volume }));
            }
        }
    }

    /// The device is gone: say so to whoever waits, and to everybody from now on.
    fn fail(&mut self, reason: String, pending: Pending, effects: &mut Vec<Effect>) {
        if self.failed.is_none() {
            effects.push(Effect::Alarm(format!("device {} failed: {reason}", self.device)));
            for (key, lane) in &self.lanes {
                let Some(link) = lane.link else { continue };
                let envelope = self.envelope(*key, lane.current);
                let message = ToWriter::DeviceFailed { reason: reason.clone() };
                effects.push(Effect::Send { link, envelope, message });
            }
            // Nothing of this becomes durable any more: it holds no credits either.
            self.lanes.values_mut().for_each(Lane::refuse_queued);
            self.failed = Some(reason);
        }
        if let Pending::Read { link, envelope, request, .. } = pending {
            effects.push(Effect::Send { link, envelope, message: ToWriter::ReadRefused { request } });
        }
    }

    /// The settling pass: one acknowledgement and one settle per lane, and one report per damaged range, however many
    /// events there were.
    pub fn settle(&mut self, effects: &mut Vec<Effect>) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            let promised = self.promise_of(key.volume);
            let device = self.device;
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            if let Some((index, member)) = lane.settle_due.take() {
                let request = Request::Settle { key, index, config: lane.config, member };
                effects.push(Effect::Store { token: Token(0), request });
            }
            // R6: a replica with a higher promise grants nothing.
            let current = promised == lane.current || broken(Mutation::EpochsIgnored);
            if !std::mem::take(&mut lane.ack_due) || !current || lane.transition.is_some() {
                continue;
            }
            let mut singles = std::mem::take(&mut lane.singles);
            let Some(link) = lane.link else { continue };
            let envelope = Envelope { volume: key.volume, lane: key.lane, epoch: lane.current, device };
            singles.retain(|index| *index > lane.prefix);
            let none = singles.is_empty().then_some(0);
            for index in singles.drain(..).chain(none) {
                let full = !lane.waiting_space.is_empty();
                let message = ToWriter::Ack { prefix: lane.prefix, index, sent_at_us: lane.sent_at_us, full };
                effects.push(Effect::Send { link, envelope, message });
            }
            lane.singles = singles; // its memory
        }
        self.touched = touched;
        if !self.damage.is_empty() && self.failed.is_none() {
            self.tell_damage(effects);
        }
    }

    pub(super) fn submit(&mut self, pending: Pending, request: Request, effects: &mut Vec<Effect>) {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.pending.insert(token, pending);
        effects.push(Effect::Store { token, request });
    }

    pub(super) fn promise_of(&self, volume: VolumeId) -> Epoch {
        self.promised.get(&volume).copied().unwrap_or_default()
    }

    pub(super) fn key(envelope: Envelope) -> LaneKey {
        LaneKey { volume: envelope.volume, lane: envelope.lane }
    }

    pub(super) fn envelope(&self, key: LaneKey, epoch: Epoch) -> Envelope {
        Envelope { volume: key.volume, lane: key.lane, epoch, device: self.device }
    }

    /// The lane of a message, created empty if this device has never seen it.
    pub(super) fn lane_mut(&mut self, envelope: Envelope) -> &mut Lane {
        let key = Self::key(envelope);
        self.touched.push(key);
        let life = self.next_token;
        self.lanes.entry(key).or_insert_with(|| Lane { next_index: 1, life, ..Lane::default() })
    }
}

fn read_answer(request: u64, reply: Reply) -> ToWriter {
    let condition = |state: &BlockState| match *state {
        BlockState::Data(checksum) => BlockCondition::Data(checksum),
        BlockState::Zero => BlockCondition::Zero,
        BlockState::Bad(checksum) => BlockCondition::Bad(checksum),
        BlockState::Unknown => BlockCondition::Unknown,
    };
    match reply {
        Reply::Read(read) => {
            let conditions = read.states.iter().map(condition).collect();
            let stamps = read.stamps;
            ToWriter::ReadDone {
                request,
                reply: ReadReply { range: read.range, conditions, stamps, payload: read.payload },
            }
        }
        Reply::Map(map) => {
            let condition = |written: &bool| if *written { BlockCondition::Data(0) } else { BlockCondition::Zero };
            let conditions: Vec<BlockCondition> = map.written.iter().map(condition).collect();
            let mut map = map;
            if broken(Mutation::TrimWithoutTombstone) {
                let holes = map.written.iter().zip(&mut map.stamps).filter(|(written, _)| !**written);
                holes.for_each(|(_, stamp)| *stamp = Stamp::default());
            }
            ToWriter::ReadDone {
                request,
                reply: ReadReply { range: map.range, conditions, stamps: map.stamps, payload: None },
            }
        }
        _ => ToWriter::ReadRefused { request },
    }
}
