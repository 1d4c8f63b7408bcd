//! R8 and R10: becoming a joiner, copies, and how a join ends.

use super::*;

const READY: &str = "tell: join 7 ready settled 4 suspects [90+1]";

/// A joiner is told the set's progress with `member` off and the join's configuration.
fn joiner_progress(settled: u64) -> Progress {
    Progress { config: 2, settled, member: false, sent_at_us: 100 }
}

fn live(index: u64, range: BlockRange) -> ToReplica {
    write_under(joiner_progress(0), index, range)
}

#[test]
fn a_join_is_durable_before_the_joiner_tells_its_state() {
    let mut rig = Rig::new();
    assert_eq!(rig.hear(join_start(7)), ["store: join 7 in 5 c2 base 10"]);
    assert_eq!(rig.done(), ["store: promise 5"]); // the question for settled and suspects
    assert_eq!(rig.answer(joined_state()), [READY]);
}

#[test]
fn a_join_waits_for_the_writes_in_the_store() {
    let mut rig = Rig::member();
    rig.hear(write(1, run(0, 1)));
    rig.hear(write(3, run(2, 1))); // queued: refused by the join
    assert_eq!(rig.hear(join_start(7)), NOTHING);
    assert_eq!(rig.done(), ["store: join 7 in 5 c2 base 10"]);
    rig.done();
    assert_eq!(rig.answer(joined_state()), [READY]);
}

#[test]
fn a_repeated_join_is_answered_alike() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(join_start(7)), [READY]);
}

#[test]
fn a_join_repeated_while_it_is_being_stored_says_nothing() {
    let mut rig = Rig::new();
    rig.hear(join_start(7));
    assert_eq!(rig.hear(join_start(7)), NOTHING);
    rig.done();
    assert_eq!(rig.answer(joined_state()), [READY]);
}

/// Symptom: on a slow device no join ever comes about. Cause: a JoinStart repeated while the question for settled and
/// suspects is in the store is answered with JoinLost, as if the joiner had restarted.
#[test]
fn a_join_repeated_before_its_state_is_known_is_not_lost() {
    let mut rig = Rig::new();
    rig.hear(join_start(7));
    rig.done();
    assert_eq!(rig.hear(join_start(7)), NOTHING);
    assert_eq!(rig.answer(joined_state()), [READY]);
}

#[test]
fn a_join_repeated_after_a_restart_is_lost_and_the_next_one_begins() {
    let Reply::Sealed { lanes, .. } = joined_state() else { unreachable!() };
    let mut rig = Rig::restarted(5, lanes[0].1.clone());
    assert_eq!(rig.hear(join_start(7)), ["tell: join 7 lost"]);
    assert_eq!(rig.hear(copy(7, 1, run(0, 1), 3)), ["tell: join 7 lost"]);
    assert_eq!(rig.hear(join_start(8)), ["store: join 8 in 5 c2 base 10"]);
}

#[test]
fn an_earlier_join_and_a_lower_configuration_are_ignored() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(join_start(6)), NOTHING);
    assert_eq!(rig.hear(ToReplica::JoinStart { config: 1, join: 8, base: 11 }), NOTHING);
    // In a new epoch configurations count anew.
    let next = ToReplica::JoinStart { config: 1, join: 8, base: 11 };
    assert_eq!(rig.hear_in(6, next), ["store: join 8 in 6 c1 base 11"]);
}

#[test]
fn a_join_fenced_while_it_is_being_stored_is_not_answered() {
    let mut rig = Rig::new();
    rig.hear(join_start(7));
    rig.hear_in(6, ToReplica::Seal);
    assert_eq!(rig.done(), NOTHING);
}

#[test]
fn a_join_fenced_while_its_state_is_asked_is_not_answered() {
    let mut rig = Rig::new();
    rig.hear(join_start(7));
    rig.done();
    rig.hear_in(6, ToReplica::Seal);
    assert_eq!(rig.answer(joined_state()), NOTHING);
}

#[test]
fn a_joiner_takes_live_writes_after_the_base() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(live(11, run(0, 1))), ["store: write 5.11 [0+1]=11"]);
    assert_eq!(rig.done(), ["tell: ack 11 @100"]);
}

#[test]
fn a_joiner_trims_its_list_up_to_settled_but_not_above_its_prefix() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(heartbeat(joiner_progress(8))), ["store: settle 8 c2 joiner", "tell: ack 10 @100"]);
    // No alarm: before its promotion the set's settled may be ahead of it.
    assert_eq!(rig.hear(heartbeat(joiner_progress(15))), ["store: settle 10 c2 joiner", "tell: ack 10 @100"]);
}

#[test]
fn settled_as_a_member_ends_the_join() {
    let mut rig = Rig::joiner();
    let promoted = Progress { config: 3, settled: 10, member: true, sent_at_us: 200 };
    assert_eq!(rig.hear(heartbeat(promoted)), ["store: settle 10 c3 member", "tell: ack 10 @200"]);
    assert_eq!(rig.hear(copy(7, 1, run(0, 1), 3)), ["tell: join 7 lost"]);
    assert_eq!(rig.hear(read(1, run(0, 1))), ["store: read [0+1]"]);
}

#[test]
fn a_promotion_clears_the_suspects_even_if_settled_is_what_it_was() {
    let mut rig = Rig::joiner();
    let promoted = Progress { config: 3, settled: 4, member: true, sent_at_us: 200 };
    assert_eq!(rig.hear(heartbeat(promoted)), ["store: settle 4 c3 member", "tell: ack 10 @200"]);
}

#[test]
fn a_copy_is_listed_only_above_settled() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(copy(7, 1, run(0, 2), 8)), ["store: write 4.8 [0+2]=8 copy"]);
    assert_eq!(rig.hear(copy(7, 2, run(2, 2), 9)), ["store: write 4.9 [2+2]=9 copy listed"]);
    assert_eq!(rig.done(), ["tell: copy 1 of 7 done"]);
    assert_eq!(rig.done(), ["tell: copy 2 of 7 done"]);
}

#[test]
fn copied_zeroes_are_tombstones() {
    let mut rig = Rig::joiner();
    let stamp = Stamp { epoch: Epoch(4), index: 9 };
    let (range, content) = (run(0, 64), Content::Zeroes);
    let message = ToReplica::Copy { join: 7, request: 1, range, stamp, content, settled: 8 };
    assert_eq!(rig.hear(message), ["store: write 4.9 [0+64]=zeroes copy listed"]);
}

#[test]
fn a_copy_leaves_out_what_was_written_live() {
    let mut rig = Rig::joiner();
    rig.hear(live(11, run(2, 1)));
    rig.hear(live(12, run(4, 1)));
    let expected = [
        "store: write 4.9 [0+2]=9 copy listed",
        "store: write 4.9 [3+1]=9 copy listed",
        "store: write 4.9 [5+1]=9 copy listed",
    ];
    assert_eq!(rig.hear(copy(7, 1, run(0, 6), 9)), expected);
    rig.done();
    rig.done();
    // One answer, when the last part is durable.
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.done(), ["tell: copy 1 of 7 done"]);
}

#[test]
fn a_copy_of_blocks_all_written_live_is_done_at_once() {
    let mut rig = Rig::joiner();
    rig.hear(live(11, run(0, 4)));
    rig.done();
    assert_eq!(rig.hear(copy(7, 1, run(1, 2), 9)), ["tell: copy 1 of 7 done"]);
}

#[test]
fn a_live_write_follows_a_copy_that_is_in_the_store() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 1), 9));
    assert_eq!(rig.hear(live(11, run(0, 1))), ["store: write 5.11 [0+1]=11"]);
    // The copy does not move the prefix.
    assert_eq!(rig.done(), ["tell: copy 1 of 7 done"]);
    assert_eq!(rig.done(), ["tell: ack 11 @100"]);
}

#[test]
fn a_repeated_copy_is_stored_once_while_under_way() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 1), 9));
    assert_eq!(rig.hear(copy(7, 1, run(0, 1), 9)), NOTHING);
    assert_eq!(rig.done(), ["tell: copy 1 of 7 done"]);
}

#[test]
fn copies_of_another_join_are_lost() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(copy(6, 1, run(0, 1), 9)), ["tell: join 6 lost"]);
    assert_eq!(rig.hear(copy(8, 1, run(0, 1), 9)), ["tell: join 8 lost"]);
    assert_eq!(rig.hear_in(6, copy(7, 1, run(0, 1), 9)), ["tell e6: join 7 lost"]);
}

#[test]
fn a_member_takes_no_copies() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(copy(7, 1, run(0, 1), 9)), ["tell: join 7 lost"]);
}

#[test]
fn a_new_join_waits_for_the_copies_of_the_old_one_and_does_not_answer_them() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 1), 9));
    assert_eq!(rig.hear(join_start(8)), NOTHING);
    assert_eq!(rig.hear(copy(7, 2, run(1, 1), 9)), ["tell: join 7 lost"]);
    assert_eq!(rig.done(), ["store: join 8 in 5 c2 base 10"]);
}

#[test]
fn the_written_bits_of_an_old_join_do_not_hold_off_copies_of_the_new_one() {
    let mut rig = Rig::joiner();
    rig.hear(live(11, run(0, 1)));
    rig.done();
    rig.hear(ToReplica::JoinStart { config: 2, join: 8, base: 11 });
    rig.done();
    let Reply::Sealed { promised, mut lanes } = joined_state() else { unreachable!() };
    lanes[0].1.join = 8;
    rig.answer(Reply::Sealed { promised, lanes });
    assert_eq!(rig.hear(copy(8, 1, run(0, 1), 9)), ["store: write 4.9 [0+1]=9 copy listed"]);
}

#[test]
fn a_copy_without_room_waits_and_a_live_write_waits_behind_it() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 2), 9));
    assert_eq!(rig.answer(FULL), ["tell: ack 10 @0 full"]);
    assert_eq!(rig.hear(live(11, run(1, 1))), NOTHING);
    assert_eq!(rig.hear(copy(7, 2, run(0, 1), 9)), NOTHING);
    // Block 1 has been written live meanwhile: that write brings it.
    assert_eq!(rig.tick(), ["store: write 4.9 [0+1]=9 copy listed"]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.tick(), ["store: write 5.11 [1+1]=11", "store: write 4.9 [0+1]=9 copy listed"]);
    assert_eq!(rig.done(), ["tell: copy 1 of 7 done", "tell: ack 11 @100"]);
}

/// As `a_write_without_room_is_not_retried_over_a_later_one_that_is_durable`, for a copy: old data over new.
#[test]
fn a_copy_without_room_is_not_retried_over_a_later_live_write() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 1), 9));
    rig.hear(live(11, run(0, 1)));
    rig.answer(FULL);
    rig.done(); // the live write
    let retried = rig.tick();
    assert!(!retried.contains(&"store: write 4.9 [0+1]=9 copy listed".to_string()), "{retried:?}");
}

#[test]
fn no_copy_is_answered_after_a_higher_promise() {
    let mut rig = Rig::joiner();
    rig.hear(copy(7, 1, run(0, 1), 9));
    rig.hear_in(6, ToReplica::Seal);
    assert_eq!(rig.done(), NOTHING);
}

#[test]
fn a_join_that_finds_no_room_is_lost_at_once_and_the_next_one_is_tried() {
    let mut rig = Rig::new();
    rig.hear(join_start(7));
    assert_eq!(rig.answer(FULL), ["tell: join 7 lost"]);
    assert_eq!(rig.hear(join_start(8)), ["store: join 8 in 5 c2 base 10"]);
    assert_eq!(rig.alarms, 0);
}

/// Symptom: a joiner is promoted that holds neither a copy nor the live write that superseded it; with the writer gone,
/// old content is read. Cause: a copy is answered as soon as a live write of its blocks is accepted (the written bits
/// belong to the write's own commit, R4).
#[test]
fn a_copy_that_a_live_write_superseded_is_done_when_that_write_is_durable() {
    let mut rig = Rig::joiner();
    rig.hear(live(11, run(3, 1)));
    assert_eq!(rig.hear(copy(7, 1, run(3, 1), 9)), NOTHING);
    let answers = rig.done();
    assert!(answers.contains(&"tell: copy 1 of 7 done".to_owned()), "{answers:?}");
}

#[test]
fn the_rest_of_a_copy_that_a_live_write_superseded_is_stored_meanwhile() {
    let mut rig = Rig::joiner();
    rig.hear(live(11, run(3, 1)));
    assert_eq!(rig.hear(copy(7, 1, run(2, 2), 9)), ["store: write 4.9 [2+1]=9 copy listed"]);
    assert_eq!(rig.answer_nth(1, Reply::Done), NOTHING);
    assert!(rig.done().contains(&"tell: copy 1 of 7 done".to_owned()));
}
