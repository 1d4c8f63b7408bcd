//! The engine of one device: takes requests and device completions, gives device operations and replies.
//!
//! It must never know what carries its operations out, nor what time it is.

mod checkpoint;
mod commit;
mod lanes;
mod read;
mod recover;
mod redo;
mod scan;
mod types;
mod write;

pub use types::{
    Effect, FormatOptions, IoError, IoId, OpenError, OpenOptions, Stats, format, layout_of, read_superblocks,
};

use crate::alloc::Allocator;
use crate::api::{Reply, Request, StoreError, Token};
use crate::disk::Superblock;
use crate::layout::{Layout, PAGE_BYTES};
use crate::map::ChunkMap;
use crate::table::VolumeTable;
use ashlar_model::lane::LaneState;
use ashlar_model::units::GRANULE_BYTES;
use ashlar_model::{AlignedBuffer, Epoch, LaneKey, Payload, VolumeId};
use checkpoint::Checkpoint;
use commit::Log;
use read::ReadOp;
use recover::Recovery;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use types::Purpose;
use write::Op;

/// Log bytes reserved for the image of one dirty slot: two pages, and a group header at worst.
const IMAGE_COST: u64 = 3 * PAGE_BYTES;

/// Where the engine is in its life.
#[derive(Debug)]
enum Phase {
    Opening(Box<Recovery>),
    /// Recovered; the checkpoint at the end of the open is running.
    Finishing,
    Open,
    OpenFailed,
}

/// An overwritten block that still lives in the log: read from here, written back by a checkpoint.
#[derive(Debug)]
struct Pin {
    payload: Payload,
    checksum: u32,
    /// The operation that brought it (zero after recovery).
    op: u64,
    /// Its group; `u64::MAX` while it waits for one.
    lsn: u64,
}

/// The engine of one device.
#[derive(Debug)]
pub struct StoreEngine {
    options: OpenOptions,
    phase: Phase,
    failed: Option<String>,
    sb: Superblock,
    map: ChunkMap,
    granules: Allocator,
    slots: Allocator,
    table: VolumeTable,
    log: Log,
    /// Slots whose pages on the device are old.
    dirty: BTreeSet<u32>,
    /// Slots whose images are in the log since before the open, and whose pages may be old.
    imaged: BTreeSet<u32>,
    /// Torn writes of the replay: (group, record).
    dropped: HashSet<(u64, u32)>,
    /// Those found by this open.
    dropped_now: Vec<(u64, u32)>,
    checkpoint: Option<Box<Checkpoint>>,
    /// False while a checkpoint drains the log.
    accepting: bool,
    checkpoint_wanted: bool,
    pins: BTreeMap<(u32, u16), Pin>,
    /// Blocks with a device write in flight, per granule.
    busy: HashMap<u32, u16>,
    /// Granules that became free durably, but may still have a device write in flight.
    limbo: Vec<u32>,
    waiting: VecDeque<(Token, Request)>,
    ops: HashMap<u64, Op>,
    reads: HashMap<u64, ReadOp>,
    next_op: u64,
    /// Accepted, unanswered operations per volume, in order.
    outstanding: HashMap<VolumeId, BTreeSet<u64>>,
    /// Accepted, unanswered writes per chunk, in order.
    inflight: HashMap<(VolumeId, u64), Vec<u64>>,
    /// Accepted, unanswered live writes per index.
    live: HashMap<(LaneKey, u64), u32>,
    io: HashMap<IoId, Purpose>,
    next_io: u64,
    effects: Vec<Effect>,
    stats: Stats,
}

impl StoreEngine {
    /// Starts to open a device. Requests submitted before [`Effect::Opened`] wait for it.
    pub fn open(options: OpenOptions) -> Self {
        let sb = Superblock::blank();
        let mut engine = Self {
            phase: Phase::Opening(Box::new(Recovery::new())),
            failed: None,
            map: ChunkMap::default(),
            granules: Allocator::default(),
            slots: Allocator::default(),
            table: VolumeTable::default(),
            log: Log::default(),
            dirty: BTreeSet::new(),
            imaged: BTreeSet::new(),
            dropped: HashSet::new(),
            dropped_now: Vec::new(),
            checkpoint: None,
            accepting: false,
            checkpoint_wanted: false,
            pins: BTreeMap::new(),
            busy: HashMap::new(),
            limbo: Vec::new(),
            waiting: VecDeque::new(),
            ops: HashMap::new(),
            reads: HashMap::new(),
            next_op: 1,
            outstanding: HashMap::new(),
            inflight: HashMap::new(),
            live: HashMap::new(),
            io: HashMap::new(),
            next_io: 1,
            effects: Vec::new(),
            stats: Stats::default(),
            options,
            sb,
        };
        engine.recover_start();
        engine
    }

    /// Takes a request. Its answer comes as [`Effect::Reply`] (none for `Settle`). Requests that find no room in the
    /// log wait in order; the caller bounds their number.
    pub fn submit(&mut self, token: Token, request: Request) {
        if let Some(reason) = self.failure() {
            if !matches!(request, Request::Settle { .. }) {
                self.reply(token, Reply::Error(StoreError::Failed(reason)));
            }
            return;
        }
        if self.must_wait(&request) {
            self.waiting.push_back((token, request));
        } else if let Err(request) = self.accept(token, request) {
            self.waiting.push_back((token, request));
        }
        self.maintain();
    }

    /// Takes the completion of a device operation; a read gives its buffer back, also when it failed.
    pub fn io_done(&mut self, io: IoId, result: Result<Option<AlignedBuffer>, IoError>) {
        let purpose = self.io.remove(&io).expect("a completion belongs to an operation in flight");
        if self.failure().is_some() {
            return;
        }
        match purpose {
            Purpose::Read { read, piece } => self.read_done(read, piece, result),
            Purpose::Recovery(tag) => self.recover_done(tag, result),
            purpose => match result {
                Ok(_) => self.write_done(purpose),
                Err(error) => self.fail(format!("{purpose}: {error}")),
            },
        }
        self.maintain();
    }

    /// Takes what is to be done since the last call.
    pub fn effects(&mut self, out: &mut Vec<Effect>) {
        out.append(&mut self.effects);
    }

    /// Device operations in flight.
    pub fn in_flight(&self) -> usize {
        self.io.len()
    }

    /// True if nothing is in flight, waiting or to be done.
    pub fn is_idle(&self) -> bool {
        self.io.is_empty()
            && self.effects.is_empty()
            && self.waiting.is_empty()
            && self.ops.is_empty()
            && self.reads.is_empty()
    }

    /// Requests that wait for room in the log or for the open.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True once the device has been opened.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Why the device is latched as failed, if it is.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// The superblock: identities and layout. Meaningful once open.
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Promises kept here.
    pub fn promises(&self) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.table.promises()
    }

    /// Lanes kept here. Lists include writes that are accepted and not yet durable; `prefix` does not.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneKey, &LaneState)> + '_ {
        self.table.lanes()
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        Stats {
            used_bytes: u64::from(self.granules.used()) * GRANULE_BYTES as u64,
            total_bytes: u64::from(self.granules.count()) * GRANULE_BYTES as u64,
            used_slots: u64::from(self.slots.used()),
            total_slots: u64::from(self.slots.count()),
            log_used_bytes: self.log.used(),
            log_bytes: self.sb.layout.log.bytes,
            pinned_bytes: (self.pins.len() as u64) * PAGE_BYTES,
            ..self.stats
        }
    }

    /// Asks for a checkpoint: afterwards an open has little to replay.
    pub fn checkpoint(&mut self) {
        self.checkpoint_wanted = true;
        self.maintain();
    }

    fn layout(&self) -> &Layout {
        &self.sb.layout
    }

    fn failure(&self) -> Option<String> {
        match (&self.failed, &self.phase) {
            (Some(reason), _) => Some(reason.clone()),
            (None, Phase::OpenFailed) => Some("the device could not be opened".into()),
            _ => None,
        }
    }

    fn reply(&mut self, token: Token, reply: Reply) {
        self.effects.push(Effect::Reply { token, reply });
    }

    fn issue_read(&mut self, purpose: Purpose, offset: u64, bytes: usize) {
        let io = self.new_io(purpose);
        self.effects.push(Effect::Read { io, offset, bytes });
    }

    fn issue_write(&mut self, purpose: Purpose, offset: u64, parts: Vec<Payload>) {
        self.stats.written_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let io = self.new_io(purpose);
        self.effects.push(Effect::Write { io, offset, parts });
    }

    fn issue_flush(&mut self, purpose: Purpose) {
        let io = self.new_io(purpose);
        self.effects.push(Effect::Flush { io });
    }

    fn new_io(&mut self, purpose: Purpose) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.io.insert(io, purpose);
        io
    }

    fn write_done(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::GroupWrite => self.group_written(),
            Purpose::GroupFlush { lsn } => self.group_flushed(lsn),
            Purpose::Data { op, places } => {
                self.unbusy(&places);
                self.data_written(op);
            }
            Purpose::WriteBack { place, keys } => {
                self.unbusy(&[place]);
                self.written_back(&keys);
            }
            Purpose::Repair { op, place, slot } => {
                self.unbusy(&[place]);
                self.repair_written(op, place, slot);
            }
            Purpose::RepairFlush { op } => self.op_durable(op),
            Purpose::Checkpoint => self.checkpoint_io_done(),
            Purpose::Read { .. } | Purpose::Recovery(_) => unreachable!("reads are handled before"),
        }
    }

    fn set_busy(&mut self, granule: u32, mask: u16) {
        let busy = self.busy.entry(granule).or_default();
        assert_eq!(*busy & mask, 0, "two device writes in flight for a block of granule {granule}");
        *busy |= mask;
    }

    fn unbusy(&mut self, places: &[(u32, u16)]) {
        for (granule, mask) in places {
            let busy = self.busy.get_mut(granule).expect("a device write was in flight");
            *busy &= !mask;
            if *busy == 0 {
                self.busy.remove(granule);
            }
        }
    }

    /// The one pass after each event.
    fn maintain(&mut self) {
        if self.failure().is_some() || matches!(self.phase, Phase::Opening(_)) {
            return;
        }
        loop {
            self.commit_step();
            self.release_limbo();
            let moved = self.checkpoint_step();
            let taken = self.accept_waiting();
            if !moved && !taken {
                break;
            }
        }
    }

    fn release_limbo(&mut self) {
        let (busy, granules) = (&self.busy, &mut self.granules);
        self.limbo.retain(|granule| {
            let keep = busy.contains_key(granule);
            if !keep {
                granules.release(*granule);
            }
            keep
        });
    }

    /// Latches the device as failed: everything accepted or waiting is answered so, nothing is retried.
    fn fail(&mut self, reason: String) {
        tracing::error!(%reason, "store device failed");
        let mut tokens: Vec<Token> = self.ops.values().filter_map(|op| op.token).collect();
        tokens.extend(self.reads.values().map(|read| read.token));
        let settle = |request: &Request| matches!(request, Request::Settle { .. });
        tokens.extend(self.waiting.iter().filter(|(_, request)| !settle(request)).map(|(token, _)| *token));
        for token in tokens {
            self.reply(token, Reply::Error(StoreError::Failed(reason.clone())));
        }
        self.ops.clear();
        self.reads.clear();
        self.waiting.clear();
        if !matches!(self.phase, Phase::Open) {
            self.phase = Phase::OpenFailed;
            self.effects.push(Effect::OpenFailed(OpenError::Io(reason.clone())));
        }
        self.failed = Some(reason);
    }
}
