//! Devices that are full, and devices that fail.

use super::*;

/// A member to which the store has answered "full" for write 1 of blocks 0 to 3.
fn full() -> Rig {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 4)));
    assert_eq!(rig.answer(FULL), ["tell: ack 0 @100 full"]);
    rig
}

#[test]
fn a_write_without_room_waits_and_the_ack_says_so() {
    let mut rig = full();
    assert_eq!(rig.hear(heartbeat(progress())), ["tell: ack 0 @100 full"]);
    assert_eq!(rig.hear(write(1, run(0, 4))), NOTHING); // a duplicate: it is accepted already
    assert_eq!(rig.tick(), ["store: write 5.1 [0+4]=1"]);
    assert_eq!(rig.done(), ["tell: ack 1 @100"]);
}

#[test]
fn a_later_write_to_other_blocks_goes_on() {
    let mut rig = full();
    assert_eq!(rig.hear(write(2, run(4, 1))), ["store: write 5.2 [4+1]=2"]);
    assert_eq!(rig.done(), ["tell: ack 0 +2 @100 full"]);
}

#[test]
fn a_later_write_to_the_same_blocks_waits_behind() {
    let mut rig = full();
    assert_eq!(rig.hear(trim(2, run(3, 2))), NOTHING);
    assert_eq!(rig.hear(write(3, run(4, 1))), NOTHING); // behind the trim
    assert_eq!(rig.tick(), ["store: write 5.1 [0+4]=1"]);
    assert_eq!(rig.done(), ["tell: ack 1 @100 full"]);
    assert_eq!(rig.tick(), ["store: write 5.2 [3+2]=zeroes"]);
    assert_eq!(rig.done(), ["tell: ack 2 @100 full"]);
    assert_eq!(rig.tick(), ["store: write 5.3 [4+1]=3"]);
    assert_eq!(rig.done(), ["tell: ack 3 @100"]);
}

#[test]
fn a_tick_tries_everything_that_does_not_overlap_in_order() {
    let mut rig = Rig::member();
    for index in 1..=3 {
        rig.hear(write(index, run(index * 8, 4)));
    }
    // The store's answers come in any order; the retries go by index.
    rig.answer_nth(2, FULL);
    rig.answer_nth(0, FULL);
    rig.answer_nth(0, FULL);
    let expected = ["store: write 5.1 [8+4]=1", "store: write 5.2 [16+4]=2", "store: write 5.3 [24+4]=3"];
    assert_eq!(rig.tick(), expected);
    assert_eq!(rig.tick(), NOTHING); // they are in the store
}

#[test]
fn a_retry_without_room_keeps_its_place() {
    let mut rig = full();
    rig.hear(write(2, run(0, 1)));
    assert_eq!(rig.tick(), ["store: write 5.1 [0+4]=1"]);
    assert_eq!(rig.answer(FULL), ["tell: ack 0 @100 full"]);
    assert_eq!(rig.tick(), ["store: write 5.1 [0+4]=1"]);
}

#[test]
fn a_seal_refuses_what_waits_for_room() {
    let mut rig = full();
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn a_write_of_an_older_epoch_without_room_is_dropped() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 4)));
    rig.hear_in(7, start(5));
    assert_eq!(rig.answer(FULL), ["store: start 7 c1 base 5"]);
    assert_eq!(rig.done(), ["tell e7: ack 5 @0"]);
    assert_eq!(rig.tick(), NOTHING);
}

/// Symptom: trimmed data returns on one member. Cause: a write and a later trim of the same block are both in the
/// store (the others have acknowledged the write, so the writer lets the trim go); the write finds no room, the trim
/// needs none and becomes durable; the retried write then lands on top of it.
#[test]
fn a_write_without_room_is_not_retried_over_a_later_one_that_is_durable() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 2)));
    rig.hear(trim(2, run(0, 1)));
    rig.answer(FULL);
    rig.done(); // the trim
    let retried = rig.tick();
    assert!(!retried.contains(&"store: write 5.1 [0+2]=1".to_string()), "{retried:?}");
}

/// The same while the later one is still in the store: the store takes requests to one block in order of submission.
#[test]
fn a_write_without_room_is_not_retried_over_a_later_one_in_the_store() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 2)));
    rig.hear(trim(2, run(0, 1)));
    rig.answer(FULL);
    let retried = rig.tick();
    assert!(!retried.contains(&"store: write 5.1 [0+2]=1".to_string()), "{retried:?}");
}

fn failure() -> Reply {
    Reply::Error(StoreError::Failed("gone".into()))
}

#[test]
fn a_device_failure_is_alarmed_once_and_told_to_the_writer() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.hear(write(2, run(1, 1)));
    assert_eq!(rig.answer(failure()), ["alarm", "tell: device failed: gone"]);
    assert_eq!(rig.answer(failure()), NOTHING);
    assert_eq!(rig.engine.failed(), Some("gone"));
}

#[test]
fn a_failed_device_says_so_to_everybody_from_then_on() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.answer(failure());
    assert_eq!(rig.hear(heartbeat(progress())), ["tell: device failed: gone"]);
    assert_eq!(rig.hear_in(9, ToReplica::Seal), ["tell e9: device failed: gone"]);
    assert_eq!(rig.hear_in(1, start(0)), ["tell e1: device failed: gone"]);
}

#[test]
fn reads_in_a_device_that_fails_are_refused() {
    let mut rig = Rig::member();
    rig.hear(read(1, run(0, 1)));
    rig.hear(read(2, run(1, 1)));
    assert_eq!(rig.answer(failure()), ["alarm", "tell: device failed: gone", "tell: read 1 refused"]);
    assert_eq!(rig.answer(failure()), ["tell: read 2 refused"]);
}

#[test]
fn a_failed_seal_is_not_answered() {
    let mut rig = Rig::new();
    rig.hear_in(7, ToReplica::Seal);
    assert_eq!(rig.answer(failure()), ["alarm"]);
}

#[test]
fn an_answer_that_nobody_asked_for_is_alarmed() {
    let mut rig = Rig::member();
    assert_eq!(rig.batch(vec![Event::Stored { token: Token(99), reply: Reply::Done }]), ["alarm"]);
    assert_eq!(rig.alarms, 1);
}
