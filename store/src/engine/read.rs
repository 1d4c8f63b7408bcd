//! Reads: where each block's content is, which device reads that takes, and whether it verifies.
//!
//! It must never change what is durable.

use super::StoreEngine;
use super::types::{IoError, Purpose};
use crate::api::{BlockState, MapResult, ReadResult, Reply, StoreError, Token};
use crate::map::block_of_chunk;
use ashlar_model::checksum::block_checksum;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, BlockRange, Payload, VolumeId};

/// How often a read that raced with device writes starts again.
const RETRIES_MAX: u32 = 16;

/// A read that is not answered.
#[derive(Debug)]
pub(super) struct ReadOp {
    pub token: Token,
    volume: VolumeId,
    range: BlockRange,
    data: bool,
    /// Writes that it waits for.
    blockers: usize,
    retries: u32,
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    left: usize,
}

/// Where a block's content is.
#[derive(Debug)]
enum Source {
    Zero,
    Unknown,
    Memory(Payload, u32),
    Device { checksum: u32, touched: u32 },
    Bad(u32),
}

/// A device read.
#[derive(Debug)]
struct Piece {
    /// First block of the read.
    first: usize,
    count: usize,
    offset: u64,
    bytes: Option<Payload>,
}

impl StoreEngine {
    pub(super) fn accept_read(&mut self, token: Token, volume: VolumeId, range: BlockRange, data: bool) {
        if !range.is_within_chunk() {
            let text = format!("{range:?} is not within one chunk");
            return self.reply(token, Reply::Error(StoreError::Refused(text)));
        }
        let id = self.next_op;
        self.next_op += 1;
        self.outstanding.entry(volume).or_default().insert(id);
        let mut blockers = 0;
        for op in self.inflight.get(&(volume, range.chunk())).into_iter().flatten() {
            let op = self.ops.get_mut(op).expect("in flight");
            if op.range().is_some_and(|other| other.overlaps(range)) {
                op.readers.push(id);
                blockers += 1;
            }
        }
        let (sources, pieces) = (vec![], vec![]);
        let read = ReadOp { token, volume, range, data, blockers, retries: 0, sources, pieces, left: 0 };
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

    fn start_read(&mut self, id: u64) {
        let read = &self.reads[&id];
        let (volume, range) = (read.volume, read.range);
        if !read.data {
            return self.answer_map(id);
        }
        let mut sources = Vec::with_capacity(range.count as usize);
        let mut pieces: Vec<Piece> = Vec::new();
        for (i, block) in range.blocks().enumerate() {
            let (source, offset) = self.locate(volume, block);
            sources.push(source);
            let Some(offset) = offset else { continue };
            match pieces.last_mut() {
                Some(last)
                    if last.first + last.count == i && last.offset + (last.count * BLOCK_BYTES) as u64 == offset =>
                {
                    last.count += 1
                }
                _ => pieces.push(Piece { first: i, count: 1, offset, bytes: None }),
            }
        }
        let reads: Vec<(u64, usize)> = pieces.iter().map(|piece| (piece.offset, piece.count * BLOCK_BYTES)).collect();
        let read = self.reads.get_mut(&id).expect("just seen");
        (read.sources, read.left, read.pieces) = (sources, pieces.len(), pieces);
        for (piece, (offset, bytes)) in reads.into_iter().enumerate() {
            self.issue_read(Purpose::Read { read: id, piece }, offset, bytes);
        }
        if self.reads[&id].left == 0 {
            self.finish_read(id);
        }
    }

    /// Where a block is now, and its device offset if it must be read from there.
    fn locate(&self, volume: VolumeId, block: u64) -> (Source, Option<u64>) {
        let number = block / ashlar_model::units::CHUNK_BLOCKS as u64;
        let Some(slot) = self.map.slot_of(volume, number) else { return (Source::Zero, None) };
        let chunk = self.map.chunk(slot).expect("the index names slots in use");
        let i = block_of_chunk(block);
        let entry = &chunk.entries[i / GRANULE_BLOCKS];
        let bit = 1u16 << (i % GRANULE_BLOCKS);
        if entry.unknown & bit != 0 {
            return (Source::Unknown, None);
        }
        if entry.valid & bit == 0 {
            return (Source::Zero, None);
        }
        if let Some(pin) = self.pins.get(&(slot, i as u16)) {
            return (Source::Memory(pin.payload.clone(), pin.checksum), None);
        }
        let checksum = chunk.sums[i];
        if self.busy.get(&entry.granule).is_some_and(|busy| busy & bit != 0) {
            let ops = self.inflight.get(&(volume, number)).into_iter().flatten().rev();
            let payload = ops.filter_map(|op| self.ops.get(op)).find_map(|op| op.block(block));
            if let Some(payload) = payload {
                return (Source::Memory(payload, checksum), None);
            }
        }
        let offset = self.layout().block_offset(entry.granule, i % GRANULE_BLOCKS);
        (Source::Device { checksum, touched: entry.touched }, Some(offset))
    }

    pub(super) fn read_done(&mut self, id: u64, piece: usize, result: Result<Option<AlignedBuffer>, IoError>) {
        let read = self.reads.get_mut(&id).expect("a read waits for its pieces");
        let one = &mut read.pieces[piece];
        let mut again = Vec::new();
        match result {
            Ok(Some(buffer)) if buffer.len() == one.count * BLOCK_BYTES => one.bytes = Some(buffer.freeze()),
            _ if one.count > 1 => {
                // One block of it may be unreadable: find out which.
                let (first, count, offset) = (one.first, std::mem::take(&mut one.count), one.offset);
                for i in 0..count {
                    let offset = offset + (i * BLOCK_BYTES) as u64;
                    again.push((read.pieces.len(), offset));
                    read.pieces.push(Piece { first: first + i, count: 1, offset, bytes: None });
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
                let at = piece.first + i;
                let block = read.range.start + at as u64;
                let Source::Device { checksum, touched } = read.sources[at] else { continue };
                let good = piece.bytes.as_ref().filter(|b| block_checksum(read.volume, block, b.block(i)) == checksum);
                if let Some(bytes) = good {
                    read.sources[at] = Source::Memory(bytes.slice(i * BLOCK_BYTES, BLOCK_BYTES), checksum);
                } else if read.retries < RETRIES_MAX && self.raced(read.volume, block, touched) {
                    read.retries += 1;
                    self.reads.insert(id, read);
                    return self.start_read(id);
                } else {
                    bad += 1;
                    read.sources[at] = Source::Bad(checksum);
                }
            }
            if let (true, Some(bytes)) = (piece.count == read.range.count as usize && bad == 0, piece.bytes) {
                return self.answer_read(id, read, Some(bytes));
            }
        }
        self.stats.bad_blocks += bad;
        let payload = gather(&read.sources);
        self.answer_read(id, read, payload);
    }

    fn raced(&self, volume: VolumeId, block: u64, touched: u32) -> bool {
        let slot = self.map.slot_of(volume, block / ashlar_model::units::CHUNK_BLOCKS as u64);
        let chunk = slot.and_then(|slot| self.map.chunk(slot));
        chunk.is_none_or(|chunk| chunk.entries[block_of_chunk(block) / GRANULE_BLOCKS].touched != touched)
    }

    fn answer_read(&mut self, id: u64, read: ReadOp, payload: Option<Payload>) {
        let state = |source: &Source| match source {
            Source::Zero => BlockState::Zero,
            Source::Unknown => BlockState::Unknown,
            Source::Memory(_, checksum) => BlockState::Data(*checksum),
            Source::Bad(checksum) => BlockState::Bad(*checksum),
            Source::Device { .. } => unreachable!("every piece was looked at"),
        };
        let states = read.sources.iter().map(state).collect();
        let stamps = read.range.blocks().map(|block| self.map.stamp(read.volume, block)).collect();
        let result = ReadResult { range: read.range, payload, states, stamps };
        self.reply(read.token, Reply::Read(result));
        self.op_gone(read.volume, id);
    }

    fn answer_map(&mut self, id: u64) {
        let read = self.reads.remove(&id).expect("just seen");
        let written = |block| {
            let slot = self.map.slot_of(read.volume, block / ashlar_model::units::CHUNK_BLOCKS as u64);
            let chunk = slot.and_then(|slot| self.map.chunk(slot));
            let i = block_of_chunk(block);
            chunk.is_some_and(|chunk| {
                let entry = &chunk.entries[i / GRANULE_BLOCKS];
                (entry.valid | entry.unknown) & (1 << (i % GRANULE_BLOCKS)) != 0
            })
        };
        let written = read.range.blocks().map(written).collect();
        let stamps = read.range.blocks().map(|block| self.map.stamp(read.volume, block)).collect();
        self.reply(read.token, Reply::Map(MapResult { range: read.range, written, stamps }));
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
    let mut buffer = AlignedBuffer::zeroed(sources.len() * BLOCK_BYTES);
    for (bytes, source) in buffer.chunks_exact_mut(BLOCK_BYTES).zip(sources) {
        if let Source::Memory(payload, _) = source {
            bytes.copy_from_slice(payload);
        }
    }
    Some(buffer.freeze())
}
