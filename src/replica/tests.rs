//! The replica engine by exact effects: what it asks of the store and tells its writer after each event, as text.
//!
//! Unless a test says otherwise the writer is of epoch 5, speaks over link 1, about lane 0, with configuration 1.

mod confirm;
mod credits;
mod damage;
mod epochs;
mod joins;
mod reads;
mod space;
mod writes;

use super::engine::{Effect, Event, LinkId, ReplicaEngine};
use crate::wire::Permit;
use crate::wire::message::{Content, Envelope, Progress, ToReplica, ToWriter};
use ashlar_model::lane::{EntryOrigin, LaneState, ListEntry};
use ashlar_model::{BlockRange, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeId};
use ashlar_store::api::{Body, Reply, Request, StoreError, Token, Write};
use std::collections::VecDeque;

const VOLUME: VolumeId = VolumeId::from_u128(0x70);
const DEVICE: DeviceId = DeviceId::from_u128(0xd1);
const NOTHING: [&str; 0] = [];
const FULL: Reply = Reply::Error(StoreError::Full { used_bytes: 9, total_bytes: 9 });

/// A replica engine with a store that answers only when the test says so.
struct Rig {
    engine: ReplicaEngine,
    /// Requests that the store has not answered, oldest first.
    unanswered: VecDeque<Token>,
    alarms: usize,
}

impl Rig {
    /// A device that has never seen the volume.
    fn new() -> Self {
        Self::restarted(0, None)
    }

    /// A device whose store was opened with this promise and lane 0 in this state.
    fn restarted(promised: u64, state: impl Into<Option<LaneState>>) -> Self {
        let lanes = state.into().map(|state| (LaneKey { volume: VOLUME, lane: 0 }, state));
        let engine = ReplicaEngine::new(DEVICE, [(VOLUME, Epoch(promised))], lanes);
        Self { engine, unanswered: VecDeque::new(), alarms: 0 }
    }

    /// A member that follows epoch 5 after index 0.
    fn member() -> Self {
        let mut rig = Self::new();
        rig.hear(start(0));
        rig.done();
        rig
    }

    /// A joiner: join 7 in epoch 5 with configuration 2 and base 10; settled 4, block 90 suspect.
    fn joiner() -> Self {
        let mut rig = Self::new();
        rig.hear(join_start(7));
        rig.done();
        rig.answer(joined_state());
        rig
    }

    /// A batch of events, then one settling pass.
    fn batch(&mut self, events: Vec<Event>) -> Vec<String> {
        let mut effects = Vec::new();
        for event in events {
            self.engine.apply(event, &mut effects);
        }
        self.engine.settle(&mut effects);
        effects.into_iter().map(|effect| self.note(effect)).collect()
    }

    fn hear(&mut self, message: ToReplica) -> Vec<String> {
        self.hear_in(5, message)
    }

    fn hear_in(&mut self, epoch: u64, message: ToReplica) -> Vec<String> {
        self.batch(vec![said(1, epoch, message)])
    }

    /// The store answers its oldest request with success.
    fn done(&mut self) -> Vec<String> {
        self.answer(Reply::Done)
    }

    fn answer(&mut self, reply: Reply) -> Vec<String> {
        self.answer_nth(0, reply)
    }

    /// The store answers the n-th oldest of its open requests.
    fn answer_nth(&mut self, nth: usize, reply: Reply) -> Vec<String> {
        let event = self.stored(nth, reply);
        self.batch(vec![event])
    }

    fn stored(&mut self, nth: usize, reply: Reply) -> Event {
        let token = self.unanswered.remove(nth).expect("the store has an open request");
        Event::Stored { token, reply }
    }

    fn tick(&mut self) -> Vec<String> {
        self.batch(vec![Event::Tick])
    }

    fn note(&mut self, effect: Effect) -> String {
        match effect {
            Effect::Store { token, request } => {
                if !matches!(request, Request::Settle { .. }) {
                    self.unanswered.push_back(token);
                }
                format!("store: {}", request_text(&request))
            }
            Effect::Send { link, envelope, message } => {
                assert_eq!((envelope.volume, envelope.device), (VOLUME, DEVICE));
                let link = if link == LinkId(1) { String::new() } else { format!(" link {}", link.0) };
                let epoch = if envelope.epoch == Epoch(5) { String::new() } else { format!(" e{}", envelope.epoch) };
                format!("tell{link}{epoch}: {}", answer_text(&message))
            }
            Effect::Forgotten { volume } => format!("forgotten {}", volume == VOLUME),
            Effect::Alarm(_) => {
                self.alarms += 1;
                "alarm".into()
            }
        }
    }
}

fn envelope(epoch: u64) -> Envelope {
    Envelope { volume: VOLUME, lane: 0, epoch: Epoch(epoch), device: DEVICE }
}

fn said(link: u64, epoch: u64, message: ToReplica) -> Event {
    Event::Message { link: LinkId(link), envelope: envelope(epoch), message, permit: Permit::none() }
}

fn run(start: u64, count: u32) -> BlockRange {
    BlockRange::new(start, count)
}

fn progress() -> Progress {
    Progress { config: 1, settled: 0, member: true, sent_at_us: 100 }
}

fn start(base: u64) -> ToReplica {
    ToReplica::Start { config: 1, base, clean: false }
}

/// Every block is filled with the index, and its checksum is index * 100 + block.
fn data(index: u64, range: BlockRange) -> Content {
    let payload = Payload::copied_from(&vec![index as u8; range.bytes()]);
    Content::Data { payload, checksums: range.blocks().map(|block| (index * 100 + block) as u32).collect() }
}

fn write(index: u64, range: BlockRange) -> ToReplica {
    write_under(progress(), index, range)
}

fn write_under(progress: Progress, index: u64, range: BlockRange) -> ToReplica {
    ToReplica::Write { progress, index, range, content: data(index, range), generation: 0 }
}

fn trim(index: u64, range: BlockRange) -> ToReplica {
    ToReplica::Write { progress: progress(), index, range, content: Content::Zeroes, generation: 0 }
}

fn heartbeat(progress: Progress) -> ToReplica {
    ToReplica::Heartbeat { progress }
}

fn join_start(join: u64) -> ToReplica {
    ToReplica::JoinStart { config: 2, join, base: 10 }
}

/// What the store answers to the question for a joiner's state.
fn joined_state() -> Reply {
    let state = LaneState {
        current: Epoch(5),
        config: 2,
        prefix: 10,
        settled: 4,
        suspect: vec![run(90, 1)],
        join: 7,
        ..LaneState::default()
    };
    Reply::Sealed { promised: Epoch(5), lanes: vec![(0, state)] }
}

fn copy(join: u64, request: u64, range: BlockRange, index: u64) -> ToReplica {
    let stamp = Stamp { epoch: Epoch(4), index };
    ToReplica::Copy { join, request, range, stamp, content: data(index, range), settled: 8 }
}

fn read(request: u64, range: BlockRange) -> ToReplica {
    ToReplica::Read { request, range, map_only: false, prefix_min: 0, background: false }
}

fn entry(epoch: u64, index: u64, origin: EntryOrigin) -> ListEntry {
    let stamp = Stamp { epoch: Epoch(epoch), index };
    ListEntry { stamp, range: run(index, 1), tombstone: false, origin, generation: 0 }
}

fn range_text(range: BlockRange) -> String {
    format!("[{}+{}]", range.start, range.count)
}

fn request_text(request: &Request) -> String {
    match request {
        Request::Write(write) => write_text(write),
        Request::Read { range, .. } => format!("read {}", range_text(*range)),
        Request::Map { range, .. } => format!("map {}", range_text(*range)),
        Request::Promise { epoch, .. } => format!("promise {epoch}"),
        Request::Start { epoch, config, base, .. } => format!("start {epoch} c{config} base {base}"),
        Request::Settle { index, config, member, .. } => {
            format!("settle {index} c{config} {}", if *member { "member" } else { "joiner" })
        }
        Request::JoinStart { epoch, config, join, base, .. } => {
            format!("join {join} in {epoch} c{config} base {base}")
        }
        Request::Repair { block, checksum, .. } => format!("repair {block} sum {checksum}"),
        Request::Forget { .. } => "forget".into(),
        Request::Release { epoch, .. } => format!("release {epoch}"),
        Request::ReadSnapshot { .. } | Request::DropGeneration { .. } => unreachable!("no command for snapshots yet"),
    }
}

/// `write epoch.index [start+count]=fill`; the fill is the first byte, and the first checksum must be of that block.
fn write_text(write: &Write) -> String {
    let content = match &write.body {
        Body::Data { payload, checksums } => {
            assert_eq!((payload.block_count(), checksums.len()), (write.range.count, write.range.count as usize));
            assert_eq!(u64::from(checksums[0]), u64::from(payload[0]) * 100 + write.range.start);
            payload[0].to_string()
        }
        Body::Tombstone => "zeroes".into(),
        Body::Lost => "lost".into(),
        Body::Held => "held".into(),
    };
    let kind = match (write.origin, write.listed) {
        (EntryOrigin::Live, true) => "",
        (EntryOrigin::Live, false) => " unlisted",
        (EntryOrigin::Copy, true) => " copy listed",
        (EntryOrigin::Copy, false) => " copy",
    };
    format!("write {}.{} {}={content}{kind}", write.stamp.epoch, write.stamp.index, range_text(write.range))
}

fn answer_text(message: &ToWriter) -> String {
    match message {
        ToWriter::Sealed { lanes } => {
            let lane = |(n, s): &(u16, LaneState)| format!(" lane {n} prefix {} list {}", s.prefix, s.list.len());
            format!("sealed{}", lanes.iter().map(lane).collect::<String>())
        }
        ToWriter::Ack { prefix, index, sent_at_us, full } => {
            let single = if *index > 0 { format!(" +{index}") } else { String::new() };
            format!("ack {prefix}{single} @{sent_at_us}{}", if *full { " full" } else { "" })
        }
        ToWriter::ReadDone { request, reply } => {
            format!("read {request} {} {:?}", range_text(reply.range), reply.conditions)
        }
        ToWriter::ReadRefused { request } => format!("read {request} refused"),
        ToWriter::JoinReady { join, settled, suspects } => {
            let suspects: String = suspects.iter().map(|range| range_text(*range)).collect();
            format!("join {join} ready settled {settled} suspects {suspects}")
        }
        ToWriter::LostData { prefix } => format!("lost data, {prefix} left"),
        ToWriter::NotServed => "not served".into(),
        ToWriter::JoinLost { join } => format!("join {join} lost"),
        ToWriter::Digests { request, range, blocks } => {
            format!("digests {request} {} {}", range_text(*range), blocks.len())
        }
        ToWriter::Confirmed { join, request, differs } => {
            let differs: String = differs.iter().map(|range| range_text(*range)).collect();
            format!("confirmed {request} of {join} but {differs}")
        }
        ToWriter::CopyDone { join, request } => format!("copy {request} of {join} done"),
        ToWriter::Fenced { promised } => format!("fenced by {promised}"),
        ToWriter::DeviceFailed { reason } => format!("device failed: {reason}"),
        ToWriter::Repaired { block } => format!("repaired {block}"),
        ToWriter::Damaged { range } => format!("damaged {}", range_text(*range)),
    }
}
