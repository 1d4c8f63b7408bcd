//! C3: rejoin, from JoinStart to promotion, and what interrupts it.

use super::*;

/// A and B are in sync after index 7, C is stale; the volume has one chunk and serves.
fn stale_c() -> Rig {
    Setup { in_sync: "AB", clean: Some(7), chunks: 1, ..Setup::default() }.serving()
}

/// C has answered JoinStart: settled 4, blocks 100 and 101 suspect. A has been asked for the map.
fn joining() -> Rig {
    let mut rig = stale_c();
    assert_eq!(rig.tick(), ["C: join #1 c1 base 7"]);
    assert_eq!(ready(&mut rig, JOIN), ["A: map [0+1024] min 7"]);
    rig
}

fn ready(rig: &mut Rig, join: u64) -> Vec<String> {
    rig.tell('C', ToWriter::JoinReady { join, settled: 4, suspects: vec![run(100, 2)] })
}

/// A map of settled data except for the blocks given.
fn map(range: BlockRange, special: &[(u64, BlockCondition, Stamp)]) -> ReadReply {
    let mut reply = good(range, 1, stamp(3, 4));
    reply.payload = None;
    for (block, condition, stamp) in special {
        reply.conditions[*block as usize] = *condition;
        reply.stamps[*block as usize] = *stamp;
    }
    reply
}

/// What the joiner lacks: data in block 0 (4.6) and 1 (4.5), zeroes in 9 (4.7), and the suspects.
fn lacking(range: BlockRange) -> ReadReply {
    let data = BlockCondition::Data(0);
    map(range, &[(0, data, stamp(4, 6)), (1, data, stamp(4, 5)), (9, BlockCondition::Zero, stamp(4, 7))])
}

fn nothing_lacking(range: BlockRange) -> ReadReply {
    map(range, &[(100, BlockCondition::Zero, stamp(0, 0)), (101, BlockCondition::Zero, stamp(0, 0))])
}

#[test]
fn a_stale_device_of_the_copyset_is_asked_to_join() {
    let mut rig = stale_c();
    assert_eq!(rig.tick(), ["C: join #1 c1 base 7"]);
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["C: join #1 c1 base 7"]); // repeated until answered
}

#[test]
fn a_device_that_cannot_be_reached_is_not_asked() {
    let mut rig = stale_c();
    rig.down('C');
    assert_eq!(rig.tick(), NOTHING);
    rig.up('C');
    assert_eq!(rig.tick(), ["C: join #1 c1 base 7"]);
}

#[test]
fn the_number_of_lanes_that_join_together_is_limited() {
    let settings = Settings { joins_max: 1, ..Settings::default() };
    let mut rig = Setup { in_sync: "AB", lane_count: 2, settings, ..Setup::default() }.serving();
    assert_eq!(rig.tick(), ["C: join #1 c1 base 0"]);
}

#[test]
fn a_joiner_gets_live_writes_once_it_has_answered() {
    let mut rig = stale_c();
    rig.tick();
    assert_eq!(rig.write(1, run(0, 1)).len(), 2);
    assert_eq!(ready(&mut rig, JOIN)[0], "C: write 8 [0+1]=1 c1 s7 joiner");
    assert_eq!(rig.write(2, run(1, 1))[2], "C: write 9 [1+1]=2 c1 s7 joiner");
}

#[test]
fn a_joiner_does_not_count() {
    let mut rig = joining();
    rig.serve_with('A', nothing_lacking);
    rig.write(1, run(0, 1));
    assert_eq!(rig.ack('C', 8), NOTHING);
    assert_eq!(rig.ack('A', 8), NOTHING);
    assert_eq!(rig.ack('B', 8), ["1: written"]);
}

#[test]
fn writes_are_kept_for_the_joiner_from_when_the_join_is_decided() {
    let mut rig = stale_c();
    rig.tick();
    rig.write(1, run(0, 1));
    rig.ack('A', 8);
    rig.ack('B', 8);
    assert_eq!(rig.retained_bytes(), 4096);
    assert_eq!(ready(&mut rig, JOIN)[0], "C: write 8 [0+1]=1 c1 s8 joiner");
    rig.ack('C', 8);
    assert_eq!(rig.retained_bytes(), 0);
}

#[test]
fn only_newer_and_suspect_blocks_are_copied() {
    let mut rig = joining();
    let expected = ["A: read [0+2] min 7", "C: copy [9+1]=zeroes 4.7 s7", "A: read [100+2] min 7"];
    assert_eq!(rig.serve_with('A', lacking), expected);
    // One copy per version.
    let two_versions = |range| {
        let mut reply = good(range, 5, stamp(4, 6));
        reply.stamps[1] = stamp(4, 5);
        reply
    };
    assert_eq!(rig.serve_with('A', two_versions), ["C: copy [0+1]=5 4.6 s7", "C: copy [1+1]=5 4.5 s7"]);
    let suspects = |range| good(range, 6, stamp(3, 2));
    assert_eq!(rig.serve_with('A', suspects), ["C: copy [100+2]=6 3.2 s7"]);
}

#[test]
fn a_joiner_is_promoted_when_every_copy_is_durable() {
    let mut rig = joining();
    rig.serve_with('A', lacking);
    rig.serve('A', 5);
    rig.serve('A', 6);
    assert_eq!(rig.copied('C'), NOTHING);
    assert_eq!(rig.copied('C'), NOTHING);
    assert_eq!(rig.copied('C'), ["cas c1 ABC"]);
    rig.beats = true;
    assert_eq!(rig.cas_done(), ["A: beat c2 s7", "B: beat c2 s7", "C: beat c2 s7"]);
    let counters = rig.engine.counters();
    assert_eq!((counters.joins, counters.join_bytes), (1, 4 * 4096));
}

#[test]
fn a_joiner_that_lacks_nothing_is_promoted_after_the_map() {
    let mut rig = joining();
    let reply = |range| ReadReply { stamps: vec![stamp(3, 4); 1024], ..nothing_lacking(range) };
    // Suspects are copied whatever their version.
    assert_eq!(rig.serve_with('A', reply), ["C: copy [100+2]=zeroes 3.4 s7"]);
    assert_eq!(rig.copied('C'), ["cas c1 ABC"]);
}

/// What it says that it has may be of a history that ended when the metadata was lost.
#[test]
fn after_a_restore_a_joiner_is_not_believed() {
    let mut rig = Setup { in_sync: "AB", clean: Some(7), chunks: 1, trusted: Some("AB"), ..Setup::default() }.serving();
    rig.tick();
    ready(&mut rig, JOIN);
    let zeroes = |range: BlockRange| {
        let mut reply = good(range, 1, stamp(3, 4));
        (reply.payload, reply.conditions) = (None, vec![BlockCondition::Zero; 1024]);
        reply.stamps[500..].fill(stamp(0, 0));
        reply
    };
    let copies = ["C: copy [0+500]=zeroes 3.4 s7", "C: copy [500+524]=zeroes 0.0 s7"];
    assert_eq!(rig.serve_with('A', zeroes), copies, "also what was never written");
    rig.copied('C');
    assert_eq!(rig.copied('C'), ["cas c1 ABC"]);
    rig.cas_done();
    // From now on it has followed.
    rig.on(Event::Eject { device: device('C') });
    assert_eq!(rig.pass_ms(10).tick(), ["cas c2 AB"]);
    rig.cas_done();
    assert_eq!(rig.pass_ms(60_000).tick(), ["C: join #2 c3 base 7"]);
    ready(&mut rig, JOIN + 1);
    assert_eq!(rig.serve_with('A', nothing_lacking), ["C: copy [100+2]=zeroes 0.0 s7"]);
}

/// The spec is newer than the grant, which was given before C came: nothing is known of C.
#[test]
fn after_a_restore_a_member_that_the_grant_does_not_know_is_not_believed() {
    for (trusted, copies) in [("ABD", vec!["C: copy [0+1024]=zeroes 3.4 s7"]), ("ABC", vec!["cas c1 ABC"])] {
        let setup = Setup { in_sync: "AB", clean: Some(7), chunks: 1, trusted: Some(trusted), ..Setup::default() };
        let mut rig = setup.serving();
        rig.tick();
        rig.tell('C', ToWriter::JoinReady { join: JOIN, settled: 4, suspects: vec![] });
        let zeroes = |range: BlockRange| {
            let mut reply = good(range, 1, stamp(3, 4));
            (reply.payload, reply.conditions) = (None, vec![BlockCondition::Zero; 1024]);
            reply
        };
        assert_eq!(rig.serve_with('A', zeroes), copies, "{trusted}");
    }
}

/// Nothing proves the last writes of a crashed device, so damage to them looks torn: it comes back with fewer.
#[test]
fn a_member_that_lost_data_before_the_open_counts_once_and_is_copied_again() {
    let mut rig = Setup { clean: Some(7), chunks: 1, ..Setup::default() }.granted();
    rig.ack('A', 7);
    rig.ack('B', 7);
    let lost = || ToWriter::LostData { prefix: 5 };
    assert_eq!(rig.tell('C', lost()), ["alarm"]);
    assert_eq!(rig.tell('C', lost()), NOTHING); // it says so to every Start
    assert_eq!(rig.tick(), ["C: start c1 base 7", "cas c1 AB"]);
    rig.cas_done();
    assert_eq!(rig.pass_ms(500).tick(), ["C: join #1 c2 base 7"]);
    assert_eq!(ready(&mut rig, JOIN), ["A: map [0+1024] min 7"]);
    assert_eq!(rig.serve_with('A', nothing_lacking), ["C: copy [100+2]=zeroes 0.0 s7"]);
    assert_eq!(rig.copied('C'), ["cas c2 ABC"]);
    rig.cas_done();
    let counters = rig.engine.counters();
    assert_eq!((counters.lost_data, counters.ejections, counters.joins), (1, 1, 1));
    assert_eq!((counters.damaged_blocks, counters.repaired_blocks), (0, 0));
}

/// It follows this epoch: what it says about an earlier Start is old.
#[test]
fn a_member_that_follows_has_not_lost_data() {
    let mut rig = Setup { clean: Some(7), ..Setup::default() }.serving();
    assert_eq!(rig.tell('C', ToWriter::LostData { prefix: 5 }), NOTHING);
    assert_eq!(rig.engine.counters().lost_data, 0);
}

#[test]
fn a_joiner_behind_settled_is_promoted_when_it_has_caught_up() {
    let mut rig = joining();
    rig.serve_with('A', nothing_lacking);
    rig.write(1, run(0, 1));
    rig.ack('A', 8);
    rig.ack('B', 8);
    assert_eq!(rig.copied('C'), NOTHING);
    assert_eq!(rig.tick(), NOTHING);
    rig.ack('C', 8);
    assert_eq!(rig.tick(), ["cas c1 ABC"]);
}

#[test]
fn a_promotion_out_needs_both_sets() {
    let mut rig = joining();
    rig.serve_with('A', nothing_lacking);
    rig.copied('C');
    rig.write(1, run(0, 1));
    assert_eq!(rig.ack('C', 8), NOTHING);
    assert_eq!(rig.ack('A', 8), NOTHING); // two of {A, B, C}, one of {A, B}
    assert_eq!(rig.cas_done(), ["1: written"]);
}

#[test]
fn the_copy_window_is_limited() {
    let settings = Settings { join_window: 2, ..Settings::default() };
    let mut rig = Setup { in_sync: "AB", clean: Some(7), chunks: 4, settings, ..Setup::default() }.serving();
    rig.tick();
    let maps = ["A: map [0+1024] min 7", "B: map [1024+1024] min 7"];
    assert_eq!(ready(&mut rig, JOIN), maps);
    assert_eq!(rig.serve_with('B', |range| map(range, &[])), ["A: map [2048+1024] min 7"]);
}

#[test]
fn the_last_chunk_may_be_short_and_lanes_take_their_own_chunks() {
    let mut rig = Setup { in_sync: "AB", chunks: 3, lane_count: 2, ..Setup::default() }.serving();
    rig.tick();
    let message = ToWriter::JoinReady { join: JOIN, settled: 0, suspects: vec![] };
    let ready = |lane| Event::Message { envelope: envelope(lane, 'C'), message: message.clone() };
    assert_eq!(rig.on(ready(0)), ["A: map [0+1024]", "A: map [2048+1024]"]);
    assert_eq!(rig.on(ready(1)), ["B/1: map [1024+1024]"]);
}

/// Symptom: under load no join comes about. Cause: a join asks for the map of a chunk only when some member holds every
/// write to it, as a guest's read must; a source only needs the join's base, for later writes reach the joiner live.
#[test]
fn a_write_under_way_does_not_hold_the_join_off() {
    let mut rig = stale_c();
    rig.tick();
    rig.write(1, run(0, 1));
    assert_eq!(ready(&mut rig, JOIN), ["C: write 8 [0+1]=1 c1 s7 joiner", "A: map [0+1024] min 7"]);
}

#[test]
fn a_source_that_refuses_is_asked_again() {
    let mut rig = joining();
    assert_eq!(rig.refuse('A'), NOTHING);
    assert_eq!(rig.pass_ms(10).tick(), ["A: map [0+1024] min 7"]);
}

#[test]
fn a_damaged_source_is_replaced_by_another_member() {
    let mut rig = joining();
    rig.serve_with('A', |range| map(range, &[(0, BlockCondition::Data(0), stamp(4, 6))]));
    let bad = |range| ReadReply { conditions: vec![BlockCondition::Bad(1)], ..zeroes(range, stamp(4, 6)) };
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1] min 7"]);
    assert_eq!(rig.serve_with('B', |range| good(range, 5, stamp(4, 6))), ["C: copy [0+1]=5 4.6 s7"]);
}

#[test]
fn a_block_that_is_damaged_at_every_source_is_copied_as_lost_and_does_not_hold_up_the_rest() {
    let mut rig = joining();
    let data = (0, BlockCondition::Data(0), stamp(4, 6));
    rig.serve_with('A', |range| map(range, &[data, (1, BlockCondition::Data(0), stamp(4, 6))]));
    let bad = |range: BlockRange| {
        let good = good(range, 5, stamp(4, 6));
        let conditions = [&[BlockCondition::Bad(1)], &good.conditions[1..]].concat();
        ReadReply { conditions, ..good }
    };
    assert_eq!(rig.serve_with('A', bad), ["C: copy [1+1]=5 4.6 s7", "alarm", "B: read [0+1] min 7"]);
    let recorded = u128::MAX << 32 | 1;
    let asks = format!("C: confirm [0+1] [{recorded}] s7");
    assert_eq!(rig.serve_with('B', bad), ["alarm", "alarm", &asks]);
    let (_, request) = rig.copies.pop().unwrap();
    let differs = ToWriter::Confirmed { join: JOIN, request, differs: vec![run(0, 1)] };
    assert_eq!(rig.tell('C', differs), ["C: copy [0+1]=lost 4.6 s7"]);
    rig.serve('A', 6); // the suspects
    rig.copied('C');
    rig.copied('C');
    assert_eq!(rig.copied('C'), ["cas c1 ABC"]);
}

/// A block was damaged at A and, in the end, at B; meanwhile A's copy was repaired.
#[test]
fn a_source_that_was_repaired_is_asked_once_more_before_a_block_is_lost() {
    let bad = |range: BlockRange| ReadReply { conditions: vec![BlockCondition::Bad(1)], ..zeroes(range, stamp(4, 6)) };
    let again = ["A: read [0+1] min 7"];
    let repaired = |rig: &mut Rig| rig.tell('A', ToWriter::Repaired { block: 0 });
    let damaged = || {
        let mut rig = joining();
        rig.serve_with('A', |range| map(range, &[(0, BlockCondition::Data(0), stamp(4, 6))]));
        rig.serve_with('A', bad);
        rig
    };
    // While B is asked,
    let mut rig = damaged();
    repaired(&mut rig);
    assert_eq!(rig.serve_with('B', bad).last().unwrap(), again[0]);
    // while the joiner is asked,
    let mut rig = damaged();
    rig.serve_with('B', bad);
    let (_, request) = rig.copies.pop().unwrap();
    repaired(&mut rig);
    let differs = ToWriter::Confirmed { join: JOIN, request, differs: vec![run(0, 1)] };
    assert_eq!(rig.tell('C', differs.clone()), again);
    // and when it has been told that the block is lost.
    let mut rig = damaged();
    rig.serve_with('B', bad);
    rig.copies.pop();
    rig.tell('C', differs);
    repaired(&mut rig);
    assert_eq!(rig.copied('C'), again);
    rig.serve('A', 6); // the suspects
    assert_eq!(rig.serve_with('A', |range| good(range, 5, stamp(4, 6))), ["C: copy [0+1]=5 4.6 s7"]);
}

/// Symptom: a joiner was told that a block is lost though the only member left was sound again. Cause: what that one had said
/// before still counted when the other member, for which the read had waited, was out.
#[test]
fn sources_are_asked_once_more_when_the_one_that_was_waited_for_is_out() {
    let bad = |range: BlockRange| ReadReply { conditions: vec![BlockCondition::Bad(1)], ..zeroes(range, stamp(4, 6)) };
    let waited = || {
        let mut rig = joining();
        rig.serve_with('A', |range| map(range, &[(0, BlockCondition::Data(0), stamp(4, 6))]));
        rig.serve_with('A', bad);
        let mut said = rig.pass_ms(1).tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
        said.extend(rig.tick());
        assert!(said.contains(&"A: read [0+1] min 7".into()), "{said:?}");
        rig.serve('A', 6); // the suspects
        rig
    };
    let mut rig = waited();
    let answer = rig.serve_with('A', |range| good(range, 5, stamp(4, 6)));
    assert!(answer.iter().any(|line| line.starts_with("C: copy [0+1]=5 4.6")), "{answer:?}");
    let answer = waited().serve_with('A', bad);
    assert!(answer.iter().any(|line| line.starts_with("C: confirm [0+1]")), "now it counts: {answer:?}");
}

#[test]
fn a_block_that_only_the_joiner_has_is_kept_there() {
    let mut rig = joining();
    rig.serve_with('A', |range| map(range, &[(0, BlockCondition::Data(0), stamp(4, 6))]));
    let bad = |range: BlockRange| ReadReply { conditions: vec![BlockCondition::Bad(1)], ..zeroes(range, stamp(4, 6)) };
    rig.serve_with('A', bad);
    rig.serve_with('B', bad);
    let (_, request) = rig.copies.pop().unwrap();
    assert_eq!(rig.tell('C', ToWriter::Confirmed { join: JOIN, request, differs: vec![] }), NOTHING);
    rig.serve('A', 6); // the suspects
    assert_eq!(rig.copied('C'), ["cas c1 ABC"]);
}

#[test]
fn a_lost_join_begins_again_later_with_a_new_number() {
    let mut rig = joining();
    rig.write(1, run(0, 1));
    rig.ack('A', 8);
    rig.ack('B', 8);
    assert_eq!(rig.retained_bytes(), 4096);
    assert_eq!(rig.tell('C', ToWriter::JoinLost { join: JOIN }), NOTHING);
    assert_eq!(rig.retained_bytes(), 0);
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["C: join #2 c1 base 8"]);
    // Answers to the old join change nothing.
    assert_eq!(ready(&mut rig, JOIN), NOTHING);
    assert_eq!(rig.tell('C', ToWriter::CopyDone { join: JOIN, request: 1 }), NOTHING);
    assert_eq!(rig.serve_with('A', lacking), NOTHING);
    assert_eq!(ready(&mut rig, JOIN + 1), ["A: map [0+1024] min 8"]);
}

/// Symptom: a device that answers and then fails to join is taken up again every second. Cause: only a join without an
/// answer counted as one that came to nothing.
#[test]
fn joins_that_come_to_nothing_after_the_answer_are_tried_later_and_later() {
    let mut rig = joining();
    for (join, pause_ms) in [(JOIN, 1_000), (JOIN + 1, 2_000), (JOIN + 2, 4_000)] {
        assert_eq!(rig.tell('C', ToWriter::JoinLost { join }), NOTHING);
        rig.pass_ms(pause_ms - 1);
        rig.ack('A', 7);
        rig.ack('B', 7);
        assert_eq!(rig.tick(), NOTHING);
        let again = format!("C: join #{} c1 base 7", join + 2 - JOIN);
        assert_eq!(rig.pass_ms(1).tick(), [again]);
        ready(&mut rig, join + 1);
    }
}

#[test]
fn the_loss_of_another_join_changes_nothing() {
    let mut rig = joining();
    rig.tell('C', ToWriter::JoinLost { join: JOIN - 1 });
    assert_eq!(rig.serve_with('A', lacking).len(), 3);
}

#[test]
fn a_join_whose_link_is_lost_begins_again_a_second_later_each_time() {
    let mut rig = joining();
    for join in 1..4 {
        rig.down('C');
        assert_eq!(rig.up('C'), NOTHING);
        rig.pass_ms(1_000);
        rig.ack('A', 7);
        rig.ack('B', 7);
        assert_eq!(rig.tick(), [format!("C: join #{} c1 base 7", join + 1)]);
        ready(&mut rig, JOIN + join);
    }
}

/// A lane with one copy does not wait longer for another, however often that failed.
#[test]
fn the_only_other_copy_is_tried_every_second() {
    let mut rig = Setup { in_sync: "A", copyset: "AC", ..Setup::default() }.serving();
    rig.pass_ms(1_000);
    let asks = |effects: &[String]| effects.iter().any(|line| line.starts_with("C: join #"));
    assert!(asks(&rig.tick()));
    for join in 1..4 {
        rig.tell('C', ToWriter::JoinLost { join: (EPOCH << 24) + join });
        rig.ack('A', 0);
        assert!(!asks(&rig.pass_ms(999).tick()), "join {join}");
        rig.ack('A', 0);
        assert!(asks(&rig.pass_ms(1).tick()), "join {join}");
    }
}

#[test]
fn a_promotion_out_is_not_taken_back_when_the_joiner_goes_away() {
    let mut rig = joining();
    rig.serve_with('A', nothing_lacking);
    rig.copied('C');
    rig.down('C');
    assert_eq!(rig.up('C'), NOTHING);
    assert_eq!(rig.cas_done(), ["C: start c2 base 7"]);
    rig.write(1, run(0, 1));
    assert_eq!(rig.ack('C', 7), ["C: write 8 [0+1]=1 c2 s7"]);
}

#[test]
fn an_ejected_device_is_taken_back_after_a_pause() {
    let settings = Settings { eject_lag_bytes: 4096, ..Settings::default() };
    let mut rig = Setup { chunks: 1, settings, ..Setup::default() }.serving();
    rig.write(1, run(0, 2));
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.tick(), ["cas c1 AB"]); // C lags too far
    rig.cas_done();
    assert_eq!(rig.pass_ms(4_999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["C: join #1 c2 base 1"]);
}

#[test]
fn a_failed_device_is_never_taken_back() {
    let mut rig = Setup { chunks: 1, ..Setup::default() }.serving();
    rig.tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
    rig.tick();
    rig.cas_done();
    rig.down('B');
    rig.up('B');
    assert_eq!(rig.pass_ms(60_000).tick(), NOTHING);
}

#[test]
fn a_failed_joiner_is_dropped() {
    let mut rig = joining();
    assert_eq!(rig.tell('C', ToWriter::DeviceFailed { reason: "gone".into() }), ["alarm"]);
    assert_eq!(rig.pass_ms(5_000).tick(), NOTHING);
}

/// C joins, B has failed, and B's ejection is out.
fn joining_while_ejecting() -> Rig {
    let mut rig = joining();
    rig.tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(rig.tick(), ["cas c1 A"]);
    rig
}

#[test]
fn a_join_goes_on_while_another_member_is_ejected() {
    let mut rig = joining_while_ejecting();
    rig.cas_done();
    rig.serve_with('A', nothing_lacking);
    assert_eq!(rig.copied('C'), ["cas c2 AC"]);
}

/// Symptom: the lane never gets its replica back, keeps every write from then on, and in the end stops. Cause: no join
/// is dropped while any change is out, although only its own promotion must be waited for.
#[test]
fn a_join_lost_while_another_member_is_ejected_begins_again() {
    let mut rig = joining_while_ejecting();
    rig.down('C');
    rig.up('C');
    rig.cas_done();
    assert_eq!(rig.pass_ms(1_000).tick(), ["C: join #2 c2 base 7"]);
}

#[test]
fn a_copy_without_an_answer_is_sent_again_and_answered_once() {
    let mut rig = joining();
    rig.serve_with('A', lacking);
    rig.serve('A', 2);
    rig.copies.clear();
    let again = rig.pass_ms(1000).tick();
    assert!(again.iter().any(|line| line.starts_with("C: copy [9+1]=zeroes")), "{again:?}");
    rig.copied('C');
    let request = rig.copies.first().map(|(_, request)| *request);
    rig.copied('C');
    // The same answer again changes nothing.
    rig.tell('C', ToWriter::CopyDone { join: JOIN, request: request.unwrap() });
    rig.tell('C', ToWriter::CopyDone { join: JOIN, request: 12345 });
}

/// Symptom: all writes of a volume stop. Cause: writes are kept for a joiner whose device hangs or does not open, for ever.
#[test]
fn a_joiner_that_does_not_answer_is_left_alone_for_longer_and_longer() {
    let mut rig = stale_c();
    let mut begun = Vec::new();
    for tenth in 0..400 {
        if rig.pass_ms(100).tick().iter().any(|line| line.starts_with("C: join")) {
            begun.push(tenth);
        }
        for name in ['A', 'B'] {
            rig.ack(name, 7);
        }
    }
    // Five seconds of asking once a second, then pauses of one, two and four seconds.
    let pauses: Vec<i32> = begun.windows(2).map(|w| w[1] - w[0]).filter(|pause| *pause > 10).collect();
    assert_eq!(pauses[..2], [20, 30], "{begun:?}");
}

#[test]
fn a_joiner_whose_node_does_not_serve_it_is_not_waited_for() {
    let mut rig = stale_c();
    rig.tick();
    rig.tell('C', ToWriter::NotServed);
    assert_eq!(rig.engine.status().lanes[0].join, None);
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["C: join #2 c1 base 7"]);
}

#[test]
fn a_join_that_has_not_begun_ends_before_what_is_kept_for_it_holds_writes_back() {
    let settings = Settings { eject_lag_bytes: 4 * 4096, ..Settings::default() };
    let mut rig = Setup { in_sync: "AB", clean: Some(7), chunks: 1, settings, ..Setup::default() }.serving();
    rig.tick();
    for id in 1..=3 {
        rig.write(id, run(id, 1));
        rig.ack('A', 7 + id);
        rig.ack('B', 7 + id);
    }
    rig.tick();
    assert_eq!((rig.engine.status().lanes[0].join.is_some(), rig.retained_bytes()), (false, 0));
}

/// C is stale in a volume whose joins compare, and has been told of; the map of what it may lack is there.
fn comparing() -> Rig {
    let mut rig = Setup { in_sync: "AB", clean: Some(7), chunks: 1, compares: true, ..Setup::default() }.serving();
    rig.tick();
    ready(&mut rig, JOIN);
    let asked = ["A: digest [0+2] min 7", "C: copy [9+1]=zeroes 4.7 s7", "A: digest [100+2] min 7"];
    assert_eq!(rig.serve_with('A', lacking), asked);
    rig
}

fn digests(rig: &mut Rig, range: BlockRange, digests: [u128; 2]) -> Vec<String> {
    let (request, asked) = rig.asked('A');
    assert_eq!(asked, range);
    let blocks = digests.map(|digest| (stamp(4, 6), digest)).to_vec();
    rig.tell('A', ToWriter::Digests { request, range, blocks })
}

#[test]
fn a_joiner_is_told_digests_first_and_sent_only_what_differs() {
    let mut rig = comparing();
    assert_eq!(digests(&mut rig, run(0, 2), [11, 12]), ["C: confirm [0+2] [11, 12] s7"]);
    let (_, request) = rig.copies[1];
    let differs = vec![run(1, 1)];
    assert_eq!(rig.tell('C', ToWriter::Confirmed { join: JOIN, request, differs }), ["A: read [1+1] min 7"]);
    digests(&mut rig, run(100, 2), [1, 2]);
    let (_, second) = rig.copies[2];
    rig.tell('C', ToWriter::Confirmed { join: JOIN, request: second, differs: vec![] });
    let join = rig.engine.status().lanes[0].join.clone().unwrap();
    assert_eq!((join.compared_bytes, join.copied_bytes), (3 * 4096, 0));
    assert_eq!(rig.serve('A', 5), ["C: copy [1+1]=5 5.1 s7"]);
    rig.copied('C');
    assert_eq!(rig.engine.status().lanes[0].join.clone().unwrap().copied_bytes, 4096);
    // The last copy is done: C is promoted.
    let (_, request) = *rig.copies.last().unwrap();
    assert_eq!(rig.tell('C', ToWriter::CopyDone { join: JOIN, request }), ["cas c1 ABC"]);
}

#[test]
fn a_comparison_without_an_answer_is_asked_again_and_answered_once() {
    let mut rig = comparing();
    digests(&mut rig, run(0, 2), [11, 12]);
    let (_, request) = rig.copies[1];
    let again = rig.pass_ms(1000).tick();
    assert!(again.contains(&"C: confirm [0+2] [11, 12] s7".to_owned()), "{again:?}");
    rig.tell('C', ToWriter::Confirmed { join: JOIN, request, differs: vec![] });
    let bytes = |rig: &Rig| rig.engine.status().lanes[0].join.clone().unwrap().compared_bytes;
    let before = bytes(&rig);
    assert_eq!(rig.tell('C', ToWriter::Confirmed { join: JOIN, request, differs: vec![run(0, 2)] }), NOTHING);
    assert_eq!(bytes(&rig), before);
}

#[test]
fn blocks_that_nobody_asked_about_are_not_copied_on_a_joiners_word() {
    let mut rig = comparing();
    digests(&mut rig, run(0, 2), [11, 12]);
    let (_, request) = rig.copies[1];
    let differs = vec![run(900, 3), run(1, u32::MAX)];
    assert_eq!(rig.tell('C', ToWriter::Confirmed { join: JOIN, request, differs }), ["A: read [1+1] min 7"]);
}
