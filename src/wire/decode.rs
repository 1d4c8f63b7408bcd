//! Bytes to messages. Nothing from the network panics; whatever does not verify ends the link with a reason.

use super::body::Reader;
use super::credit::Credit;
use super::frame::{
    BODY_BYTES_MAX, HEADER_BYTES, Header, MAGIC, PAYLOAD_BYTES_MAX, VERSION, body_checksum, flag, kind,
};
use super::hello::{Hello, HelloReply};
use super::message::{BlockCondition, Content, Envelope, Progress, ReadReply, ToReplica, ToWriter};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::checksum::{Checksums, block_checksums};
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, DeviceId, Epoch, Payload, Stamp, VolumeId};
use zerocopy::FromBytes;

/// Why a link's bytes are not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Not our language.
    #[error("not an Ashlar data-plane frame (magic {0:#010x})")]
    Magic(u32),
    /// Another version of it.
    #[error("the peer speaks version {theirs} of the data plane, this node version {VERSION}: upgrade the older one")]
    Version {
        /// The peer's.
        theirs: u16,
    },
    /// Damaged on the way.
    #[error("a frame's {0} checksum is wrong: damaged on the way")]
    Checksum(&'static str),
    /// Too long.
    #[error("a frame of {bytes} bytes is over the limit")]
    TooLong {
        /// Announced length.
        bytes: usize,
    },
    /// Right checksum, no sense.
    #[error("a frame of kind {kind} makes no sense: {what}")]
    Malformed {
        /// Its kind.
        kind: u8,
        /// What is wrong.
        what: &'static str,
    },
}

/// A decoded frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// To a replica of this node.
    ToReplica(Envelope, ToReplica),
    /// To a writer of this node.
    ToWriter(Envelope, ToWriter),
    /// A connection begins.
    Hello(Hello),
    /// The answer to it.
    HelloReply(HelloReply),
    /// Credits come back to the caller.
    Credit(Credit),
}

/// Collects frames from a stream of bytes, cut anywhere.
#[derive(Default)]
pub struct FrameDecoder {
    head: Vec<u8>,
    header: Option<Header>,
    body: Vec<u8>,
    payload: Option<AlignedBuffer>,
    payload_filled: usize,
}

impl FrameDecoder {
    /// Takes bytes; returns how many were taken and a frame if one is complete. Call again while bytes are left.
    ///
    /// # Errors
    /// The stream cannot be trusted from here on: close the link.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), WireError> {
        let mut taken = 0;
        if self.header.is_none() {
            let want = HEADER_BYTES - self.head.len();
            let some = want.min(input.len());
            self.head.extend_from_slice(&input[..some]);
            taken += some;
            if some < want {
                return Ok((taken, None));
            }
            self.begin()?;
        }
        let header = self.header.expect("begun above");
        let body_left = header.body_bytes.get() as usize - self.body.len();
        let some = body_left.min(input.len() - taken);
        self.body.extend_from_slice(&input[taken..taken + some]);
        taken += some;
        if some < body_left {
            return Ok((taken, None));
        }
        if let Some(payload) = &mut self.payload {
            let left = header.payload_bytes.get() as usize - self.payload_filled;
            let some = left.min(input.len() - taken);
            payload[self.payload_filled..self.payload_filled + some].copy_from_slice(&input[taken..taken + some]);
            taken += some;
            self.payload_filled += some;
            if some < left {
                return Ok((taken, None));
            }
        }
        self.finish(header).map(|frame| (taken, Some(frame)))
    }

    fn begin(&mut self) -> Result<(), WireError> {
        let header = Header::read_from_bytes(&self.head).expect("collected to its length");
        if header.magic.get() != MAGIC {
            return Err(WireError::Magic(header.magic.get()));
        }
        if header.version.get() != VERSION {
            return Err(WireError::Version { theirs: header.version.get() });
        }
        if header.header_checksum.get() != header.checksum() {
            return Err(WireError::Checksum("header"));
        }
        let (body, payload) = (header.body_bytes.get() as usize, header.payload_bytes.get() as usize);
        if body > BODY_BYTES_MAX || payload > PAYLOAD_BYTES_MAX {
            return Err(WireError::TooLong { bytes: body + payload });
        }
        if !payload.is_multiple_of(BLOCK_BYTES) {
            return Err(WireError::Malformed { kind: header.kind, what: "its payload is not whole blocks" });
        }
        self.head.clear();
        self.body.clear();
        self.payload = (payload > 0).then(|| AlignedBuffer::recycled(payload));
        self.payload_filled = 0;
        self.header = Some(header);
        Ok(())
    }

    fn finish(&mut self, header: Header) -> Result<Frame, WireError> {
        self.header = None;
        let body = std::mem::take(&mut self.body);
        let payload = self.payload.take().map(AlignedBuffer::freeze);
        if !body.is_empty() && body_checksum(header.kind, &body) != header.body_checksum.get() {
            return Err(WireError::Checksum("body"));
        }
        let frame = decode(&header, &body, payload);
        self.body = body; // keeps its memory
        self.body.clear();
        self.body.shrink_to(64 << 10);
        frame
    }
}

fn envelope_of(header: &Header) -> Envelope {
    Envelope {
        volume: VolumeId::from_u128(u128::from_be_bytes(header.volume)),
        lane: header.lane.get(),
        epoch: Epoch(header.epoch.get()),
        device: DeviceId::from_u128(u128::from_be_bytes(header.device)),
    }
}

fn range_of(header: &Header, blocks_max: u32) -> Result<BlockRange, WireError> {
    let (start, count) = (header.start.get(), header.count.get());
    let malformed = |what| WireError::Malformed { kind: header.kind, what };
    if count == 0 || count > blocks_max || start.checked_add(u64::from(count)).is_none_or(|end| end > 1 << 52) {
        return Err(malformed("its range is empty or too long"));
    }
    let range = BlockRange::new(start, count);
    if range.is_within_chunk() { Ok(range) } else { Err(malformed("its range crosses a chunk border")) }
}

const CHUNK_BLOCKS: u32 = ashlar_model::units::CHUNK_BLOCKS as u32;

/// Epochs and indices stay far below overflow, whoever sends them.
const NUMBER_MAX: u64 = 1 << 62;

fn decode(header: &Header, body: &[u8], payload: Option<Payload>) -> Result<Frame, WireError> {
    if header.epoch.get() >= NUMBER_MAX || header.words.iter().any(|word| word.get() >= NUMBER_MAX) {
        return Err(WireError::Malformed { kind: header.kind, what: "a number is too large" });
    }
    let envelope = envelope_of(header);
    let words = header.words.map(|word| word.get());
    let to_replica = |message| Ok(Frame::ToReplica(envelope, message));
    match header.kind {
        kind::SEAL => to_replica(ToReplica::Seal),
        kind::START => to_replica(ToReplica::Start { config: words[0], base: words[1], clean: words[2] != 0 }),
        kind::WRITE => {
            let (range, content) = content_of(header, envelope.volume, body, payload)?;
            let generation = words[4] as u32;
            to_replica(ToReplica::Write { progress: progress_of(header), index: words[1], range, content, generation })
        }
        kind::HEARTBEAT => to_replica(ToReplica::Heartbeat { progress: progress_of(header) }),
        kind::READ => {
            let map_only = header.flags & flag::MAP_ONLY != 0;
            let range = range_of(header, if map_only { CHUNK_BLOCKS } else { WRITE_BLOCKS_MAX })?;
            let background = header.flags & flag::BACKGROUND != 0;
            to_replica(ToReplica::Read { request: words[1], range, map_only, prefix_min: words[2], background })
        }
        kind::DIGEST => {
            let range = range_of(header, WRITE_BLOCKS_MAX)?;
            to_replica(ToReplica::Digest { request: words[1], range, seed: words[0], prefix_min: words[2] })
        }
        kind::CONFIRM => {
            let range = range_of(header, WRITE_BLOCKS_MAX)?;
            let blocks = Reader(body).digests(range.count).ok_or(malformed(header))?.into();
            let (join, request, settled, seed) = (words[0], words[1], words[2], words[3]);
            to_replica(ToReplica::Confirm { join, request, range, seed, blocks, settled })
        }
        kind::JOIN_START => to_replica(ToReplica::JoinStart { config: words[0], join: words[1], base: words[2] }),
        kind::COPY => {
            let (range, content) = content_of(header, envelope.volume, body, payload)?;
            let stamp = Stamp { epoch: Epoch(words[3]), index: words[4] };
            let (join, request, settled) = (words[0], words[1], words[2]);
            to_replica(ToReplica::Copy { join, request, range, stamp, content, settled })
        }
        kind::REPAIR => {
            let range = range_of(header, 1)?;
            let checksum = words[0] as u32;
            let payload = payload.ok_or(WireError::Malformed { kind: header.kind, what: "it has no payload" })?;
            verify(envelope.volume, range, &payload, &[checksum])?;
            to_replica(ToReplica::Repair { block: range.start, checksum, payload })
        }
        kind::HELLO => Ok(Frame::Hello(Hello::decode(body).ok_or(malformed(header))?)),
        kind::WELCOME | kind::REFUSED => {
            Ok(Frame::HelloReply(HelloReply::decode(header.kind, body).ok_or(malformed(header))?))
        }
        kind::CREDIT => Ok(Frame::Credit(Credit::decode(words).ok_or(malformed(header))?)),
        _ => decode_to_writer(header, words, body, payload).map(|message| Frame::ToWriter(envelope, message)),
    }
}

fn malformed(header: &Header) -> WireError {
    WireError::Malformed { kind: header.kind, what: "its body is wrong" }
}

fn decode_to_writer(
    header: &Header,
    words: [u64; 5],
    body: &[u8],
    payload: Option<Payload>,
) -> Result<ToWriter, WireError> {
    let mut reader = Reader(body);
    let message = match header.kind {
        kind::SEALED => sealed(&mut reader),
        kind::ACK => Some(ToWriter::Ack {
            prefix: words[0],
            index: words[1],
            sent_at_us: words[3],
            full: header.flags & flag::FULL != 0,
        }),
        kind::READ_DONE => {
            let range = range_of(header, CHUNK_BLOCKS)?;
            return read_done(header, words[1], range, body, payload);
        }
        kind::READ_REFUSED => Some(ToWriter::ReadRefused { request: words[1] }),
        kind::JOIN_READY => {
            let suspects = reader.ranges();
            suspects.map(|suspects| ToWriter::JoinReady { join: words[0], settled: words[2], suspects })
        }
        kind::JOIN_LOST => Some(ToWriter::JoinLost { join: words[0] }),
        kind::DIGESTS => {
            let range = range_of(header, WRITE_BLOCKS_MAX)?;
            let blocks = reader.digests(range.count);
            blocks.map(|blocks| ToWriter::Digests { request: words[1], range, blocks })
        }
        kind::CONFIRMED => {
            let differs = reader.ranges();
            differs.map(|differs| ToWriter::Confirmed { join: words[0], request: words[1], differs })
        }
        kind::COPY_DONE => Some(ToWriter::CopyDone { join: words[0], request: words[1] }),
        kind::FENCED => Some(ToWriter::Fenced { promised: Epoch(words[0]) }),
        kind::DEVICE_FAILED => reader.text().map(|reason| ToWriter::DeviceFailed { reason }),
        kind::LOST_DATA => Some(ToWriter::LostData { prefix: words[0] }),
        kind::NOT_SERVED => Some(ToWriter::NotServed),
        kind::REPAIRED => Some(ToWriter::Repaired { block: header.start.get() }),
        kind::DAMAGED => Some(ToWriter::Damaged { range: range_of(header, CHUNK_BLOCKS)? }),
        _ => return Err(WireError::Malformed { kind: header.kind, what: "the kind is unknown" }),
    };
    message.filter(|_| reader.is_empty()).ok_or(malformed(header))
}

fn sealed(reader: &mut Reader<'_>) -> Option<ToWriter> {
    let count = reader.u32()?;
    let mut lanes = Vec::new();
    for _ in 0..count {
        let lane = reader.u16()?;
        lanes.push((lane, reader.lane_state()?));
    }
    Some(ToWriter::Sealed { lanes })
}

fn progress_of(header: &Header) -> Progress {
    Progress {
        config: header.words[0].get(),
        settled: header.words[2].get(),
        sent_at_us: header.words[3].get(),
        member: header.flags & flag::MEMBER != 0,
    }
}

/// Range and content of a write or copy; data is verified here, on arrival.
fn content_of(
    header: &Header,
    volume: VolumeId,
    body: &[u8],
    payload: Option<Payload>,
) -> Result<(BlockRange, Content), WireError> {
    let empty = match header.flags & (flag::ZEROES | flag::LOST) {
        0 => None,
        flag::ZEROES => Some(Content::Zeroes),
        flag::LOST => Some(Content::Lost),
        _ => return Err(WireError::Malformed { kind: header.kind, what: "zeroes that are lost" }),
    };
    if let Some(content) = empty {
        return match payload {
            None => Ok((range_of(header, CHUNK_BLOCKS)?, content)),
            Some(_) => Err(WireError::Malformed { kind: header.kind, what: "zeroes, or lost blocks, with a payload" }),
        };
    }
    let range = range_of(header, WRITE_BLOCKS_MAX)?;
    let payload = payload.ok_or(WireError::Malformed { kind: header.kind, what: "it has no payload" })?;
    let checksums: Checksums =
        body.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect();
    if body.len() != 4 * range.count as usize || payload.block_count() != range.count {
        return Err(WireError::Malformed { kind: header.kind, what: "checksums, payload and range differ in length" });
    }
    verify(volume, range, &payload, &checksums)?;
    Ok((range, Content::Data { payload, checksums }))
}

fn verify(volume: VolumeId, range: BlockRange, payload: &Payload, checksums: &[u32]) -> Result<(), WireError> {
    let computed = block_checksums(volume, range.start, payload);
    if computed.eq(checksums.iter().copied()) { Ok(()) } else { Err(WireError::Checksum("block")) }
}

fn read_done(
    header: &Header,
    request: u64,
    range: BlockRange,
    body: &[u8],
    payload: Option<Payload>,
) -> Result<ToWriter, WireError> {
    let mut reader = Reader(body);
    let parse = |reader: &mut Reader<'_>| {
        let mut conditions = Vec::with_capacity(range.count as usize);
        for _ in 0..range.count {
            let (code, checksum) = (reader.u8()?, reader.u32()?);
            conditions.push(match code {
                0 => BlockCondition::Data(checksum),
                1 => BlockCondition::Zero,
                2 => BlockCondition::Bad(checksum),
                3 => BlockCondition::Unknown,
                _ => return None,
            });
        }
        let mut stamps = Vec::new();
        if header.flags & flag::STAMPS != 0 {
            for _ in 0..range.count {
                stamps.push(reader.stamp()?);
            }
        }
        reader.is_empty().then_some((conditions, stamps))
    };
    let (conditions, stamps) = parse(&mut reader).ok_or(malformed(header))?;
    if payload.as_ref().is_some_and(|payload| payload.block_count() != range.count) {
        return Err(malformed(header));
    }
    Ok(ToWriter::ReadDone { request, reply: ReadReply { range, conditions, stamps, payload } })
}
