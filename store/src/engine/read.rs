//! Reads: where each block's content is, which device reads that takes, and whether it verifies.
//!
//! It must never change what is durable.

use super::StoreEngine;
use super::pins::pin_key;
use super::types::{IoError, Purpose};
use crate::api::{BlockState, MapResult, ReadResult, Reply, StoreError, Token};
use crate::map::{Chunk, block_of_chunk, chunk_of};
use ashlar_model::checksum::block_checksum;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, BlockRange, Payload, Stamp, VolumeId};
use smallvec::SmallVec;

/// How often a read starts again whose blocks do not verify because it raced with device writes.
const RETRIES_MAX: u32 = 16;

/// Sees all that is written.
pub(super) const LIVE: u32 = u32::MAX;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reader {
    Client(Token),
    /// Of a layer of this generation.
    Scrub {
        generation: u32,
    },
    Drop,
}

/// Which layers a read sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum View {
    /// Those up to a generation.
    Generation(u32),
    /// The one in a slot.
    Layer(u32),
}

/// A read that is not answered.
#[derive(Debug)]
pub(super) struct ReadOp {
    pub reader: Reader,
    pub view: View,
    pub volume: VolumeId,
    pub range: BlockRange,
    data: bool,
    /// Writes that it waits for.
    blockers: usize,
    retries: u32,
    sources: SmallVec<[Source; 1]>,
    /// Versions of those, for a client.
    stamps: Vec<Stamp>,
    pieces: SmallVec<[Piece; 1]>,
    left: usize,
}

/// Where a block's content is.
#[derive(Debug)]
enum Source {
    Zero,
    Unknown,
    Memory(Payload, u32),
    Device { checksum: u32, slot: u32, touched: u32 },
    Bad(u32),
}

/// What is known of a block before anything is read.
enum Located {
    Here(Source),
    /// At this device offset.
    There(Source, u64),
    /// The slot's checksums are not in memory.
    Later(u32),
}

/// A device read.
#[derive(Debug)]
struct Piece {
    /// First block of the read, if they lie in order.
    first: usize,
    count: usize,
    offset: u64,
    /// Which blocks of the read they are, if not.
    order: Option<Box<[u16]>>,
    bytes: Option<Payload>,
}

impl Piece {
    /// The block of the read that is the piece's `i`th.
    fn block(&self, i: usize) -> usize {
        self.order.as_ref().map_or(self.first + i, |order| usize::from(order[i]))
    }
}

/// Device reads of blocks: which block of the read, and where it is. Neighbours on the device are read together.
fn pieces_of(mut places: SmallVec<[(u16, u64); 1]>) -> SmallVec<[Piece; 1]> {
    if !places.is_sorted_by_key(|(_, offset)| *offset) {
        places.sort_unstable_by_key(|(_, offset)| *offset);
    }
    let runs = places.chunk_by(|one, next| one.1 + BLOCK_BYTES as u64 == next.1);
    runs.map(|run| {
        let in_order = run.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
        let order = (!in_order).then(|| run.iter().map(|(block, _)| *block).collect());
        Piece { first: usize::from(run[0].0), count: run.len(), offset: run[0].1, order, bytes: None }
    })
    .collect()
}

impl StoreEngine {
    pub(super) fn accept_read(
        &mut self,
        token: Token,
        volume: VolumeId,
        range: BlockRange,
        data: bool,
        generation: u32,
    ) {
        if !range.is_within_chunk() {
            let text = format!("{range:?} is not within one chunk");
            return self.reply(token, Reply::Error(StoreError::Refused(text)));
        }
        self.enter_read(Reader::Client(token), volume, range, data, View::Generation(generation));
    }

    /// A read of the engine's own; its result comes to the reader.
    pub(super) fn internal_read(&mut self, reader: Reader, volume: VolumeId, range: BlockRange, view: View) {
        self.enter_read(reader, volume, range, true, view);
    }

    fn enter_read(&mut self, reader: Reader, volume: VolumeId, range: BlockRange, data: bool, view: View) {
        let id = self.next_op;
        self.next_op += 1;
        let mut blockers = 0;
        for op in self.inflight.get(&(volume, range.chunk())).into_iter().flatten() {
            let op = self.ops.get_mut(*op).expect("in flight");
            if op.range().is_some_and(|other| other.overlaps(range)) {
                op.readers.push(id);
                blockers += 1;
            }
        }
        let (sources, stamps, pieces) = (SmallVec::new(), vec![], SmallVec::new());
        let read = ReadOp { reader, view, volume, range, data, blockers, retries: 0, sources, stamps, pieces, left: 0 };
        self.reads.insert(id, read);
        if blockers == 0 {
            self.start_read(id);
        }
    }

    pub(super) fn read_unblocked(&mut self, id: u64) {
        let read = self.reads.get_mut(&id).expect("it waits");
        read.blockers -= 1;
        if read.blockers == 0 {
            self.start_read(id);
        }
    }

    /// The checksums that it waited for are here.
    pub(super) fn restart_read(&mut self, id: u64) {
        if self.reads.contains_key(&id) {
            self.start_read(id);
        }
    }

    fn start_read(&mut self, id: u64) {
        let read = &self.reads[&id];
        let (volume, range, view) = (read.volume, read.range, read.view);
        if !read.data {
            return self.answer_map(id);
        }
        let mut sources = SmallVec::with_capacity(range.count as usize);
        let mut places: SmallVec<[(u16, u64); 1]> = SmallVec::with_capacity(range.count as usize);
        for (i, block) in (0u16..).zip(range.blocks()) {
            match self.locate(volume, block, view) {
                Located::Here(source) => sources.push(source),
                Located::There(source, offset) => {
                    sources.push(source);
                    places.push((i, offset));
                }
                Located::Later(slot) => return self.wait_for_sums(slot, id),
            }
        }
        let pieces = pieces_of(places);
        // Of this moment, like the sources: a write that is accepted while the device reads is not in the payload.
        let stamps = match (self.reads[&id].reader, view) {
            (Reader::Client(_), View::Generation(newest)) => self.map.stamps(volume, range, newest),
            _ => vec![],
        };
        let left = pieces.len();
        for (piece, one) in pieces.iter().enumerate() {
            self.issue_read(Purpose::Read { read: id, piece }, one.offset, one.count * BLOCK_BYTES);
        }
        let read = self.reads.get_mut(&id).expect("just seen");
        (read.sources, read.stamps, read.left, read.pieces) = (sources, stamps, left, pieces);
        if left == 0 {
            self.finish_read(id);
        }
    }

    /// The newest layer in which a block is anything but absent.
    pub(super) fn slot_with(&self, volume: VolumeId, block: u64, view: View) -> Option<u32> {
        let i = block_of_chunk(block);
        let (granule, bit) = (i / GRANULE_BLOCKS, 1u16 << (i % GRANULE_BLOCKS));
        let seen = |slot: &u32| match view {
            View::Layer(one) => *slot == one,
            View::Generation(newest) => self.map.generation(*slot) <= newest,
        };
        self.map.layers(volume, chunk_of(block)).filter(seen).find(|slot| {
            let chunk = self.map.chunk(*slot);
            chunk.is_some_and(|c| (c.valid(granule) | c.holes(granule) | c.unknown(granule)) & bit != 0)
        })
    }

    /// The slot with a block's data, if it has any.
    pub(super) fn slot_with_data(&self, volume: VolumeId, block: u64) -> Option<u32> {
        let i = block_of_chunk(block);
        let valid = |slot: &u32| {
            self.map.chunk(*slot).is_some_and(|c| c.valid(i / GRANULE_BLOCKS) & 1 << (i % GRANULE_BLOCKS) != 0)
        };
        self.slot_with(volume, block, View::Generation(LIVE)).filter(valid)
    }

    /// Where a block is now.
    fn locate(&mut self, volume: VolumeId, block: u64, view: View) -> Located {
        let Some(slot) = self.slot_with(volume, block, view) else { return Located::Here(Source::Zero) };
        let i = block_of_chunk(block);
        let bit = 1u16 << (i % GRANULE_BLOCKS);
        let chunk = self.map.chunk_mut(slot).expect("just seen");
        let (valid, unknown) = (chunk.valid(i / GRANULE_BLOCKS), chunk.unknown(i / GRANULE_BLOCKS));
        if unknown & bit != 0 {
            return Located::Here(Source::Unknown);
        }
        if valid & bit == 0 {
            return Located::Here(Source::Zero);
        }
        chunk.used = true;
        let (granule, sum, touched) = (chunk.granule(i / GRANULE_BLOCKS), chunk.sum(i), chunk.touched);
        let place = chunk.order(i / GRANULE_BLOCKS).place(i % GRANULE_BLOCKS);
        if let Some(pin) = self.pins.get(&pin_key(slot, block)) {
            return Located::Here(Source::Memory(pin.payload.clone(), pin.checksum));
        }
        let Some(checksum) = sum else { return Located::Later(slot) };
        if self.is_busy(granule, 1 << place) {
            let ops = self.inflight.get(&(volume, chunk_of(block))).into_iter().flatten().rev();
            let mut mine = ops.filter_map(|op| self.ops.get(*op)).filter(|op| op.slot() == Some(slot));
            let payload = mine.find_map(|op| op.block(block));
            // A repair may be what is on its way, and an older operation on the block not answered yet.
            let newest = |payload: &Payload| block_checksum(volume, block, payload) == checksum;
            if let Some(payload) = payload.filter(newest) {
                return Located::Here(Source::Memory(payload, checksum));
            }
        }
        let offset = self.layout().block_offset(granule, place);
        Located::There(Source::Device { checksum, slot, touched }, offset)
    }

    pub(super) fn read_done(&mut self, id: u64, piece: usize, result: Result<Option<AlignedBuffer>, IoError>) {
        let read = self.reads.get_mut(&id).expect("a read waits for its pieces");
        let one = &mut read.pieces[piece];
        let mut again = Vec::new();
        match result {
            Ok(Some(buffer)) if buffer.len() == one.count * BLOCK_BYTES => one.bytes = Some(buffer.freeze()),
            _ if one.count > 1 => {
                // One block of it may be unreadable: find out which.
                let (blocks, offset): (Vec<usize>, _) = ((0..one.count).map(|i| one.block(i)).collect(), one.offset);
                one.count = 0;
                for (i, first) in blocks.into_iter().enumerate() {
                    let offset = offset + (i * BLOCK_BYTES) as u64;
                    again.push((read.pieces.len(), offset));
                    read.pieces.push(Piece { first, count: 1, offset, order: None, bytes: None });
                }
            }
            _ => {}
        }
        read.left = read.left + again.len() - 1;
        let finished = read.left == 0;
        for (piece, offset) in again {
            self.issue_read(Purpose::Read { read: id, piece }, offset, BLOCK_BYTES);
        }
        if finished {
            self.finish_read(id);
        }
    }

    /// All pieces are here: verifies them, starts again if a device write raced, answers.
    fn finish_read(&mut self, id: u64) {
        let mut read = self.reads.remove(&id).expect("a read waits for its pieces");
        let mut bad = 0;
        for piece in std::mem::take(&mut read.pieces) {
            for i in 0..piece.count {
                let at = piece.block(i);
                let block = read.range.start + at as u64;
                let Source::Device { checksum, slot, touched } = read.sources[at] else { continue };
                let good = piece.bytes.as_ref().filter(|b| block_checksum(read.volume, block, b.block(i)) == checksum);
                if let Some(bytes) = good {
                    read.sources[at] = Source::Memory(bytes.slice(i * BLOCK_BYTES, BLOCK_BYTES), checksum);
                } else if read.retries == 0 || read.retries < RETRIES_MAX && self.raced(&read, block, slot, touched) {
                    // One more read in any case: a single failure is no proof of damage.
                    read.retries += 1;
                    self.reads.insert(id, read);
                    return self.start_read(id);
                } else {
                    bad += 1;
                    read.sources[at] = Source::Bad(checksum);
                }
            }
            let all = piece.order.is_none() && piece.count == read.range.count as usize && bad == 0;
            if let (true, Some(bytes)) = (all, piece.bytes) {
                return self.answer_read(id, read, Some(bytes));
            }
        }
        self.stats.bad_blocks += bad;
        let payload = gather(&read.sources);
        self.answer_read(id, read, payload);
    }

    /// True if the block is in another layer than when the read began, or that one was changed or written meanwhile.
    fn raced(&self, read: &ReadOp, block: u64, slot: u32, touched: u32) -> bool {
        let same = |chunk: &Chunk| chunk.touched == touched;
        self.slot_with(read.volume, block, read.view) != Some(slot) || !self.map.chunk(slot).is_some_and(same)
    }

    fn answer_read(&mut self, id: u64, read: ReadOp, payload: Option<Payload>) {
        let state = |source: &Source| match source {
            Source::Zero => BlockState::Zero,
            Source::Unknown => BlockState::Unknown,
            Source::Memory(_, checksum) => BlockState::Data(*checksum),
            Source::Bad(checksum) => BlockState::Bad(*checksum),
            Source::Device { .. } => unreachable!("every piece was looked at"),
        };
        let states: Vec<BlockState> = read.sources.iter().map(state).collect();
        match read.reader {
            Reader::Client(token) => {
                let result = ReadResult { range: read.range, payload, states, stamps: read.stamps };
                self.reply(token, Reply::Read(result));
            }
            Reader::Scrub { generation } => self.scrub_read(&read, generation, &states),
            Reader::Drop => {
                let sums: Vec<Option<u32>> = states.iter().map(|state| state.checksum()).collect();
                self.drop_read(payload, &sums);
            }
        }
        self.op_gone(read.volume, id);
    }

    fn answer_map(&mut self, id: u64) {
        let read = self.reads.remove(&id).expect("just seen");
        let written = |block| {
            let chunk = self.slot_with(read.volume, block, read.view).and_then(|slot| self.map.chunk(slot));
            let i = block_of_chunk(block);
            let granule = i / GRANULE_BLOCKS;
            chunk
                .is_some_and(|chunk| (chunk.valid(granule) | chunk.unknown(granule)) & (1 << (i % GRANULE_BLOCKS)) != 0)
        };
        let written = read.range.blocks().map(written).collect();
        let stamps = self.map.stamps(read.volume, read.range, LIVE);
        if let Reader::Client(token) = read.reader {
            self.reply(token, Reply::Map(MapResult { range: read.range, written, stamps }));
        }
        self.op_gone(read.volume, id);
    }
}

/// One payload of all blocks; shares memory when there is only one block.
fn gather(sources: &[Source]) -> Option<Payload> {
    if let [Source::Memory(payload, _)] = sources {
        return Some(payload.clone());
    }
    if !sources.iter().any(|source| matches!(source, Source::Memory(..))) {
        return None;
    }
    let mut buffer = AlignedBuffer::recycled(sources.len() * BLOCK_BYTES);
    for (bytes, source) in buffer.chunks_exact_mut(BLOCK_BYTES).zip(sources) {
        match source {
            Source::Memory(payload, _) => bytes.copy_from_slice(payload),
            _ => bytes.fill(0),
        }
    }
    Some(buffer.freeze())
}
