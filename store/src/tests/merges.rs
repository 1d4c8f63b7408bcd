//! Merges of dropped generations, and what else happens to their volume meanwhile.

use super::rig::{Rig, SIZE, data, key, range, run_loose, volume};
use super::snapshots::{ids, two_generations, write};
use crate::api::{Body, Reply, Request, Token, Write};
use crate::device::{Device, DeviceOp};
use crate::engine::{Effect, OpenOptions, StoreEngine};
use crate::testing::{Faults, Prng};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, Epoch, LaneKey, Stamp};

/// Of requests that are not answered at once.
const DROP: Token = Token(1 << 40);
const OTHER: Token = Token(2 << 40);

fn submit_drop(rig: &mut Rig, generation: u32, into: u32) {
    rig.engine.submit(DROP, Request::DropGeneration { volume: volume(), generation, into });
}

/// Completes at most so many device operations; gives what is not for the device.
fn complete(rig: &mut Rig, operations: usize) -> Vec<Effect> {
    let mut rest = rig.device.take(&mut rig.engine);
    for _ in 0..operations {
        if rig.device.pending() == 0 {
            break;
        }
        rig.device.complete_one(&mut rig.engine);
        rest.extend(rig.device.take(&mut rig.engine));
    }
    rest
}

fn write_of(epoch: u64, index: u64, generation: u32, range: BlockRange, body: Body) -> Request {
    let stamp = Stamp { epoch: Epoch(epoch), index };
    Request::Write(Write { key: key(), stamp, range, body, origin: EntryOrigin::Live, listed: true, generation })
}

fn answers(effects: &[Effect], token: Token) -> Vec<&Reply> {
    let of_token = |effect| match effect {
        &Effect::Reply { token: one, ref reply } if one == token => Some(reply),
        _ => None,
    };
    effects.iter().filter_map(of_token).collect()
}

/// Deletes the volume and makes it again, without waiting for an answer, as a replica does.
fn recreate(rig: &mut Rig) {
    rig.engine.submit(OTHER, Request::Forget { volume: volume() });
    rig.engine.submit(OTHER, Request::Start { key: key(), epoch: Epoch(2), config: 1, base: 0 });
}

/// A merge went on after its volume had been deleted and made again: it took a new layer for the one that it had emptied,
/// or waited for ever for a layer that no longer was.
#[test]
fn a_merge_ends_with_its_volume_and_leaves_the_next_one_of_that_name_alone() {
    for (operations, overlay) in (0..200).flat_map(|operations| [(operations, true), (operations, false)]) {
        let mut rig = two_generations();
        submit_drop(&mut rig, 0, 1);
        let mut effects = complete(&mut rig, operations);
        recreate(&mut rig);
        rig.engine.submit(OTHER, write_of(2, 1, 0, range(0, 4), data(0, 4, 30)));
        if overlay {
            rig.engine.submit(OTHER, write_of(2, 2, 1, range(2, 1), data(2, 1, 40)));
        }
        effects.extend(rig.run());
        assert_eq!(answers(&effects, DROP), [&Reply::Done], "after {operations} operations");
        assert_eq!(answers(&effects, OTHER), vec![&Reply::Done; 3 + usize::from(overlay)]);
        assert!(rig.engine.is_idle());
        for _ in 0..2 {
            let newest = if overlay { 40 } else { 30 };
            assert_eq!(ids(&mut rig, u32::MAX, range(0, 5)), [30, 30, newest, 30, 0], "after {operations} operations");
            assert_eq!(ids(&mut rig, 0, range(0, 5)), [30, 30, 30, 30, 0], "after {operations} operations");
            assert_eq!(rig.engine.stats().used_slots, 1 + u64::from(overlay));
            rig.reopen();
        }
        submit_drop(&mut rig, 0, 1);
        assert_eq!(answers(&rig.run(), DROP), [&Reply::Done], "a later merge is not held up");
        assert_eq!(ids(&mut rig, u32::MAX, range(0, 2)), [30, 30]);
    }
}

/// The layer of a torn write was renamed by such a merge: the record named a slot that the replay did not find.
#[test]
fn a_crash_after_a_deletion_during_a_merge_leaves_a_device_that_opens() {
    for seed in 0..300 {
        let mut rig = Rig::new();
        rig.device.prng = Prng(seed);
        write(&mut rig, 1, 0, range(0, 4), data(0, 4, 10));
        // A record that the merge waits for.
        rig.engine.submit(Token(0), Request::Settle { key: key(), index: 1, config: 1, member: true });
        submit_drop(&mut rig, 0, 1);
        complete(&mut rig, seed as usize % 2);
        recreate(&mut rig);
        rig.engine.submit(OTHER, write_of(2, 1, 0, range(0, 4), data(0, 4, 30)));
        complete(&mut rig, 2 + seed as usize / 2 % 6);
        rig.reopen();
    }
}

/// A deletion waited for a granule that was locked and not being copied yet, for as long as a checkpoint takes.
#[test]
fn a_deletion_does_not_wait_for_a_merge_that_waits() {
    let mut rig = two_generations();
    // Overwritten, so that the merge needs a checkpoint before it can copy.
    write(&mut rig, 5, 0, range(0, 1), data(0, 1, 11));
    assert!(rig.engine.stats().pinned_bytes > 0);
    submit_drop(&mut rig, 0, 1);
    rig.engine.submit(OTHER, Request::Forget { volume: volume() });
    assert_eq!(rig.engine.waiting(), 0);
    let effects = rig.run();
    assert_eq!((answers(&effects, DROP), answers(&effects, OTHER)), (vec![&Reply::Done], vec![&Reply::Done]));
    assert_eq!((rig.engine.stats().used_bytes, rig.engine.stats().used_slots), (0, 0));
}

/// The second of two drops had looked for its layers before the first one gave it some: they stayed for ever.
#[test]
fn generations_dropped_together_leave_one_layer() {
    let mut rig = two_generations();
    write(&mut rig, 5, 0, range(1024, 4), data(1024, 4, 12));
    // A record that the first one waits for.
    rig.engine.submit(Token(0), Request::Settle { key: key(), index: 1, config: 1, member: true });
    submit_drop(&mut rig, 0, 1);
    submit_drop(&mut rig, 1, 2);
    assert_eq!(answers(&rig.run(), DROP), [&Reply::Done; 2]);
    write(&mut rig, 6, 2, range(0, 1), data(0, 1, 30));
    write(&mut rig, 7, 2, range(1025, 1), data(1025, 1, 31));
    assert_eq!(rig.engine.stats().used_slots, 2, "one layer of each chunk");
    for _ in 0..2 {
        assert_eq!(ids(&mut rig, u32::MAX, range(0, 6)), [30, 10, 20, 20, 0, 10]);
        assert_eq!(ids(&mut rig, 2, range(1024, 4)), [12, 31, 12, 12]);
        rig.reopen();
    }
}

/// A merge copied a damaged block while its repair was on the way: the repair was answered, and the damage lived on.
#[test]
fn a_merge_waits_for_a_repair_of_its_granule() {
    let mut rig = two_generations();
    rig.device.flip_bit(rig.find(10) + 5 * 4096, 1);
    let Body::Data { payload, checksums } = data(0, 32, 10) else { unreachable!() };
    let (checksum, payload) = (checksums[5], payload.slice(5 * 4096, 4096));
    rig.engine.submit(OTHER, Request::Repair { volume: volume(), block: 5, checksum, payload });
    let mut repair = Vec::new();
    rig.engine.effects(&mut repair);
    submit_drop(&mut rig, 0, 1);
    assert_eq!(answers(&rig.run(), DROP), [] as [&Reply; 0]);
    assert_eq!(repair.len(), 1);
    for effect in repair {
        rig.device.submit(DeviceOp::from_effect(effect).expect("a device write"));
    }
    let effects = rig.run();
    assert_eq!((answers(&effects, DROP), answers(&effects, OTHER)), (vec![&Reply::Done], vec![&Reply::Done]));
    assert_eq!(ids(&mut rig, u32::MAX, range(0, 6)), [10, 10, 20, 20, 0, 10]);
    assert_eq!(rig.engine.stats().used_slots, 1);
}

/// Records that may wait took the room that the merge needed, and nothing made a checkpoint that would have given it back.
#[test]
fn a_merge_ends_though_records_that_may_wait_fill_the_log() {
    let mut rig = two_generations();
    let lanes = [key(), LaneKey { volume: volume(), lane: 1 }];
    assert_eq!(rig.ask(Request::Start { key: lanes[1], epoch: Epoch(1), config: 1, base: 0 }), Reply::Done);
    rig.settle(1 << 20);
    rig.engine.checkpoint();
    rig.run();
    rig.device.crash();
    let slots = rig.engine.superblock().layout.slots;
    rig.device.faults = Faults { stick_one_in: 1, only: Some(slots.offset..slots.end()), ..Faults::default() };
    let options = OpenOptions { nonce: 77, restart_log_bytes: 64 << 10, ..OpenOptions::new(SIZE, true) };
    rig.engine = StoreEngine::open(options);
    assert_eq!(run_loose(&mut rig), [Effect::Opened]);
    submit_drop(&mut rig, 0, 1);
    // A page each; of the forty pages there is room for one is left.
    for settle in 0..39 {
        let key = lanes[settle % 2];
        rig.engine.submit(OTHER, Request::Settle { key, index: 1 << 20, config: 1, member: true });
    }
    assert!(run_loose(&mut rig).is_empty());
    assert_eq!(rig.engine.waiting(), 0);
    rig.device.faults = Faults::default();
    rig.device.release_stuck();
    assert_eq!(answers(&rig.run(), DROP), [&Reply::Done]);
}
