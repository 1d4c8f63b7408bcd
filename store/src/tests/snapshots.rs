//! Snapshot generations: created by writing, read through, dropped with their space.

use super::rig::{Rig, data, key, range, stamp, volume};
use crate::api::{BlockState, Body, Reply, Request, Write};
use ashlar_model::BlockRange;
use ashlar_model::lane::EntryOrigin;

const GRANULE_BYTES: u64 = 64 << 10;

pub(super) fn write(rig: &mut Rig, index: u64, generation: u32, range: BlockRange, body: Body) {
    let write =
        Write { key: key(), stamp: stamp(index), range, body, origin: EntryOrigin::Live, listed: true, generation };
    assert_eq!(rig.ask(Request::Write(write)), Reply::Done);
}

/// The ids of blocks as a generation sees them; zero for zeroes.
pub(super) fn ids(rig: &mut Rig, generation: u32, range: BlockRange) -> Vec<u64> {
    let Reply::Read(read) = rig.ask(Request::ReadSnapshot { volume: volume(), range, generation }) else {
        panic!("a read is answered")
    };
    let id = |(i, state): (usize, &BlockState)| match state {
        BlockState::Zero => 0,
        BlockState::Data(_) => {
            let bytes = &read.payload.as_ref().expect("there is data")[i * 4096..][..8];
            u64::from_le_bytes(bytes.try_into().unwrap())
        }
        other => panic!("{other:?}"),
    };
    read.states.iter().enumerate().map(id).collect()
}

fn granules(rig: &Rig) -> u64 {
    rig.engine.stats().used_bytes / GRANULE_BYTES
}

fn drop_generation(rig: &mut Rig, generation: u32, into: u32) {
    let request = Request::DropGeneration { volume: volume(), generation, into };
    assert_eq!(rig.ask(request), Reply::Done);
}

/// Generation 0: blocks 0 to 31 hold 10. Generation 1: 2 to 3 hold 20, 4 is trimmed, granule 2 is new.
pub(super) fn two_generations() -> Rig {
    let mut rig = Rig::new();
    write(&mut rig, 1, 0, range(0, 32), data(0, 32, 10));
    write(&mut rig, 2, 1, range(2, 2), data(2, 2, 20));
    write(&mut rig, 3, 1, range(4, 1), Body::Tombstone);
    write(&mut rig, 4, 1, range(32, 1), data(32, 1, 21));
    rig
}

#[test]
fn a_newer_generation_hides_only_what_it_wrote() {
    let mut rig = two_generations();
    for _ in 0..2 {
        assert_eq!(ids(&mut rig, 0, range(0, 6)), [10; 6]);
        assert_eq!(ids(&mut rig, 1, range(0, 6)), [10, 10, 20, 20, 0, 10]);
        assert_eq!(ids(&mut rig, u32::MAX, range(30, 4)), [10, 10, 21, 0]);
        assert_eq!(ids(&mut rig, 0, range(32, 1)), [0]);
        assert_eq!(granules(&rig), 2 + 2, "no copy: the overlay has the blocks that were written");
        rig.engine.checkpoint();
        rig.run();
        rig.reopen();
    }
}

#[test]
fn dropping_a_generation_keeps_what_is_seen_and_frees_the_rest() {
    let mut rig = two_generations();
    drop_generation(&mut rig, 0, 1);
    for _ in 0..2 {
        assert_eq!(ids(&mut rig, u32::MAX, range(0, 6)), [10, 10, 20, 20, 0, 10]);
        assert_eq!(ids(&mut rig, u32::MAX, range(16, 17)), [[10; 16].as_slice(), &[21]].concat());
        assert_eq!((granules(&rig), rig.engine.stats().used_slots), (3, 1));
        rig.reopen();
    }
}

#[test]
fn dropping_the_middle_one_of_three_changes_neither_neighbour() {
    let mut rig = two_generations();
    write(&mut rig, 5, 2, range(0, 3), data(0, 3, 30));
    drop_generation(&mut rig, 1, 2);
    assert_eq!(ids(&mut rig, 0, range(0, 6)), [10; 6]);
    assert_eq!(ids(&mut rig, 2, range(0, 6)), [30, 30, 30, 20, 0, 10]);
    assert_eq!(ids(&mut rig, 2, range(32, 1)), [21]);
    assert_eq!(rig.engine.stats().used_slots, 2);
}

#[test]
fn a_generation_without_a_newer_layer_is_renamed() {
    let mut rig = Rig::new();
    write(&mut rig, 1, 0, range(0, 4), data(0, 4, 10));
    drop_generation(&mut rig, 0, 3);
    rig.reopen();
    assert_eq!(ids(&mut rig, 2, range(0, 1)), [0], "it belongs to generation 3 now");
    assert_eq!(ids(&mut rig, 3, range(0, 1)), [10]);
    assert!(matches!(
        rig.ask(Request::DropGeneration { volume: volume(), generation: 3, into: 3 }),
        Reply::Error(crate::api::StoreError::Refused(_))
    ));
}

#[test]
fn a_copied_block_that_was_damaged_stays_damaged_and_can_be_repaired() {
    let mut rig = two_generations();
    let place = rig.find(10);
    rig.device.flip_bit(place + 5 * 4096, 1);
    drop_generation(&mut rig, 0, 1);
    let Body::Data { payload, checksums } = data(0, 32, 10) else { unreachable!() };
    assert_eq!(rig.read(range(5, 1)).states, [BlockState::Bad(checksums[5])]);
    let (checksum, payload) = (checksums[5], payload.slice(5 * 4096, 4096));
    assert_eq!(rig.ask(Request::Repair { volume: volume(), block: 5, checksum, payload }), Reply::Done);
    assert_eq!(ids(&mut rig, u32::MAX, range(5, 1)), [10]);
}

#[test]
fn a_merge_that_is_replayed_over_a_damaged_layer_leaves_unknown_blocks() {
    let mut rig = two_generations();
    rig.engine.checkpoint();
    rig.run();
    rig.reopen();
    drop_generation(&mut rig, 0, 1);
    // Of the older layer only the log says something now.
    let layout = rig.engine.superblock().layout;
    let older = [false, true].map(|half| layout.slot_offset(0, half));
    older.iter().for_each(|page| rig.device.flip_bit(page + 60, 2));
    rig.reopen();
    let states = rig.read(range(14, 20)).states;
    assert!(states[2..18].iter().all(|state| *state == BlockState::Unknown), "moved, nobody knows where: {states:?}");
    assert!(matches!(states[0], BlockState::Data(_)), "copied before: {states:?}");
    assert!(matches!(states[18], BlockState::Data(_)), "never the older layer's: {states:?}");
}
