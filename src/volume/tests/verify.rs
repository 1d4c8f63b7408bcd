//! Opening after a restore of the metadata: every device that may hold the lane seals first.

use super::open::{entry, state};
use super::*;

fn restored() -> Setup {
    let rows = vec![EpochRow { epoch: Epoch(1), base: 0 }];
    Setup { clean: None, unverified: true, rows, ..Setup::default() }
}

/// Indexes go on this far above those that are known.
const STEP: u64 = 1 << 32;

fn starts(names: &str, base: u64) -> Vec<String> {
    names.chars().map(|name| format!("{name}: start c1 base {}", STEP + base)).collect()
}

fn cas(names: &str, base: u64) -> Vec<String> {
    vec![format!("cas c1 {names} base {}", STEP + base)]
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
    assert_eq!(rig.seal('C', state(3, 3, vec![])), starts("ABC", 3));
    rig.ack('A', STEP + 3);
    rig.ack('B', STEP + 3);
    assert_eq!(rig.ack('C', STEP + 3), cas("ABC", 3));
}

#[test]
fn a_device_that_had_left_is_no_member_and_its_list_counts_for_nothing() {
    let mut rig = restored().granted();
    // C was put out at index 5 and holds a write of its dead epoch with a high index.
    rig.seal('C', state(4, 5, vec![entry(4, 30, run(0, 1))]));
    rig.seal('A', state(9, 9, vec![]));
    assert_eq!(
        rig.seal('B', state(8, 10, vec![entry(4, 10, run(5, 1))])),
        starts("AB", 10),
        "C is not started, and index 30 is not known"
    );
    assert_eq!(rig.ack('B', STEP + 10), ["B: read [5+1]"]);
    rig.ack('A', STEP + 10);
    rig.serve('B', 7);
    rig.ack('A', STEP + 11);
    assert_eq!(rig.ack('B', STEP + 11), cas("AB", 10));
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
    assert_eq!(rig.seal('C', joined), starts("ABC", 10));
    assert_eq!(rig.ack('C', STEP + 10), NOTHING);
    assert_eq!(rig.ack('B', STEP + 10), NOTHING);
    assert_eq!(rig.ack('A', STEP + 10), ["A: read [5+1]"]);
    assert_eq!(rig.serve('A', 7).len(), 3, "everybody gets it");
}

#[test]
fn who_was_left_behind_by_an_epoch_that_is_known_is_no_member() {
    let rows = vec![EpochRow { epoch: Epoch(1), base: 0 }, EpochRow { epoch: Epoch(6), base: 9 }];
    let mut rig = Setup { rows, ..restored() }.granted();
    rig.seal('A', state(9, 9, vec![]));
    rig.seal('B', state(9, 9, vec![]));
    // It says itself that 9 is settled, and holds a write of epoch 4 above the end of that epoch.
    assert_eq!(rig.seal('C', state(9, 10, vec![entry(4, 10, run(0, 1))])), starts("AB", 9));
}
