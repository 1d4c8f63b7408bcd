//! Both ends of a link, byte for byte: the hello, and flow control by credits.

use super::*;
use crate::wire::message::{Content, Progress};
use crate::wire::{Class, Credit, Window, encode_to_writer};
use ashlar_model::{BlockRange, DeviceId, Epoch, Payload, Stamp, VolumeId};

const WINDOWS: Windows = Windows {
    foreground: Window { operations: 4, bytes: 1 << 20 },
    background: Window { operations: 2, bytes: 128 << 10 },
};

fn bytes(outbox: &mut Outbox) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !outbox.is_empty() {
        bytes.extend(outbox.take(100).iter().flat_map(|segment| segment.to_vec()));
    }
    bytes
}

fn cluster(id: u128) -> ClusterId {
    ClusterId::from_u128(id)
}

fn shard(node: u64, shard: u16) -> ShardId {
    ShardId { node: NodeId(node), shard }
}

fn envelope(lane: u16) -> Envelope {
    Envelope { volume: VolumeId::from_u128(4), lane, epoch: Epoch(1), device: DeviceId::from_u128(3) }
}

/// A link of node 1 to node 2, from both ends.
struct Pair {
    caller: PeerLink,
    callee: PeerLink,
    caller_out: Outbox,
    callee_out: Outbox,
}

impl Pair {
    fn new() -> Self {
        let (mut caller_out, mut callee_out, mut events) = (Outbox::default(), Outbox::default(), Vec::new());
        let mut caller = PeerLink::call(cluster(1), shard(1, 0), shard(2, 0), &mut caller_out);
        let mut callee = PeerLink::answer(cluster(1), shard(2, 0), 2, WINDOWS);
        callee.receive(&bytes(&mut caller_out), &mut callee_out, &mut events).unwrap();
        assert!(matches!(events[..], [PeerEvent::Ready { peer: NodeId(1) }]));
        caller.receive(&bytes(&mut callee_out), &mut caller_out, &mut events).unwrap();
        assert!(matches!(events[1..], [PeerEvent::Ready { peer: NodeId(2) }]));
        Self { caller, callee, caller_out, callee_out }
    }

    fn send(&mut self, message: ToReplica) {
        self.caller.send(envelope(0), message, &mut self.caller_out).unwrap();
    }

    /// What arrives at the callee: messages in words, and their permits.
    fn arrive(&mut self) -> (Vec<String>, Vec<Permit>) {
        let mut events = Vec::new();
        self.callee.receive(&bytes(&mut self.caller_out), &mut self.callee_out, &mut events).unwrap();
        events
            .into_iter()
            .map(|event| match event {
                PeerEvent::Request { message, permit, .. } => (words(&message), permit),
                other => panic!("unexpected {other:?}"),
            })
            .unzip()
    }

    /// The callee returns what is due; the caller goes on with what waits.
    fn credits(&mut self, all: bool) {
        self.callee.return_credits(all, &mut self.callee_out);
        let mut events = Vec::new();
        self.caller.receive(&bytes(&mut self.callee_out), &mut self.caller_out, &mut events).unwrap();
        assert!(events.is_empty(), "credits are the link's own business");
    }
}

fn progress(config: u64) -> Progress {
    Progress { config, settled: 0, member: true, sent_at_us: 100 * config }
}

fn write(index: u64) -> ToReplica {
    let range = BlockRange::new(index, 1);
    ToReplica::Write { progress: progress(1), index, range, content: Content::Zeroes, generation: 0 }
}

fn read(request: u64, blocks: u32, background: bool) -> ToReplica {
    let range = BlockRange::new(0, blocks);
    ToReplica::Read { request, range, map_only: false, prefix_min: 0, background }
}

fn copy(request: u64) -> ToReplica {
    let (range, stamp) = (BlockRange::new(0, 1), Stamp { epoch: Epoch(1), index: 1 });
    ToReplica::Copy { join: 1, request, range, stamp, content: Content::Zeroes, settled: 0 }
}

fn words(message: &ToReplica) -> String {
    match message {
        ToReplica::Write { index, progress, .. } => format!("write {index} c{}", progress.config),
        ToReplica::Read { request, .. } => format!("read {request}"),
        ToReplica::Copy { request, .. } => format!("copy {request}"),
        ToReplica::Heartbeat { .. } => "heartbeat".into(),
        ToReplica::Seal => "seal".into(),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn both_sides_become_ready_and_frames_pass() {
    let mut pair = Pair::new();
    let message = ToWriter::JoinLost { join: 5 };
    pair.callee_out.append(|out| encode_to_writer(envelope(0), &message, out));
    let mut events = Vec::new();
    pair.caller.receive(&bytes(&mut pair.callee_out), &mut pair.caller_out, &mut events).unwrap();
    assert!(matches!(&events[..], [PeerEvent::Answer { message: ToWriter::JoinLost { join: 5 }, .. }]));
}

#[test]
fn strangers_are_told_why() {
    for (to, of, word) in [
        (cluster(9), shard(2, 0), "belongs to cluster"),
        (cluster(1), shard(3, 0), "wants node 3"),
        (cluster(1), shard(2, 2), "wants number 2"),
    ] {
        let (mut a_out, mut b_out, mut events) = (Outbox::default(), Outbox::default(), Vec::new());
        let mut a = PeerLink::call(to, shard(1, 0), of, &mut a_out);
        let mut b = PeerLink::answer(cluster(1), shard(2, 0), 2, WINDOWS);
        let error = b.receive(&bytes(&mut a_out), &mut b_out, &mut events).unwrap_err();
        assert!(error.contains(word), "{error}");
        let error = a.receive(&bytes(&mut b_out), &mut a_out, &mut events).unwrap_err();
        assert!(error.contains(word), "{error}");
        assert!(events.is_empty());
    }
}

/// However the bytes are cut, the wanted shard gets all of them, and the caller does not notice that it was not the first.
#[test]
fn a_caller_of_another_shard_is_passed_on_with_what_it_has_said() {
    let mut caller_out = Outbox::default();
    let mut caller = PeerLink::call(cluster(1), shard(1, 1), shard(2, 1), &mut caller_out);
    let mut said = bytes(&mut caller_out);
    let hello_bytes = said.len();
    let message = read(7, 1, false);
    crate::wire::encode_to_replica(envelope(0), &message, &mut said);
    for cut in [1, hello_bytes - 1, hello_bytes, hello_bytes + 5, said.len()] {
        let (mut out, mut events) = (Outbox::default(), Vec::new());
        let mut first = PeerLink::answer(cluster(1), shard(2, 0), 2, WINDOWS);
        first.receive(&said[..cut], &mut out, &mut events).unwrap();
        let mut rest = cut;
        if events.is_empty() {
            first.receive(&said[cut..hello_bytes], &mut out, &mut events).unwrap();
            rest = hello_bytes;
        }
        assert!(out.is_empty(), "the other shard answers");
        let Some(PeerEvent::Elsewhere { shard: 1, bytes: passed }) = events.pop() else { panic!("not passed on") };
        let mut wanted = PeerLink::answer(cluster(1), shard(2, 1), 2, WINDOWS);
        wanted.receive(&[passed, said[rest..].to_vec()].concat(), &mut out, &mut events).unwrap();
        assert!(matches!(events[0], PeerEvent::Ready { peer: NodeId(1) }), "{events:?}");
        assert!(matches!(&events[1], PeerEvent::Request { message: passed, .. } if *passed == message), "{events:?}");
        caller = PeerLink::call(cluster(1), shard(1, 1), shard(2, 1), &mut caller_out);
        caller.receive(&bytes(&mut out), &mut caller_out, &mut events).unwrap();
        assert!(matches!(events.last(), Some(PeerEvent::Ready { peer: NodeId(2) })));
    }
    drop(caller);
}

#[test]
fn a_message_before_the_hello_ends_the_link() {
    let (mut out, mut events) = (Vec::new(), Vec::new());
    encode_to_writer(envelope(0), &ToWriter::JoinLost { join: 5 }, &mut out);
    let mut link = PeerLink::answer(cluster(1), shard(2, 0), 2, WINDOWS);
    let error = link.receive(&out, &mut Outbox::default(), &mut events).unwrap_err();
    assert_eq!(error, "a message before the hello");
    assert!(link.receive(&[0x47; 500], &mut Outbox::default(), &mut events).is_err());
}

#[test]
fn requests_and_answers_go_one_way_each() {
    let mut events = Vec::new();
    let mut pair = Pair::new();
    let mut out = Vec::new();
    encode_to_replica(envelope(0), &ToReplica::Seal, &mut out);
    let error = pair.caller.receive(&out, &mut pair.caller_out, &mut events).unwrap_err();
    assert_eq!(error, "a request from the node that was called");
    out.clear();
    Credit { class: Class::Foreground, operations: 1, bytes: 0 }.encode(&mut out);
    let error = pair.callee.receive(&out, &mut pair.callee_out, &mut events).unwrap_err();
    assert_eq!(error, "an answer from the node that called");
}

#[test]
fn a_request_without_credits_waits_and_goes_on_in_order() {
    let mut pair = Pair::new();
    (1..=7).for_each(|index| pair.send(write(index)));
    let (messages, mut permits) = pair.arrive();
    assert_eq!(messages, ["write 1 c1", "write 2 c1", "write 3 c1", "write 4 c1"]);
    assert_eq!(pair.caller.take_waits(), [3, 0]);
    // One of four is done: nothing is due yet.
    permits.truncate(3);
    pair.credits(false);
    assert_eq!(pair.arrive().0.len(), 0);
    permits.truncate(2);
    pair.credits(false);
    let (messages, more) = pair.arrive();
    assert_eq!(messages, ["write 5 c1", "write 6 c1"]);
    // Whoever comes later stands behind, even if credits come back first.
    pair.send(write(8));
    drop((permits, more));
    pair.credits(false);
    assert_eq!(pair.arrive().0, ["write 7 c1", "write 8 c1"]);
    assert_eq!(pair.caller.take_waits(), [1, 0]);
}

/// What is due is half a window; now and then whatever is free is returned.
#[test]
fn a_slow_request_does_not_keep_what_others_released() {
    let mut pair = Pair::new();
    (1..=5).for_each(|index| pair.send(write(index)));
    let (_, mut permits) = pair.arrive();
    permits.truncate(3);
    pair.credits(true);
    assert_eq!(pair.arrive().0, ["write 5 c1"]);
}

#[test]
fn bytes_of_answers_count_and_a_small_request_does_not_overtake() {
    let mut pair = Pair::new();
    pair.send(read(1, 32, true)); // all the bytes of the class
    pair.send(read(2, 32, true));
    pair.send(copy(3)); // no bytes, but behind
    let (messages, permits) = pair.arrive();
    assert_eq!(messages, ["read 1"]);
    drop(permits);
    pair.credits(false);
    assert_eq!(pair.arrive().0, ["read 2", "copy 3"]);
}

#[test]
fn no_class_waits_for_the_other_and_control_waits_for_none() {
    let mut pair = Pair::new();
    (1..=3).for_each(|request| pair.send(copy(request)));
    (1..=5).for_each(|index| pair.send(write(index)));
    pair.send(ToReplica::Seal);
    pair.send(ToReplica::Heartbeat { progress: progress(1) });
    let expected = ["copy 1", "copy 2", "write 1 c1", "write 2 c1", "write 3 c1", "write 4 c1", "seal", "heartbeat"];
    let (messages, mut permits) = pair.arrive();
    assert_eq!(messages, expected);
    assert_eq!(pair.caller.take_waits(), [1, 1]);
    permits.drain(..2); // the copies
    pair.credits(false);
    assert_eq!(pair.arrive().0, ["copy 3"]);
    drop(permits);
    pair.credits(false);
    assert_eq!(pair.arrive().0, ["write 5 c1"]);
}

/// Symptom: a member that lost no link lacks writes. Cause: they waited for credits, a heartbeat with a newer
/// configuration overtook them, and behind it the replica drops what an older configuration says.
#[test]
fn writes_that_a_heartbeat_overtakes_carry_what_it_says() {
    let mut pair = Pair::new();
    (1..=5).for_each(|index| pair.send(write(index)));
    pair.caller.send(envelope(1), write(6), &mut pair.caller_out).unwrap();
    pair.send(ToReplica::Heartbeat { progress: progress(2) });
    let (messages, permits) = pair.arrive();
    assert_eq!(messages[3..], ["write 4 c1", "heartbeat"]);
    drop(permits);
    pair.credits(false);
    assert_eq!(pair.arrive().0, ["write 5 c2", "write 6 c1"]); // 6 is of another lane
}

#[test]
fn an_overdraft_ends_the_link() {
    let mut pair = Pair::new();
    let mut out = Vec::new();
    for index in 1..=5 {
        encode_to_replica(envelope(0), &write(index), &mut out);
    }
    let mut events = Vec::new();
    let error = pair.callee.receive(&out, &mut pair.callee_out, &mut events).unwrap_err();
    assert!(error.contains("overdraws the foreground credits of this link, 4 operations"), "{error}");
    assert_eq!(events.len(), 4);
}

#[test]
fn credits_that_nobody_took_end_the_link() {
    let payload = Payload::copied_from(&[0; 4096]);
    for (operations, bytes, good) in
        [(1, 4096, true), (2, 0, false), (0, 4097, false), (u32::MAX, (1 << 62) - 1, false)]
    {
        let mut pair = Pair::new();
        pair.send(ToReplica::Repair { block: 0, checksum: 0, payload: payload.clone() });
        let (mut out, mut events) = (Vec::new(), Vec::new());
        Credit { class: Class::Background, operations, bytes }.encode(&mut out);
        let result = pair.caller.receive(&out, &mut pair.caller_out, &mut events);
        assert_eq!(result.is_ok(), good, "{operations} {bytes}: {result:?}");
    }
}

#[test]
fn too_many_that_wait_end_the_link() {
    let mut pair = Pair::new();
    (1..=4).for_each(|index| pair.send(write(index)));
    for index in 0..WAITING_MAX as u64 {
        pair.send(write(5 + index));
    }
    let error = pair.caller.send(envelope(0), write(1), &mut pair.caller_out).unwrap_err();
    assert_eq!(error, "262144 foreground requests wait for credits");
    assert!(pair.caller.send(envelope(0), copy(1), &mut pair.caller_out).is_ok());
}
