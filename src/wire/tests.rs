//! Every message survives the wire, cut anywhere; damage and nonsense are refused, never a panic.

use super::credit::{Class, Credit, Window, Windows};
use super::decode::{Frame, FrameDecoder, WireError};
use super::encode::{encode_to_replica, encode_to_writer};
use super::frame::{HEADER_BYTES, Header};
use super::hello::{Hello, HelloReply};
use super::message::{BlockCondition, Content, Envelope, Progress, ReadReply, ToReplica, ToWriter};
use ashlar_model::checksum::block_checksums;
use ashlar_model::lane::{EntryOrigin, LaneState, ListEntry};
use ashlar_model::{BlockRange, ClusterId, DeviceId, Epoch, NodeId, Payload, Stamp, VolumeId};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const VOLUME: VolumeId = VolumeId::from_u128(0x1122);

fn envelope() -> Envelope {
    Envelope { volume: VOLUME, lane: 3, epoch: Epoch(9), device: DeviceId::from_u128(0x77) }
}

fn data(range: BlockRange, byte: u8) -> Content {
    let payload = Payload::copied_from(&vec![byte; range.bytes()]);
    let checksums = block_checksums(VOLUME, range.start, &payload).collect();
    Content::Data { payload, checksums }
}

fn to_replica() -> Vec<ToReplica> {
    let progress = Progress { config: 4, settled: 17, member: true, sent_at_us: 123_456 };
    let range = BlockRange::new(1020, 4);
    let stamp = Stamp { epoch: Epoch(5), index: 70 };
    let payload = Payload::copied_from(&[3; 4096]);
    let checksum = block_checksums(VOLUME, 8, &payload).next().unwrap();
    vec![
        ToReplica::Seal,
        ToReplica::Start { config: 2, base: 40, clean: true },
        ToReplica::Write { progress, index: 18, range, content: data(range, 7), generation: 3 },
        ToReplica::Write { progress, index: 19, range, content: Content::Zeroes, generation: 0 },
        ToReplica::Write { progress, index: 20, range, content: Content::Lost, generation: 0 },
        ToReplica::Heartbeat { progress: Progress { member: false, ..progress } },
        ToReplica::Read { request: 88, range, map_only: false, prefix_min: 5, background: false },
        ToReplica::Read {
            request: 89,
            range: BlockRange::new(0, 1024),
            map_only: true,
            prefix_min: 0,
            background: true,
        },
        ToReplica::Read { request: 90, range, map_only: false, prefix_min: 0, background: true },
        ToReplica::JoinStart { config: 3, join: 1 << 30, base: 44 },
        ToReplica::Copy { join: 1 << 30, request: 6, range, stamp, content: data(range, 9), settled: 12 },
        ToReplica::Digest { request: 91, range, seed: 3 << 60, prefix_min: 44 },
        ToReplica::Confirm {
            join: 1 << 30,
            request: 7,
            range,
            seed: 12,
            blocks: vec![(stamp, u128::MAX - 5); range.count as usize].into(),
            settled: 12,
        },
        ToReplica::Repair { block: 8, checksum, payload },
    ]
}

fn to_writer() -> Vec<ToWriter> {
    let range = BlockRange::new(16, 4);
    let stamp = Stamp { epoch: Epoch(5), index: 70 };
    let entry = |origin| ListEntry { stamp, range, tombstone: origin == EntryOrigin::Copy, origin, generation: 2 };
    let state = LaneState {
        current: Epoch(5),
        config: 2,
        prefix: 70,
        settled: 60,
        list: vec![entry(EntryOrigin::Live), entry(EntryOrigin::Copy)],
        suspect: vec![range],
        join: 11,
    };
    let conditions =
        vec![BlockCondition::Data(1), BlockCondition::Zero, BlockCondition::Bad(2), BlockCondition::Unknown];
    let payload = Some(Payload::copied_from(&vec![5; range.bytes()]));
    let reply = ReadReply { range, conditions, stamps: vec![stamp; 4], payload };
    vec![
        ToWriter::Sealed { lanes: vec![(0, state.clone()), (7, LaneState::default())] },
        ToWriter::Ack { prefix: 3, index: 5, sent_at_us: 99, full: true },
        ToWriter::ReadDone { request: 4, reply: reply.clone() },
        ToWriter::ReadDone { request: 4, reply: ReadReply { stamps: vec![], payload: None, ..reply } },
        ToWriter::ReadRefused { request: 4 },
        ToWriter::JoinReady { join: 5, settled: 6, suspects: vec![range, range] },
        ToWriter::Digests { request: 9, range, blocks: vec![(stamp, 1 << 100); range.count as usize] },
        ToWriter::Confirmed { join: 5, request: 7, differs: vec![range] },
        ToWriter::JoinLost { join: 5 },
        ToWriter::CopyDone { join: 5, request: 9 },
        ToWriter::Fenced { promised: Epoch(12) },
        ToWriter::DeviceFailed { reason: "write error".into() },
        ToWriter::LostData { prefix: 8 },
        ToWriter::NotServed,
        ToWriter::Repaired { block: 77 },
        ToWriter::Damaged { range },
    ]
}

/// Every kind of frame, as bytes and as what they mean.
fn stream() -> (Vec<u8>, Vec<Frame>) {
    let (mut bytes, mut frames) = (Vec::new(), Vec::new());
    let hello = Hello { cluster: ClusterId::from_u128(1), from: NodeId(2), to: NodeId(3), shard: 0x0102 };
    hello.encode(&mut bytes);
    frames.push(Frame::Hello(hello));
    for reply in [HelloReply::Welcome(Windows::DEFAULT), HelloReply::Refused("no".into())] {
        reply.encode(&mut bytes);
        frames.push(Frame::HelloReply(reply));
    }
    for class in Class::ALL {
        let credit = Credit { class, operations: 2048, bytes: 1 << 25 };
        credit.encode(&mut bytes);
        frames.push(Frame::Credit(credit));
    }
    for message in to_replica() {
        let payload = encode_to_replica(envelope(), &message, &mut bytes);
        bytes.extend_from_slice(payload.as_deref().unwrap_or(&[]));
        frames.push(Frame::ToReplica(envelope(), message));
    }
    for message in to_writer() {
        let payload = encode_to_writer(envelope(), &message, &mut bytes);
        bytes.extend_from_slice(payload.as_deref().unwrap_or(&[]));
        frames.push(Frame::ToWriter(envelope(), message));
    }
    (bytes, frames)
}

fn decode_all(decoder: &mut FrameDecoder, mut bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (taken, frame) = decoder.feed(bytes)?;
        assert!(taken > 0, "every call takes something");
        bytes = &bytes[taken..];
        frames.extend(frame);
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_survive_any_cut(cuts in prop::collection::vec(1usize..5000, 1..40)) {
        let (bytes, expected) = stream();
        let mut decoder = FrameDecoder::default();
        let mut frames = Vec::new();
        let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (part, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            frames.extend(decode_all(&mut decoder, part).unwrap());
            rest = after;
        }
        prop_assert_eq!(frames, expected);
    }

    /// One wrong byte anywhere: an error or, inside the payload of a read reply, whose checksums the writer verifies,
    /// other bytes; never a panic and never more frames.
    #[test]
    fn one_wrong_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let (mut bytes, expected) = stream();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        match decode_all(&mut FrameDecoder::default(), &bytes) {
            Err(_) => {}
            Ok(frames) => {
                let differing: Vec<_> = frames.iter().zip(&expected).filter(|(a, b)| a != b).collect();
                prop_assert_eq!(differing.len(), 1);
                let read_reply = matches!(differing[0].0, Frame::ToWriter(_, ToWriter::ReadDone { .. }));
                prop_assert!(read_reply, "{:?}", differing[0]);
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode_all(&mut FrameDecoder::default(), &bytes);
    }

    /// Past the checksums too: any header with right checksums and any body.
    #[test]
    fn nonsense_with_right_checksums_never_panics(
        head in prop::collection::vec(any::<u8>(), HEADER_BYTES),
        kind in prop::sample::select((0u8..=70).collect::<Vec<_>>()),
        body in prop::collection::vec(any::<u8>(), 0..300),
        blocks in 0usize..3,
    ) {
        let header = Header { kind, ..Header::read_from_bytes(&head).unwrap() }.seal(&body, blocks * 4096);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.extend(vec![1u8; blocks * 4096]);
        let _ = decode_all(&mut FrameDecoder::default(), &bytes);
    }
}

/// The layout is a contract between versions: it changes only with [`super::frame::VERSION`].
#[test]
fn golden_acknowledgement() {
    let mut bytes = Vec::new();
    encode_to_writer(envelope(), &ToWriter::Ack { prefix: 3, index: 5, sent_at_us: 99, full: false }, &mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = "41534857050011000000000000000000000000000000000000000000000011220000000000000000000000000000007709000000\
                    00000000030000000000000000000000000000000300000000000000050000000000000000000000000000006300000000000000\
                    00000000000000000000000000000000";
    assert_eq!(hex[..240], *expected);
}

#[test]
fn golden_damage() {
    let mut bytes = Vec::new();
    let envelope = Envelope { lane: Envelope::ALL_LANES, ..envelope() };
    encode_to_writer(envelope, &ToWriter::Damaged { range: BlockRange::new(0x1010, 3) }, &mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = "4153485705001c0000000000000000000000000000000000000000000000112200000000000000000000000000000077090000\
                    0000000000ffff0000030000001010000000000000000000000000000000000000000000000000000000000000000000000000\
                    000000000000000000000000000000000000";
    assert_eq!(hex[..240], *expected);
}

#[test]
fn strangers_get_a_reason() {
    let hello = Hello { cluster: ClusterId::from_u128(1), from: NodeId(2), to: NodeId(3), shard: 1 };
    assert!(hello.check(ClusterId::from_u128(1), NodeId(3), 2).is_ok());
    assert!(hello.check(ClusterId::from_u128(2), NodeId(3), 2).unwrap_err().contains("belongs to cluster"));
    assert!(hello.check(ClusterId::from_u128(1), NodeId(4), 2).unwrap_err().contains("this is node 4"));
    assert!(hello.check(ClusterId::from_u128(1), NodeId(3), 1).unwrap_err().contains("this node has 1 shards"));
    let mut bytes = Vec::new();
    hello.encode(&mut bytes);
    bytes[4] = 9;
    let error = FrameDecoder::default().feed(&bytes).unwrap_err();
    assert_eq!(error, WireError::Version { theirs: 9 });
    let error = FrameDecoder::default().feed(&[b'G'; 128]).unwrap_err();
    assert!(error.to_string().contains("not an Ashlar data-plane frame"), "{error}");
}

#[test]
fn golden_credit() {
    let mut bytes = Vec::new();
    Credit { class: Class::Background, operations: 32, bytes: 0x40_0000 }.encode(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!("4153485705004300{}01000000000000002000000000000000000040", "0".repeat(128));
    assert_eq!(hex[..expected.len()], expected);
    assert!(hex[expected.len()..224].bytes().all(|digit| digit == b'0'));
}

/// A caller whose largest request would never fit, or whose sums could overflow, does not begin.
#[test]
fn windows_that_cannot_be_used_are_refused() {
    let good = Windows::DEFAULT.background;
    let bad = [(0, good.bytes), (u32::MAX, good.bytes), (64, 0), (64, (128 << 10) - 1), (64, u64::MAX)];
    for (operations, bytes) in bad {
        let mut out = Vec::new();
        let window = Window { operations, bytes };
        HelloReply::Welcome(Windows { background: window, ..Windows::DEFAULT }).encode(&mut out);
        let error = FrameDecoder::default().feed(&out).unwrap_err();
        assert!(matches!(error, WireError::Malformed { kind: 65, .. }), "{window:?}: {error}");
    }
}

#[test]
fn credits_of_no_class_and_beyond_every_window_are_refused() {
    for words in [[2, 1, 0, 0, 0], [0, 1 << 32, 0, 0, 0]] {
        let words = words.map(zerocopy::little_endian::U64::new);
        let bytes = Header { kind: super::frame::kind::CREDIT, words, ..Header::default() }.seal(&[], 0);
        let error = FrameDecoder::default().feed(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, WireError::Malformed { kind: 67, .. }), "{error}");
    }
}

/// One operation each; the bytes that it carries, or that its answer may carry.
#[test]
fn every_request_has_a_class_and_a_cost() {
    let cost = |message: &ToReplica| message.cost().map(|cost| (cost.class, cost.operations, cost.bytes));
    let (front, back) = (Class::Foreground, Class::Background);
    let expected = [
        None, // seal
        None, // start
        Some((front, 1, 4 * 4096)),
        Some((front, 1, 0)), // zeroes
        Some((front, 1, 0)), // lost
        None,                // heartbeat
        Some((front, 1, 4 * 4096)),
        Some((back, 1, 1024 * 24)), // the map of a chunk
        Some((back, 1, 4 * 4096)),
        None, // join start
        Some((back, 1, 4 * 4096)),
        Some((back, 1, 4 * 4096)), // digests: what the device reads
        Some((back, 1, 4 * 4096)), // confirm
        Some((back, 1, 4096)),
    ];
    assert_eq!(to_replica().iter().map(cost).collect::<Vec<_>>(), expected);
}
