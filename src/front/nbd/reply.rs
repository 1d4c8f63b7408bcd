//! Outcomes as NBD replies: payloads are sent as they lie in memory.

use super::steps::EXTENTS_MAX;
use crate::reactor::Outbox;
use crate::volume::{Failure, ReadRun};
use ashlar_model::Payload;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_nbd::export::Extent;
use ashlar_nbd::reply::ChunkOrder;
use ashlar_nbd::session::{Operation, Request, Session};
use ashlar_nbd::wire::ErrorNumber;
use std::sync::LazyLock;

/// Zeroes for clients that cannot be told of holes.
static ZEROES: LazyLock<Payload> = LazyLock::new(|| ashlar_model::AlignedBuffer::zeroed(1 << 20).freeze());

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A part of a read: byte offset in the volume, length, and where its bytes are.
struct Part<'a> {
    offset_bytes: u64,
    bytes: usize,
    data: Option<(&'a Payload, usize)>,
}

/// Cuts the runs of whole blocks to the bytes asked for.
fn parts<'a>(request: &Request, runs: &'a [ReadRun]) -> Vec<Part<'a>> {
    let (start, end) = (request.offset_bytes, request.offset_bytes + request.length_bytes);
    let cut = |run: &'a ReadRun| {
        let run_start = run.range.start * BLOCK;
        let from = run_start.max(start);
        let to = (run.range.end() * BLOCK).min(end);
        let data = run.payload.as_ref().map(|payload| (payload, (from - run_start) as usize));
        Part { offset_bytes: from, bytes: (to - from) as usize, data }
    };
    runs.iter().map(cut).collect()
}

/// Replies to a read.
pub(super) fn read(session: &mut Session, request: &Request, runs: &[ReadRun], outbox: &mut Outbox) {
    let parts = parts(request, runs);
    let whole = matches!(request.operation, Operation::Read { dont_fragment: true });
    let all_data = parts.iter().all(|part| part.data.is_some());
    if !session.is_structured() || whole || all_data {
        outbox.bytes(&session.reply_read(request));
        for part in parts {
            data_or_zeroes(&part, outbox);
        }
        return;
    }
    let mut left = parts.len();
    for part in parts {
        left -= 1;
        let order = if left == 0 { ChunkOrder::Last } else { ChunkOrder::More };
        let (offset, bytes) = (part.offset_bytes, part.bytes as u32);
        if part.data.is_some() {
            outbox.bytes(&session.chunk_data(request.handle(), offset, bytes, order));
            data_or_zeroes(&part, outbox);
        } else {
            outbox.bytes(&session.chunk_hole(request.handle(), offset, bytes, order));
        }
    }
}

fn data_or_zeroes(part: &Part<'_>, outbox: &mut Outbox) {
    if let Some((payload, offset)) = part.data {
        outbox.shared(payload, offset, part.bytes);
        return;
    }
    let mut left = part.bytes;
    while left > 0 {
        let some = left.min(ZEROES.len());
        outbox.shared(&ZEROES, 0, some);
        left -= some;
    }
}

/// Replies to a block status: holes are what reads as zeroes.
pub(super) fn block_status(session: &mut Session, request: &Request, runs: &[(u64, bool)], outbox: &mut Outbox) {
    let one = matches!(request.operation, Operation::BlockStatus { one_extent: true });
    let end = request.offset_bytes + request.length_bytes;
    let mut at = request.offset_bytes;
    let mut next_border = request.offset_bytes / BLOCK * BLOCK;
    let mut extents = Vec::new();
    for (blocks, written) in runs {
        next_border += *blocks * BLOCK;
        let to = next_border.min(end);
        if to > at {
            extents.push(Extent { length_bytes: to - at, hole: !written, zero: !written });
            at = to;
        }
        if one || extents.len() == EXTENTS_MAX {
            break;
        }
    }
    outbox.append(|out| session.reply_block_status(request.handle(), &extents, out));
}

/// Replies with an error.
pub(super) fn failure(session: &mut Session, request: &Request, failure: &Failure, outbox: &mut Outbox) {
    let number = match failure {
        Failure::Damaged { .. } => ErrorNumber::Io,
        Failure::Fenced | Failure::Closed => ErrorNumber::ShuttingDown,
    };
    outbox.bytes(&session.reply_error(request.handle(), number, &failure.to_string()));
}
