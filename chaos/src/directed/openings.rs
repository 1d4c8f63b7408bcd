//! A volume of which one lane opens later than the other, and what must not happen then.

use crate::sim::Stage;

/// Lane 1 lacks a seal when the volume opens, lane 0 has all it needs. A write to both waits, and its guest is gone: it
/// asks again on another connection, of the block in lane 0 alone, and is answered. Then lane 1 opens.
pub fn abandoned(trace: bool) -> Option<String> {
    let mut stage = Stage::with_two_lanes(3, trace);
    stage.die_alone_with(0, 0);
    let newer = stage.next_writer();
    (1..3).for_each(|machine| stage.cut_off(newer, machine));
    stage.attach();
    stage.write(newer, 0);
    stage.answered(newer); // lane 0 serves
    let late = stage.write_blocks(newer, LAST_OF_LANE_0, 2);
    stage.abandon(newer, late);
    stage.write(newer, LAST_OF_LANE_0);
    stage.answered(newer);
    (1..3).for_each(|machine| stage.mend(newer, machine));
    stage.write(newer, LAST_OF_LANE_0 + 1);
    stage.answered(newer); // lane 1 serves
    stage.read(newer, LAST_OF_LANE_0);
    stage.answered(newer);
    stage.judge()
}

/// Of four blocks around the border between two lanes.
const LAST_OF_LANE_0: usize = 1;
