//! Messages to bytes. Header and body are appended to a buffer; the payload is handed back to be sent as it lies.

use super::body::Writer;
use super::frame::{Header, flag, kind};
use super::message::{BlockCondition, Content, Envelope, Progress, ReadReply, ToReplica, ToWriter};
use ashlar_model::{BlockRange, Payload};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

fn header(envelope: Envelope, kind: u8, words: [u64; 5]) -> Header {
    Header {
        kind,
        volume: envelope.volume.as_u128().to_be_bytes(),
        device: envelope.device.as_u128().to_be_bytes(),
        epoch: U64::new(envelope.epoch.0),
        lane: U16::new(envelope.lane),
        words: words.map(U64::new),
        ..Header::default()
    }
}

fn with_range(header: Header, range: BlockRange) -> Header {
    Header { start: U64::new(range.start), count: U32::new(range.count), ..header }
}

fn finish(out: &mut Vec<u8>, header: Header, body: &[u8], payload_bytes: usize) {
    out.extend_from_slice(header.seal(body, payload_bytes).as_bytes());
    out.extend_from_slice(body);
}

fn progress_words(progress: Progress, index: u64, last: u64) -> ([u64; 5], u8) {
    let Progress { config, settled, member, sent_at_us } = progress;
    ([config, index, settled, sent_at_us, last], if member { flag::MEMBER } else { 0 })
}

/// Appends a message to a replica; the payload follows it on the wire.
pub fn encode_to_replica(envelope: Envelope, message: &ToReplica, out: &mut Vec<u8>) -> Option<Payload> {
    let simple = |out: &mut Vec<u8>, kind, words| finish(out, header(envelope, kind, words), &[], 0);
    match message {
        ToReplica::Seal => simple(out, kind::SEAL, [0; 5]),
        ToReplica::Start { config, base, clean } => {
            simple(out, kind::START, [*config, *base, u64::from(*clean), 0, 0]);
        }
        ToReplica::Write { progress, index, range, content, generation } => {
            let (words, flags) = progress_words(*progress, *index, u64::from(*generation));
            return with_content(envelope, kind::WRITE, words, flags, *range, content, out);
        }
        ToReplica::Heartbeat { progress } => {
            let (words, flags) = progress_words(*progress, 0, 0);
            finish(out, Header { flags, ..header(envelope, kind::HEARTBEAT, words) }, &[], 0);
        }
        ToReplica::Read { request, range, map_only, prefix_min, background } => {
            let head = header(envelope, kind::READ, [0, *request, *prefix_min, 0, 0]);
            let flags = [(*map_only, flag::MAP_ONLY), (*background, flag::BACKGROUND)];
            let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
            finish(out, Header { flags, ..with_range(head, *range) }, &[], 0);
        }
        ToReplica::Digest { request, range, seed, prefix_min } => {
            let head = header(envelope, kind::DIGEST, [*seed, *request, *prefix_min, 0, 0]);
            finish(out, with_range(head, *range), &[], 0);
        }
        ToReplica::Confirm { join, request, range, seed, blocks, settled } => {
            let head = header(envelope, kind::CONFIRM, [*join, *request, *settled, *seed, 0]);
            let mut body = Writer::default();
            body.digests(blocks);
            finish(out, with_range(head, *range), &body.0, 0);
        }
        ToReplica::JoinStart { config, join, base } => simple(out, kind::JOIN_START, [*config, *join, *base, 0, 0]),
        ToReplica::Copy { join, request, range, stamp, content, settled } => {
            let words = [*join, *request, *settled, stamp.epoch.0, stamp.index];
            return with_content(envelope, kind::COPY, words, 0, *range, content, out);
        }
        ToReplica::Repair { block, checksum, payload } => {
            let head = header(envelope, kind::REPAIR, [u64::from(*checksum), 0, 0, 0, 0]);
            finish(out, with_range(head, BlockRange::new(*block, 1)), &[], payload.len());
            return Some(payload.clone());
        }
    }
    None
}

fn with_content(
    envelope: Envelope,
    kind: u8,
    words: [u64; 5],
    flags: u8,
    range: BlockRange,
    content: &Content,
    out: &mut Vec<u8>,
) -> Option<Payload> {
    let head = with_range(header(envelope, kind, words), range);
    match content {
        Content::Zeroes | Content::Lost => {
            let kind = if *content == Content::Lost { flag::LOST } else { flag::ZEROES };
            finish(out, Header { flags: flags | kind, ..head }, &[], 0);
            None
        }
        Content::Data { payload, checksums } => {
            // The checksums are little-endian words, straight into the buffer behind the header.
            let mut body = [0u8; 4 * ashlar_model::limits::WRITE_BLOCKS_MAX as usize];
            for (word, checksum) in body.chunks_exact_mut(4).zip(checksums.iter()) {
                word.copy_from_slice(&checksum.to_le_bytes());
            }
            finish(out, Header { flags, ..head }, &body[..4 * checksums.len()], payload.len());
            Some(payload.clone())
        }
    }
}

/// Appends a message to a writer; the payload follows it on the wire.
pub fn encode_to_writer(envelope: Envelope, message: &ToWriter, out: &mut Vec<u8>) -> Option<Payload> {
    let simple = |out: &mut Vec<u8>, kind, words| finish(out, header(envelope, kind, words), &[], 0);
    let mut body = Writer::default();
    match message {
        ToWriter::Sealed { lanes } => {
            body.u32(lanes.len() as u32);
            for (lane, state) in lanes {
                body.u16(*lane);
                body.lane_state(state);
            }
            finish(out, header(envelope, kind::SEALED, [0; 5]), &body.0, 0);
        }
        ToWriter::Ack { prefix, index, sent_at_us, full } => {
            let head = header(envelope, kind::ACK, [*prefix, *index, 0, *sent_at_us, 0]);
            finish(out, Header { flags: if *full { flag::FULL } else { 0 }, ..head }, &[], 0);
        }
        ToWriter::ReadDone { request, reply } => return read_done(envelope, *request, reply, out),
        ToWriter::ReadRefused { request } => simple(out, kind::READ_REFUSED, [0, *request, 0, 0, 0]),
        ToWriter::JoinReady { join, settled, suspects } => {
            body.ranges(suspects);
            finish(out, header(envelope, kind::JOIN_READY, [*join, 0, *settled, 0, 0]), &body.0, 0);
        }
        ToWriter::JoinLost { join } => simple(out, kind::JOIN_LOST, [*join, 0, 0, 0, 0]),
        ToWriter::Digests { request, range, blocks } => {
            body.digests(blocks);
            finish(out, with_range(header(envelope, kind::DIGESTS, [0, *request, 0, 0, 0]), *range), &body.0, 0);
        }
        ToWriter::Confirmed { join, request, differs } => {
            body.ranges(differs);
            finish(out, header(envelope, kind::CONFIRMED, [*join, *request, 0, 0, 0]), &body.0, 0);
        }
        ToWriter::CopyDone { join, request } => simple(out, kind::COPY_DONE, [*join, *request, 0, 0, 0]),
        ToWriter::Fenced { promised } => simple(out, kind::FENCED, [promised.0, 0, 0, 0, 0]),
        ToWriter::DeviceFailed { reason } => {
            body.text(reason);
            finish(out, header(envelope, kind::DEVICE_FAILED, [0; 5]), &body.0, 0);
        }
        ToWriter::LostData { prefix } => simple(out, kind::LOST_DATA, [*prefix, 0, 0, 0, 0]),
        ToWriter::NotServed => simple(out, kind::NOT_SERVED, [0; 5]),
        ToWriter::Repaired { block } => {
            let head = header(envelope, kind::REPAIRED, [0; 5]);
            finish(out, with_range(head, BlockRange::new(*block, 1)), &[], 0);
        }
        ToWriter::Damaged { range } => {
            finish(out, with_range(header(envelope, kind::DAMAGED, [0; 5]), *range), &[], 0);
        }
    }
    None
}

fn read_done(envelope: Envelope, request: u64, reply: &ReadReply, out: &mut Vec<u8>) -> Option<Payload> {
    let mut body = Writer::default();
    for condition in &reply.conditions {
        let (code, checksum) = match condition {
            BlockCondition::Data(checksum) => (0, *checksum),
            BlockCondition::Zero => (1, 0),
            BlockCondition::Bad(checksum) => (2, *checksum),
            BlockCondition::Unknown => (3, 0),
        };
        body.u8(code);
        body.u32(checksum);
    }
    for stamp in &reply.stamps {
        body.stamp(*stamp);
    }
    let flags = if reply.stamps.is_empty() { 0 } else { flag::STAMPS };
    let head = with_range(header(envelope, kind::READ_DONE, [0, request, 0, 0, 0]), reply.range);
    let payload_bytes = reply.payload.as_ref().map_or(0, |payload| payload.len());
    finish(out, Header { flags, ..head }, &body.0, payload_bytes);
    reply.payload.clone()
}
