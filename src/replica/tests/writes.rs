//! R3, R4 and R5: writes in and out of order, acknowledgements, settled.

use super::*;

#[test]
fn a_write_is_acknowledged_when_it_is_durable() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(write(1, run(8, 4))), ["store: write 5.1 [8+4]=1"]);
    assert_eq!(rig.done(), ["tell: ack 1 @100"]);
}

#[test]
fn a_trim_is_a_tombstone() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(trim(1, run(0, 1024))), ["store: write 5.1 [0+1024]=zeroes"]);
}

#[test]
fn writes_in_order_go_to_the_store_at_once() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(write(1, run(0, 1))), ["store: write 5.1 [0+1]=1"]);
    assert_eq!(rig.hear(write(2, run(1, 1))), ["store: write 5.2 [1+1]=2"]);
    assert_eq!(rig.hear(write(3, run(2, 1))), ["store: write 5.3 [2+1]=3"]);
}

#[test]
fn a_write_durable_above_a_gap_is_told_singly() {
    let mut rig = Rig::member();
    for index in 1..=3 {
        rig.hear(write(index, run(index, 1)));
    }
    assert_eq!(rig.answer_nth(1, Reply::Done), ["tell: ack 0 +2 @100"]);
    assert_eq!(rig.answer_nth(1, Reply::Done), ["tell: ack 0 +3 @100"]);
    assert_eq!(rig.done(), ["tell: ack 3 @100"]);
}

#[test]
fn a_write_out_of_order_waits_for_those_before() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(write(3, run(3, 1))), NOTHING);
    assert_eq!(rig.hear(write(2, run(2, 1))), NOTHING);
    let expected = ["store: write 5.1 [1+1]=1", "store: write 5.2 [2+1]=2", "store: write 5.3 [3+1]=3"];
    assert_eq!(rig.hear(write(1, run(1, 1))), expected);
}

#[test]
fn one_ack_covers_a_batch() {
    let mut rig = Rig::member();
    for index in 1..=3 {
        rig.hear(write(index, run(index, 1)));
    }
    let batch = (0..3).map(|_| rig.stored(0, Reply::Done)).collect();
    assert_eq!(rig.batch(batch), ["tell: ack 3 @100"]);
}

#[test]
fn a_batch_tells_every_single_above_the_prefix_and_no_other() {
    let mut rig = Rig::member();
    for index in 1..=5 {
        rig.hear(write(index, run(index, 1)));
    }
    // 3, 5 and 1 become durable: 1 moves the prefix and needs no single.
    let batch = vec![rig.stored(2, Reply::Done), rig.stored(3, Reply::Done), rig.stored(0, Reply::Done)];
    assert_eq!(rig.batch(batch), ["tell: ack 1 +3 @100", "tell: ack 1 +5 @100"]);
}

#[test]
fn a_single_that_the_prefix_reaches_in_the_same_batch_is_not_told() {
    let mut rig = Rig::member();
    for index in 1..=2 {
        rig.hear(write(index, run(index, 1)));
    }
    let batch = vec![rig.stored(1, Reply::Done), rig.stored(0, Reply::Done)];
    assert_eq!(rig.batch(batch), ["tell: ack 2 @100"]);
}

#[test]
fn a_duplicate_of_a_durable_write_is_acknowledged_without_the_store() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.done();
    assert_eq!(rig.hear(write(1, run(0, 1))), ["tell: ack 1 @100"]);
}

#[test]
fn a_duplicate_of_a_write_durable_above_a_gap_is_told_singly() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.hear(write(2, run(1, 1)));
    rig.answer_nth(1, Reply::Done);
    assert_eq!(rig.hear(write(2, run(1, 1))), ["tell: ack 0 +2 @100"]);
}

#[test]
fn a_duplicate_of_a_write_under_way_says_nothing() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    assert_eq!(rig.hear(write(1, run(0, 1))), NOTHING); // in the store
    rig.hear(write(3, run(2, 1)));
    assert_eq!(rig.hear(write(3, run(2, 1))), NOTHING); // queued
}

#[test]
fn a_write_at_or_below_the_base_is_held_already() {
    let mut rig = Rig::new();
    rig.hear(start(9));
    rig.done();
    assert_eq!(rig.hear(write(9, run(0, 1))), ["tell: ack 9 @100"]);
}

#[test]
fn a_full_queue_drops_and_takes_the_write_when_it_is_sent_again() {
    let mut rig = Rig::member();
    rig.engine.queue_writes_max = 1;
    rig.hear(write(2, run(2, 1)));
    assert_eq!(rig.hear(write(3, run(3, 1))), NOTHING);
    assert_eq!(rig.hear(write(1, run(1, 1))), NOTHING); // no room even for the one that is next
    rig.engine.queue_writes_max = 2;
    assert_eq!(rig.hear(write(1, run(1, 1))), ["store: write 5.1 [1+1]=1", "store: write 5.2 [2+1]=2"]);
    assert_eq!(rig.hear(write(3, run(3, 1))), ["store: write 5.3 [3+1]=3"]);
}

#[test]
fn a_write_the_store_refuses_is_alarmed_and_not_acknowledged() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    assert_eq!(rig.answer(Reply::Error(StoreError::Refused("checksums".into()))), ["alarm"]);
}

#[test]
fn a_heartbeat_is_acknowledged_with_its_send_time() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(heartbeat(Progress { sent_at_us: 777, ..progress() })), ["tell: ack 0 @777"]);
}

#[test]
fn the_newest_send_time_is_echoed() {
    let mut rig = Rig::member();
    rig.hear(heartbeat(Progress { sent_at_us: 777, ..progress() }));
    assert_eq!(rig.hear(heartbeat(Progress { sent_at_us: 500, ..progress() })), ["tell: ack 0 @777"]);
}

#[test]
fn the_send_time_of_an_older_writer_is_not_echoed_to_the_next() {
    let mut rig = Rig::member();
    rig.hear(heartbeat(Progress { sent_at_us: 777, ..progress() }));
    rig.hear_in(6, start(4));
    assert_eq!(rig.done(), ["tell e6: ack 4 @0"]);
}

#[test]
fn settled_goes_to_the_store_once() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.done();
    let told = Progress { settled: 1, ..progress() };
    assert_eq!(rig.hear(heartbeat(told)), ["store: settle 1 c1 member", "tell: ack 1 @100"]);
    assert_eq!(rig.hear(heartbeat(told)), ["tell: ack 1 @100"]);
    assert_eq!(rig.hear(heartbeat(progress())), ["tell: ack 1 @100"]); // an older value changes nothing
}

#[test]
fn settled_rides_on_a_write_too() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.done();
    let told = Progress { settled: 1, ..progress() };
    assert_eq!(rig.hear(write_under(told, 2, run(1, 1))), ["store: write 5.2 [1+1]=2", "store: settle 1 c1 member"]);
}

#[test]
fn one_settle_covers_a_batch() {
    let mut rig = Rig::member();
    for index in 1..=2 {
        rig.hear(write(index, run(index, 1)));
        rig.done();
    }
    let batch = (1..=2).map(|settled| said(1, 5, heartbeat(Progress { settled, ..progress() }))).collect();
    assert_eq!(rig.batch(batch), ["store: settle 2 c1 member", "tell: ack 2 @100"]);
}

#[test]
fn settled_above_the_own_prefix_is_alarmed_and_not_adopted() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(heartbeat(Progress { settled: 1, ..progress() })), ["alarm", "tell: ack 0 @100"]);
}

#[test]
fn a_lower_configuration_is_refused_and_a_higher_one_kept() {
    let mut rig = Rig::member();
    let config = |config| Progress { config, ..progress() };
    assert_eq!(rig.hear(heartbeat(config(3))), ["tell: ack 0 @100"]);
    assert_eq!(rig.hear(heartbeat(config(2))), NOTHING);
    assert_eq!(rig.hear(write_under(config(2), 1, run(0, 1))), NOTHING);
    assert_eq!(rig.hear(write_under(config(3), 1, run(0, 1))), ["store: write 5.1 [0+1]=1"]);
    rig.done();
    let told = Progress { settled: 1, ..config(3) };
    assert_eq!(rig.hear(heartbeat(told)), ["store: settle 1 c3 member", "tell: ack 1 @100"]);
}

#[test]
fn answers_go_to_the_link_of_the_newest_message() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    assert_eq!(rig.batch(vec![said(2, 5, heartbeat(progress()))]), ["tell link 2: ack 0 @100"]);
    assert_eq!(rig.done(), ["tell link 2: ack 1 @100"]);
}

#[test]
fn nothing_is_told_over_a_closed_link() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.batch(vec![Event::LinkClosed { link: LinkId(1) }]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.batch(vec![said(2, 5, start(0))]), ["tell link 2: ack 1 @100"]);
}

#[test]
fn a_restarted_replica_knows_its_prefix_and_what_is_above() {
    let live = |index| entry(5, index, EntryOrigin::Live);
    // 4 extends the prefix; 6 is above a gap; neither the copy nor the older epoch's write counts.
    let list = vec![live(4), live(6), entry(5, 7, EntryOrigin::Copy), entry(4, 8, EntryOrigin::Live)];
    let state = LaneState { current: Epoch(5), config: 1, prefix: 3, settled: 2, list, ..LaneState::default() };
    let mut rig = Rig::restarted(5, state);
    assert_eq!(rig.hear(start(0)), ["tell: ack 4 @0"]);
    assert_eq!(rig.hear(write(6, run(6, 1))), ["tell: ack 4 +6 @100"]);
    assert_eq!(rig.hear(write(7, run(7, 1))), NOTHING); // waits for 5
    assert_eq!(rig.hear(write(5, run(5, 1))), ["store: write 5.5 [5+1]=5", "store: write 5.7 [7+1]=7"]);
    assert_eq!(rig.done(), ["tell: ack 6 @100"]);
    assert_eq!(rig.done(), ["tell: ack 7 @100"]);
}

/// A restarted member whose prefix is 3 and that kept writes 6 (blocks 1 and 2) and 7 (block 4).
fn kept_later_ones() -> Rig {
    let kept = |index, range| ListEntry { range, ..entry(5, index, EntryOrigin::Live) };
    let list = vec![kept(6, run(1, 2)), kept(7, run(4, 1))];
    let state = LaneState { current: Epoch(5), config: 1, prefix: 3, settled: 3, list, ..LaneState::default() };
    let mut rig = Rig::restarted(5, state);
    rig.hear(start(0));
    rig
}

#[test]
fn a_lost_write_that_comes_again_leaves_later_ones_alone() {
    let mut rig = kept_later_ones();
    let parts = ["store: write 5.4 [0+1]=4 copy listed", "store: write 5.4 [3+1]=4 copy listed"];
    assert_eq!(rig.hear(write(4, run(0, 5))), parts);
    assert_eq!(rig.hear(write(4, run(0, 5))), NOTHING); // a duplicate: it is under way
    assert_eq!(rig.done(), NOTHING);
    // It counts as held when all parts and the entry of the whole are durable.
    assert_eq!(rig.done(), ["store: write 5.4 [0+5]=held"]);
    assert_eq!(rig.done(), ["tell: ack 4 @100"]);
    assert_eq!(rig.hear(write(5, run(9, 1))), ["store: write 5.5 [9+1]=5"]);
    assert_eq!(rig.done(), ["tell: ack 7 @100"]);
}

#[test]
fn a_lost_write_wholly_under_later_ones_only_enters_the_list() {
    let mut rig = kept_later_ones();
    assert_eq!(rig.hear(write(4, run(1, 2))), ["store: write 5.4 [1+2]=held"]);
    assert_eq!(rig.done(), ["tell: ack 4 @100"]);
}

#[test]
fn a_write_after_the_kept_ones_is_whole() {
    let mut rig = kept_later_ones();
    rig.hear(write(4, run(20, 1)));
    rig.hear(write(5, run(21, 1)));
    assert_eq!(rig.hear(write(8, run(0, 5))), ["store: write 5.8 [0+5]=8"]);
}

/// R1: none becomes durable after the seal is answered, not even the entry of a write whose parts are in the store.
#[test]
fn a_seal_refuses_the_rest_of_a_lost_write() {
    let mut rig = kept_later_ones();
    rig.hear(write(4, run(0, 2)));
    assert_eq!(rig.hear_in(7, ToReplica::Seal), ["store: promise 7"]);
    assert_eq!(rig.done(), NOTHING);
}

#[test]
fn a_restarted_replica_keeps_its_promise_and_settled() {
    let state = LaneState { current: Epoch(5), config: 1, prefix: 3, settled: 2, ..LaneState::default() };
    let mut rig = Rig::restarted(6, state);
    assert_eq!(rig.hear(start(0)), ["tell: fenced by 6"]);
    assert_eq!(rig.hear_in(6, start(3)), ["store: start 6 c1 base 3"]);
    rig.done();
    // 2 is nothing new to it.
    assert_eq!(rig.hear_in(6, heartbeat(Progress { settled: 2, ..progress() })), ["tell e6: ack 3 @100"]);
}
