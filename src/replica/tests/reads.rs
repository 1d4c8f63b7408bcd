//! R7 and the source's side of R9: who may read, and what a reader is told. Repair.

use super::*;
use crate::wire::message::{BlockCondition, ReadReply};
use ashlar_store::api::{BlockState, MapResult, ReadResult};

#[test]
fn a_member_reads_in_its_own_epoch_only() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(read(1, run(0, 4))), ["store: read [0+4]"]);
    assert_eq!(rig.hear_in(6, read(2, run(0, 4))), ["tell e6: read 2 refused"]);
    rig.hear_in(6, ToReplica::Seal);
    assert_eq!(rig.hear(read(3, run(0, 4))), ["tell: fenced by 6"]);
    // Promised, but the lane has not started in 6.
    assert_eq!(rig.hear_in(6, read(4, run(0, 4))), ["tell e6: read 4 refused"]);
}

#[test]
fn an_unknown_lane_is_not_read() {
    let mut rig = Rig::new();
    assert_eq!(rig.hear(read(1, run(0, 1))), ["tell: read 1 refused"]);
}

#[test]
fn a_copy_source_must_have_the_prefix_asked_for() {
    let mut rig = Rig::member();
    let ask = || ToReplica::Read { request: 1, range: run(0, 1024), map_only: true, prefix_min: 1, background: false };
    assert_eq!(rig.hear(ask()), ["tell: read 1 refused"]);
    rig.hear(write(1, run(0, 1)));
    assert_eq!(rig.hear(ask()), ["tell: read 1 refused"]); // not durable yet
    rig.done();
    assert_eq!(rig.hear(ask()), ["store: map [0+1024]"]);
}

#[test]
fn a_joiner_is_not_read() {
    let mut rig = Rig::joiner();
    assert_eq!(rig.hear(read(1, run(0, 1))), ["tell: read 1 refused"]);
}

#[test]
fn a_range_over_a_chunk_border_is_refused() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(read(1, run(1023, 2))), ["tell: read 1 refused"]);
}

fn answer_of(rig: &mut Rig, reply: Reply) -> ToWriter {
    let event = rig.stored(0, reply);
    let mut effects = Vec::new();
    rig.engine.apply(event, &mut effects);
    match effects.remove(0) {
        Effect::Send { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_tells_the_condition_and_version_of_every_block() {
    let mut rig = Rig::member();
    rig.hear(read(1, run(0, 4)));
    let payload = Some(Payload::copied_from(&[3; 4 * 4096]));
    let states = vec![BlockState::Data(7), BlockState::Zero, BlockState::Bad(8), BlockState::Unknown];
    let stamps = vec![Stamp { epoch: Epoch(5), index: 2 }; 4];
    let result = ReadResult { range: run(0, 4), payload: payload.clone(), states, stamps: stamps.clone() };
    let conditions =
        vec![BlockCondition::Data(7), BlockCondition::Zero, BlockCondition::Bad(8), BlockCondition::Unknown];
    let reply = ReadReply { range: run(0, 4), conditions, stamps, payload };
    assert_eq!(answer_of(&mut rig, Reply::Read(result)), ToWriter::ReadDone { request: 1, reply });
}

#[test]
fn a_map_tells_data_zeroes_and_versions() {
    let mut rig = Rig::member();
    rig.hear(ToReplica::Read { request: 1, range: run(0, 2), map_only: true, prefix_min: 0, background: false });
    let stamps = vec![Stamp { epoch: Epoch(5), index: 2 }, Stamp::default()];
    let result = MapResult { range: run(0, 2), written: vec![true, false], stamps: stamps.clone() };
    let conditions = vec![BlockCondition::Data(0), BlockCondition::Zero];
    let reply = ReadReply { range: run(0, 2), conditions, stamps, payload: None };
    assert_eq!(answer_of(&mut rig, Reply::Map(result)), ToWriter::ReadDone { request: 1, reply });
}

#[test]
fn a_read_that_the_store_refuses_is_refused() {
    let mut rig = Rig::member();
    rig.hear(read(1, run(0, 1)));
    assert_eq!(rig.answer(Reply::Error(StoreError::Refused("range".into()))), ["tell: read 1 refused"]);
}

fn repair() -> ToReplica {
    ToReplica::Repair { block: 4, checksum: 9, payload: Payload::copied_from(&[1; 4096]) }
}

#[test]
fn a_repair_is_told_when_it_is_durable() {
    let mut rig = Rig::member();
    assert_eq!(rig.hear(repair()), ["store: repair 4 sum 9"]);
    assert_eq!(rig.done(), ["tell: repaired 4"]);
}

#[test]
fn a_repair_of_a_version_that_is_gone_says_nothing() {
    let mut rig = Rig::member();
    rig.hear(repair());
    assert_eq!(rig.answer(Reply::Error(StoreError::Refused("another version".into()))), NOTHING);
}
