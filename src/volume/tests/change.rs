//! C1, C2 and W9: ejection, and the two sets while a change is out.

use super::*;

/// Five seconds in which the members named answer all heartbeats.
fn five_seconds(rig: &mut Rig, answering: &str, prefix: u64) -> Vec<String> {
    let mut effects = Vec::new();
    for _ in 0..25 {
        effects.extend(rig.pass_ms(200).tick());
        for name in answering.chars() {
            effects.extend(rig.ack(name, prefix));
        }
    }
    effects
}

/// A, B and C serve; C is away since just now, and A and B have write 1.
fn without_c() -> Rig {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.down('C');
    rig.ack('A', 1);
    rig.ack('B', 1);
    rig
}

#[test]
fn a_member_that_is_away_for_the_limit_is_ejected() {
    let mut rig = without_c();
    assert_eq!(five_seconds(&mut rig, "AB", 1), ["cas c1 AB"]);
    rig.beats = true;
    assert_eq!(rig.cas_done(), ["A: beat c2 s1", "B: beat c2 s1"]);
    assert_eq!(rig.retained_bytes(), 0);
    assert_eq!(rig.engine.counters().ejections, 1);
}

#[test]
fn the_limit_counts_from_when_the_member_fell_behind() {
    let mut rig = without_c();
    rig.pass_ms(4_900).ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.pass_ms(99).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["cas c1 AB"]);
}

#[test]
fn a_member_that_has_caught_up_is_not_ejected() {
    let mut rig = without_c();
    rig.pass_ms(4_000).up('C');
    rig.ack('C', 1);
    assert_eq!(five_seconds(&mut rig, "ABC", 1), NOTHING);
}

#[test]
fn nobody_is_ejected_while_a_survivor_lacks_an_acknowledged_write() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack('C', 1);
    rig.ack('B', 1); // acknowledged by B and C
    rig.down('C');
    rig.ack('A', 0);
    let again = five_seconds(&mut rig, "B", 1);
    assert!(again.iter().all(|line| line == "A: write 1 [0+1]=1 c1 s0"), "{again:?}");
    assert_eq!(rig.ack('A', 1), NOTHING);
    assert_eq!(rig.tick()[0], "cas c1 AB");
}

#[test]
fn nobody_is_ejected_while_a_survivor_does_not_answer() {
    let mut rig = without_c();
    assert_eq!(five_seconds(&mut rig, "A", 1), NOTHING);
    rig.ack('B', 1);
    assert_eq!(rig.tick(), ["cas c1 AB"]);
}

#[test]
fn the_last_member_is_never_ejected() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 1));
    rig.tell('A', ToWriter::DeviceFailed { reason: "gone".into() });
    rig.down('A');
    assert_eq!(five_seconds(&mut rig, "", 0), NOTHING);
    assert_eq!(five_seconds(&mut rig, "", 0), NOTHING);
}

#[test]
fn a_full_member_is_never_ejected() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack_full('C', 0);
    assert_eq!(five_seconds(&mut rig, "AB", 1), ["1: written"]);
    // It has room again, and still lags.
    rig.ack('C', 0);
    assert_eq!(rig.tick()[0], "cas c1 AB");
}

/// Symptom: writes stop for good after a full device has died. Cause: what it last said of its room protects it.
#[test]
fn a_member_that_was_full_is_ejected_when_it_is_away() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack_full('C', 0);
    rig.down('C');
    assert_eq!(five_seconds(&mut rig, "AB", 1), ["1: written", "cas c1 AB"]);
}

#[test]
fn a_member_that_was_full_is_ejected_when_it_fails() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack_full('C', 0);
    rig.ack('A', 1);
    rig.ack('B', 1);
    rig.tell('C', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(rig.tick(), ["cas c1 AB"]);
}

#[test]
fn a_failed_device_is_ejected_on_the_next_tick() {
    let mut rig = Setup::default().serving();
    let failed = || ToWriter::DeviceFailed { reason: "gone".into() };
    assert_eq!(rig.tell('B', failed()), ["alarm"]);
    assert_eq!(rig.tell('B', failed()), NOTHING);
    assert_eq!(rig.write(1, run(0, 1)).len(), 2); // not fed any more
    assert_eq!(rig.tick(), ["cas c1 AC"]);
}

#[test]
fn a_device_that_lost_data_is_ejected() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack('C', 1);
    assert_eq!(rig.ack('C', 0), NOTHING); // overtaken
    rig.down('C');
    rig.up('C');
    assert_eq!(rig.ack('C', 0), ["alarm"]);
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.tick().last().unwrap(), "cas c1 AB");
}

#[test]
fn a_member_too_many_bytes_behind_is_ejected_before_the_limit() {
    let settings = Settings { eject_lag_bytes: 4 * 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::default() }.serving();
    rig.pass_ms(200);
    rig.write(1, run(0, 4));
    rig.write(2, run(4, 1));
    rig.ack('A', 2);
    rig.ack('B', 2);
    assert_eq!(rig.tick(), ["cas c1 AB"]);
}

#[test]
fn ejections_are_limited_but_one_device_in_many_lanes_counts_once() {
    let settings = Settings { ejections_per_minute: 1, ..Settings::default() };
    let mut rig = Setup { settings, lane_count: 2, ..Setup::default() }.serving();
    let failed = || ToWriter::DeviceFailed { reason: "gone".into() };
    rig.tell('C', failed());
    assert_eq!(rig.tick(), ["cas c1 AB", "cas/1 c1 AB"]);
    rig.cas_done();
    rig.cas_done();
    rig.tell('B', failed());
    let answer = |rig: &mut Rig, ms| {
        rig.pass_ms(ms);
        rig.ack_lane(0, 'A', 0);
        rig.ack_lane(1, 'A', 0);
        rig.tick()
    };
    assert_eq!(answer(&mut rig, 11_000), NOTHING);
    assert_eq!(answer(&mut rig, 49_001), ["cas c2 A", "cas/1 c2 A"]);
}

/// A and B serve; B is away, write 1 is on both, and B's ejection is out.
fn ejecting_b() -> Rig {
    let mut rig = Setup::of("AB").serving();
    rig.write(1, run(0, 1));
    rig.ack('A', 1);
    rig.ack('B', 1);
    rig.down('B');
    assert_eq!(five_seconds(&mut rig, "A", 1), ["cas c1 A"]);
    rig
}

#[test]
fn a_write_needs_a_quorum_of_both_sets_while_a_change_is_out() {
    let mut rig = ejecting_b();
    rig.write(2, run(0, 1));
    assert_eq!(rig.ack('A', 2), NOTHING); // enough for {A}, not for {A, B}
    assert_eq!(rig.cas_done(), ["2: written"]);
}

#[test]
fn a_read_needs_grants_of_both_sets_while_a_change_is_out() {
    let mut rig = ejecting_b();
    assert_eq!(rig.read(2, run(0, 1)), NOTHING); // A grants: enough for {A}, not for {A, B}
    assert_eq!(rig.cas_done(), ["A: read [0+1]"]);
    assert_eq!(rig.serve('A', 7), ["2: read [0+1]=7"]);
}

#[test]
fn settled_needs_both_sets_while_a_change_is_out() {
    let mut rig = ejecting_b();
    rig.write(2, run(0, 1));
    rig.ack('A', 2);
    assert_eq!(rig.engine.status().lanes[0].settled, 1);
    rig.cas_done();
    assert_eq!(rig.engine.status().lanes[0].settled, 2);
}

#[test]
fn an_unknown_outcome_is_not_an_outcome() {
    let mut rig = ejecting_b();
    rig.write(2, run(0, 1));
    rig.ack('A', 2);
    assert_eq!(rig.tick(), NOTHING); // it is still out
    assert_eq!(rig.on(Event::CasUnknown { lane: 0 }), NOTHING);
    assert_eq!(rig.tick(), ["cas c1 A"]);
    // The record as it was: not applied, so asked again.
    assert_eq!(rig.cas_answer(0, 5, 1), NOTHING);
    assert_eq!(rig.tick(), ["cas c1 A"]);
    assert_eq!(rig.cas_done(), ["2: written"]);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn one_change_at_a_time() {
    let mut rig = without_c();
    assert_eq!(five_seconds(&mut rig, "AB", 1), ["cas c1 AB"]);
    rig.tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(rig.tick(), NOTHING);
    rig.cas_done();
    assert_eq!(rig.tick(), ["cas c2 A"]);
}

#[test]
fn a_higher_epoch_in_the_answer_fences_the_writer() {
    let mut rig = ejecting_b();
    rig.write(2, run(0, 1));
    rig.ack('A', 2);
    let fenced = "2: failed: the volume has been taken over by another node";
    assert_eq!(rig.cas_answer(0, 6, 2), [fenced, "closed unclean"]);
    assert_eq!(rig.cas_answer(0, 5, 2), NOTHING);
}

#[test]
fn a_fenced_writer_completes_nothing_and_fails_everything() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 1));
    rig.write(2, run(0, 1));
    rig.read(3, run(5, 1));
    let why = "failed: the volume has been taken over by another node";
    let fenced = ToWriter::Fenced { promised: Epoch(6) };
    let expected = [format!("1: {why}"), format!("2: {why}"), format!("3: {why}"), "closed unclean".into()];
    assert_eq!(rig.tell('A', fenced.clone()), expected);
    assert!(rig.engine.is_over());
    assert_eq!(rig.ack('A', 1), NOTHING);
    assert_eq!(rig.serve('A', 7), NOTHING);
    assert_eq!(rig.tell('A', fenced), NOTHING);
    assert_eq!(rig.pass_ms(9_000).tick(), NOTHING);
    assert_eq!(rig.write(4, run(0, 1)), [format!("4: {why}")]);
}

#[test]
fn the_fence_of_an_older_promise_is_ignored() {
    let mut rig = Setup::of("A").serving();
    assert_eq!(rig.tell('A', ToWriter::Fenced { promised: Epoch(5) }), NOTHING);
    assert!(!rig.engine.is_over());
}

#[test]
fn the_acks_and_grants_of_an_ejected_member_do_not_count() {
    let mut rig = without_c();
    five_seconds(&mut rig, "AB", 1);
    rig.cas_done();
    assert_eq!(rig.write(2, run(0, 1)).len(), 2);
    assert_eq!(rig.ack('C', 2), NOTHING);
    assert_eq!(rig.ack('A', 2), NOTHING);
    assert_eq!(rig.ack('B', 2), ["2: written"]);
}

/// Symptom: a healthy member is thrown out of a busy volume after five seconds. Cause: `behind_since_us` is cleared
/// only when a member has everything up to `last`, and at a queue depth above one some write is always under way.
#[test]
fn a_member_that_keeps_up_under_load_is_not_ejected() {
    let mut rig = Setup::of("AB").serving();
    rig.write(1, run(1, 1));
    for id in 2..=600 {
        // There are always two writes under way, and none takes longer than 20 ms.
        rig.write(id, run(id, 1));
        rig.pass_ms(10);
        rig.ack('A', id - 1);
        assert_eq!(rig.ack('B', id - 1), [format!("{}: written", id - 1)]);
        assert_eq!(rig.tick(), NOTHING, "after {} ms", id * 10);
    }
}

#[test]
fn a_member_that_hangs_is_ejected_before_writes_wait_for_it() {
    let settings = Settings { eject_lag_bytes: 8 * 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::default() }.serving();
    rig.pass_ms(150);
    rig.write(1, run(0, 5));
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.pass_ms(199).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["cas c1 AB"]);
}

#[test]
fn one_of_two_members_that_is_gone_is_ejected_after_a_second_because_nothing_goes_without_it() {
    let mut rig = Setup::of("AB").serving();
    rig.down('B');
    rig.write(1, run(0, 1));
    rig.ack('A', 1);
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    rig.ack('A', 1);
    assert_eq!(rig.pass_ms(1).tick(), ["cas c1 A"]);
    assert_eq!(rig.cas_done(), ["1: written"]);
}

#[test]
fn a_member_without_which_reads_lack_grants_is_ejected_after_a_second() {
    let mut rig = Setup::of("AB").serving();
    rig.down('B');
    rig.pass_ms(1000);
    rig.ack('A', 0);
    assert_eq!(rig.tick(), NOTHING); // nobody wants anything
    rig.read(9, run(0, 1));
    assert_eq!(rig.tick(), ["cas c1 A"]);
    assert_eq!(rig.cas_done(), ["A: read [0+1]"]);
}

/// Symptom: writes stop though two of three members have everything. Cause: a member that may not be ejected now is looked
/// at again and again, and the one that is away never.
#[test]
fn a_member_that_may_not_go_does_not_shield_one_that_is_away() {
    let mut rig = without_c();
    rig.on(Event::Eject { device: device('A') });
    assert_eq!(five_seconds(&mut rig, "AB", 1), ["cas c1 AB"]);
}

#[test]
fn an_ejection_by_hand_that_was_not_possible_is_forgotten() {
    let mut rig = Setup { in_sync: "A", ..Setup::default() }.serving();
    rig.on(Event::Eject { device: device('A') });
    rig.pass_ms(10_000).tick();
    rig.ack('A', 0);
    assert!(!rig.tick().iter().any(|line| line.starts_with("cas")));
}

#[test]
fn a_member_that_is_away_has_five_seconds_while_the_others_are_enough() {
    let mut rig = without_c();
    for second in 0..4 {
        rig.write(10 + second, run(second, 1)); // something is always under way
        rig.pass_ms(1_000);
        rig.ack('A', 1);
        rig.ack('B', 1);
        assert!(!rig.tick().iter().any(|line| line.starts_with("cas")));
    }
}
