//! What a seal promises must hold, whatever becomes of the device that gave it (R1).

use crate::sim::{Stage, Way};

/// Device 0 seals for writer 1 and loses its process. Then writer 0, which knows of nothing, writes to it and to device
/// 2, which is not sealed. Writer 1 goes on with the seals of devices 0 and 1.
pub fn forgotten_promise(trace: bool) -> Option<String> {
    let mut stage = Stage::new(3, trace);
    stage.cut_off(0, 1);
    let newer = stage.next_writer();
    stage.cut_off(newer, 2);
    stage.cut(newer, 1, Way::ToDevice);
    stage.attach();
    stage.pass(20_000); // sealed by device 0
    stage.cut_off(newer, 0);
    stage.restart(0);
    stage.pass(300_000); // writer 0 has connected again
    stage.write(0, 0);
    stage.pass(100_000);
    stage.kill(0);
    stage.mend(newer, 1);
    stage.pass(50_000);
    stage.mend(newer, 0);
    stage.pass(2_000_000);
    stage.judge()
}

/// A write waits for space at device 0, and reached no other. The device seals for writer 1 before it has room again;
/// its start comes later than the room.
pub fn late_room(trace: bool) -> Option<String> {
    let mut stage = Stage::new(3, trace);
    stage.fill(0, true);
    (1..3).for_each(|machine| stage.cut(0, machine, Way::ToDevice));
    stage.write(0, 2); // in a chunk that has no space yet
    stage.pass(20_000);
    let newer = stage.next_writer();
    (1..3).for_each(|machine| stage.cut(newer, machine, Way::ToDevice));
    stage.attach();
    stage.pass(20_000); // sealed by device 0
    stage.kill(0);
    (1..3).for_each(|machine| drop(stage.take(0, machine, Way::ToDevice)));
    stage.cut(newer, 0, Way::ToDevice);
    (1..3).for_each(|machine| stage.mend(newer, machine));
    stage.pass(20_000); // its start for device 0 is held
    stage.fill(0, false);
    stage.pass(500_000);
    stage.mend(newer, 0);
    stage.pass(2_000_000);
    stage.judge()
}
