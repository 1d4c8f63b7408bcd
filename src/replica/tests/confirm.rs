//! Digests of a source, and a joiner that compares them with what it holds.

use super::*;
use crate::wire::message::recorded_digest;
use ashlar_model::checksum::block_digest;
use ashlar_store::api::{BlockState, ReadResult};

const SEED: u64 = 77;

/// Data of which every byte of block `n` is `n`, in version 4.9.
fn held(range: BlockRange) -> ReadResult {
    let bytes: Vec<u8> = range.blocks().flat_map(|block| [block as u8; 4096]).collect();
    // As the rig's writes are checked: the fill times a hundred, and the block.
    let states = range.blocks().map(|block| BlockState::Data((block * 100 + block) as u32)).collect();
    let stamps = vec![Stamp { epoch: Epoch(4), index: 9 }; range.count as usize];
    ReadResult { range, payload: Some(Payload::copied_from(&bytes)), states, stamps }
}

fn digest(fill: u64) -> u128 {
    block_digest(SEED, &[fill as u8; 4096])
}

/// The source has these digests, all in version 4.12 but for the last in 4.7.
fn confirm(range: BlockRange, digests: &[u128]) -> ToReplica {
    let version = |at: usize| Stamp { epoch: Epoch(4), index: if at + 1 == digests.len() { 7 } else { 12 } };
    let blocks = digests.iter().enumerate().map(|(at, digest)| (version(at), *digest)).collect();
    ToReplica::Confirm { join: 7, request: 1, range, seed: SEED, blocks, settled: 8 }
}

#[test]
fn a_source_tells_digests_of_good_data_only() {
    let mut rig = Rig::member();
    let range = run(1, 3);
    let question = ToReplica::Digest { request: 5, range, seed: SEED, prefix_min: 0 };
    assert_eq!(rig.hear(question.clone()), ["store: read [1+3]"]);
    let mut result = held(range);
    result.states[1] = BlockState::Bad(3);
    let mut effects = Vec::new();
    let event = rig.stored(0, Reply::Read(result));
    rig.engine.apply(event, &mut effects);
    let at = Stamp { epoch: Epoch(4), index: 9 };
    let blocks = vec![(at, digest(1)), (at, 0), (at, digest(3))];
    let expected = ToWriter::Digests { request: 5, range, blocks };
    assert!(matches!(&effects[0], Effect::Send { message, .. } if *message == expected), "{effects:?}");
    // One that lacks writes before the join is no source.
    let ToReplica::Digest { request, range, seed, .. } = question else { unreachable!() };
    assert_eq!(rig.hear(ToReplica::Digest { request, range, seed, prefix_min: 3 }), ["tell: read 5 refused"]);
}

#[test]
fn equal_blocks_take_over_the_sources_version_and_the_others_are_told() {
    let mut rig = Rig::joiner();
    let question = confirm(run(1, 4), &[digest(1), digest(2), digest(99), digest(4)]);
    assert_eq!(rig.hear(question.clone()), ["store: read [1+4]"]);
    assert_eq!(rig.hear(question), NOTHING); // it is on its way
    let stored = rig.answer(Reply::Read(held(run(1, 4))));
    assert_eq!(stored, ["store: write 4.12 [1+2]=1 copy listed", "store: write 4.7 [4+1]=4 copy"]);
    assert_eq!(rig.done(), NOTHING);
    assert_eq!(rig.done(), ["tell: confirmed 1 of 7 but [3+1]"]);
}

#[test]
fn what_every_source_has_damaged_is_kept_where_the_recorded_checksum_is_that_of_the_own_bytes() {
    let mut rig = Rig::joiner();
    rig.hear(confirm(run(1, 2), &[recorded_digest(101), recorded_digest(203)]));
    assert_eq!(rig.answer(Reply::Read(held(run(1, 2)))), ["store: write 4.12 [1+1]=1 copy listed"]);
    assert_eq!(rig.done(), ["tell: confirmed 1 of 7 but [2+1]"]);
}

#[test]
fn what_is_written_live_meanwhile_is_left_alone_and_waited_for() {
    let mut rig = Rig::joiner();
    rig.hear(confirm(run(1, 2), &[digest(1), digest(2)]));
    rig.hear(write_under(Progress { config: 2, settled: 0, member: false, sent_at_us: 100 }, 11, run(2, 1)));
    assert_eq!(rig.answer(Reply::Read(held(run(1, 2)))), ["store: write 4.12 [1+1]=1 copy listed"]);
    assert_eq!(rig.answer_nth(1, Reply::Done), NOTHING);
    assert!(rig.done().contains(&"tell: confirmed 1 of 7 but ".to_owned()));
}

#[test]
fn blocks_that_cannot_be_read_or_hold_nothing_differ() {
    let mut rig = Rig::joiner();
    rig.hear(confirm(run(1, 2), &[digest(1), 0]));
    let mut result = held(run(1, 2));
    result.states[0] = BlockState::Unknown;
    assert_eq!(rig.answer(Reply::Read(result)), ["tell: confirmed 1 of 7 but [1+2]"]);
}

#[test]
fn a_comparison_of_another_join_is_lost() {
    let mut rig = Rig::joiner();
    let ToReplica::Confirm { range, blocks, .. } = confirm(run(1, 1), &[digest(1)]) else { unreachable!() };
    let other = ToReplica::Confirm { join: 6, request: 1, range, seed: SEED, blocks, settled: 8 };
    assert_eq!(rig.hear(other), ["tell: join 6 lost"]);
    let mut rig = Rig::member();
    assert_eq!(rig.hear(confirm(run(1, 1), &[digest(1)])), ["tell: join 7 lost"]);
}
