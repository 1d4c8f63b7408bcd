//! Messages of a join that has come to nothing, and what a promotion must look at (R8, R10, C1).

use crate::sim::{Kept, Stage, Way};

/// Device 0 serves alone, and device 1 has missed a write of block 1. It is connected and may join.
fn one_is_out(trace: bool) -> Stage {
    let mut stage = Stage::new(2, trace);
    stage.eject(0, 1);
    stage.write(0, 1);
    stage.answered(0);
    stage
}

/// The join copies block 1, and the answer, without which it cannot end, is taken. Nothing else passes by then.
fn copied_unanswered(stage: &mut Stage) -> Vec<Kept> {
    stage.cut(0, 1, Way::ToDevice);
    let copy = stage.take_first(0, 1, Way::ToDevice, Kept::is_copy);
    stage.cut(0, 1, Way::ToWriter);
    stage.deliver(copy.clone());
    stage.take_first(0, 1, Way::ToWriter, |kept| kept.is_done(&copy))
}

/// A copy of block 1 stays on a connection that breaks. Before the next join the block is written again, and that join
/// copies this. Then the first copy arrives; it is of an earlier join.
pub fn late_copy(trace: bool) -> Option<String> {
    let mut stage = one_is_out(trace);
    stage.cut(0, 1, Way::ToDevice);
    let late = stage.take_first(0, 1, Way::ToDevice, Kept::is_copy);
    stage.break_off(0, 1);
    stage.write(0, 1);
    stage.answered(0);
    stage.reconnect(0, 1);
    let done = copied_unanswered(&mut stage);
    stage.deliver(late);
    stage.pass(20_000);
    stage.deliver(done); // everything is copied: the device is promoted
    stage.mend(0, 1);
    stage.pass(100_000);
    stage.judge()
}

/// The question whether device 1 would join stays on a connection that breaks. The next join has copied block 1, whose
/// answer is lost, and a guest has written the block since, when the question arrives. Then the copy is sent again: what
/// was written since the join began must still be known.
pub fn late_join(trace: bool) -> Option<String> {
    let mut stage = one_is_out(trace);
    stage.cut(0, 1, Way::ToDevice);
    let late = stage.take_first(0, 1, Way::ToDevice, Kept::is_join_start);
    stage.break_off(0, 1);
    stage.reconnect(0, 1);
    copied_unanswered(&mut stage);
    stage.mend(0, 1);
    stage.write(0, 1);
    stage.answered(0);
    stage.pass(20_000); // device 1 has it, and has said so
    stage.deliver(late);
    stage.pass(1_500_000); // the copy was sent again
    stage.judge()
}

/// A write waits for space at device 0, the only member, while a later one of another block is durable there, and thereby
/// acknowledged. Neither has reached device 1, which has everything up to settled, and all copies.
pub fn early_promotion(trace: bool) -> Option<String> {
    let mut stage = one_is_out(trace);
    stage.fill(0, true);
    let done = copied_unanswered(&mut stage);
    stage.write(0, 2); // in a chunk that has no space yet
    stage.write(0, 0);
    stage.pass(20_000);
    stage.deliver(done);
    stage.pass(100_000);
    stage.fill(0, false);
    stage.mend(0, 1);
    stage.pass(100_000);
    stage.judge()
}

/// An empty device is to take the place of device 1 and has copied everything. Its promotion is on its way to the metadata
/// service when an operator wants yet another device in its place: the set is refused.
pub fn replaced_twice(trace: bool) -> Option<String> {
    let mut stage = Stage::new(2, trace);
    stage.replace(1);
    let done = copied_unanswered(&mut stage);
    stage.mend(0, 1);
    stage.deliver(done);
    stage.replace(1);
    stage.write(0, 0);
    stage.pass(500_000);
    stage.judge()
}

/// Two writes of device 0 come together, the later one first. The earlier one is of two blocks, and the second of them has
/// no space; the later one is of the first block and has all it needs. The other devices have both. Then there is space.
pub fn late_write(trace: bool) -> Option<String> {
    let mut stage = Stage::with_blocks(3, 40, trace);
    stage.fill(0, true);
    stage.cut(0, 0, Way::ToDevice);
    stage.write_blocks(0, LAST_OF_GRANULE, 2);
    stage.answered(0);
    stage.write(0, LAST_OF_GRANULE);
    stage.answered(0);
    let held = stage.take(0, 0, Way::ToDevice);
    let (writes, others): (Vec<Kept>, Vec<Kept>) = held.into_iter().partition(Kept::is_write);
    stage.deliver(writes.into_iter().rev().collect());
    stage.deliver(others);
    stage.mend(0, 0);
    stage.pass(100_000);
    stage.fill(0, false);
    stage.pass(500_000);
    stage.judge()
}

/// Of 40 blocks around a chunk border, the last one that shares space with the first.
const LAST_OF_GRANULE: usize = 3;
