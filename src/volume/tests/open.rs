//! W1 to W7: opening clean, and opening after a crash.

use super::*;
use ashlar_model::lane::{EntryOrigin, ListEntry};

pub(super) fn entry(epoch: u64, index: u64, range: BlockRange) -> ListEntry {
    ListEntry { stamp: stamp(epoch, index), range, tombstone: false, origin: EntryOrigin::Live, generation: 0 }
}

pub(super) fn state(settled: u64, prefix: u64, list: Vec<ListEntry>) -> LaneState {
    LaneState { current: Epoch(4), config: 1, prefix, settled, list, ..LaneState::default() }
}

pub(super) fn unclean() -> Setup {
    Setup { clean: None, ..Setup::default() }
}

impl Rig {
    pub(super) fn seal(&mut self, name: char, state: LaneState) -> Vec<String> {
        let envelope = envelope(Envelope::ALL_LANES, name);
        self.on(Event::Message { envelope, message: ToWriter::Sealed { lanes: vec![(0, state)] } })
    }

    /// A, B and C hold nothing above settled 3.
    fn seal_all(&mut self) {
        for name in "ABC".chars() {
            self.seal(name, state(3, 3, vec![]));
        }
    }
}

#[test]
fn a_clean_open_serves_at_once_and_sends_start() {
    let setup = Setup { clean: Some(7), ..Setup::default() };
    let mut rig = setup.idle();
    assert_eq!(rig.on(setup.grant()), ["A: start c1 base 7", "B: start c1 base 7", "C: start c1 base 7"]);
    // The write waits for nobody but the members' Start.
    assert_eq!(rig.write(1, run(0, 1)), NOTHING);
    assert_eq!(rig.ack('A', 7), ["A: write 8 [0+1]=1 c1 s7"]);
    assert_eq!(rig.ack('B', 7), ["B: write 8 [0+1]=1 c1 s7"]);
    assert_eq!(rig.ack('A', 8), NOTHING);
    assert_eq!(rig.ack('B', 8), ["1: written"]);
}

#[test]
fn a_clean_open_starts_whoever_comes_later() {
    let setup = Setup::default();
    let mut rig = setup.idle();
    rig.down('C');
    assert_eq!(rig.on(setup.grant()), ["A: start c1 base 0", "B: start c1 base 0"]);
    assert_eq!(rig.up('C'), ["C: start c1 base 0"]);
}

#[test]
fn a_second_grant_changes_nothing() {
    let setup = Setup::default();
    let mut rig = setup.granted();
    assert_eq!(rig.on(setup.grant()), NOTHING);
}

#[test]
fn an_unclean_open_seals_and_starts_when_everybody_has_answered() {
    let setup = unclean();
    let mut rig = setup.idle();
    assert_eq!(rig.on(setup.grant()), ["A: seal", "B: seal", "C: seal"]);
    assert_eq!(rig.seal('A', state(3, 3, vec![])), NOTHING);
    assert_eq!(rig.seal('B', state(3, 3, vec![])), NOTHING);
    let starts = ["A: start c1 base 3", "B: start c1 base 3", "C: start c1 base 3"];
    assert_eq!(rig.seal('C', state(3, 3, vec![])), starts);
}

#[test]
fn two_of_three_seals_are_enough_after_a_little_patience() {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 3, vec![]));
    // One is not enough, ever; the others are asked again.
    assert_eq!(rig.pass_ms(10_000).tick(), ["B: seal", "C: seal"]);
    rig.seal('B', state(3, 3, vec![]));
    assert_eq!(rig.pass_ms(499).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["A: start c1 base 3", "B: start c1 base 3"]);
    // C comes too late: it is not a member of this recovery.
    assert_eq!(rig.seal('C', state(9, 9, vec![])), NOTHING);
    rig.ack('A', 3);
    assert_eq!(rig.ack('B', 3), ["cas c1 AB base 3"]);
}

#[test]
fn one_of_two_seals_is_enough_but_all_under_the_policy_all() {
    let pair = || Setup { clean: None, ..Setup::of("AB") };
    let mut rig = pair().granted();
    rig.seal('A', state(3, 3, vec![]));
    assert_eq!(rig.pass_ms(500).tick(), ["A: start c1 base 3"]);
    // Every acknowledged write is on every member, so one seal meets all quorums there, too.
    let mut rig = Setup { quorum: QuorumPolicy::All, ..pair() }.granted();
    rig.seal('B', state(3, 3, vec![]));
    assert_eq!(rig.pass_ms(500).tick(), ["B: start c1 base 3"]);
}

#[test]
fn a_device_outside_the_set_does_not_count() {
    let mut rig = Setup { in_sync: "AB", clean: None, ..Setup::default() }.granted();
    assert_eq!(rig.seal('C', state(9, 9, vec![])), NOTHING);
    rig.seal('A', state(3, 3, vec![]));
    assert_eq!(rig.seal('B', state(3, 3, vec![])), ["A: start c1 base 3", "B: start c1 base 3"]);
}

#[test]
fn a_link_that_comes_up_while_sealing_is_sealed() {
    let setup = unclean();
    let mut rig = setup.idle();
    rig.down('C');
    assert_eq!(rig.on(setup.grant()), ["A: seal", "B: seal"]);
    assert_eq!(rig.up('C'), ["C: seal"]);
}

#[test]
fn the_newest_version_of_each_block_is_written_again_after_every_index_seen() {
    let mut rig = unclean().granted();
    // Block 0: 4.12 on A, 3.14 on B. Block 1: both hold 4.12. A's prefix reaches further than any entry.
    rig.seal('A', state(3, 20, vec![entry(4, 12, run(0, 2)), entry(2, 2, run(5, 1))]));
    rig.seal('B', state(2, 9, vec![entry(3, 14, run(0, 1)), entry(4, 12, run(1, 1))]));
    let starts = ["A: start c1 base 20", "B: start c1 base 20", "C: start c1 base 20"];
    assert_eq!(rig.seal('C', state(3, 3, vec![])), starts);
    // Block 5 of index 2 is settled. Fetches go to holders once they follow; blocks with other holders go apart.
    assert_eq!(rig.ack('A', 20), ["A: read [0+1]", "A: read [1+1]"]);
    assert_eq!(rig.serve('A', 7), ["A: write 21 [0+1]=7 c1 s3"]);
    assert_eq!(rig.ack('B', 20), ["B: write 21 [0+1]=7 c1 s3"]);
    assert_eq!(rig.serve('A', 8), ["A: write 22 [1+1]=8 c1 s3", "B: write 22 [1+1]=8 c1 s3"]);
    assert_eq!(rig.ack('C', 20), ["C: write 21 [0+1]=7 c1 s3", "C: write 22 [1+1]=8 c1 s3"]);
    // Recorded when every member has everything.
    assert_eq!(rig.ack('A', 22), NOTHING);
    assert_eq!(rig.ack('B', 22), NOTHING);
    assert_eq!(rig.ack('C', 21), NOTHING);
    assert_eq!(rig.ack('C', 22), ["cas c1 ABC base 20"]);
}

#[test]
fn a_trim_is_written_again_without_a_fetch() {
    let mut rig = unclean().granted();
    let trim = ListEntry { tombstone: true, ..entry(4, 4, run(0, 8)) };
    rig.seal('A', state(3, 4, vec![trim]));
    rig.seal('B', state(3, 3, vec![]));
    rig.seal('C', state(3, 3, vec![]));
    assert_eq!(rig.ack('B', 4), ["B: write 5 [0+8]=zeroes c1 s3"]);
}

#[test]
fn unsettled_copies_count_as_writes() {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 3, vec![ListEntry { origin: EntryOrigin::Copy, ..entry(4, 6, run(0, 1)) }]));
    rig.seal('B', state(3, 3, vec![]));
    assert_eq!(rig.seal('C', state(3, 3, vec![]))[0], "A: start c1 base 6");
    assert_eq!(rig.ack('A', 6), ["A: read [0+1]"]);
}

#[test]
fn settled_does_not_move_during_recovery() {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 4, vec![entry(4, 4, run(0, 1)), entry(4, 5, run(9, 1))]));
    rig.seal('B', state(1, 3, vec![]));
    rig.seal('C', state(1, 3, vec![]));
    for name in "ABC".chars() {
        rig.ack(name, 5);
    }
    rig.serve('A', 7);
    for name in "ABC".chars() {
        rig.ack(name, 6);
    }
    let writes = ["A: write 7 [9+1]=8 c1 s3", "B: write 7 [9+1]=8 c1 s3", "C: write 7 [9+1]=8 c1 s3"];
    assert_eq!(rig.serve('A', 8), writes);
    assert_eq!(rig.engine.status().lanes[0].settled, 3);
    for name in "ABC".chars() {
        rig.ack(name, 7);
    }
    rig.cas_done();
    assert_eq!(rig.engine.status().lanes[0].settled, 7);
    assert_eq!(rig.retained_bytes(), 0);
}

#[test]
fn an_entry_beyond_the_end_of_its_epoch_is_alarmed_and_ignored() {
    let rows = vec![EpochRow { epoch: Epoch(4), base: 10 }];
    let mut rig = Setup { rows, ..unclean() }.granted();
    rig.seal('A', state(3, 10, vec![entry(3, 11, run(0, 1))]));
    rig.seal('B', state(3, 10, vec![]));
    let effects = rig.seal('C', state(3, 10, vec![]));
    assert_eq!(effects, ["alarm", "A: start c1 base 10", "B: start c1 base 10", "C: start c1 base 10"]);
    assert_eq!(rig.ack('A', 10), NOTHING);
}

/// A and B hold write 4 of block 0, C does not; all follow, and A has been asked.
fn fetching() -> Rig {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 4, vec![entry(4, 4, run(0, 1))]));
    rig.seal('B', state(3, 4, vec![entry(4, 4, run(0, 1))]));
    rig.seal('C', state(3, 3, vec![]));
    assert_eq!(rig.ack('A', 4), ["A: read [0+1]"]);
    rig.ack('B', 4);
    rig.ack('C', 4);
    rig
}

fn bad(range: BlockRange) -> ReadReply {
    let conditions = vec![BlockCondition::Bad(1); range.count as usize];
    ReadReply { conditions, ..zeroes(range, stamp(4, 4)) }
}

#[test]
fn a_damaged_source_is_replaced_by_another_holder() {
    let mut rig = fetching();
    assert_eq!(rig.serve_with('A', bad), ["alarm", "B: read [0+1]"]);
    let writes = ["A: write 5 [0+1]=7 c1 s3", "B: write 5 [0+1]=7 c1 s3", "C: write 5 [0+1]=7 c1 s3"];
    assert_eq!(rig.serve('B', 7), writes);
}

#[test]
fn bytes_that_do_not_match_their_checksum_are_not_written_again() {
    let mut rig = fetching();
    let wrong = |range| ReadReply { payload: Some(payload(range, 9)), ..good(range, 7, stamp(4, 4)) };
    assert_eq!(rig.serve_with('A', wrong), ["alarm", "B: read [0+1]"]);
}

#[test]
fn a_refused_fetch_is_asked_again_on_the_tick() {
    let mut rig = fetching();
    assert_eq!(rig.refuse('A'), NOTHING);
    assert_eq!(rig.pass_ms(50).tick(), ["A: read [0+1]"]);
}

#[test]
fn a_fetch_is_asked_elsewhere_when_the_link_is_lost() {
    let mut rig = fetching();
    assert_eq!(rig.down('A'), NOTHING);
    assert_eq!(rig.tick(), ["B: read [0+1]"]);
}

#[test]
fn a_member_that_stays_away_is_left_out_of_the_set() {
    let mut rig = fetching();
    rig.serve('A', 7);
    rig.down('C');
    rig.ack('A', 5);
    rig.ack('B', 5);
    assert_eq!(rig.pass_ms(1_999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["cas c1 AB base 4"]);
}

#[test]
fn patience_begins_anew_with_every_outage() {
    let mut rig = fetching();
    rig.down('C');
    rig.up('C');
    rig.ack('C', 4);
    rig.pass_ms(5_000).tick();
    rig.down('C');
    rig.serve('A', 7);
    rig.ack('A', 5);
    assert_eq!(rig.ack('B', 5), NOTHING);
    assert_eq!(rig.pass_ms(2_000).tick(), ["cas c1 AB base 4"]);
}

#[test]
fn the_only_holder_of_a_write_is_waited_for() {
    let mut rig = unclean().granted();
    rig.seal('A', state(3, 4, vec![entry(4, 4, run(0, 1))]));
    rig.seal('B', state(3, 3, vec![]));
    rig.seal('C', state(3, 3, vec![]));
    rig.ack('B', 4);
    rig.ack('C', 4);
    rig.down('A');
    assert_eq!(rig.pass_ms(60_000).tick(), NOTHING);
    assert_eq!(rig.up('A'), ["A: start c1 base 4"]);
    assert_eq!(rig.ack('A', 4), ["A: read [0+1]"]);
}

#[test]
fn a_member_that_returns_gets_what_it_lacks_and_no_more() {
    let mut rig = fetching();
    rig.serve('A', 7);
    rig.ack('C', 5);
    rig.down('C');
    rig.down('B');
    assert_eq!(rig.up('C'), ["C: start c1 base 4"]);
    assert_eq!(rig.ack('C', 5), NOTHING);
    assert_eq!(rig.up('B'), ["B: start c1 base 4"]);
    assert_eq!(rig.ack('B', 4), ["B: write 5 [0+1]=7 c1 s3"]);
}

#[test]
fn an_unknown_outcome_of_the_commit_is_asked_until_known() {
    let mut rig = unclean().granted();
    rig.seal_all();
    rig.ack('A', 3);
    rig.ack('B', 3);
    assert_eq!(rig.ack('C', 3), ["cas c1 ABC base 3"]);
    assert_eq!(rig.pass_ms(50).tick(), NOTHING); // it is still out
    rig.on(Event::CasUnknown { lane: 0 });
    assert_eq!(rig.pass_ms(50).tick(), ["cas c1 ABC base 3"]);
    assert_eq!(rig.cas_answer(0, 5, 1), NOTHING); // not applied
    assert_eq!(rig.pass_ms(50).tick(), ["cas c1 ABC base 3"]);
}

#[test]
fn nothing_is_served_before_the_grants_of_older_writers_have_run_out() {
    let mut rig = unclean().granted();
    assert_eq!(rig.write(1, run(0, 1)), NOTHING);
    rig.seal('A', state(3, 3, vec![]));
    rig.seal('B', state(3, 3, vec![]));
    rig.pass_ms(100).seal_all();
    for name in "ABC".chars() {
        rig.ack(name, 3);
    }
    rig.cas_done();
    // 1 s of grant, 2 times 1 % of drift and 50 ms of slack after the last seal.
    assert_eq!(rig.pass_ms(1_069).tick(), NOTHING);
    assert_eq!(rig.read(2, run(9, 1)), NOTHING);
    rig.now_us += 999;
    assert_eq!(rig.tick(), NOTHING);
    rig.now_us += 1;
    let writes = ["A: write 4 [0+1]=1 c2 s3", "B: write 4 [0+1]=1 c2 s3", "C: write 4 [0+1]=1 c2 s3"];
    assert_eq!(rig.tick(), writes);
    rig.ack('A', 3);
    assert_eq!(rig.ack('B', 3), ["A: read [9+1]"]); // with new grants
}

/// Two lanes on A: lane 0 was closed clean, lane 1 was not.
fn half_clean() -> Rig {
    let setup = Setup { lane_count: 2, ..Setup::of("A") };
    let mut rig = setup.idle();
    let Event::Granted(mut grant) = setup.grant() else { unreachable!() };
    grant.lanes[1].clean = None;
    assert_eq!(rig.on(Event::Granted(grant)), ["A: start c1 base 0", "A: seal"]);
    rig.ack('A', 0);
    rig
}

fn seal_lane_1(rig: &mut Rig) -> Vec<String> {
    let sealed = ToWriter::Sealed { lanes: vec![(1, state(3, 3, vec![]))] };
    rig.on(Event::Message { envelope: envelope(Envelope::ALL_LANES, 'A'), message: sealed })
}

#[test]
fn no_lane_serves_before_every_lane_is_sealed() {
    let mut rig = half_clean();
    assert_eq!(rig.write(1, run(0, 1)), NOTHING);
    assert_eq!(rig.write(2, run(1024, 1)), NOTHING);
    assert_eq!(seal_lane_1(&mut rig), ["A/1: start c1 base 3", "A: write 1 [0+1]=1 c1 s0"]);
    // The other lane opens by itself, after its own wait for older grants.
    assert_eq!(rig.ack_lane(1, 'A', 3), ["cas/1 c1 A base 3"]);
    rig.cas_done();
    assert_eq!(rig.pass_ms(1_069).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["A/1: write 4 [1024+1]=2 c2 s3"]);
}

#[test]
fn lanes_serve_without_one_that_gets_no_seals_for_long() {
    let mut rig = half_clean();
    rig.write(1, run(0, 1));
    rig.write(2, run(1023, 2)); // touches both lanes
    assert_eq!(rig.pass_ms(4_999).tick(), ["A: seal"]);
    assert_eq!(rig.pass_ms(1).tick(), ["A: write 1 [0+1]=1 c1 s0"]);
    assert_eq!(rig.engine.status().health, crate::volume::Health::Suspended);
    rig.write(3, run(1024, 1));
    // It opens later.
    assert_eq!(seal_lane_1(&mut rig), ["A/1: start c1 base 3"]);
    rig.ack_lane(1, 'A', 3);
    rig.cas_done();
    let parked = ["A: write 2 [1023+1]=2 c1 s0", "A/1: write 4 [1024+1]=2 c2 s3"];
    assert_eq!(rig.pass_ms(1_070).tick(), parked); // the third waits for the second: they overlap
}

/// Symptom: what a guest wrote after it came back is overwritten by what it had asked for before. Cause: the write of its
/// lost connection waited aside for a lane, and later ones that touch only lanes that serve passed it.
#[test]
fn what_a_guest_that_is_gone_has_not_begun_is_never_done() {
    let mut rig = half_clean();
    assert_eq!(rig.pass_ms(5_000).tick(), ["A: seal"]);
    assert_eq!(rig.write(1, run(0, 1)), ["A: write 1 [0+1]=1 c1 s0"]);
    rig.write(2, run(1023, 2)); // touches both lanes
    assert_eq!(rig.write(3, run(1023, 1)), ["A: write 2 [1023+1]=3 c1 s0"], "passes it");
    assert_eq!(rig.on(Event::Abandoned(vec![RequestId(1), RequestId(2)])), NOTHING);
    assert_eq!(rig.ack('A', 2), ["1: written", "3: written"], "what has begun goes on");
    seal_lane_1(&mut rig);
    rig.ack_lane(1, 'A', 3);
    rig.cas_done();
    assert_eq!(rig.pass_ms(1_070).tick(), NOTHING);
}

#[test]
fn a_lane_that_a_device_has_never_seen_is_empty_there() {
    let mut rig = Setup { clean: None, ..Setup::of("A") }.granted();
    let envelope = envelope(Envelope::ALL_LANES, 'A');
    let message = ToWriter::Sealed { lanes: vec![] };
    assert_eq!(rig.on(Event::Message { envelope, message }), ["A: start c1 base 0"]);
}

#[test]
fn a_writer_fenced_while_it_opens_fails_what_waits() {
    let mut rig = unclean().granted();
    rig.write(1, run(0, 1));
    let fenced = "1: failed: the volume has been taken over by another node";
    assert_eq!(rig.tell('A', ToWriter::Fenced { promised: Epoch(6) }), [fenced, "closed unclean"]);
}

/// Symptom: a recovery on slow devices makes no progress and floods them. Cause: a fetch that is late is forgotten and
/// asked anew, so that no answer ever comes in time.
#[test]
fn a_late_fetch_is_asked_of_another_holder_too_and_its_first_answer_counts() {
    let mut rig = fetching();
    assert_eq!(rig.pass_ms(499).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["B: read [0+1]"]);
    assert_eq!(rig.pass_ms(400).tick(), NOTHING);
    assert_eq!(rig.serve('A', 7).len(), 3);
    assert_eq!(rig.serve('B', 7), NOTHING);
}

#[test]
fn a_member_that_hangs_in_recovery_is_left_out_of_the_set() {
    let mut rig = fetching();
    rig.serve('A', 7);
    rig.ack('A', 5);
    rig.ack('B', 5);
    assert_eq!(rig.pass_ms(1_999).tick(), NOTHING.to_vec());
    assert_eq!(rig.pass_ms(1).tick()[0], "cas c1 AB base 4");
}
