//! One bad sector is one sector's damage: the device opens, and everything else is there.

use super::rig::{Rig, data, key, range, stamp, volume};
use crate::api::{BlockState, Reply, Request, Write};
use ashlar_model::BlockRange;
use ashlar_model::lane::EntryOrigin;

fn checkpoint(rig: &mut Rig) {
    rig.engine.checkpoint();
    rig.run();
}

fn is_data(rig: &mut Rig, range: BlockRange) -> bool {
    rig.read(range).states.iter().all(|state| matches!(state, BlockState::Data(_)))
}

#[test]
fn a_merge_that_copied_is_replayed_over_a_damaged_layer_though_its_space_is_in_use_again() {
    let mut rig = Rig::new();
    let write = |rig: &mut Rig, index: u64, generation: u32, range: BlockRange, id: u64| {
        let (origin, body) = (EntryOrigin::Live, data(range.start, range.count, id));
        let write = Write { key: key(), stamp: stamp(index), range, body, origin, listed: true, generation };
        assert_eq!(rig.ask(Request::Write(write)), Reply::Done);
    };
    write(&mut rig, 1, 0, range(0, 16), 10);
    write(&mut rig, 2, 1, range(2, 2), 20);
    checkpoint(&mut rig);
    let before = rig.find(10);
    let checkpoints = rig.engine.stats().checkpoints;
    assert_eq!(rig.ask(Request::DropGeneration { volume: volume(), generation: 0, into: 1 }), Reply::Done);
    write(&mut rig, 3, 1, range(4096, 16), 30);
    assert_eq!((rig.find(30), rig.engine.stats().checkpoints), (before, checkpoints), "the space is in use again");
    let layout = rig.engine.superblock().layout;
    for half in [false, true] {
        rig.device.flip_bit(layout.slot_offset(1, half) + 60, 2);
    }
    rig.reopen();
    assert_eq!(rig.read(range(0, 16)).states, [BlockState::Unknown; 16]);
    assert!(is_data(&mut rig, range(4096, 16)));
}
