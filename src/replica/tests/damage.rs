//! Damage that the scrub meets: told once to each writer, together with its neighbours, and forgotten when it is over.

use super::*;
use ashlar_store::api::{BlockState, ReadResult};

fn damaged(blocks: impl IntoIterator<Item = u64>) -> Vec<Event> {
    blocks.into_iter().map(|block| Event::Damaged { volume: VOLUME, block }).collect()
}

fn answer_read(rig: &mut Rig, range: BlockRange, states: Vec<BlockState>) -> Vec<String> {
    let stamps = vec![Stamp::default(); states.len()];
    rig.answer(Reply::Read(ReadResult { range, payload: None, states, stamps }))
}

#[test]
fn neighbours_are_told_together_within_their_chunk() {
    let mut rig = Rig::member();
    let told = ["tell: damaged [3+2]", "tell: damaged [7+1]", "tell: damaged [1022+2]", "tell: damaged [1024+1]"];
    assert_eq!(rig.batch(damaged([7, 1024, 4, 3, 1023, 1022])), told);
}

#[test]
fn a_block_is_told_once() {
    let mut rig = Rig::member();
    assert_eq!(rig.batch(damaged([4])), ["tell: damaged [4+1]"]);
    assert_eq!(rig.batch(damaged([4])), NOTHING);
    assert_eq!(rig.batch(damaged([4, 5])), ["tell: damaged [5+1]"]);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn damage_waits_for_a_writer_and_is_told_when_its_lane_has_started() {
    let state = LaneState { current: Epoch(4), prefix: 3, ..LaneState::default() };
    let mut rig = Rig::restarted(4, state);
    assert_eq!(rig.batch(damaged([4])), NOTHING);
    assert_eq!(rig.hear(start(3)), ["store: start 5 c1 base 3"]);
    assert_eq!(rig.done(), ["tell: ack 3 @0", "tell: damaged [4+1]"]);
}

#[test]
fn a_new_writer_and_a_new_link_are_told_again() {
    let mut rig = Rig::member();
    rig.batch(damaged([4]));
    assert_eq!(rig.hear_in(6, start(0)), ["store: start 6 c1 base 0"]);
    assert_eq!(rig.done(), ["tell e6: ack 0 @0", "tell e6: damaged [4+1]"]);
    assert_eq!(rig.batch(vec![Event::LinkClosed { link: LinkId(1) }]), NOTHING);
    assert_eq!(rig.batch(vec![said(2, 6, start(0))]), ["tell link 2 e6: ack 0 @0", "tell link 2 e6: damaged [4+1]"]);
    assert_eq!(rig.batch(vec![said(2, 6, start(0))]), ["tell link 2 e6: ack 0 @0"]);
}

#[test]
fn a_replica_with_a_higher_promise_tells_nobody() {
    let mut rig = Rig::member();
    rig.hear_in(6, ToReplica::Seal);
    assert_eq!(rig.batch(damaged([4])), NOTHING);
}

#[test]
fn what_the_writer_has_seen_is_told_again_only_when_the_scrub_meets_it_again() {
    let mut rig = Rig::member();
    rig.batch(damaged([4]));
    rig.hear(read(1, run(4, 1)));
    assert_eq!(answer_read(&mut rig, run(4, 1), vec![BlockState::Bad(7)]), ["tell: read 1 [4+1] [Bad(7)]"]);
    assert_eq!(rig.tick(), NOTHING);
    assert_eq!(rig.batch(damaged([4])), ["tell: damaged [4+1]"]);
}

#[test]
fn repaired_overwritten_and_sound_blocks_are_forgotten() {
    let mut rig = Rig::member();
    rig.batch(damaged([4, 6, 8, 9]));
    rig.hear(ToReplica::Repair { block: 4, checksum: 9, payload: Payload::copied_from(&[1; 4096]) });
    assert_eq!(rig.done(), ["tell: repaired 4"]);
    rig.hear(write(1, run(6, 1)));
    assert_eq!(rig.done(), ["tell: ack 1 @100"]);
    rig.hear(read(1, run(8, 1)));
    answer_read(&mut rig, run(8, 1), vec![BlockState::Data(7)]);
    // A new link shows what is still remembered.
    assert_eq!(rig.batch(vec![said(2, 5, start(0))]), ["tell link 2: ack 1 @100", "tell link 2: damaged [9+1]"]);
    assert_eq!(rig.batch(damaged([4])), ["tell link 2: damaged [4+1]"]);
}

#[test]
fn what_is_remembered_is_bounded_and_the_untold_stays() {
    let most = super::super::damage::BLOCKS_MAX as u64;
    let mut rig = Rig::restarted(5, LaneState { current: Epoch(5), ..LaneState::default() });
    rig.batch(damaged((0..2 * most).map(|i| 2 * i)));
    assert_eq!(rig.hear(start(0)).len() as u64, 1 + most);
    // A told one makes room for a new one.
    assert_eq!(rig.batch(damaged([1 << 40])), ["tell: damaged [1099511627776+1]"]);
}

#[test]
fn a_volume_that_is_not_kept_here_has_no_damage() {
    let mut rig = Rig::member();
    rig.batch(vec![Event::Forget { volume: VOLUME }]);
    assert_eq!(rig.batch(damaged([4])), NOTHING);
    rig.done();
    rig.hear(start(0));
    assert_eq!(rig.done(), ["tell: ack 0 @0"]);
}
