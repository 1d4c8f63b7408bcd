//! R0, R1, R2 and R6: fences, seals, starts, and who gets no acknowledgement any more.

use super::*;

fn every_message() -> Vec<ToReplica> {
    vec![
        ToReplica::Seal,
        start(0),
        write(1, run(0, 1)),
        heartbeat(progress()),
        read(1, run(0, 1)),
        join_start(7),
        copy(7, 1, run(0, 1), 1),
        ToReplica::Repair { block: 0, checksum: 1, payload: Payload::copied_from(&[0; 4096]) },
    ]
}

fn sealed() -> Reply {
    Reply::Sealed { promised: Epoch(7), lanes: vec![] }
}

#[test]
fn a_lower_epoch_is_told_the_promise_whatever_it_says() {
    let mut rig = Rig::restarted(7, None);
    for message in every_message() {
        assert_eq!(rig.hear_in(6, message), ["tell e6: fenced by 7"]);
    }
}

#[test]
fn the_fence_holds_before_the_promise_is_durable() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.hear(write(1, run(0, 1))), ["tell: fenced by 7"]);
}

#[test]
fn a_message_for_another_device_is_alarmed_and_never_answered() {
    let mut rig = Rig::member();
    for message in every_message() {
        let envelope = Envelope { device: DeviceId::from_u128(0xd2), ..envelope(5) };
        assert_eq!(
            rig.batch(vec![Event::Message { link: LinkId(1), envelope, message, permit: Permit::none() }]),
            ["alarm"]
        );
    }
}

#[test]
fn a_seal_is_answered_after_the_barrier_with_what_the_store_holds() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    let state = LaneState {
        current: Epoch(5),
        prefix: 3,
        list: vec![entry(5, 3, EntryOrigin::Live), entry(5, 5, EntryOrigin::Live)],
        ..LaneState::default()
    };
    let reply = Reply::Sealed { promised: Epoch(7), lanes: vec![(0, state.clone()), (4, LaneState::default())] };
    let event = rig.stored(0, reply);
    let mut effects = Vec::new();
    rig.engine.apply(event, &mut effects);
    let lanes = vec![(0, state), (4, LaneState::default())];
    let envelope = Envelope { lane: Envelope::ALL_LANES, ..envelope(7) };
    let expected = Effect::Send { link: LinkId(1), envelope, message: ToWriter::Sealed { lanes } };
    assert_eq!(effects, [expected]);
}

#[test]
fn a_seal_refuses_what_was_queued() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(write(2, run(2, 1))), NOTHING); // waits for 1
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.answer(sealed()), ["tell e7: sealed"]);
    assert_eq!(rig.hear_in(7, start(9)), ["store: start 7 c1 base 9"]);
    assert_eq!(rig.done(), ["tell e7: ack 9 @0"]);
    // Only what the new writer says reaches the store.
    assert_eq!(rig.hear_in(7, write(10, run(0, 1))), ["store: write 7.10 [0+1]=10"]);
}

#[test]
fn a_write_in_the_store_when_the_seal_comes_is_not_acknowledged() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(write(1, run(0, 1))), ["store: write 5.1 [0+1]=1"]);
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.answer(sealed()), ["tell e7: sealed"]);
}

#[test]
fn no_ack_when_the_promise_rises_in_the_same_batch() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    let stored = rig.stored(0, Reply::Done);
    let batch = vec![stored, said(1, 5, heartbeat(progress())), said(2, 7, ToReplica::Seal)];
    assert_eq!(rig.batch(batch), ["store: promise 7"]);
}

#[test]
fn a_repeated_seal_is_answered_again() {
    let mut rig = Rig::member();
    rig.hear_in(7, ToReplica::Seal);
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.answer(sealed()), ["tell e7: sealed"]);
    assert_eq!(rig.answer(sealed()), ["tell e7: sealed"]);
}

#[test]
fn a_seal_overtaken_by_a_higher_one_is_not_answered() {
    let mut rig = Rig::member();
    rig.hear_in(7, ToReplica::Seal);
    rig.hear_in(8, ToReplica::Seal);
    assert_eq!(rig.answer(sealed()), NOTHING);
    assert_eq!(rig.answer(sealed()), ["tell e8: sealed"]);
}

#[test]
fn a_seal_that_the_store_refuses_is_not_answered() {
    let mut rig = Rig::member();
    rig.hear_in(7, ToReplica::Seal);
    assert_eq!(rig.answer(Reply::Error(StoreError::Refused("no".into()))), NOTHING);
}

#[test]
fn a_start_is_durable_before_it_is_acknowledged() {
    let mut rig = Rig::new();
    assert_eq!(rig.hear(start(3)), ["store: start 5 c1 base 3"]);
    // Nothing of the epoch is done before: neither a write nor a grant nor a read.
    assert_eq!(rig.hear(write(4, run(0, 1))), NOTHING);
    assert_eq!(rig.hear(heartbeat(progress())), NOTHING);
    assert_eq!(rig.hear(read(1, run(0, 1))), ["tell: read 1 refused"]);
    assert_eq!(rig.done(), ["tell: ack 3 @0"]);
    assert_eq!(rig.hear(write(4, run(0, 1))), ["store: write 5.4 [0+1]=4"]);
}

#[test]
fn a_repeated_start_is_stored_once() {
    let mut rig = Rig::new();
    rig.hear(start(3));
    assert_eq!(rig.hear(start(3)), NOTHING);
    assert_eq!(rig.done(), ["tell: ack 3 @0"]);
    assert_eq!(rig.hear(start(3)), ["tell: ack 3 @0"]);
}

#[test]
fn a_repeated_start_does_not_take_the_prefix_back() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.done();
    assert_eq!(rig.hear(start(0)), ["tell: ack 1 @100"]);
}

#[test]
fn a_start_waits_for_the_writes_in_the_store() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.hear(write(2, run(1, 1)));
    assert_eq!(rig.hear_in(6, start(9)), NOTHING);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.done(), ["store: start 6 c1 base 9"]);
    assert_eq!(rig.done(), ["tell e6: ack 9 @0"]);
}

#[test]
fn a_start_overtaken_by_a_higher_one_is_followed_by_it() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear_in(6, start(9)), ["store: start 6 c1 base 9"]);
    assert_eq!(rig.hear_in(7, start(11)), NOTHING);
    assert_eq!(rig.done(), ["store: start 7 c1 base 11"]);
    assert_eq!(rig.done(), ["tell e7: ack 11 @0"]);
    assert_eq!(rig.hear_in(6, start(9)), ["tell e6: fenced by 7"]);
}

#[test]
fn a_start_fenced_by_a_seal_while_in_the_store_is_not_acknowledged() {
    let mut rig = Rig::member();
    rig.hear_in(6, start(9));
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.answer(sealed()), ["tell e7: sealed"]);
}

#[test]
fn a_start_that_the_store_refuses_is_alarmed_and_may_be_repeated() {
    let mut rig = Rig::new();
    rig.hear(start(3));
    assert_eq!(rig.answer(Reply::Error(StoreError::Refused("no".into()))), ["alarm"]);
    assert_eq!(rig.hear(start(3)), ["store: start 5 c1 base 3"]);
}

#[test]
fn a_newer_epoch_is_not_followed_before_its_start() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear_in(6, write(1, run(0, 1))), NOTHING);
    assert_eq!(rig.hear_in(6, heartbeat(progress())), NOTHING);
    assert_eq!(rig.hear_in(6, read(1, run(0, 1))), ["tell e6: read 1 refused"]);
    // The present writer goes on: nothing of epoch 6 is promised yet.
    assert_eq!(rig.hear(write(1, run(0, 1))), ["store: write 5.1 [0+1]=1"]);
}

#[test]
fn the_promise_fences_every_lane_of_the_volume_and_no_other_volume() {
    let mut rig = Rig::new();
    let other = |message| {
        let envelope = Envelope { lane: 1, ..envelope(5) };
        Event::Message { link: LinkId(1), envelope, message, permit: Permit::none() }
    };
    assert_eq!(rig.batch(vec![other(start(0))]), ["store: start 5 c1 base 0"]);
    assert_eq!(rig.done(), ["tell: ack 0 @0"]);
    rig.hear_in(7, start(0));
    assert_eq!(rig.batch(vec![other(heartbeat(progress()))]), ["tell: fenced by 7"]);
    let mut effects = Vec::new();
    let envelope = Envelope { volume: VolumeId::from_u128(0x71), ..envelope(1) };
    rig.engine
        .apply(Event::Message { link: LinkId(1), envelope, message: start(0), permit: Permit::none() }, &mut effects);
    assert!(matches!(effects[..], [Effect::Store { request: Request::Start { .. }, .. }]));
}

#[test]
fn a_forgotten_volume_leaves_its_promise() {
    let mut rig = Rig::member();
    assert_eq!(rig.batch(vec![Event::Forget { volume: VOLUME }]), ["store: forget"]);
    assert_eq!(rig.hear(heartbeat(progress())), NOTHING);
    assert_eq!(rig.done(), ["forgotten true"]);
    assert_eq!(rig.hear_in(4, start(0)), ["tell e4: fenced by 5"]);
}

#[test]
fn a_released_volume_is_gone_when_its_promise_is_durable() {
    let mut rig = Rig::member();
    let release = || vec![Event::Release { volume: VOLUME, promise: Epoch(7) }];
    assert_eq!(rig.batch(release()), ["store: release 7"]);
    assert_eq!(rig.hear(start(0)), ["tell: fenced by 7"]);
    let full = StoreError::Full { used_bytes: 0, total_bytes: 0 };
    assert_eq!(rig.answer(Reply::Error(full)), NOTHING, "it will be asked for again");
    assert_eq!(rig.batch(release()), ["store: release 7"]);
    assert_eq!(rig.done(), ["forgotten true"]);
}

/// Symptom: guests read zeroes. Cause: a writer that has not heard that the volume left this device starts it as a member,
/// and the empty lane has the right prefix.
#[test]
fn a_released_lane_is_not_started_again_in_its_epoch() {
    let mut rig = Rig::member();
    rig.batch(vec![Event::Release { volume: VOLUME, promise: Epoch(5) }]);
    assert_eq!(rig.hear(start(0)), ["tell: not served"]);
    rig.done();
    assert_eq!(rig.hear(start(0)), ["tell: not served"]);
    // It may join, and a later writer may know it as a member again.
    assert_eq!(rig.hear(ToReplica::JoinStart { config: 1, join: 9, base: 0 }), ["store: join 9 in 5 c1 base 0"]);
    let mut later = Rig::member();
    later.batch(vec![Event::Release { volume: VOLUME, promise: Epoch(5) }]);
    assert_eq!(later.hear_in(6, start(0)), ["store: start 6 c1 base 0"]);
}

#[test]
fn a_write_that_completes_after_its_volume_was_forgotten_says_nothing() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.batch(vec![Event::Forget { volume: VOLUME }]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.done(), ["forgotten true"]);
}

/// Symptom: the engine panics on an underflow of `in_flight`. Cause: the answer to a write of the forgotten lane is
/// counted against the lane that a Start has created since, which then begins its change of epoch twice.
#[test]
fn an_answer_for_a_forgotten_lane_is_not_counted_against_its_successor() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.batch(vec![Event::Forget { volume: VOLUME }]);
    assert_eq!(rig.hear(start(0)), ["store: start 5 c1 base 0"]);
    assert_eq!(rig.done(), NOTHING); // the write
    assert_eq!(rig.done(), ["forgotten true"]);
    assert_eq!(rig.done(), ["tell: ack 0 @0"]);
}

/// After a clean close every member has everything. A replica that has less has lost what it acknowledged (its device
/// dropped the last writes as torn, say) and must say so, not begin the epoch as if it were whole.
#[test]
fn a_clean_start_above_the_own_prefix_is_answered_with_the_loss() {
    let clean = |base| ToReplica::Start { config: 1, base, clean: true };
    let state = || LaneState { current: Epoch(5), prefix: 8, ..LaneState::default() };
    let mut rig = Rig::restarted(5, state());
    assert_eq!(rig.hear_in(7, clean(10)), ["alarm", "tell e7: lost data, 8 left"]);
    // It did not begin: a repeated start is answered the same way, and a read is refused.
    assert_eq!(rig.hear_in(7, clean(10)), ["alarm", "tell e7: lost data, 8 left"]);
    let mut whole = Rig::restarted(5, state());
    assert_eq!(whole.hear_in(7, clean(8)), ["store: start 7 c1 base 8"]);
    // Recovery gives a member what it lacks, so there a lower prefix is no loss.
    let mut behind = Rig::restarted(5, state());
    assert_eq!(behind.hear_in(7, start(10)), ["store: start 7 c1 base 10"]);
}

#[test]
fn a_start_that_finds_no_room_does_not_take_a_newer_one_with_it() {
    let mut rig = Rig::new();
    rig.hear(start(0));
    assert_eq!(rig.hear_in(6, start(0)), NOTHING);
    assert_eq!(rig.answer(FULL), ["store: start 6 c1 base 0"]);
    assert_eq!(rig.alarms, 0);
}
