//! Z1: closing clean, and closing without the mark.

use super::*;

const DETACHED: &str = "failed: the volume is being detached";

#[test]
fn an_idle_volume_closes_clean_at_once() {
    let mut rig = Setup { clean: Some(7), ..Setup::default() }.serving();
    assert_eq!(rig.on(Event::Close), ["cas c1 ABC clean 7"]);
    assert_eq!(rig.cas_done(), ["closed clean"]);
    assert!(rig.engine.is_over());
}

#[test]
fn every_lane_is_marked_before_the_volume_is_closed_clean() {
    let mut rig = Setup { lane_count: 2, ..Setup::of("A") }.serving();
    rig.write(1, run(1024, 1));
    rig.ack_lane(1, 'A', 1);
    assert_eq!(rig.on(Event::Close), ["cas c1 A clean 0", "cas/1 c1 A clean 1"]);
    assert_eq!(rig.cas_done(), NOTHING);
    assert_eq!(rig.cas_done(), ["closed clean"]);
}

#[test]
fn the_mark_waits_until_every_member_has_everything() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    assert_eq!(rig.on(Event::Close), NOTHING);
    rig.ack('A', 1);
    assert_eq!(rig.ack('B', 1), ["1: written"]);
    assert_eq!(rig.ack('C', 1), ["cas c1 ABC clean 1"]);
}

#[test]
fn reads_under_way_are_finished_first() {
    let mut rig = Setup::of("A").serving();
    rig.read(1, run(0, 1));
    assert_eq!(rig.on(Event::Close), NOTHING);
    assert_eq!(rig.serve('A', 7), ["1: read [0+1]=7", "cas c1 A clean 0"]);
}

#[test]
fn no_operation_is_taken_any_more() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 1));
    rig.on(Event::Close);
    assert_eq!(rig.write(2, run(5, 1)), [format!("2: {DETACHED}")]);
    assert_eq!(rig.read(3, run(5, 1)), [format!("3: {DETACHED}")]);
    assert_eq!(rig.ack('A', 1), ["1: written", "cas c1 A clean 1"]);
    rig.cas_done();
    assert_eq!(rig.read(4, run(5, 1)), [format!("4: {DETACHED}")]);
}

#[test]
fn what_had_not_begun_fails() {
    let mut rig = Setup { in_sync_min: 2, ..Setup::of("A") }.serving();
    rig.write(1, run(0, 1));
    assert_eq!(rig.on(Event::Close), [format!("1: {DETACHED}"), "cas c1 A clean 0".into()]);
}

#[test]
fn without_a_member_the_volume_ends_unclean_after_patience() {
    let mut rig = Setup::default().serving();
    rig.down('C');
    assert_eq!(rig.on(Event::Close), NOTHING);
    assert_eq!(rig.pass_ms(2_999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["closed unclean"]);
}

#[test]
fn a_closed_volume_says_nothing_to_a_link_that_comes_up() {
    let mut rig = Setup::default().serving();
    rig.down('C');
    rig.on(Event::Close);
    assert_eq!(rig.pass_ms(3_000).tick(), ["closed unclean"]);
    assert_eq!(rig.up('C'), NOTHING);
}

#[test]
fn a_member_that_returns_in_time_makes_the_close_clean() {
    let mut rig = Setup::default().serving();
    rig.down('C');
    rig.on(Event::Close);
    assert_eq!(rig.up('C'), ["C: start c1 base 0"]);
    assert_eq!(rig.ack('C', 0), ["cas c1 ABC clean 0"]);
}

#[test]
fn writes_that_nobody_acknowledges_fail_when_patience_ends() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 1));
    rig.on(Event::Close);
    assert_eq!(rig.pass_ms(3_000).tick(), [format!("1: {DETACHED}"), "closed unclean".into()]);
}

#[test]
fn an_unknown_outcome_of_the_mark_is_asked_again() {
    let mut rig = Setup::of("A").serving();
    rig.on(Event::Close);
    rig.on(Event::CasUnknown { lane: 0 });
    assert_eq!(rig.pass_ms(50).tick(), ["cas c1 A clean 0"]);
    assert_eq!(rig.cas_done(), ["closed clean"]);
}

#[test]
fn a_mark_refused_for_a_higher_epoch_fences() {
    let mut rig = Setup::of("A").serving();
    rig.on(Event::Close);
    assert_eq!(rig.cas_answer(0, 6, 1), ["closed unclean"]);
}

#[test]
fn a_join_is_dropped_by_the_close() {
    let mut rig = Setup { in_sync: "AB", ..Setup::default() }.serving();
    assert_eq!(rig.tick(), ["C: join #1 c1 base 0"]);
    assert_eq!(rig.on(Event::Close), ["cas c1 AB clean 0"]);
}

#[test]
fn a_change_that_is_out_is_waited_for() {
    let mut rig = Setup::default().serving();
    rig.tell('C', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(rig.tick(), ["cas c1 AB"]);
    assert_eq!(rig.on(Event::Close), NOTHING);
    assert_eq!(rig.cas_done(), ["cas c2 AB clean 0"]);
}

#[test]
fn closing_before_the_volume_serves_leaves_no_mark() {
    let mut rig = Setup::default().idle();
    rig.write(1, run(0, 1));
    assert_eq!(rig.on(Event::Close), [format!("1: {DETACHED}"), "closed unclean".into()]);
    let mut rig = Setup { clean: None, ..Setup::default() }.granted();
    assert_eq!(rig.on(Event::Close), ["closed unclean"]);
}

#[test]
fn closing_twice_is_closing_once() {
    let mut rig = Setup::of("A").serving();
    rig.on(Event::Close);
    assert_eq!(rig.on(Event::Close), NOTHING);
    rig.cas_done();
    assert_eq!(rig.on(Event::Close), NOTHING);
}
