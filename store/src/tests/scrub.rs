//! The scrub finds damage that nobody reads, once a pass, and goes on where it was.

use super::rig::{Rig, data, range, volume};
use super::snapshots::two_generations;
use crate::api::{Body, Reply, Request};
use crate::engine::Effect;
use ashlar_model::BlockRange;

const GRANULE_BYTES: u64 = 64 << 10;

/// Grants so much, runs until idle, gives what was found.
fn scrub(rig: &mut Rig, granules: u64) -> Vec<u64> {
    rig.engine.scrub(granules * GRANULE_BYTES);
    let found = rig.run().into_iter().map(|effect| match effect {
        Effect::Damaged { volume: owner, block, .. } if owner == volume() => block,
        other => panic!("unexpected {other:?}"),
    });
    found.collect()
}

#[test]
fn damage_that_nobody_reads_is_found_and_gone_after_a_repair() {
    let mut rig = Rig::new();
    for index in 1..=6 {
        let place = BlockRange::new((index - 1) * 16, 16);
        rig.write(index, place, data(place.start, 16, index));
    }
    let place = rig.find(4) + 5 * 4096;
    rig.device.flip_bit(place + 9, 1);
    rig.device.unreadable.insert(rig.find(2));
    assert_eq!(scrub(&mut rig, 3), [16], "as far as was granted");
    assert_eq!(scrub(&mut rig, 4), [48 + 5], "the rest, and the first one of the next pass");
    let stats = rig.engine.stats();
    assert_eq!((stats.scrub_passes, stats.scrub_bad_blocks, stats.scrubbed_bytes), (1, 2, (7 * 16 - 2) * 4096));
    for (block, id) in [(16, 2), (48 + 5, 4)] {
        let start = block / 16 * 16;
        let Body::Data { payload, checksums } = data(start, 16, id) else { unreachable!() };
        let i = (block - start) as usize;
        let (checksum, payload) = (checksums[i], payload.slice(i * 4096, 4096));
        let repair = Request::Repair { volume: volume(), block, checksum, payload };
        assert_eq!(rig.ask(repair), Reply::Done);
    }
    assert!(scrub(&mut rig, 12).is_empty(), "repaired in place, the unreadable one too");
    assert_eq!(rig.engine.stats().scrub_passes, 3);
}

/// Damage below what a newer generation wrote was reported as if the live block were damaged, which is fine.
#[test]
fn damage_that_only_a_snapshot_sees_is_counted_and_not_sent_for_repair() {
    let mut rig = two_generations();
    let (older, newer) = (rig.find(10), rig.find(20));
    for place in [older, older + 2 * 4096, older + 4 * 4096, newer + 4096] {
        rig.device.flip_bit(place + 9, 1);
    }
    rig.engine.checkpoint();
    rig.run();
    for _ in 0..2 {
        rig.engine.scrub(4 * GRANULE_BYTES);
        let damaged = |block, generation| Effect::Damaged { volume: volume(), block, generation };
        let mut found = rig.run();
        found.sort_by_key(|effect| matches!(effect, Effect::Damaged { block: 3, .. }));
        assert_eq!(found, [damaged(0, 0), damaged(3, 1)], "block 2 was overwritten and 4 trimmed since");
        let stats = rig.engine.stats();
        assert_eq!((stats.scrub_bad_blocks, stats.snapshot_bad_blocks), (4, 2));
        rig.reopen();
    }
}

#[test]
fn what_is_answered_from_memory_does_not_run_away() {
    let mut rig = Rig::new();
    // All of a chunk, then again: every block is pinned, so the scrub needs no device.
    let mut index = 0;
    for _ in 0..2 {
        for granule in 0..64 {
            for half in 0..2 {
                index += 1;
                let place = range(granule * 16 + half * 8, 8);
                rig.write(index, place, data(place.start, 8, index));
            }
        }
    }
    assert!(rig.engine.stats().pinned_bytes > 0);
    assert!(scrub(&mut rig, 64).is_empty());
    assert!(scrub(&mut rig, 64).is_empty());
    assert!(rig.engine.stats().scrub_passes >= 1);
}

#[test]
fn a_pass_goes_on_after_a_restart() {
    let mut rig = Rig::new();
    for chunk in 0..4u64 {
        let place = BlockRange::new(chunk * 1024, 16);
        rig.write(chunk + 1, place, data(place.start, 16, chunk + 1));
    }
    rig.device.flip_bit(rig.find(1), 0);
    assert_eq!(scrub(&mut rig, 3).len(), 1);
    rig.engine.checkpoint();
    rig.run();
    rig.reopen();
    assert!(scrub(&mut rig, 1).is_empty(), "not the first one again");
    assert_eq!(scrub(&mut rig, 4).len(), 1, "the next pass finds it again");
}
