//! Devices that come back after the metadata was lost, with writes that nobody else has (V3, V4).

use crate::sim::{Stage, Way};

/// Device 0 alone serves block 0 and block 3 for a while, and then it is lost, with the metadata. The others go on from a
/// backup, without what it had; block 0 is written anew. Then it comes back.
fn lost_and_back(trace: bool) -> (Stage, usize) {
    let mut stage = Stage::new(3, trace);
    stage.write(0, 1);
    stage.answered(0);
    stage.pass(100_000);
    let backup = stage.backup();
    for machine in [1, 2] {
        stage.cut_off(0, machine);
        stage.eject(0, machine);
    }
    stage.write(0, 3);
    for _ in 0..40 {
        stage.write(0, 0);
        stage.answered(0); // all before it is settled there
    }
    stage.pass(500_000);
    let writer = stage.go_on_without(0, backup);
    for block in [0, 1] {
        stage.write(writer, block);
    }
    stage.answered(writer);
    stage.start(0);
    stage.whole();
    (stage, writer)
}

/// What it has of block 3 counts no more, and block 0 is newer elsewhere.
pub fn lost_history(trace: bool) -> Option<String> {
    lost_and_back(trace).0.judge()
}

/// Device 0 and device 1 alone have the newest write of block 2 when the writer dies, and what device 0 had settled in the
/// life that was lost must not hide it.
pub fn lost_settled(trace: bool) -> Option<String> {
    let (mut stage, writer) = lost_and_back(trace);
    stage.cut(writer, 2, Way::ToDevice);
    stage.write(writer, 2);
    stage.answered(writer);
    stage.kill(writer);
    stage.freeze(1);
    stage.restart(0);
    stage.attach();
    stage.pass(1_000_000);
    stage.judge()
}

/// Each of two devices is alone in a life of its own after the same backup; the life in which device 1 wrote much is lost.
/// Device 1 comes back, falls behind and comes back again: what it settled in the lost life must not hide what it lacks.
pub fn lost_twice(trace: bool) -> Option<String> {
    let mut stage = Stage::new(2, trace);
    stage.pass(100_000);
    let (first, second) = (stage.backup(), stage.backup());
    let writer = stage.go_on_without(0, first);
    for _ in 0..40 {
        stage.write(writer, 0);
        stage.answered(writer);
    }
    stage.pass(500_000);
    let writer = stage.go_on_without(1, second);
    stage.write(writer, 0);
    stage.answered(writer);
    stage.start(1);
    stage.whole();
    stage.pass(500_000);
    stage.cut_off(writer, 1);
    stage.eject(writer, 1);
    for block in [0, 1] {
        stage.write(writer, block);
        stage.answered(writer);
    }
    stage.pass(500_000);
    stage.mend(writer, 1);
    stage.whole();
    stage.judge()
}
