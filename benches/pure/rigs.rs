//! The pure engines with everything around them played by a few lines: for benches, and for counting what they allocate.

use ashlar::replica::{self, LinkId, ReplicaEngine};
use ashlar::volume::{self, ClientRequest, Operation, Outcome, RequestId, Settings, VolumeEngine};
use ashlar::wire::message::{Content, Envelope, Progress, ToReplica, ToWriter};
use ashlar::wire::{Frame, FrameDecoder, Permit};
use ashlar_model::checksum::{Checksums, block_checksums};
use ashlar_model::cluster::{AttachGrant, LaneGrant, QuorumPolicy, VolumeSpec};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::{BLOCK_BYTES, GIB, MIB};
use ashlar_model::{
    AlignedBuffer, BlockRange, ClusterId, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeGeometry, VolumeId,
};
use ashlar_nbd::export::{BlockSizes, ExportInfo, Features};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{Outcome as NbdOutcome, Session};
use ashlar_store::api::{Body, Reply, Request, Token, Write};
use ashlar_store::{Effect, FormatOptions, OpenOptions, StoreEngine, format};

pub const VOLUME: VolumeId = VolumeId::from_u128(0xA5);
pub const EPOCH: Epoch = Epoch(1);
pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks that are written round and round.
pub const BLOCKS: u64 = 64 * MIB / BLOCK;
/// Requests of a busy round.
pub const ROUND: u64 = 32;

pub fn device(number: u128) -> DeviceId {
    DeviceId::from_u128(number)
}

pub fn envelope(number: u128) -> Envelope {
    Envelope { volume: VOLUME, lane: 0, epoch: EPOCH, device: device(number) }
}

/// Spreads consecutive numbers over all blocks.
pub fn block_of(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9) % BLOCKS
}

pub fn content(block: u64) -> Content {
    let payload = Payload::copied_from(&[0x5A; BLOCK_BYTES]);
    let checksums: Checksums = block_checksums(VOLUME, block, &payload).collect();
    Content::Data { payload, checksums }
}

pub fn write_message(index: u64, block: u64, content: &Content) -> ToReplica {
    let progress = Progress { config: 1, settled: index.saturating_sub(64), member: true, sent_at_us: index };
    ToReplica::Write { progress, index, range: BlockRange::new(block, 1), content: content.clone(), generation: 0 }
}

pub fn decode(decoder: &mut FrameDecoder, mut bytes: &[u8]) -> Frame {
    loop {
        let (taken, frame) = decoder.feed(bytes).expect("good bytes");
        bytes = &bytes[taken..];
        if let Some(frame) = frame {
            assert!(bytes.is_empty(), "one frame");
            return frame;
        }
    }
}

/// A session that serves an export of a gibibyte.
pub fn nbd_session() -> Session {
    let mut session = Session::new(Limits::PRODUCTION);
    let hello = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
    let (first, _) = session.receive(hello);
    let (_, outcome) = session.receive(&hello[first..]);
    assert!(matches!(outcome, NbdOutcome::OpenExport { .. }), "{outcome:?}");
    session.answer_export(&ExportInfo {
        name: "disk".into(),
        description: None,
        size_bytes: GIB,
        block_sizes: BlockSizes::default(),
        features: Features { flush: true, fua: true, ..Features::default() },
    });
    session
}

/// The header of a 4 KiB request.
pub fn nbd_header(command: u8) -> [u8; 28] {
    let mut header = *b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x20\0\0\0\x10\0";
    header[7] = command;
    header
}

/// A serving writer with three replicas that answer at once.
pub struct WriterBench {
    engine: VolumeEngine,
    effects: Vec<volume::Effect>,
    now_us: u64,
    next: u64,
}

impl WriterBench {
    pub fn new() -> Self {
        let devices: Vec<DeviceId> = (1..=3).map(device).collect();
        let spec = VolumeSpec {
            id: VOLUME,
            name: "bench".into(),
            geometry: VolumeGeometry { size_bytes: BLOCKS * BLOCK, lane_count: 1 },
            replicas: 3,
            quorum: QuorumPolicy::Majority,
            restored: false,
            in_sync_min: 1,
            lanes: vec![devices.clone()],
        };
        let engine = VolumeEngine::new(spec, Settings::default());
        let mut bench = Self { engine, effects: Vec::new(), now_us: 1_000_000, next: 0 };
        for device in &devices {
            bench.apply(volume::Event::LinkUp { device: *device });
        }
        let lane = LaneGrant {
            in_sync: devices,
            version: 1,
            clean: Some(0),
            rows: Vec::new(),
            trusted: Vec::new(),
            unverified: false,
        };
        bench.apply(volume::Event::Granted(AttachGrant {
            volume: VOLUME,
            epoch: EPOCH,
            size_bytes: 0,
            lanes: vec![lane],
        }));
        for number in 1..=3 {
            bench.acknowledge(number, 0);
        }
        assert!(bench.round(1) == 1, "the engine serves");
        bench
    }

    fn apply(&mut self, event: volume::Event) {
        self.engine.apply(self.now_us, event, &mut self.effects);
    }

    fn acknowledge(&mut self, number: u128, prefix: u64) {
        let message = ToWriter::Ack { prefix, index: 0, sent_at_us: self.now_us, full: false };
        self.apply(volume::Event::Message { envelope: envelope(number), message });
    }

    /// `count` writes, each acknowledged by all three; returns how many were completed.
    pub fn round(&mut self, count: u64) -> u64 {
        self.now_us += 10;
        for _ in 0..count {
            self.next += 1;
            let operation = Operation::Write {
                range: BlockRange::new(block_of(self.next), 1),
                buffer: AlignedBuffer::zeroed(BLOCK_BYTES),
                head_bytes: 0,
                tail_bytes: 0,
            };
            self.apply(volume::Event::Request(ClientRequest { id: RequestId(self.next), operation }));
        }
        for number in 1..=3 {
            self.acknowledge(number, self.next);
        }
        let done =
            |effect: &volume::Effect| matches!(effect, volume::Effect::Complete { outcome: Outcome::Written, .. });
        let completed = self.effects.drain(..).filter(done).count();
        completed as u64
    }
}

/// A replica whose store answers at once.
pub struct ReplicaBench {
    engine: ReplicaEngine,
    effects: Vec<replica::Effect>,
    taken: Vec<replica::Effect>,
    content: Content,
    index: u64,
}

impl ReplicaBench {
    pub fn new() -> Self {
        let engine = ReplicaEngine::new(device(1), [], []);
        let mut bench = Self { engine, effects: Vec::new(), taken: Vec::new(), content: content(0), index: 0 };
        bench.message(ToReplica::Start { config: 1, base: 0, clean: false });
        bench.finish();
        bench
    }

    pub fn message(&mut self, message: ToReplica) {
        let event = replica::Event::Message { link: LinkId(1), envelope: envelope(1), message, permit: Permit::none() };
        self.engine.apply(event, &mut self.effects);
    }

    /// Answers what was given to the store; returns how many acknowledgements came of it.
    pub fn finish(&mut self) -> usize {
        let mut acknowledgements = 0;
        loop {
            self.engine.settle(&mut self.effects);
            if self.effects.is_empty() {
                return acknowledgements;
            }
            std::mem::swap(&mut self.effects, &mut self.taken);
            for effect in self.taken.drain(..) {
                match effect {
                    replica::Effect::Store { request: Request::Settle { .. }, .. } => {}
                    replica::Effect::Store { token, .. } => {
                        self.engine.apply(replica::Event::Stored { token, reply: Reply::Done }, &mut self.effects);
                    }
                    replica::Effect::Send { message: ToWriter::Ack { .. }, .. } => acknowledgements += 1,
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }

    pub fn round(&mut self, count: u64) -> usize {
        for _ in 0..count {
            self.index += 1;
            let message = write_message(self.index, block_of(self.index), &self.content);
            self.message(message);
        }
        self.finish()
    }
}

/// A store on memory. While `null` is set, what it writes goes nowhere: only the engine is measured.
pub struct StoreBench {
    pub engine: StoreEngine,
    memory: Vec<u8>,
    effects: Vec<Effect>,
    pub null: bool,
    index: u64,
}

impl StoreBench {
    pub fn new() -> Self {
        let size_bytes = 512 * MIB;
        let options = FormatOptions {
            cluster: ClusterId::from_u128(1),
            device: device(1),
            size_bytes,
            power_loss_protected: true,
            atomic_declared: false,
            log_bytes: None,
            table_bytes: None,
        };
        let mut memory = vec![0; size_bytes as usize];
        for (offset, page) in format(&options).expect("a format") {
            memory[offset as usize..offset as usize + page.len()].copy_from_slice(&page);
        }
        let engine = StoreEngine::open(OpenOptions { atomic: true, ..OpenOptions::new(size_bytes, false) });
        let mut bench = Self { engine, memory, effects: Vec::new(), null: false, index: 0 };
        bench.drive();
        let key = LaneKey { volume: VOLUME, lane: 0 };
        bench.engine.submit(Token(0), Request::Start { key, epoch: EPOCH, config: 1, base: 0 });
        assert_eq!(bench.drive(), 1, "the lane begins");
        bench
    }

    /// One in which every block holds data, and that data.
    pub fn filled() -> (Self, Vec<Body>) {
        let mut bench = Self::new();
        let bodies: Vec<Body> = (0..BLOCKS).map(body).collect();
        for (block, body) in bodies.iter().enumerate() {
            bench.write(body, block as u64);
            assert_eq!(bench.drive(), 1, "every block holds data");
        }
        (bench, bodies)
    }

    /// Carries everything out; returns how many requests were answered.
    pub fn drive(&mut self) -> u64 {
        let (mut answered, mut effects) = (0, std::mem::take(&mut self.effects));
        loop {
            self.engine.effects(&mut effects);
            if effects.is_empty() {
                self.effects = effects;
                return answered;
            }
            for effect in effects.drain(..) {
                match effect {
                    Effect::Read { io, offset, bytes } => {
                        let data = AlignedBuffer::copied_from(&self.memory[offset as usize..offset as usize + bytes]);
                        self.engine.io_done(io, Ok(Some(data)));
                    }
                    Effect::Write { io, offset, parts, .. } => {
                        let mut at = offset as usize;
                        for part in parts.iter().filter(|_| !self.null) {
                            self.memory[at..at + part.len()].copy_from_slice(part);
                            at += part.len();
                        }
                        self.engine.io_done(io, Ok(None));
                    }
                    Effect::Flush { io } => self.engine.io_done(io, Ok(None)),
                    Effect::Reply { reply: Reply::Done | Reply::Read(_), .. } => answered += 1,
                    Effect::Opened => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }

    pub fn write(&mut self, body: &Body, block: u64) {
        self.index += 1;
        let key = LaneKey { volume: VOLUME, lane: 0 };
        let write = Write {
            key,
            stamp: Stamp { epoch: EPOCH, index: self.index },
            range: BlockRange::new(block, 1),
            body: body.clone(),
            origin: EntryOrigin::Live,
            listed: true,
            generation: 0,
        };
        self.engine.submit(Token(self.index), Request::Write(write));
        let settled = self.index.saturating_sub(64);
        self.engine.submit(Token(0), Request::Settle { key, index: settled, config: 1, member: true });
    }
}

pub fn body(block: u64) -> Body {
    let Content::Data { payload, checksums } = content(block) else { unreachable!("it is data") };
    Body::Data { payload, checksums }
}
