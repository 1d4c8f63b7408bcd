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
/// Bytes whose allocation one answer describes.
const STATUS_BYTES_MAX: u64 = 64 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What is left to do.
pub(super) enum Steps {
    One(Option<Operation>),
    Zero { next: u64, end: u64, holes: bool },
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
            Command::BlockStatus { .. } => {
                let range = covering(start, length.min(STATUS_BYTES_MAX));
                Steps::One(Some(Operation::Map { range }))
            }
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
