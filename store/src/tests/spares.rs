//! Blocks that are overwritten beside their old content: where they go, what a crash leaves, and what it costs to read them.

use super::rig::{Rig, SIZE, data, key, options, range};
use crate::api::{Body, Reply, Request, Token};
use crate::device::{Device, DeviceOp};
use crate::disk::FORMAT_WITHOUT_SPARES;
use crate::engine::{Effect, OpenOptions};
use crate::map::{GRANULE_MAP_BYTES, ordered_chunks_max};
use crate::testing::SimDevice;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, Epoch, Payload};

/// A device that needs no flushes.
fn rig(device: SimDevice) -> Rig {
    let mut rig = Rig::new();
    rig.device = device;
    assert_eq!(rig.try_open(OpenOptions::new(SIZE, false)), Ok(()));
    assert_eq!(rig.ask(Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 }), Reply::Done);
    rig
}

fn new_rig() -> Rig {
    rig(SimDevice::formatted(&options(), false, 9))
}

fn reopen(rig: &mut Rig, nonce: u64) {
    rig.device.crash();
    assert_eq!(rig.try_open(OpenOptions { nonce, ..OpenOptions::new(SIZE, false) }), Ok(()));
}

fn submit(rig: &mut Rig, index: u64, block: u64, id: u64) {
    let request = rig.request(index, range(block, 1), data(block, 1, id), EntryOrigin::Live, true);
    rig.engine.submit(Token(index), request);
}

/// What the engine wants of the device now: offsets of writes that do not go into the log, those that do, and reads.
fn wanted(rig: &mut Rig) -> (Vec<u64>, usize, usize) {
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    let log = rig.engine.superblock().layout.log;
    let (mut places, mut logged, mut reads) = (vec![], 0, 0);
    for effect in effects {
        match &effect {
            Effect::Write { offset, .. } if *offset < log.end() => logged += 1,
            Effect::Write { offset, .. } => places.push(*offset),
            Effect::Read { .. } => reads += 1,
            _ => {}
        }
        rig.device.submit(DeviceOp::from_effect(effect).expect("nothing is answered yet"));
    }
    (places, logged, reads)
}

fn id(payload: &Payload, block: usize) -> u64 {
    u64::from_le_bytes(payload.block(block)[..8].try_into().expect("eight bytes"))
}

fn ids(rig: &mut Rig, range: BlockRange) -> Vec<u64> {
    let payload = rig.read(range).payload.expect("all of it was written");
    (0..range.count as usize).map(|block| id(&payload, block)).collect()
}

/// Every block of a granule once, and then again in another order: each goes where the one before it was.
fn shuffled(rig: &mut Rig) -> Vec<u64> {
    rig.write(1, range(0, 16), data(0, 16, 100));
    let blocks = (0..16u64).map(|i| (i * 7 + 3) % 16).collect::<Vec<_>>();
    for (index, block) in (2..).zip(blocks.iter().chain(&blocks)) {
        rig.write(index, range(*block, 1), data(*block, 1, 1000 + index));
    }
    let last = |block: u64| 18 + blocks.iter().position(|one| *one == block).expect("each is there") as u64;
    (0..16).map(|block| 1000 + last(block)).collect()
}

#[test]
fn a_block_is_overwritten_beside_its_old_content_in_parallel_with_its_record() {
    let mut rig = new_rig();
    rig.write(1, range(0, 16), data(0, 16, 100));
    let layout = rig.engine.superblock().layout;
    submit(&mut rig, 2, 5, 200);
    assert_eq!(wanted(&mut rig), (vec![layout.block_offset(0, 16)], 1, 0), "to the spare place, with the record");
    submit(&mut rig, 3, 6, 300);
    assert_eq!(wanted(&mut rig).0, [0; 0], "the old place is not free yet: it goes into the log, with the next group");
    rig.run();
    submit(&mut rig, 4, 7, 400);
    assert_eq!(wanted(&mut rig), (vec![layout.block_offset(0, 5)], 1, 0), "to where the first one was");
    rig.run();
    submit(&mut rig, 5, 5, 500);
    assert_eq!(wanted(&mut rig), (vec![layout.block_offset(0, 7)], 1, 0));
    rig.run();
    assert_eq!((rig.engine.stats().moves, rig.engine.stats().classes), (3, [4, 1, 0]));
    for nonce in [1, 2] {
        assert_eq!(ids(&mut rig, range(4, 5)), [100, 500, 300, 400, 100]);
        reopen(&mut rig, nonce);
    }
}

/// Whatever of it reached the device: the block has its old or its new content, and verifies.
#[test]
fn a_move_that_a_crash_cuts_short_leaves_old_or_new_content() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..40 {
        let mut rig = rig(SimDevice::formatted(&options(), false, seed));
        rig.write(1, range(0, 16), data(0, 16, 100));
        rig.write(2, range(3, 1), data(3, 1, 200));
        submit(&mut rig, 3, 9, 300);
        assert_eq!(wanted(&mut rig).0.len(), 1);
        if seed % 3 == 0 {
            rig.device.complete_one(&mut rig.engine);
        }
        reopen(&mut rig, 1);
        match ids(&mut rig, range(0, 16))[..] {
            [100, 100, 100, 200, .., 100, _, _, _, _, _, 100] => old += 1,
            [100, 100, 100, 200, .., 300, _, _, _, _, _, 100] => new += 1,
            ref other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
}

#[test]
fn a_shuffled_granule_survives_replays_and_checkpoints_and_is_read_in_three_pieces_at_most() {
    let mut rig = new_rig();
    let expected = shuffled(&mut rig);
    assert_eq!(rig.engine.stats().moves, 32);
    for step in 0..3 {
        assert_eq!(ids(&mut rig, range(0, 16)), expected, "step {step}");
        if step == 1 {
            rig.engine.checkpoint();
            rig.run();
        }
        reopen(&mut rig, 1 + step);
    }
    rig.read(range(0, 1));
    rig.engine.submit(Token(7), Request::Read { volume: super::rig::volume(), range: range(0, 16) });
    let (_, _, reads) = wanted(&mut rig);
    assert!((2..=3).contains(&reads), "{reads} device reads");
    rig.run();
    // A whole granule goes to a new one, and lies in order there.
    rig.write(40, range(0, 16), data(0, 16, 700));
    rig.engine.submit(Token(8), Request::Read { volume: super::rig::volume(), range: range(0, 16) });
    assert_eq!(wanted(&mut rig).2, 1);
    rig.run();
    assert_eq!(ids(&mut rig, range(0, 16)), [700; 16]);
}

#[test]
fn damage_at_a_new_place_is_found_and_repaired_there() {
    let mut rig = new_rig();
    let expected = shuffled(&mut rig);
    let (block, bytes) = (5u64, data(5, 1, expected[5]));
    let crate::api::Body::Data { payload, checksums } = bytes else { unreachable!("it is data") };
    let place = rig.find(expected[5]);
    rig.device.flip_bit(place, 1);
    assert_eq!(rig.read(range(block, 1)).states, [crate::api::BlockState::Bad(checksums[0])]);
    let repair = Request::Repair { volume: super::rig::volume(), block, checksum: checksums[0], payload };
    assert_eq!(rig.ask(repair), Reply::Done);
    assert_eq!(ids(&mut rig, range(0, 16)), expected);
}

/// The memory of the map is bounded, so not every chunk may have moved blocks: others are overwritten as before.
#[test]
fn only_so_many_chunks_have_moved_blocks() {
    let mut rig = new_rig();
    let most = ordered_chunks_max(rig.engine.superblock().layout.granule_count, GRANULE_MAP_BYTES) as u64;
    for chunk in 0..=most {
        rig.write(2 * chunk + 1, range(1024 * chunk, 16), data(1024 * chunk, 16, 100 * chunk));
        rig.write(2 * chunk + 2, range(1024 * chunk, 1), data(1024 * chunk, 1, 7 + 100 * chunk));
    }
    assert_eq!((rig.engine.stats().moves, rig.engine.stats().classes[1]), (most, 1));
    // One that is written anew gives its share back.
    rig.write(1000, range(0, 16), data(0, 16, 5000));
    rig.write(1001, range(1024 * most + 1, 1), data(1024 * most + 1, 1, 9));
    assert_eq!(rig.engine.stats().moves, most + 1);
}

/// A device that was formatted before there were spare blocks is served as it is.
#[test]
fn a_device_of_the_format_before_is_served_without_moves() {
    let mut rig = rig(SimDevice::formatted_without_spares(&options(), false, 9));
    assert_eq!(rig.engine.superblock().version(), FORMAT_WITHOUT_SPARES);
    let expected = shuffled(&mut rig);
    assert_eq!((rig.engine.stats().moves, rig.engine.stats().classes), (0, [1, 32, 0]));
    for step in 0..2 {
        assert_eq!(ids(&mut rig, range(0, 16)), expected);
        rig.engine.checkpoint();
        rig.run();
        assert_eq!(rig.engine.superblock().version(), FORMAT_WITHOUT_SPARES);
        reopen(&mut rig, 1 + step);
    }
}

/// Symptom: the write of two blocks over nothing, each at its granule's spare place, latched the place of the first only, and
/// a move to the second's went to the device beside it. Cause: spare blocks of neighbouring granules are neighbours too.
#[test]
fn two_spare_places_are_two_writes() {
    let mut rig = new_rig();
    rig.write(1, range(0, 32), data(0, 32, 100));
    rig.write(2, range(15, 1), data(15, 1, 200));
    rig.write(3, range(16, 1), data(16, 1, 300));
    for index in [4, 5] {
        rig.write(index, range(11 + index, 1), Body::Tombstone);
    }
    let layout = rig.engine.superblock().layout;
    let request = rig.request(6, range(15, 2), data(15, 2, 600), EntryOrigin::Live, true);
    rig.engine.submit(Token(6), request);
    assert_eq!(wanted(&mut rig).0, [layout.block_offset(0, 16), layout.block_offset(1, 16)]);
    rig.run();
    assert_eq!(ids(&mut rig, range(14, 4)), [100, 600, 600, 100]);
}

/// Blocks in a row go over nothing only where they lie in a row.
#[test]
fn several_blocks_in_a_shuffled_granule_go_into_the_log() {
    let mut rig = new_rig();
    shuffled(&mut rig);
    rig.write(40, range(0, 3), Body::Tombstone);
    let before = rig.engine.stats().classes;
    rig.write(41, range(0, 3), data(0, 3, 7));
    assert_eq!(rig.engine.stats().classes, [before[0], before[1] + 1, before[2]]);
    for step in 0..2 {
        assert_eq!(ids(&mut rig, range(0, 3)), [7; 3]);
        rig.engine.checkpoint();
        rig.run();
        reopen(&mut rig, 1 + step);
    }
}

/// The newest version of a shuffled granule is seen through a newer layer, and stays when the older one is dropped: moved
/// with its granule, or copied into one that is shuffled too.
#[test]
fn a_shuffled_granule_is_merged_into_a_newer_layer() {
    for both in [false, true] {
        let mut rig = new_rig();
        let mut expected = shuffled(&mut rig);
        let mut write = |rig: &mut Rig, index: u64, block: u64| {
            let request = Request::Write(crate::api::Write {
                key: key(),
                stamp: super::rig::stamp(index),
                range: range(block, 1),
                body: data(block, 1, index),
                origin: EntryOrigin::Live,
                listed: true,
                generation: 1,
            });
            assert_eq!(rig.ask(request), Reply::Done);
            expected[block as usize] = index;
        };
        if both {
            (0..6).for_each(|i| write(&mut rig, 50 + i, [3, 9, 3, 9, 3, 4][i as usize]));
        } else {
            // The newer layer exists, with nothing in this granule.
            let far = Request::Write(crate::api::Write {
                key: key(),
                stamp: super::rig::stamp(50),
                range: range(100, 1),
                body: data(100, 1, 50),
                origin: EntryOrigin::Live,
                listed: true,
                generation: 1,
            });
            assert_eq!(rig.ask(far), Reply::Done);
        }
        let drop = Request::DropGeneration { volume: super::rig::volume(), generation: 0, into: 1 };
        assert_eq!(rig.ask(drop), Reply::Done);
        for step in 0..3 {
            assert_eq!(ids(&mut rig, range(0, 16)), expected, "{both}, step {step}");
            let (counted, found) = rig.engine.ordered_layers();
            assert_eq!(counted, found);
            reopen(&mut rig, 1 + step);
        }
    }
}

/// A redirect of two granules of which one is at its place: a crash may still take back both, so nothing is written in place
/// to the one that is there, nor beside.
#[test]
fn nothing_moves_in_a_granule_before_the_redirect_that_brought_it_is_durable() {
    let mut rig = new_rig();
    rig.write(1, range(0, 32), data(0, 32, 100));
    rig.write(2, range(1024, 16), data(1024, 16, 200));
    rig.write(3, range(0, 16), data(0, 16, 300));
    // The first granule is free again, and the one behind it is not: both parts are writes of their own.
    let request = rig.request(4, range(0, 32), data(0, 32, 400), EntryOrigin::Live, true);
    rig.engine.submit(Token(4), request);
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    let layout = rig.engine.superblock().layout;
    let first = effects.iter().position(|effect| {
        matches!(effect, Effect::Write { offset, parts, .. } if *offset == layout.block_offset(0, 0) && parts[0].len() == 64 << 10)
    });
    let first = effects.remove(first.expect("the first part goes to the first granule"));
    let Effect::Write { io, offset, parts, .. } = first else { unreachable!("just matched") };
    rig.device.put(offset, &parts[0]);
    rig.engine.io_done(io, Ok(None));
    submit(&mut rig, 5, 3, 500);
    assert_eq!(wanted(&mut rig), (vec![], 0, 0), "it waits for the log");
    effects.into_iter().for_each(|effect| rig.device.submit(DeviceOp::from_effect(effect).expect("for the device")));
    rig.run();
    assert_eq!((rig.engine.stats().moves, rig.engine.stats().classes[1]), (0, 1));
    assert_eq!(ids(&mut rig, range(2, 3)), [400, 500, 400]);
    reopen(&mut rig, 1);
    assert_eq!(ids(&mut rig, range(2, 3)), [400, 500, 400]);
}
