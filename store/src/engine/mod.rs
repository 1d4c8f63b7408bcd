//! The engine of one device: takes requests and device completions, gives device operations and replies.
//!
//! It must never know what carries its operations out, nor what time it is.

mod checkpoint;
mod commit;
mod lanes;
mod layers;
mod load;
mod mutation;
mod ops;
mod pins;
mod read;
mod recover;
mod redo;
mod scan;
mod scrub;
mod types;
mod verify;
mod write;

pub use mutation::Mutation;
pub use types::{
    Effect, FormatOptions, IoError, IoId, OpenError, OpenOptions, Stats, format, layout_of, read_superblocks,
};

use crate::alloc::Allocator;
use crate::api::{Reply, Request, StoreError, Token};
use crate::disk::Superblock;
use crate::layout::{Layout, PAGE_BYTES, SPARE};
use crate::map::{ChunkMap, Moved};
use crate::table::VolumeTable;
use crate::window::Window;
use ashlar_model::lane::{LaneState, ListEntry};
use ashlar_model::units::{GRANULE_BLOCKS, GRANULE_BYTES};
use ashlar_model::{AlignedBuffer, Epoch, LaneKey, Payload, Pieces, VolumeId};
use checkpoint::Checkpoint;
use commit::Log;
use layers::Drop;
use load::Loads;
use ops::{Op, PromiseWait};
use pins::Pin;
use read::{ReadOp, Reader};
use recover::Recovery;
use rustc_hash::{FxHashMap, FxHashSet};
use scrub::Scrub;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use types::{Place, Purpose};

/// Where the engine is in its life.
#[derive(Debug)]
enum Phase {
    Opening(Box<Recovery>),
    /// Replayed; what was judged is being made durable.
    Finishing,
    Open,
    OpenFailed,
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
    /// While pages are still to be read: granules whose owner is known.
    owned: Option<Allocator>,
    table: VolumeTable,
    log: Log,
    loads: Loads,
    /// Slots whose pages on the device are old (a slot may be named twice, or no longer be in use).
    dirty: Vec<u32>,
    /// Pages for the running checkpoint that changed before it came to write them.
    frozen_pages: Vec<(u32, Payload)>,
    /// Torn writes of the replay: (group, record).
    dropped: FxHashSet<(u64, u32)>,
    /// Those found by this open.
    dropped_now: Vec<(u64, u32)>,
    checkpoint: Option<Box<Checkpoint>>,
    checkpoint_wanted: bool,
    pins: BTreeMap<(u32, u16), Pin>,
    /// Places with a device write in flight or on its way, per granule.
    busy: FxHashMap<u32, u32>,
    /// Granules that an operation gave a chunk that had another one, and that is not durable: a crash may bring the old
    /// ones back. By granule, the operation.
    young: FxHashMap<u32, u64>,
    /// Granules whose old content of a block still counts, because the operation that put it elsewhere is not durable: the
    /// place where it was is not spare yet. By granule, the operation.
    moving: FxHashMap<u32, u64>,
    /// Granules that became free durably, but may still have a device write in flight.
    limbo: Vec<u32>,
    /// Granules that nobody owns: free once a checkpoint says so.
    leaked: Vec<u32>,
    waiting: VecDeque<(Token, Request)>,
    ops: Window<Op>,
    reads: FxHashMap<u64, ReadOp>,
    next_op: u64,
    promises: VecDeque<PromiseWait>,
    /// Snapshot generations being dropped, one after the other.
    drops: VecDeque<Drop>,
    scrub: Scrub,
    /// Accepted, unanswered writes per chunk, in order.
    inflight: FxHashMap<(VolumeId, u64), SmallVec<[u64; 4]>>,
    /// Accepted, unanswered live writes per index.
    live: FxHashMap<(LaneKey, u64), u32>,
    moved: Moved,
    /// Entries that leave a list; empty in between.
    gone: Vec<ListEntry>,
    io: Window<Purpose>,
    next_io: u64,
    /// Something came since the last pass over what it may have set free.
    unsettled: bool,
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
            owned: None,
            table: VolumeTable::default(),
            log: Log::default(),
            loads: Loads::default(),
            dirty: Vec::new(),
            frozen_pages: Vec::new(),
            dropped: FxHashSet::default(),
            dropped_now: Vec::new(),
            checkpoint: None,
            checkpoint_wanted: false,
            pins: BTreeMap::new(),
            busy: FxHashMap::default(),
            young: FxHashMap::default(),
            moving: FxHashMap::default(),
            limbo: Vec::new(),
            leaked: Vec::new(),
            waiting: VecDeque::new(),
            ops: Window::default(),
            reads: FxHashMap::default(),
            next_op: 1,
            promises: VecDeque::new(),
            drops: VecDeque::new(),
            scrub: Scrub::default(),
            inflight: FxHashMap::default(),
            live: FxHashMap::default(),
            moved: Moved::default(),
            gone: Vec::new(),
            io: Window::default(),
            next_io: 1,
            unsettled: false,
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
        self.take(token, request);
        self.unsettled = true;
    }

    /// Takes the completion of a device operation; a read gives its buffer back, also when it failed.
    pub fn io_done(&mut self, io: IoId, result: Result<Option<AlignedBuffer>, IoError>) {
        let purpose = self.io.remove(io.0).expect("a completion belongs to an operation in flight");
        if self.failure().is_some() {
            return;
        }
        match purpose {
            Purpose::Read { read, piece } => self.read_done(read, piece, result),
            Purpose::LoadMap { slot } => self.map_loaded(slot, result.ok().flatten()),
            Purpose::LoadSums { slot, as_of } => self.sums_loaded(slot, as_of, result.ok().flatten()),
            Purpose::Recovery(tag) => self.recover_done(tag, result),
            purpose => match result {
                Ok(_) => self.write_done(purpose),
                Err(_) if self.broken(Mutation::FailedWriteIgnored) => self.write_done(purpose),
                Err(error) => self.fail(format!("{purpose}: {error}")),
            },
        }
        self.unsettled = true;
    }

    /// Takes what is to be done since the last call; to be called after a batch of requests and completions.
    pub fn effects(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.unsettled) {
            self.maintain();
        }
        if self.is_open() && self.failed.is_none() {
            self.start_groups();
        }
        out.append(&mut self.effects);
    }

    /// Device operations in flight.
    pub fn in_flight(&self) -> usize {
        self.io.len()
    }

    /// True if nothing is in flight, waiting or to be done.
    pub fn is_idle(&self) -> bool {
        !self.unsettled
            && self.io.is_empty()
            && self.effects.is_empty()
            && self.waiting.is_empty()
            && self.promises.is_empty()
            && self.drops.is_empty()
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
            unread_slots: self.map.unread().count() as u64,
            cached_chunks: self.loads.cached as u64,
            ..self.stats
        }
    }

    /// Layers with moved blocks: as counted, and as they are.
    #[cfg(any(test, feature = "testing"))]
    pub fn ordered_layers(&self) -> (usize, usize) {
        self.map.ordered()
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

    fn issue_write(&mut self, purpose: Purpose, offset: u64, parts: Pieces) {
        self.issue(purpose, offset, parts, false);
    }

    /// Writes; `durable`: completes when that is on the medium.
    fn issue(&mut self, purpose: Purpose, offset: u64, parts: Pieces, durable: bool) {
        self.stats.written_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let io = self.new_io(purpose);
        self.effects.push(Effect::Write { io, offset, parts, durable });
    }

    fn issue_flush(&mut self, purpose: Purpose) {
        let io = self.new_io(purpose);
        self.effects.push(Effect::Flush { io });
    }

    fn new_io(&mut self, purpose: Purpose) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.io.insert(io.0, purpose);
        io
    }

    fn write_done(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::GroupWrite { lsn } => self.group_written(lsn),
            Purpose::GroupFlush => self.group_flushed(),
            Purpose::Data { op, place } => {
                self.unbusy(place);
                self.data_written(op);
            }
            Purpose::WriteBack { slot, first, place } => {
                self.unbusy(place);
                self.written_back(slot, first, place.count);
            }
            Purpose::Repair { op, place, slot } => {
                self.unbusy(place);
                self.repair_written(op, slot);
            }
            Purpose::RepairFlush { op } => self.op_durable(op),
            Purpose::Checkpoint => self.checkpoint_io_done(),
            Purpose::OpenFlush => self.finish_open(),
            Purpose::DropCopy { place } => self.drop_copied(place),
            Purpose::DropFlush => self.drop_flushed(),
            Purpose::Read { .. } | Purpose::LoadMap { .. } | Purpose::LoadSums { .. } | Purpose::Recovery(_) => {
                unreachable!("reads are handled before")
            }
        }
    }

    fn set_busy(&mut self, place: Place) {
        let latched = !self.broken(Mutation::NoLatch);
        for (granule, mask) in place.granules() {
            let busy = self.busy.entry(granule).or_default();
            assert!(*busy & mask == 0 || !latched, "two device writes in flight for a block of granule {granule}");
            *busy |= mask;
        }
    }

    fn unbusy(&mut self, place: Place) {
        for (granule, mask) in place.granules() {
            let Some(busy) = self.busy.get_mut(&granule) else { continue };
            *busy &= !mask;
            if *busy == 0 {
                self.busy.remove(&granule);
            }
        }
    }

    /// True if one of the places has a device write in flight or on its way.
    fn is_busy(&self, granule: u32, mask: u32) -> bool {
        !self.broken(Mutation::NoLatch) && self.busy.get(&granule).is_some_and(|busy| busy & mask != 0)
    }

    /// The one pass after what a batch of events brought.
    fn maintain(&mut self) {
        if self.failure().is_some() || !matches!(self.phase, Phase::Open) {
            return;
        }
        loop {
            self.commit_step();
            self.release_limbo();
            let moved = self.checkpoint_step();
            let merged = self.drop_step();
            let taken = self.take_waiting();
            if !moved && !taken && !merged {
                break;
            }
        }
        self.load_step();
    }

    fn release_granule(&mut self, granule: u32) {
        self.granules.release(granule);
        if let Some(owned) = &mut self.owned
            && owned.is_used(granule)
        {
            owned.release(granule);
        }
    }

    fn release_limbo(&mut self) {
        let mut i = 0;
        while let Some(granule) = self.limbo.get(i).copied() {
            if self.busy.contains_key(&granule) {
                i += 1;
            } else {
                self.limbo.swap_remove(i);
                self.release_granule(granule);
            }
        }
    }

    /// Latches the device as failed: everything accepted or waiting is answered so, nothing is retried.
    fn fail(&mut self, reason: String) {
        tracing::error!(%reason, "store device failed");
        let mut tokens: Vec<Token> = self.ops.values().filter_map(|op| op.token).collect();
        tokens.extend(self.reads.values().filter_map(|read| match read.reader {
            Reader::Client(token) => Some(token),
            Reader::Scrub { .. } | Reader::Drop => None,
        }));
        tokens.extend(self.drops.drain(..).map(|drop| drop.token));
        tokens.extend(self.promises.drain(..).map(|promise| promise.token));
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

impl Place {
    /// The granules, and the places of each.
    fn granules(self) -> impl Iterator<Item = (u32, u32)> {
        let is_spare = self.first & SPARE != 0;
        assert!(!is_spare || self.count == 1, "spare blocks are written one by one");
        let spare = is_spare.then_some(((self.first & !SPARE) as u32, 1 << GRANULE_BLOCKS));
        let (first, count) = if is_spare { (0, 0) } else { (self.first, u64::from(self.count)) };
        let (per, end) = (GRANULE_BLOCKS as u64, first + count);
        let others = (first / per..end.div_ceil(per)).map(move |granule| {
            let (from, to) = (first.max(granule * per) - granule * per, end.min((granule + 1) * per) - granule * per);
            (granule as u32, ((1u32 << (to - from)) - 1) << from)
        });
        spare.into_iter().chain(others)
    }
}
