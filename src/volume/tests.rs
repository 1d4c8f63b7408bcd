//! The volume engine by exact effects: what it sends, asks and completes after each event, as text.
//!
//! Devices are letters. Unless a test says otherwise: epoch 5, one lane on A, B and C with record version 1, a volume
//! of 16 chunks, and a clock that begins at one second. Heartbeats are shown only where a test asks for them.

mod change;
mod close;
mod joins;
mod late;
mod lost;
mod open;
mod operator;
mod reads;
mod repair;
mod rest;
mod slow;
mod status;
mod verify;
mod writes;

use super::engine::{ClientRequest, Effect, Event, Operation, Outcome, RequestId, VolumeEngine};
use super::settings::Settings;
use crate::wire::message::{BlockCondition, Content, Envelope, Progress, ReadReply, ToReplica, ToWriter};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::checksum::block_checksums;
use ashlar_model::cluster::{AttachGrant, EpochRow, LaneCas, LaneCasReply, LaneGrant, QuorumPolicy, VolumeSpec};
use ashlar_model::lane::LaneState;
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BYTES};
use ashlar_model::{BlockRange, DeviceId, Epoch, Payload, Stamp, VolumeGeometry, VolumeId};

const VOLUME: VolumeId = VolumeId::from_u128(0x70);
const NOTHING: [&str; 0] = [];
const EPOCH: u64 = 5;
/// Index of the first join of epoch 5.
const JOIN: u64 = (EPOCH << 24) + 1;

/// What the metadata service grants, and to what kind of volume.
struct Setup {
    copyset: &'static str,
    in_sync: &'static str,
    clean: Option<u64>,
    rows: Vec<EpochRow>,
    unverified: bool,
    /// The metadata was restored once; these devices have been in sync since.
    trusted: Option<&'static str>,
    lane_count: u16,
    chunks: u64,
    quorum: QuorumPolicy,
    in_sync_min: u8,
    /// Joins compare before they copy.
    compares: bool,
    settings: Settings,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            copyset: "ABC",
            in_sync: "ABC",
            clean: Some(0),
            rows: vec![],
            unverified: false,
            trusted: None,
            lane_count: 1,
            chunks: 16,
            quorum: QuorumPolicy::Majority,
            in_sync_min: 1,
            compares: false,
            settings: Settings::default(),
        }
    }
}

impl Setup {
    fn of(devices: &'static str) -> Self {
        Self { copyset: devices, in_sync: devices, ..Self::default() }
    }

    /// A volume without an epoch, all links up.
    fn idle(&self) -> Rig {
        let devices: Vec<DeviceId> = self.copyset.chars().map(device).collect();
        let size_bytes = self.chunks * CHUNK_BYTES as u64;
        let spec = VolumeSpec {
            id: VOLUME,
            name: "v".into(),
            geometry: VolumeGeometry { size_bytes, lane_count: self.lane_count },
            replicas: devices.len() as u8,
            quorum: self.quorum,
            restored: self.trusted.is_some(),
            in_sync_min: self.in_sync_min,
            lanes: vec![devices; usize::from(self.lane_count)],
        };
        let settings = Settings { join_compares: self.compares, ..self.settings };
        let engine = VolumeEngine::new(spec, settings);
        let mut rig = Rig { engine, now_us: 1_000_000, reads: vec![], copies: vec![], cas: vec![], beats: false };
        for name in self.copyset.chars() {
            rig.up(name);
        }
        rig
    }

    fn grant(&self) -> Event {
        let in_sync = self.in_sync.chars().map(device).collect();
        let Self { clean, unverified, .. } = *self;
        let trusted = self.trusted.unwrap_or_default().chars().map(device).collect();
        let lane = LaneGrant { in_sync, version: 1, clean, rows: self.rows.clone(), trusted, unverified };
        let lanes = vec![lane; usize::from(self.lane_count)];
        let size_bytes = self.chunks * CHUNK_BYTES as u64;
        Event::Granted(AttachGrant { volume: VOLUME, epoch: Epoch(EPOCH), size_bytes, lanes })
    }

    /// The epoch is granted; the effects of that are thrown away.
    fn granted(&self) -> Rig {
        let mut rig = self.idle();
        rig.on(self.grant());
        rig
    }

    /// Every member has answered Start and granted reads.
    fn serving(&self) -> Rig {
        let mut rig = self.granted();
        for lane in 0..self.lane_count {
            for name in self.in_sync.chars() {
                rig.ack_lane(lane, name, self.clean.unwrap_or(0));
            }
        }
        rig
    }
}

/// A volume engine, and the questions that it has asked and that are not answered.
struct Rig {
    engine: VolumeEngine,
    now_us: u64,
    reads: Vec<(char, u64, BlockRange)>,
    copies: Vec<(char, u64)>,
    cas: Vec<LaneCas>,
    /// Show heartbeats.
    beats: bool,
}

impl Rig {
    fn on(&mut self, event: Event) -> Vec<String> {
        let mut effects = Vec::new();
        self.engine.apply(self.now_us, event, &mut effects);
        effects.into_iter().filter_map(|effect| self.note(effect)).collect()
    }

    fn pass_ms(&mut self, milliseconds: u64) -> &mut Self {
        self.now_us += milliseconds * 1000;
        self
    }

    fn tick(&mut self) -> Vec<String> {
        self.on(Event::Tick)
    }

    fn up(&mut self, name: char) -> Vec<String> {
        self.on(Event::LinkUp { device: device(name) })
    }

    fn down(&mut self, name: char) -> Vec<String> {
        self.on(Event::LinkDown { device: device(name) })
    }

    fn tell(&mut self, name: char, message: ToWriter) -> Vec<String> {
        self.on(Event::Message { envelope: envelope(0, name), message })
    }

    /// An acknowledgement that carries a read grant from now.
    fn ack(&mut self, name: char, prefix: u64) -> Vec<String> {
        self.ack_lane(0, name, prefix)
    }

    fn ack_lane(&mut self, lane: u16, name: char, prefix: u64) -> Vec<String> {
        let message = ToWriter::Ack { prefix, index: 0, sent_at_us: self.now_us, full: false };
        self.on(Event::Message { envelope: envelope(lane, name), message })
    }

    /// As `ack`, and write `index` above the prefix is durable, too.
    fn ack_single(&mut self, name: char, prefix: u64, index: u64) -> Vec<String> {
        self.tell(name, ToWriter::Ack { prefix, index, sent_at_us: self.now_us, full: false })
    }

    fn ack_full(&mut self, name: char, prefix: u64) -> Vec<String> {
        self.tell(name, ToWriter::Ack { prefix, index: 0, sent_at_us: self.now_us, full: true })
    }

    fn request(&mut self, id: u64, operation: Operation) -> Vec<String> {
        self.on(Event::Request(ClientRequest { id: RequestId(id), operation }))
    }

    /// A guest writes; every byte is the request's id.
    fn write(&mut self, id: u64, range: BlockRange) -> Vec<String> {
        let buffer = AlignedBuffer::copied_from(&vec![id as u8; range.bytes()]);
        self.request(id, Operation::Write { range, buffer, head_bytes: 0, tail_bytes: 0 })
    }

    fn zero(&mut self, id: u64, range: BlockRange) -> Vec<String> {
        self.request(id, Operation::Zero { range })
    }

    fn read(&mut self, id: u64, range: BlockRange) -> Vec<String> {
        self.request(id, Operation::Read { range })
    }

    /// Takes the oldest read that this device was asked for.
    fn asked(&mut self, name: char) -> (u64, BlockRange) {
        let at = self.reads.iter().position(|(asked, ..)| *asked == name).expect("it was asked for a read");
        let (_, request, range) = self.reads.remove(at);
        (request, range)
    }

    /// The device answers its oldest read with good data, all bytes `fill`, in version 5.1.
    fn serve(&mut self, name: char, fill: u8) -> Vec<String> {
        let (request, range) = self.asked(name);
        self.tell(name, ToWriter::ReadDone { request, reply: good(range, fill, stamp(5, 1)) })
    }

    fn serve_with(&mut self, name: char, reply: impl FnOnce(BlockRange) -> ReadReply) -> Vec<String> {
        let (request, range) = self.asked(name);
        self.tell(name, ToWriter::ReadDone { request, reply: reply(range) })
    }

    fn refuse(&mut self, name: char) -> Vec<String> {
        let (request, _) = self.asked(name);
        self.tell(name, ToWriter::ReadRefused { request })
    }

    /// The joiner has stored the oldest copy.
    fn copied(&mut self, name: char) -> Vec<String> {
        let at = self.copies.iter().position(|(to, _)| *to == name).expect("it was sent a copy");
        let (_, request) = self.copies.remove(at);
        self.tell(name, ToWriter::CopyDone { join: JOIN, request })
    }

    /// The metadata service has applied the oldest compare-and-set.
    fn cas_done(&mut self) -> Vec<String> {
        let cas = self.cas.remove(0);
        self.cas.retain(|other| *other != cas);
        self.cas_answer(cas.lane, cas.epoch.0, cas.version + 1)
    }

    fn cas_answer(&mut self, lane: u16, epoch: u64, version: u64) -> Vec<String> {
        self.on(Event::CasDone { lane, reply: LaneCasReply { epoch: Epoch(epoch), version, in_sync: vec![] } })
    }

    fn retained_bytes(&self) -> u64 {
        self.engine.status().lanes[0].retained_bytes
    }

    /// Text of an effect; remembers questions.
    fn note(&mut self, effect: Effect) -> Option<String> {
        Some(match effect {
            Effect::Send { envelope, message } => {
                assert_eq!((envelope.volume, envelope.epoch), (VOLUME, Epoch(EPOCH)));
                let to = name_of(envelope.device);
                match &message {
                    ToReplica::Read { request, range, .. } => self.reads.push((to, *request, *range)),
                    ToReplica::Digest { request, range, .. } => self.reads.push((to, *request, *range)),
                    ToReplica::Copy { request, .. } | ToReplica::Confirm { request, .. } => {
                        self.copies.push((to, *request));
                    }
                    ToReplica::Heartbeat { .. } if !self.beats => return None,
                    _ => {}
                }
                let all = matches!(message, ToReplica::Seal);
                assert_eq!(all, envelope.lane == Envelope::ALL_LANES);
                let lane = if all || envelope.lane == 0 { String::new() } else { format!("/{}", envelope.lane) };
                format!("{to}{lane}: {}", self.message_text(&message))
            }
            Effect::Complete { id, outcome } => format!("{}: {}", id.0, outcome_text(&outcome)),
            Effect::Cas(cas) => {
                self.cas.push(cas.clone());
                let lane = if cas.lane == 0 { String::new() } else { format!("/{}", cas.lane) };
                let clean = cas.clean.map_or(String::new(), |last| format!(" clean {last}"));
                let base = cas.base.map_or(String::new(), |base| format!(" base {base}"));
                let set: String = cas.in_sync.iter().map(|device| name_of(*device)).collect();
                format!("cas{lane} c{} {set}{clean}{base}", cas.version)
            }
            Effect::Alarm(_) => "alarm".into(),
            Effect::Note(_) => return None,
            Effect::Closed { clean } => format!("closed {}", if clean { "clean" } else { "unclean" }),
        })
    }

    fn message_text(&self, message: &ToReplica) -> String {
        match message {
            ToReplica::Seal => "seal".into(),
            ToReplica::Start { config, base, .. } => format!("start c{config} base {base}"),
            ToReplica::Write { progress, index, range, content, .. } => {
                format!("write {index} {}={} {}", run_text(*range), fill_of(content), self.progress_text(progress))
            }
            ToReplica::Heartbeat { progress } => format!("beat {}", self.progress_text(progress)),
            ToReplica::Read { range, map_only, prefix_min, .. } => {
                let least = if *prefix_min > 0 { format!(" min {prefix_min}") } else { String::new() };
                format!("{} {}{least}", if *map_only { "map" } else { "read" }, run_text(*range))
            }
            ToReplica::Digest { range, prefix_min, .. } => format!("digest {} min {prefix_min}", run_text(*range)),
            ToReplica::Confirm { range, blocks, settled, .. } => {
                let digests: Vec<u128> = blocks.iter().map(|(_, digest)| *digest).collect();
                format!("confirm {} {digests:?} s{settled}", run_text(*range))
            }
            ToReplica::JoinStart { config, join, base } => {
                format!("join #{} c{config} base {base}", join - (EPOCH << 24))
            }
            ToReplica::Copy { join, range, stamp, content, settled, .. } => {
                assert_eq!(join >> 24, EPOCH);
                let version = format!("{}.{}", stamp.epoch, stamp.index);
                format!("copy {}={} {version} s{settled}", run_text(*range), fill_of(content))
            }
            ToReplica::Repair { block, payload, .. } => format!("repair {block}={}", payload[0]),
        }
    }

    fn progress_text(&self, progress: &Progress) -> String {
        assert_eq!(progress.sent_at_us, self.now_us, "grants count from the time of sending");
        format!("c{} s{}{}", progress.config, progress.settled, if progress.member { "" } else { " joiner" })
    }
}

fn device(name: char) -> DeviceId {
    DeviceId::from_u128(u128::from(u32::from(name)))
}

fn name_of(device: DeviceId) -> char {
    char::from(device.as_u128() as u8)
}

fn envelope(lane: u16, name: char) -> Envelope {
    Envelope { volume: VOLUME, lane, epoch: Epoch(EPOCH), device: device(name) }
}

fn run(start: u64, count: u32) -> BlockRange {
    BlockRange::new(start, count)
}

fn stamp(epoch: u64, index: u64) -> Stamp {
    Stamp { epoch: Epoch(epoch), index }
}

fn run_text(range: BlockRange) -> String {
    format!("[{}+{}]", range.start, range.count)
}

/// The byte that the content is filled with; its checksums were checked.
fn fill_of(content: &Content) -> String {
    match content {
        Content::Zeroes => "zeroes".into(),
        Content::Lost => "lost".into(),
        Content::Data { payload, checksums } => {
            assert_eq!(payload.block_count() as usize, checksums.len());
            payload[0].to_string()
        }
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Written => "written".into(),
        Outcome::Read(runs) => {
            let fill = |payload: &Option<Payload>| payload.as_ref().map_or("zeroes".into(), |p| p[0].to_string());
            let runs: Vec<String> =
                runs.iter().map(|r| format!("{}={}", run_text(r.range), fill(&r.payload))).collect();
            format!("read {}", runs.join(" "))
        }
        Outcome::Map(runs) => format!("map {runs:?}"),
        Outcome::Failed(failure) => format!("failed: {failure}"),
    }
}

fn payload(range: BlockRange, fill: u8) -> Payload {
    Payload::copied_from(&vec![fill; range.bytes()])
}

fn checksums(range: BlockRange, fill: u8) -> Vec<u32> {
    block_checksums(VOLUME, range.start, &payload(range, fill)).collect()
}

/// A reply of good data in one version.
fn good(range: BlockRange, fill: u8, stamp: Stamp) -> ReadReply {
    let conditions = checksums(range, fill).into_iter().map(BlockCondition::Data).collect();
    ReadReply { range, conditions, stamps: vec![stamp; range.count as usize], payload: Some(payload(range, fill)) }
}

/// A reply of zeroes in one version.
fn zeroes(range: BlockRange, stamp: Stamp) -> ReadReply {
    let blocks = range.count as usize;
    ReadReply { range, conditions: vec![BlockCondition::Zero; blocks], stamps: vec![stamp; blocks], payload: None }
}
