//! When the writer wants its clock, and that ticks before that do nothing.

use super::*;
use crate::volume::Wake;

/// Four lanes on A, B and C, long after the last request.
fn at_rest() -> Rig {
    let mut rig = Setup { lane_count: 4, ..Setup::default() }.serving();
    rig.beats = true;
    rig.pass_ms(3_000).tick();
    rig
}

fn wake(rig: &mut Rig) -> Wake {
    rig.tick();
    rig.engine.wake()
}

/// What the clock of a test shows after so many milliseconds.
fn at_ms(milliseconds: u64) -> Wake {
    Wake::At(1_000_000 + milliseconds * 1000)
}

#[test]
fn a_writer_without_an_epoch_or_after_its_end_needs_no_clock() {
    let mut rig = Setup::default().idle();
    assert_eq!(wake(&mut rig), Wake::Never);
    let mut rig = at_rest();
    rig.tell('A', ToWriter::Fenced { promised: Epoch(EPOCH + 1) });
    assert_eq!(wake(&mut rig), Wake::Never);
}

#[test]
fn an_opening_and_a_closing_writer_tick() {
    assert_eq!(wake(&mut Setup { clean: None, ..Setup::default() }.granted()), Wake::Soon);
    let mut rig = at_rest();
    rig.on(Event::Close);
    assert_eq!(wake(&mut rig), Wake::Soon);
}

#[test]
fn at_rest_lanes_take_turns_and_other_ticks_do_nothing() {
    let mut rig = at_rest();
    let beats = |lane: &str| ["A", "B", "C"].map(|to| format!("{to}{lane}: beat c1 s0"));
    // It has never had a pulse.
    assert_eq!(rig.engine.wake(), Wake::At(10_000_000));
    rig.pass_ms(6_000);
    for lane in ["/1", "/2", "/3", "", "/1"] {
        assert_eq!(rig.tick(), beats(lane));
        let next_us = rig.now_us + 10_000_000;
        assert_eq!(rig.engine.wake(), Wake::At(next_us));
        for _ in 0..9 {
            assert_eq!(rig.pass_ms(1_000).tick(), NOTHING);
            assert_eq!(rig.engine.wake(), Wake::At(next_us));
        }
        rig.pass_ms(1_000);
    }
}

/// Many lanes take turns in four groups, so that each is heard of within 40 s.
#[test]
fn every_lane_has_its_turn_in_four_pulses() {
    let mut rig = Setup { lane_count: 10, ..Setup::of("A") }.serving();
    rig.beats = true;
    rig.pass_ms(3_000).tick();
    rig.pass_ms(6_000);
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..4 {
        heard.extend(rig.tick());
        rig.pass_ms(10_000);
    }
    assert_eq!(heard.len(), 10);
}

#[test]
fn members_are_told_what_is_settled_before_it_rests() {
    let mut rig = Setup::default().serving();
    rig.beats = true;
    rig.write(7, run(0, 1));
    "ABC".chars().for_each(|name| drop(rig.ack(name, 1)));
    rig.pass_ms(3_001);
    assert_eq!(rig.engine.wake(), Wake::Soon);
    assert_eq!(rig.tick(), ["A", "B", "C"].map(|to| format!("{to}: beat c1 s1")));
    rig.pass_ms(1_000).tick(); // and guests' times of late are forgotten
    assert_ne!(rig.engine.wake(), Wake::Soon);
    rig.down('C');
    rig.up('C');
    rig.ack('C', 1);
    assert_eq!(rig.engine.wake(), Wake::Soon, "C may not know it");
    assert_eq!(rig.pass_ms(2_000).tick(), ["A", "B", "C"].map(|to| format!("{to}: beat c1 s1")));
    assert_ne!(rig.engine.wake(), Wake::Soon);
}

#[test]
fn whatever_is_under_way_or_amiss_keeps_it_ticking() {
    type Disturb = fn(&mut Rig);
    let disturbances: [(&str, Disturb); 6] = [
        ("a read without an answer", |rig| drop(rig.read(9, run(0, 1)))),
        ("a write without a quorum", |rig| drop(rig.write(9, run(0, 1)))),
        ("a member that is away", |rig| drop(rig.down('C'))),
        ("an ejection by hand", |rig| drop(rig.on(Event::Eject { device: device('C') }))),
        ("a damaged block", |rig| drop(rig.tell('A', ToWriter::Damaged { range: run(0, 1) }))),
        ("a device that failed", |rig| drop(rig.tell('A', ToWriter::DeviceFailed { reason: "worn out".into() }))),
    ];
    for (what, disturb) in disturbances {
        let mut rig = at_rest();
        assert_ne!(rig.engine.wake(), Wake::Soon, "{what}");
        disturb(&mut rig);
        assert_eq!(rig.engine.wake(), Wake::Soon, "{what}");
    }
}

#[test]
fn an_ejected_member_that_is_away_lets_it_rest_and_wakes_it_when_it_comes() {
    let mut rig = Setup { in_sync: "AB", ..Setup::default() }.granted();
    rig.down('C');
    "AB".chars().for_each(|name| drop(rig.ack(name, 0)));
    assert_ne!(wake(rig.pass_ms(3_000)), Wake::Soon);
    rig.up('C');
    assert_eq!(rig.engine.wake(), Wake::Soon);
    assert_eq!(rig.tick(), ["C: join #1 c1 base 0"]);
}

#[test]
fn asked_whether_somebody_is_there_it_says_something_to_every_member_of_a_lane() {
    let mut rig = at_rest();
    let pulse = |name| Event::Pulse { devices: vec![device('X'), device(name)] };
    assert_eq!(rig.on(pulse('B')), ["A", "B", "C"].map(|to| format!("{to}: beat c1 s0")));
    assert_eq!(rig.engine.wake(), at_ms(9_000), "that is no pulse of its own");
    assert_eq!(Setup::default().idle().on(pulse('B')), NOTHING);
}

/// Symptom: a link that only a failed device needed was tried twenty times a second, and no heartbeat ever went there.
#[test]
fn it_says_whether_it_has_anything_to_say_to_a_device() {
    let mut rig = Setup { in_sync: "AB", ..Setup::default() }.granted();
    "AB".chars().for_each(|name| drop(rig.ack(name, 0)));
    rig.beats = true;
    for (name, hears) in [('A', true), ('C', false), ('X', false)] {
        assert_eq!(rig.engine.hears_from(&[device(name)]), hears, "{name}");
        assert_eq!(rig.on(Event::Pulse { devices: vec![device(name)] }).is_empty(), !hears, "{name}");
    }
}
