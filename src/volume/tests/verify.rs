//! Opening after a restore of the metadata: every device that may hold the lane seals first.

use super::open::{entry, state};
use super::*;

fn restored() -> Setup {
    let rows = vec![EpochRow { epoch: Epoch(1), base: 0 }];
    Setup { clean: None, unverified: true, rows, ..Setup::default() }
}

/// Indexes go on from here in epoch 5, above those of any life of the metadata that is lost.
const BASE: u64 = 5 << 16;

fn starts(names: &str) -> Vec<String> {
    names.chars().map(|name| format!("{name}: start c1 base {BASE}")).collect()
}

fn cas(names: &str) -> Vec<String> {
    vec![format!("cas c1 {names} base {BASE}")]
}

#[test]
fn a_restored_lane_waits_for_every_device() {
    let mut rig = restored().granted();
    rig.seal('A', state(3, 3, vec![]));
    rig.seal('B', state(3, 3, vec![]));
    assert_eq!(rig.pass_ms(60_000).tick()[0], "C: seal", "no patience is enough");
    let status = rig.engine.status();
    let reason = status.reason.unwrap();
    assert!(reason.contains("all of its devices once after the restore") && reason.contains("disregard"), "{reason}");
    assert_eq!(rig.seal('C', state(3, 3, vec![])), starts("ABC"));
    rig.ack('A', BASE);
    rig.ack('B', BASE);
    assert_eq!(rig.ack('C', BASE), cas("ABC"));
}

#[test]
fn a_device_that_had_left_is_no_member_and_its_list_counts_for_nothing() {
    let mut rig = restored().granted();
    // C was put out at index 5 and holds a write of its dead epoch with a high index.
    rig.seal('C', state(4, 5, vec![entry(4, 30, run(0, 1))]));
    rig.seal('A', state(9, 9, vec![]));
    assert_eq!(
        rig.seal('B', state(8, 10, vec![entry(4, 10, run(5, 1))])),
        starts("AB"),
        "C is not started, and index 30 is not known"
    );
    assert_eq!(rig.ack('B', BASE), ["B: read [5+1]"]);
    rig.ack('A', BASE);
    rig.serve('B', 7);
    rig.ack('A', BASE + 1);
    assert_eq!(rig.ack('B', BASE + 1), cas("AB"));
}

#[test]
fn what_cannot_be_told_is_said_and_waits_for_an_operator() {
    let mut rig = restored().granted();
    let joining = LaneState { join: (4 << 24) + 1, ..state(3, 9, vec![]) };
    rig.seal('A', state(9, 9, vec![]));
    rig.seal('B', state(9, 9, vec![]));
    assert_eq!(rig.seal('C', joining), ["alarm"]);
    assert_eq!(rig.pass_ms(60_000).tick(), NOTHING, "once");
    let reason = rig.engine.status().reason.unwrap();
    assert!(reason.contains("after the restore") && reason.contains("ashlar device disregard"), "{reason}");
    assert!(rig.cas.is_empty(), "nothing is recorded");
}

#[test]
fn a_joiner_with_everything_settled_is_a_member_and_no_source() {
    let mut rig = restored().granted();
    rig.seal('A', state(9, 10, vec![entry(4, 10, run(5, 1))]));
    rig.seal('B', state(9, 9, vec![]));
    // Its join began at index 9 or before.
    let joined = LaneState { join: (4 << 24) + 1, ..state(9, 9, vec![]) };
    assert_eq!(rig.seal('C', joined), starts("ABC"));
    assert_eq!(rig.ack('C', BASE), NOTHING);
    assert_eq!(rig.ack('B', BASE), NOTHING);
    assert_eq!(rig.ack('A', BASE), ["A: read [5+1]"]);
    assert_eq!(rig.serve('A', 7).len(), 3, "everybody gets it");
}

#[test]
fn who_was_left_behind_by_an_epoch_that_is_known_is_no_member() {
    let rows = vec![EpochRow { epoch: Epoch(1), base: 0 }, EpochRow { epoch: Epoch(6), base: 9 }];
    let mut rig = Setup { rows, ..restored() }.granted();
    rig.seal('A', state(9, 9, vec![]));
    rig.seal('B', state(9, 9, vec![]));
    // It says itself that 9 is settled, and holds a write of epoch 4 above the end of that epoch.
    assert_eq!(rig.seal('C', state(9, 10, vec![entry(4, 10, run(0, 1))])), starts("AB"));
}

/// Symptom: restored twice from one backup, a lane was opened on what the first of both lives had left behind. Cause: both
/// had used the same indexes, so what the lost one had settled hid what was written in the other.
#[test]
fn indexes_after_a_restore_are_above_those_of_a_life_that_is_lost() {
    let goes_on = |seen: u64, base: u64| {
        let mut rig = restored().granted();
        rig.seal('A', state(seen, seen, vec![]));
        rig.seal('B', state(seen, seen, vec![]));
        let expected = ['A', 'B', 'C'].map(|name| format!("{name}: start c1 base {base}"));
        assert_eq!(rig.seal('C', state(seen, seen, vec![])), expected);
    };
    goes_on(3, BASE);
    goes_on((4 << 16) + 60_000, BASE);
    goes_on(BASE + 7, BASE + 7 + (1 << 32)); // a clock was wrong
}

/// Symptom: what was left of a lane after a restore could never be opened. Cause: the only device left was asked about, and
/// there was nobody else to go on with.
#[test]
fn the_only_device_left_is_gone_on_with_and_it_is_said_what_that_may_be() {
    let rows = vec![EpochRow { epoch: Epoch(1), base: 0 }];
    let joining = LaneState { join: (4 << 24) + 1, suspect: vec![run(0, 1)], ..state(3, 9, vec![]) };
    for (alone, alarms) in [(state(9, 9, vec![]), 0), (joining, 1), (LaneState::default(), 1)] {
        let mut rig = Setup { in_sync: "A", rows: rows.clone(), ..restored() }.granted();
        let said = rig.seal('A', alone);
        assert_eq!(said.iter().filter(|line| *line == "alarm").count(), alarms, "{said:?}");
        assert_eq!(said[alarms..], starts("A"));
    }
}

#[test]
fn who_was_disregarded_counts_among_those_that_may_have_acknowledged() {
    let mut rig = Setup { in_sync: "AB", ..restored() }.granted();
    rig.seal('A', state(120, 120, vec![]));
    assert_eq!(rig.seal('B', state(90, 90, vec![])), ["alarm"], "one of three does not meet every quorum");
    assert!(rig.engine.status().reason.unwrap().contains("too few devices are complete"));
}
