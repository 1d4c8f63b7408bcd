//! Blocks whose every copy is damaged: written off, in a recovery and in a join.

use super::open::{entry, state, unclean};
use super::*;
use ashlar_model::lane::ListEntry;

fn bad(range: BlockRange) -> ReadReply {
    let conditions = vec![BlockCondition::Bad(1); range.count as usize];
    ReadReply { conditions, ..zeroes(range, stamp(4, 4)) }
}

/// The first block is damaged.
fn first_bad(range: BlockRange) -> ReadReply {
    let good = good(range, 7, stamp(4, 4));
    ReadReply { conditions: [&[BlockCondition::Bad(1)], &good.conditions[1..]].concat(), ..good }
}

/// A and B hold write 4, C does not; all that have sealed follow, and A has been asked.
fn fetching(range: BlockRange, sealed: &str) -> Rig {
    let mut rig = unclean().granted();
    for name in sealed.chars() {
        let list = if name == 'C' { vec![] } else { vec![entry(4, 4, range)] };
        rig.seal(name, state(3, 4 - u64::from(name == 'C'), list));
    }
    rig.pass_ms(500).tick();
    let asks: Vec<Vec<String>> = sealed.chars().map(|name| rig.ack(name, 4)).collect();
    assert_eq!(asks[0], [format!("A: read {}", run_text(range))]);
    rig
}

fn handed_over(rig: &mut Rig) -> Option<Vec<u64>> {
    rig.engine.take_handed_over().map(|requests| requests.iter().map(|request| request.id.0).collect())
}

fn reason(rig: &Rig) -> String {
    rig.engine.status().reason.unwrap()
}

#[test]
fn a_block_damaged_on_every_holder_is_written_off_on_every_member() {
    let mut rig = fetching(run(0, 1), "ABC");
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1]"]);
    let writes = ["A: write 5 [0+1]=lost c1 s3", "B: write 5 [0+1]=lost c1 s3", "C: write 5 [0+1]=lost c1 s3"];
    assert_eq!(rig.serve_with('B', bad), [&["alarm", "alarm"], &writes[..]].concat());
    for name in "ABC".chars() {
        rig.ack(name, 5);
    }
    rig.cas_done();
    rig.pass_ms(1_100).tick();
    let counters = rig.engine.counters();
    assert_eq!((counters.damaged_blocks, counters.lost_blocks), (2, 1));
    // It is served: the block fails, its neighbour does not, and a write makes it good.
    for name in "ABC".chars() {
        rig.ack(name, 5);
    }
    let asked = rig.read(1, run(0, 1));
    assert_eq!(asked, ["A: read [0+1]"]);
    let unknown = |range| ReadReply { conditions: vec![BlockCondition::Unknown], ..zeroes(range, stamp(5, 5)) };
    rig.serve_with('A', unknown);
    rig.serve_with('B', unknown);
    let failed = rig.serve_with('C', unknown);
    assert_eq!(failed.last().unwrap(), "1: failed: block 0 is damaged on every replica that holds it");
    assert_eq!(rig.write(2, run(0, 1)).len(), 3);
    rig.ack('A', 6);
    assert_eq!(rig.ack('B', 6), ["2: written"]);
}

#[test]
fn a_device_that_failed_is_waited_for_as_one_that_is_away() {
    let mut rig = fetching(run(0, 1), "ABC");
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1]"]);
    rig.tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
    rig.tick();
    assert!(reason(&rig).contains(&device('B').to_string()), "{}", reason(&rig));
    rig.pass_ms(299_999).tick();
    assert_eq!(rig.engine.counters().lost_blocks, 0);
    rig.pass_ms(1_000).tick();
    assert_eq!(rig.engine.counters().lost_blocks, 1);
}

/// Symptom: an acknowledged block is written off although a member has it. Cause: that member had just come in sync; it had
/// the block as a copy, which its list does not name.
#[test]
fn a_member_that_was_copied_has_what_its_list_does_not_name() {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 4, vec![entry(4, 4, run(0, 1))]));
    rig.seal('B', state(2, 4, vec![]));
    rig.seal('C', LaneState { current: Epoch(5), ..state(2, 4, vec![]) });
    assert_eq!(rig.ack('A', 4), ["A: read [0+1]"]);
    rig.ack('B', 4);
    rig.ack('C', 4);
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1]"]);
    assert_eq!(rig.serve('B', 7)[0], "A: write 5 [0+1]=7 c1 s3", "and not C: its prefix is of another epoch");
    assert_eq!(rig.engine.counters().lost_blocks, 0);
}

#[test]
fn blocks_of_a_run_are_taken_from_whoever_has_them() {
    let mut rig = fetching(run(0, 3), "ABC");
    assert_eq!(rig.serve_with('A', first_bad), ["A: read [0+1]", "A: read [1+1]", "A: read [2+1]"]);
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1]"]);
    let first = rig.serve('A', 8);
    assert_eq!(first[0], "A: write 6 [1+1]=8 c1 s3");
    assert_eq!(rig.serve('A', 9)[0], "A: write 7 [2+1]=9 c1 s3");
    assert_eq!(rig.serve('B', 7)[0], "A: write 5 [0+1]=7 c1 s3");
    for name in "AB".chars() {
        assert_eq!(rig.ack(name, 7), NOTHING);
    }
    assert_eq!(rig.ack('C', 7), ["cas c1 ABC base 4"]);
    assert_eq!(rig.engine.counters().lost_blocks, 0);
}

#[test]
fn a_member_that_has_not_answered_is_waited_for_before_anything_is_written_off() {
    let mut rig = fetching(run(0, 1), "AC");
    assert_eq!(rig.serve_with('A', bad), ["alarm"]);
    let waits = "opening: block 0 is damaged on every device that answered; waits 300 s for ";
    assert!(reason(&rig).starts_with(waits) && reason(&rig).contains(&device('B').to_string()), "{}", reason(&rig));
    assert_eq!(rig.pass_ms(299_999).tick(), ["B: seal"]);
    let writes = ["alarm", "A: write 5 [0+1]=lost c1 s3", "C: write 5 [0+1]=lost c1 s3"];
    assert_eq!(rig.pass_ms(1).tick(), writes);
}

#[test]
fn the_writer_gives_way_when_the_member_comes_that_may_have_the_block() {
    let mut rig = fetching(run(0, 1), "AC");
    rig.serve_with('A', bad);
    assert_eq!(rig.write(1, run(5, 1)), NOTHING);
    assert_eq!(rig.read(2, run(0, 1)), NOTHING);
    assert_eq!(rig.seal('B', state(3, 4, vec![entry(4, 4, run(0, 1))])), ["closed unclean"]);
    assert_eq!(handed_over(&mut rig), Some(vec![1, 2]), "the successor carries them out");
    assert_eq!(handed_over(&mut rig), None);
}

#[test]
fn a_late_seal_changes_nothing_where_nothing_is_missing() {
    let mut rig = fetching(run(0, 1), "AC");
    assert_eq!(rig.seal('B', state(3, 4, vec![entry(4, 4, run(0, 1))])), NOTHING);
    assert!(!rig.engine.is_over());
    assert_eq!(handed_over(&mut rig), None);
}

/// Two lanes on A, B and C: the first one is served without B, the second one waits for B because of a lost block; then B
/// comes. Requests 1 (to the second lane) and 2 (a write to the first one) have been sent before.
fn giving_way(rig: &mut Rig) {
    let (first, second) = (run(0, 1), run(1024, 1));
    let lanes = |list: Vec<ListEntry>| vec![(0, state(3, 3, vec![])), (1, state(3, 3 + list.len() as u64, list))];
    let sealed = |rig: &mut Rig, name: char, lanes| {
        let envelope = Envelope { lane: Envelope::ALL_LANES, ..envelope(0, name) };
        rig.on(Event::Message { envelope, message: ToWriter::Sealed { lanes } })
    };
    sealed(rig, 'A', lanes(vec![entry(4, 4, second)]));
    sealed(rig, 'C', lanes(vec![]));
    rig.pass_ms(500).tick();
    for name in "AC".chars() {
        rig.ack_lane(0, name, 3);
        rig.ack_lane(1, name, 4);
    }
    rig.cas_done();
    assert_eq!(rig.serve_with('A', bad), ["alarm"]);
    rig.pass_ms(2_000).tick();
    for name in "AC".chars() {
        rig.ack_lane(0, name, 3);
    }
    assert_eq!(rig.read(1, second), NOTHING, "its lane recovers");
    assert_eq!(rig.write(2, first).len(), 2, "the other lane is served");
    assert_eq!(sealed(rig, 'B', lanes(vec![entry(4, 4, second)])), NOTHING);
}

fn two_lanes() -> Rig {
    Setup { lane_count: 2, ..unclean() }.granted()
}

/// Symptom: a lane waits for ever, or a block is written off although the device that has it is back. Cause: a writer that
/// serves other lanes already did not give way.
#[test]
fn a_writer_that_serves_other_lanes_finishes_what_it_has_begun_and_hands_over_the_rest() {
    let mut rig = two_lanes();
    giving_way(&mut rig);
    assert_eq!(rig.read(3, run(0, 1)), NOTHING);
    assert_eq!(rig.write(4, run(0, 1)), NOTHING);
    assert!(reason(&rig).contains("as soon as 1 requests under way are done"), "{}", reason(&rig));
    rig.ack_lane(0, 'A', 4);
    assert_eq!(rig.ack_lane(0, 'C', 4), ["2: written", "closed unclean"]);
    assert_eq!(handed_over(&mut rig), Some(vec![1, 3, 4]));
    let patience = |rig: &Rig| rig.engine.successor_settings().seal_patience_us;
    assert_eq!(patience(&rig), 10_000_000);
}

/// Symptom: a write that does not end, for lack of space or members, holds up the lanes that are served.
#[test]
fn a_writer_that_cannot_finish_what_it_has_begun_goes_on_serving() {
    let mut rig = two_lanes();
    giving_way(&mut rig);
    assert_eq!(rig.read(3, run(8, 1)), NOTHING);
    rig.pass_ms(5_000).tick();
    for name in "AC".chars() {
        rig.ack_lane(0, name, 3); // grants
    }
    assert_eq!(rig.read(5, run(9, 1)).len(), 1, "served again");
    assert_eq!((rig.engine.counters().lost_blocks, rig.engine.is_over()), (0, false));
    rig.pass_ms(55_000).tick();
    assert_eq!(rig.read(6, run(10, 1)), NOTHING, "once a minute it tries again");
}

#[test]
fn what_waits_for_a_successor_fails_when_another_node_takes_the_volume() {
    let mut rig = two_lanes();
    giving_way(&mut rig);
    assert_eq!(rig.read(3, run(0, 1)), NOTHING);
    let ended = rig.tell('A', ToWriter::Fenced { promised: Epoch(9) });
    assert_eq!(ended.len(), 4, "three requests and the end: {ended:?}");
    assert_eq!(handed_over(&mut rig), None);
}

#[test]
fn a_writer_that_is_detached_while_it_gives_way_hands_nothing_over() {
    let mut rig = two_lanes();
    giving_way(&mut rig);
    rig.on(Event::Close);
    rig.ack_lane(0, 'A', 4);
    rig.ack_lane(0, 'C', 4);
    assert!(!rig.engine.is_over(), "it closes its lanes first");
    rig.pass_ms(10_000).tick();
    assert!(rig.engine.is_over());
    assert_eq!(handed_over(&mut rig), None);
}
