//! Reads that a newer writer, or a write that nobody has yet, must keep from being answered (W7, W13, Z1).

use crate::sim::{Stage, Way};

/// A read that writer 0 asked is answered by its device, and the answer, like all others, stays on the wire. The writer
/// reaches nobody from then on.
fn read_in_flight(stage: &mut Stage, also_write: bool) {
    (0..3).for_each(|machine| stage.cut(0, machine, Way::ToWriter));
    if also_write {
        stage.write(0, 1);
    }
    stage.read(0, 0);
    stage.pass(5_000);
    (0..3).for_each(|machine| stage.cut(0, machine, Way::ToDevice));
}

/// The answers arrive: first acknowledgements, which carry grants, then what was read.
fn answers_arrive(stage: &mut Stage) {
    let answers: Vec<_> = (0..3).flat_map(|machine| stage.take(0, machine, Way::ToWriter)).collect();
    let (reads, others) = answers.into_iter().partition(|kept| kept.is_read_answer());
    stage.deliver(others);
    stage.deliver(reads);
}

/// Acknowledgements that carry grants travel for longer than a grant lasts, and so does the answer to a read. Meanwhile
/// another writer has waited for the grants and has written.
pub fn late_grant(trace: bool) -> Option<String> {
    let mut stage = Stage::new(3, trace);
    read_in_flight(&mut stage, true);
    let newer = stage.attach();
    stage.write(newer, 0);
    stage.answered(newer);
    answers_arrive(&mut stage);
    stage.judge()
}

/// The answer to a read is late, but its writer's grants run still. The next writer closes before they have run out;
/// after a clean close the one after that waits for nothing.
pub fn early_close(trace: bool) -> Option<String> {
    let mut stage = Stage::new(3, trace);
    stage.write(0, 0);
    stage.answered(0);
    read_in_flight(&mut stage, false);
    let closing = stage.attach();
    stage.close(closing);
    stage.pass(150_000);
    let newer = stage.attach();
    stage.write(newer, 0);
    stage.pass(100_000);
    answers_arrive(&mut stage);
    stage.judge()
}

/// A question to a device is overtaken by a write, which reaches this device alone. What was read is the write's; then
/// writer and device are gone, and the others have never heard of it.
pub fn early_read(trace: bool) -> Option<String> {
    let mut stage = Stage::new(3, trace);
    (0..3).for_each(|machine| stage.cut(0, machine, Way::ToDevice));
    stage.read(0, 0);
    let questions: Vec<_> = (0..3).map(|machine| stage.take(0, machine, Way::ToDevice)).collect();
    let asked = questions.iter().position(|held| !held.is_empty()).expect("some device is asked");
    stage.mend(0, asked);
    stage.write(0, 0);
    stage.pass(5_000);
    questions.into_iter().for_each(|held| stage.deliver(held));
    stage.pass(5_000);
    stage.kill(0);
    (0..3).for_each(|machine| drop(stage.take(0, machine, Way::ToDevice)));
    stage.freeze(asked);
    let newer = stage.attach();
    stage.read(newer, 0);
    stage.answered(newer);
    stage.judge()
}
