//! A guest's request as one or several operations on the volume, one after the other.
//!
//! Zeroing is cut into bounded steps, so that a request for terabytes holds neither memory nor locks for long.

use crate::volume::Operation;
use ashlar_model::BlockRange;
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_nbd::session::{Operation as Command, Request};

/// Bytes zeroed by one operation.
const ZERO_STEP_BYTES: u64 = 64 << 20;
/// Bytes of zeroes written by one operation where holes are not wanted.
const FILL_STEP_BYTES: u64 = 1 << 20;
/// Bytes whose allocation one operation finds out.
const STATUS_STEP_BYTES: u64 = 64 << 20;
/// The same at first for a client that wants one extent: often that ends soon.
const STATUS_ONE_STEP_BYTES: u64 = 4 << 20;
/// Bytes whose allocation one answer describes: a volume of terabytes is described in tens of requests, and none of them
/// keeps the replicas busy for long.
const STATUS_BYTES_MAX: u64 = 64 << 30;
/// Extents of one answer: 1 MiB of them, 2 MiB with extended headers. The protocol's own limit is 2^20.
pub(super) const EXTENTS_MAX: usize = 1 << 17;

/// Memory for one of them.
const EXTENT_MEMORY_BYTES: u64 = 32;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What is left to do.
pub(super) enum Steps {
    One(Option<Operation>),
    Zero { next: u64, end: u64, holes: bool },
    Map(Mapping),
}

/// Finding out which parts of a range hold data.
pub(super) struct Mapping {
    next: u64,
    end: u64,
    step_bytes: u64,
    runs_max: usize,
    /// (blocks, holds data), from the block that the range begins in.
    runs: Vec<(u64, bool)>,
}

impl Mapping {
    fn of(offset_bytes: u64, length_bytes: u64, one_extent: bool) -> Self {
        let (step_bytes, extents_max) =
            if one_extent { (STATUS_ONE_STEP_BYTES, 1) } else { (STATUS_STEP_BYTES, EXTENTS_MAX) };
        let end = offset_bytes + length_bytes.min(STATUS_BYTES_MAX);
        // The last run may go on in the next step, so one more must have begun.
        Self { next: offset_bytes, end, step_bytes, runs_max: extents_max + 1, runs: Vec::new() }
    }

    fn next(&mut self) -> Option<Operation> {
        if self.next >= self.end || self.runs.len() >= self.runs_max {
            return None;
        }
        let start = self.next;
        self.next = self.end.min((start / self.step_bytes + 1) * self.step_bytes);
        // Who wants one extent may be asking about a large one.
        self.step_bytes = (2 * self.step_bytes).min(STATUS_STEP_BYTES);
        Some(Operation::Map { range: covering(start, self.next - start) })
    }

    fn found(&mut self, runs: &[(u32, bool)]) {
        for (blocks, written) in runs {
            match self.runs.last_mut() {
                Some((before, kind)) if kind == written => *before += u64::from(*blocks),
                _ => self.runs.push((u64::from(*blocks), *written)),
            }
        }
    }
}

/// The blocks that a byte range touches.
pub(super) fn covering(offset_bytes: u64, length_bytes: u64) -> BlockRange {
    let start = offset_bytes / BLOCK;
    let end = (offset_bytes + length_bytes).div_ceil(BLOCK);
    BlockRange::new(start, (end - start) as u32)
}

impl Steps {
    /// The steps of a request without payload.
    pub fn of(request: &Request) -> Self {
        let (start, length) = (request.offset_bytes, request.length_bytes);
        let end = start + length;
        match request.operation {
            Command::Read { .. } => Steps::One(Some(Operation::Read { range: covering(start, length) })),
            Command::BlockStatus { one_extent } => Steps::Map(Mapping::of(start, length, one_extent)),
            // Advice: only whole blocks.
            Command::Trim => {
                let (next, end) = (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
                Steps::Zero { next, end: end.max(next), holes: true }
            }
            Command::WriteZeroes { no_hole, .. } => Steps::Zero { next: start, end, holes: !no_hole },
            Command::Write | Command::Flush | Command::Cache => Steps::One(None),
        }
    }

    /// The one step of a write whose payload has arrived.
    pub fn write(request: &Request, buffer: AlignedBuffer) -> Self {
        let end = request.offset_bytes + request.length_bytes;
        Steps::One(Some(partial(request.offset_bytes, end, buffer)))
    }

    /// The next operation.
    pub fn next(&mut self) -> Option<Operation> {
        match self {
            Steps::One(operation) => operation.take(),
            Steps::Map(mapping) => mapping.next(),
            Steps::Zero { next, end, holes } => {
                if *next >= *end {
                    return None;
                }
                let start = *next;
                let border = start.next_multiple_of(BLOCK);
                let whole_end = *end / BLOCK * BLOCK;
                if start < border || start >= whole_end {
                    // Part of a block, at the beginning or at the end.
                    let stop = if start < border { border.min(*end) } else { *end };
                    *next = stop;
                    return Some(partial(start, stop, AlignedBuffer::zeroed(BLOCK_BYTES)));
                }
                let step = if *holes { ZERO_STEP_BYTES } else { FILL_STEP_BYTES };
                // Steps end at multiples of themselves, so that chunks are zeroed whole.
                let stop = whole_end.min((start / step + 1) * step);
                *next = stop;
                let range = covering(start, stop - start);
                Some(if *holes {
                    Operation::Zero { range }
                } else {
                    partial(start, stop, AlignedBuffer::zeroed(range.bytes()))
                })
            }
        }
    }
}

impl Steps {
    /// A step of a block status has found this.
    pub fn found(&mut self, runs: &[(u32, bool)]) {
        let Steps::Map(mapping) = self else { panic!("a map of what was not to be mapped") };
        mapping.found(runs);
    }

    /// All that was found: (blocks, holds data), from the block that the request begins in.
    pub fn map(&self) -> &[(u64, bool)] {
        let Steps::Map(mapping) = self else { panic!("a map of what was not to be mapped") };
        &mapping.runs
    }
}

/// What a request takes of the bytes that may be under way in a volume: its payload, or that of its longest step.
pub(super) fn bytes_under_way(request: &Request) -> usize {
    let bytes = match request.operation {
        Command::Read { .. } | Command::Write => request.length_bytes,
        Command::WriteZeroes { no_hole: true, .. } => request.length_bytes.min(FILL_STEP_BYTES),
        // What is found, and the answer that is made of it.
        Command::BlockStatus { one_extent: false } => {
            request.length_bytes.div_ceil(BLOCK).min(EXTENTS_MAX as u64) * EXTENT_MEMORY_BYTES
        }
        Command::WriteZeroes { .. } | Command::Trim | Command::Flush | Command::Cache | Command::BlockStatus { .. } => {
            request.length_bytes.min(BLOCK)
        }
    };
    bytes as usize
}

/// A write of `start..end` bytes; the buffer covers the blocks that it touches.
fn partial(start: u64, end: u64, buffer: AlignedBuffer) -> Operation {
    let range = covering(start, end - start);
    assert_eq!(buffer.len(), range.bytes(), "the buffer covers the range");
    Operation::Write {
        range,
        buffer,
        head_bytes: (start - range.start * BLOCK) as u32,
        tail_bytes: (range.end() * BLOCK - end) as u32,
    }
}
