//! The engine: events in, effects out, and one pass that restores what must always hold.

use super::asking::Read;
use super::lane::{Lane, LanePhase};
use super::lost::Way;
use super::pace::Pace;
use super::range_lock::RangeLock;
use super::repair::{Repairs, is_own};
use super::settings::Settings;
use crate::wire::message::{Envelope, Progress, ToReplica, ToWriter};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply, VolumeSpec};
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{BlockRange, DeviceId, Epoch, Payload};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// The front's name for a request; unique among those in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// What a guest wants.
#[derive(Debug)]
pub enum Operation {
    /// Content of a range.
    Read {
        /// Blocks.
        range: BlockRange,
    },
    /// Which parts of a range hold data.
    Map {
        /// Blocks.
        range: BlockRange,
    },
    /// New content. The first `head_bytes` and the last `tail_bytes` of the buffer are not given: they keep what the
    /// volume has (read-modify-write under the range lock). Both are below one block.
    Write {
        /// Blocks.
        range: BlockRange,
        /// As many blocks as the range.
        buffer: AlignedBuffer,
        /// Bytes of the first block to keep.
        head_bytes: u32,
        /// Bytes of the last block to keep.
        tail_bytes: u32,
    },
    /// Zeroes that take no space: trim and write-zeroes.
    Zero {
        /// Blocks.
        range: BlockRange,
    },
}

impl Operation {
    /// True if it changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, Operation::Read { .. } | Operation::Map { .. })
    }

    /// The blocks concerned.
    pub fn range(&self) -> BlockRange {
        match self {
            Operation::Read { range }
            | Operation::Map { range }
            | Operation::Write { range, .. }
            | Operation::Zero { range } => *range,
        }
    }
}

/// A guest's request.
#[derive(Debug)]
pub struct ClientRequest {
    /// Name.
    pub id: RequestId,
    /// What.
    pub operation: Operation,
}

/// What happens to a volume.
#[derive(Debug)]
pub enum Event {
    /// The metadata service granted an epoch.
    Granted(AttachGrant),
    /// It answered a compare-and-set.
    CasDone {
        /// The lane.
        lane: u16,
        /// The record as it is now.
        reply: LaneCasReply,
    },
    /// It refused one as it is. What that says of the outcome is decided here.
    CasRefused {
        /// The lane.
        lane: u16,
    },
    /// It could not be asked: the outcome is unknown.
    CasUnknown {
        /// The lane.
        lane: u16,
    },
    /// A device can be reached.
    LinkUp {
        /// The device.
        device: DeviceId,
    },
    /// It cannot.
    LinkDown {
        /// The device.
        device: DeviceId,
    },
    /// A replica sent a message.
    Message {
        /// Address.
        envelope: Envelope,
        /// Message.
        message: ToWriter,
    },
    /// A guest asks.
    Request(ClientRequest),
    /// The guest that asked is gone. What has begun goes on, and what has not must not: the guest may have asked again on
    /// another connection, and what has come of that must not be overwritten.
    Abandoned(Vec<RequestId>),
    /// The volume as it is wanted now: grown, or with other members. See [`VolumeEngine::devices`] for the links to make.
    Spec(VolumeSpec),
    /// An operator wants a member out of the in-sync sets.
    Eject {
        /// The member.
        device: DeviceId,
    },
    /// Nothing has come over a link for a while: is somebody there? Ask only if [`VolumeEngine::hears_from`] one of them.
    Pulse {
        /// Devices at its other end.
        devices: Vec<DeviceId>,
    },
    /// Finish, mark clean, and stop.
    Close,
    /// Time passes; expected every 50 ms or so, or later: see [`VolumeEngine::wake`].
    Tick,
    /// Time passes, and nothing but reads needs to know: see [`VolumeEngine::awaits_reads`].
    Late,
}

/// Part of a read's result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadRun {
    /// Blocks.
    pub range: BlockRange,
    /// Their bytes; `None`: zeroes.
    pub payload: Option<Payload>,
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durable on a quorum.
    Written,
    /// Runs in order, covering the range.
    Read(Vec<ReadRun>),
    /// (blocks, holds data) in order, covering the range.
    Map(Vec<(u32, bool)>),
    /// Not done, or not known to be done.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// No replica has good bytes.
    #[error("block {block} is damaged on every replica that holds it")]
    Damaged {
        /// The block.
        block: u64,
    },
    /// Another writer has taken the volume.
    #[error("the volume has been taken over by another node")]
    Fenced,
    /// The volume is being detached.
    #[error("the volume is being detached")]
    Closed,
}

/// What the volume wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send to a replica, if its link is up.
    Send {
        /// Address.
        envelope: Envelope,
        /// Message.
        message: ToReplica,
    },
    /// Answer a guest.
    Complete {
        /// Which request.
        id: RequestId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Ask the metadata service; the answer is `CasDone`, `CasRefused` or `CasUnknown`.
    Cas(LaneCas),
    /// A person should look.
    Alarm(String),
    /// Worth a line in the log.
    Note(String),
    /// The volume has stopped; `clean`: the next open needs no recovery.
    Closed {
        /// Every lane carries the clean mark.
        clean: bool,
    },
}

/// Life of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum VolumePhase {
    /// No epoch yet.
    Idle,
    /// Lanes recover.
    Opening,
    Serving,
    Closing,
    Closed,
    /// A higher epoch exists: nothing is ever completed again (W14).
    Fenced,
}

/// A guest's request under way.
#[derive(Debug)]
pub(super) struct Active {
    pub since_us: u64,
    pub range: BlockRange,
    pub work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    /// Runs by first block, and blocks still missing.
    Read {
        runs: BTreeMap<u64, ReadRun>,
        blocks_left: u64,
    },
    Map {
        runs: BTreeMap<u64, Vec<bool>>,
        blocks_left: u64,
    },
    /// Waits for its range.
    Locking {
        operation: Operation,
    },
    /// Reads the blocks that it changes only in part.
    Edges {
        buffer: AlignedBuffer,
        head_bytes: u32,
        tail_bytes: u32,
        edges_left: u32,
    },
    Write {
        pieces_left: u32,
    },
}

/// Writer of one volume. Its restart is a new writer with a new epoch.
pub struct VolumeEngine {
    pub(super) spec: VolumeSpec,
    pub(super) settings: Settings,
    pub(super) phase: VolumePhase,
    pub(super) epoch: Epoch,
    pub(super) lanes: Vec<Lane>,
    pub(super) links_up: FxHashSet<DeviceId>,
    pub(super) now_us: u64,
    pub(super) lock: RangeLock,
    pub(super) active: FxHashMap<u64, Active>,
    /// Not begun: the volume does not serve yet, or must not take more.
    pub(super) waiting: VecDeque<ClientRequest>,
    /// They touch a lane that does not serve yet; the others go on.
    pub(super) parked: Vec<ClientRequest>,
    pub(super) reads: FxHashMap<u64, Read>,
    /// Reads that could not be asked or delivered and are tried again.
    pub(super) held_reads: Vec<u64>,
    /// When asked reads become late, the first on top.
    pub(super) late_reads: BinaryHeap<Reverse<(u64, u64)>>,
    /// Mean time of the last answers to guests' reads, in microseconds.
    pub(super) answer_us: u64,
    pub(super) next_read: u64,
    /// Damage that replicas reported, or that is being put right.
    pub(super) repairs: Repairs,
    pub(super) way: Way,
    pub(super) out: Vec<Effect>,
    /// How fast joins may go.
    pub(super) pace: Pace,
    /// Recent ejections.
    pub(super) ejected: VecDeque<(DeviceId, u64)>,
    /// Devices of this machine: read first.
    pub(super) preferred: FxHashSet<DeviceId>,
    pub(super) closing_since_us: u64,
    pub(super) last_request_us: u64,
    pub(super) granted_at_us: u64,
    pub(super) seals_sent_us: u64,
    /// At rest: when lanes last heard from the writer, and which of them was the last.
    pub(super) pulsed_us: u64,
    pub(super) pulse_lane: usize,
    pub(super) counters: Counters,
}

/// What the engine has done, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Counters {
    /// Client reads begun.
    pub reads: u64,
    /// Client writes, trims and write-zeroes begun.
    pub writes: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Bytes of writes.
    pub written_bytes: u64,
    /// Damaged blocks seen on some replica.
    pub damaged_blocks: u64,
    /// Damaged blocks rewritten from a good copy.
    pub repaired_blocks: u64,
    /// Times that a member turned out to lack writes of a lane that it had acknowledged.
    pub lost_data: u64,
    /// Blocks written off: every copy of their newest version was damaged.
    pub lost_blocks: u64,
    /// Reads that were asked of another member because the first did not answer in time.
    pub late_reads: u64,
    /// Members ejected from an in-sync set.
    pub ejections: u64,
    /// Members that came back in.
    pub joins: u64,
    /// Bytes copied to joiners.
    pub join_bytes: u64,
}

impl VolumeEngine {
    /// A writer that has no epoch yet. Requests wait until it serves.
    pub fn new(spec: VolumeSpec, settings: Settings) -> Self {
        assert_eq!(spec.lanes.len(), usize::from(spec.geometry.lane_count), "one copyset per lane");
        Self {
            spec,
            settings,
            phase: VolumePhase::Idle,
            epoch: Epoch(0),
            lanes: Vec::new(),
            links_up: FxHashSet::default(),
            now_us: 0,
            lock: RangeLock::default(),
            active: FxHashMap::default(),
            waiting: VecDeque::new(),
            parked: Vec::new(),
            reads: FxHashMap::default(),
            held_reads: Vec::new(),
            late_reads: BinaryHeap::new(),
            answer_us: 0,
            next_read: 1,
            repairs: Repairs::default(),
            way: Way::Kept,
            out: Vec::new(),
            pace: Pace::default(),
            ejected: VecDeque::new(),
            preferred: FxHashSet::default(),
            closing_since_us: 0,
            last_request_us: 0,
            granted_at_us: 0,
            seals_sent_us: 0,
            pulsed_us: 0,
            pulse_lane: 0,
            counters: Counters::default(),
        }
    }

    /// Names the devices of this machine: reads go there first.
    pub fn prefer(&mut self, devices: impl IntoIterator<Item = DeviceId>) {
        self.preferred = devices.into_iter().collect();
    }

    /// What the volume is.
    pub fn spec(&self) -> &VolumeSpec {
        &self.spec
    }

    /// Epoch of this writer; zero before the grant.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Counts since the engine was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Requests that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.active.len() + self.waiting.len() + self.parked.len()
    }

    /// True once nothing more will happen.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, VolumePhase::Closed | VolumePhase::Fenced)
    }

    /// Every device that the volume must be able to reach.
    pub fn devices(&self) -> BTreeSet<DeviceId> {
        let known = self.lanes.iter().flat_map(|lane| lane.slots.iter().map(|slot| slot.device));
        self.spec.lanes.iter().flatten().copied().chain(known).collect()
    }

    /// Handles one event at `now_us` and appends what follows from it.
    pub fn apply(&mut self, now_us: u64, event: Event, effects: &mut Vec<Effect>) {
        self.now_us = self.now_us.max(now_us);
        match event {
            Event::Granted(grant) => self.on_granted(grant),
            Event::CasDone { lane, reply } => self.on_cas_done(lane, reply),
            Event::CasRefused { lane } => self.on_cas_refused(lane),
            Event::CasUnknown { lane } => {
                if let Some(lane) = self.lanes.get_mut(usize::from(lane)) {
                    lane.cas_outstanding = false; // the tick repeats it
                    if broken(Mutation::UnknownCasFailed) && lane.phase == LanePhase::Serving {
                        lane.pending = None;
                    }
                }
            }
            Event::LinkUp { device } => self.on_link_up(device),
            Event::LinkDown { device } => self.on_link_down(device),
            Event::Message { envelope, message } => self.on_message(envelope, message),
            Event::Request(request) => self.on_request(request),
            Event::Abandoned(requests) => self.on_abandoned(&requests),
            Event::Spec(spec) => self.on_spec(spec),
            Event::Eject { device } => self.on_eject(device),
            Event::Close => self.on_close(),
            Event::Pulse { devices } => self.pulse_to(&devices),
            Event::Tick => self.on_tick(),
            Event::Late => {} // the pass below looks after late reads
        }
        self.maintain();
        effects.append(&mut self.out);
    }

    fn on_message(&mut self, envelope: Envelope, message: ToWriter) {
        if envelope.volume != self.spec.id || self.is_over() {
            return;
        }
        if let ToWriter::Fenced { promised } = message {
            if promised > self.epoch && self.epoch != Epoch(0) {
                self.fence(&format!("device {} has promised epoch {promised}", envelope.device));
            }
            return;
        }
        if envelope.epoch != self.epoch {
            return; // an answer to an earlier writer
        }
        let device = envelope.device;
        match message {
            ToWriter::Sealed { lanes } => self.on_sealed(device, &lanes),
            ToWriter::DeviceFailed { reason } => self.on_device_failed(device, &reason),
            ToWriter::Repaired { block } => {
                self.note_repaired(block, device);
                self.end_repair((block, device));
            }
            ToWriter::Damaged { range } => self.on_damaged(device, range),
            ToWriter::ReadDone { request, reply } => self.on_read_done(device, request, reply),
            ToWriter::ReadRefused { request } => self.on_read_refused(device, request),
            ToWriter::LostData { prefix } => self.on_lost_data(envelope, prefix),
            ToWriter::NotServed => self.on_not_served(device), // heartbeats and ticks ask members again
            ToWriter::Fenced { .. } => unreachable!("handled above"),
            ToWriter::Ack { prefix, index, sent_at_us, full } => {
                self.on_ack(envelope, prefix, index, sent_at_us, full);
            }
            ToWriter::JoinReady { join, settled, suspects } => self.on_join_ready(envelope, join, settled, suspects),
            ToWriter::JoinLost { join } => self.on_join_lost(envelope, join),
            ToWriter::Digests { request, range, blocks } => self.on_digests(device, request, range, blocks),
            ToWriter::Confirmed { join, request, differs } => self.on_confirmed(envelope, join, request, &differs),
            ToWriter::CopyDone { join, request } => self.on_copy_done(envelope, join, request),
        }
    }

    /// W14.
    pub(super) fn fence(&mut self, why: &str) {
        if self.phase == VolumePhase::Fenced {
            return;
        }
        self.phase = VolumePhase::Fenced;
        self.out.push(Effect::Note(format!("volume {}: stopped as writer: {why}", self.spec.name)));
        self.fail_all(&Failure::Fenced);
        self.out.push(Effect::Closed { clean: false });
    }

    pub(super) fn fail_all(&mut self, failure: &Failure) {
        let active = std::mem::take(&mut self.active).into_keys();
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|request| request.id.0);
        // In order, so that the same events always give the same effects.
        let parked = std::mem::take(&mut self.parked).into_iter().map(|request| request.id.0);
        for id in active.chain(waiting).chain(parked).filter(|id| !is_own(*id)).collect::<BTreeSet<u64>>() {
            self.out.push(Effect::Complete { id: RequestId(id), outcome: Outcome::Failed(failure.clone()) });
        }
        self.reads.clear();
        self.held_reads.clear();
    }

    /// What must hold after every event.
    fn maintain(&mut self) {
        if self.is_over() {
            return;
        }
        self.finish_giving_way();
        if self.is_over() {
            return;
        }
        if self.phase == VolumePhase::Opening && self.can_serve() {
            self.phase = VolumePhase::Serving;
            self.begin_waiting_reads();
            self.out.push(Effect::Note(format!("volume {} is open in epoch {}", self.spec.name, self.epoch)));
        }
        if self.phase == VolumePhase::Serving && !self.holds_requests() {
            if !self.parked.is_empty() {
                self.retry_parked();
            }
            self.admit_waiting();
        }
        if self.repairs.wake {
            self.drive_repairs();
        }
        if self.pace.take_rested(self.now_us) {
            self.drive_joins();
        }
        self.tend_late_reads();
        if !self.held_reads.is_empty() {
            self.retry_held_reads();
        }
        if self.phase == VolumePhase::Closing {
            self.continue_close();
        }
    }

    fn on_tick(&mut self) {
        if matches!(self.phase, VolumePhase::Idle | VolumePhase::Closed | VolumePhase::Fenced) {
            return;
        }
        if self.is_at_rest() {
            return self.pulse_if_due();
        }
        if self.lanes.iter().any(|lane| matches!(lane.phase, LanePhase::Sealing | LanePhase::Copying)) {
            self.repeat_seal();
        }
        self.repairs.wake = true;
        let joining = self.lanes.iter().any(|lane| lane.join.is_some());
        self.pace.tick(self.now_us, joining, self.guests_active() > 0);
        for number in 0..self.lanes.len() {
            match self.lanes[number].phase {
                LanePhase::Sealing => {
                    self.continue_seal(number);
                    if self.lanes[number].phase == LanePhase::Sealing {
                        self.give_up_for_now(number);
                    }
                }
                LanePhase::Copying => self.continue_copy(number),
                LanePhase::Serving | LanePhase::Closing => {
                    // What became durable before the lane was ready.
                    let lane = &self.lanes[number];
                    if self.now_us >= lane.ready_at_us && lane.retained.front().is_some_and(|first| !first.acked) {
                        self.acknowledge_all(number);
                    }
                    self.heartbeat_if_due(number);
                    self.note_followed(number);
                    self.change_set(number);
                    self.resend_late_copies(number);
                }
                LanePhase::Committing | LanePhase::Closed => {}
            }
            self.resend_late_writes(number);
            self.repeat_cas(number);
        }
    }

    fn on_link_up(&mut self, device: DeviceId) {
        if !self.links_up.insert(device) || self.is_over() {
            return;
        }
        let mut seal = false;
        for number in 0..self.lanes.len() {
            let Some(slot) = self.lanes[number].slot_of(device) else { continue };
            self.lanes[number].slots[slot].up = true;
            self.lanes[number].slots[slot].started = false;
            self.lanes[number].slots[slot].left_alone = None; // perhaps it was started anew
            if self.lanes[number].phase == LanePhase::Copying {
                // Its time to start begins anew.
                self.lanes[number].slots[slot].behind_since_us = Some(self.now_us);
            }
            seal |= self.lanes[number].phase == LanePhase::Sealing;
            self.send_start(number, slot);
        }
        if seal {
            self.send_seal(device);
        }
    }

    fn on_link_down(&mut self, device: DeviceId) {
        if !self.links_up.remove(&device) || self.is_over() {
            return;
        }
        for number in 0..self.lanes.len() {
            let now_us = self.now_us;
            let Some(slot) = self.lanes[number].slot_of(device) else { continue };
            let state = &mut self.lanes[number].slots[slot];
            state.up = false;
            state.started = false;
            state.behind_since_us.get_or_insert(now_us);
            let join = self.lanes[number].join.as_ref();
            if join.is_some_and(|join| join.slot == slot && join.info.is_some()) {
                self.lanes[number].slots[slot].joins_failed = 0;
            }
            self.drop_join_of(number, slot);
        }
        self.forget_repairs_of(device);
        self.reroute_reads(device);
    }

    fn on_device_failed(&mut self, device: DeviceId, reason: &str) {
        let mut told = false;
        for number in 0..self.lanes.len() {
            let Some(slot) = self.lanes[number].slot_of(device) else { continue };
            told |= self.lanes[number].distrust(slot);
            self.drop_join_of(number, slot);
        }
        self.forget_repairs_of(device);
        if told {
            self.out.push(Effect::Alarm(format!("volume {}: device {device} failed: {reason}", self.spec.name)));
        }
        self.reroute_reads(device);
    }

    /// A member lacks writes that it had when the last writer closed: it leaves the set and is copied again.
    fn on_lost_data(&mut self, envelope: Envelope, prefix: u64) {
        let Some(lane) = self.lanes.get_mut(usize::from(envelope.lane)) else { return };
        let Some(slot) = lane.slot_of(envelope.device) else { return };
        if lane.slots[slot].started || !lane.distrust(slot) {
            return;
        }
        lane.slots[slot].lost_data = true;
        self.counters.lost_data += 1;
        let (number, base, device) = (lane.number, lane.base, envelope.device);
        self.out.push(Effect::Alarm(format!(
            "volume {} lane {number}: device {device} has only {prefix} of {base} writes left; it will be copied again",
            self.spec.name
        )));
    }

    pub(super) fn envelope(&self, lane: u16, device: DeviceId) -> Envelope {
        Envelope { volume: self.spec.id, lane, epoch: self.epoch, device }
    }

    pub(super) fn progress(&self, number: usize, slot: usize) -> Progress {
        let lane = &self.lanes[number];
        Progress {
            config: lane.version,
            settled: lane.settled,
            member: lane.in_sync >> slot & 1 == 1,
            sent_at_us: self.now_us,
        }
    }

    pub(super) fn send(&mut self, number: usize, slot: usize, message: ToReplica) {
        let lane = &self.lanes[number];
        if lane.slots[slot].up {
            let envelope = self.envelope(lane.number, lane.slots[slot].device);
            self.out.push(Effect::Send { envelope, message });
        }
    }
}
