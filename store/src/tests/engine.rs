//! Single behaviours of the engine, on a simulated device.

use super::rig::{Rig, SIZE, data, key, options, range, run_loose, stamp, volume};
use crate::api::{BlockState, Body, Reply, Request, StoreError, Token};
use crate::device::{Device, DeviceOp};
use crate::engine::{Effect, Mutation, OpenError, OpenOptions};
use crate::testing::{Faults, SimDevice};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, ClusterId, Epoch, Payload};

#[test]
fn a_flipped_bit_is_bad_and_a_repair_heals_it() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 1), data(0, 1, 7));
    let place = rig.find(7);
    rig.device.flip_bit(place + 100, 3);
    let Body::Data { payload, checksums } = data(0, 1, 7) else { unreachable!() };
    let read = rig.read(range(0, 1));
    assert_eq!(read.states, [BlockState::Bad(checksums[0])]);
    assert_eq!(read.payload, None);
    let repair = |checksum, payload: &Payload| Request::Repair {
        volume: volume(),
        block: 0,
        checksum,
        payload: payload.clone(),
    };
    assert!(matches!(rig.ask(repair(checksums[0] + 1, &payload)), Reply::Error(StoreError::Refused(_))));
    assert_eq!(rig.ask(repair(checksums[0], &payload)), Reply::Done);
    let read = rig.read(range(0, 1));
    assert_eq!(read.states, [BlockState::Data(checksums[0])]);
    assert_eq!(read.payload, Some(payload));
    assert_eq!((rig.engine.stats().bad_blocks, rig.engine.stats().repaired_blocks), (1, 1));
}

#[test]
fn an_unreadable_sector_spoils_only_its_block() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 8), data(0, 8, 7));
    let place = rig.find(7);
    rig.device.unreadable.insert(place + 3 * 4096);
    let states = rig.read(range(0, 8)).states;
    let bad: Vec<bool> = states.iter().map(|state| matches!(state, BlockState::Bad(_))).collect();
    assert_eq!(bad, [false, false, false, true, false, false, false, false]);
}

#[test]
fn a_full_device_refuses_growth_only_and_trims_give_space_back() {
    let mut rig = Rig::new();
    let total = rig.engine.stats().total_bytes / (64 << 10);
    let mut index = 0;
    let at = |i: u64| BlockRange::new(i / 64 * 2048 + i % 64 * 16, 16);
    loop {
        let place = at(index);
        index += 1;
        match rig.try_write(index, place, data(place.start, 16, index)) {
            Reply::Done => {}
            Reply::Error(StoreError::Full { used_bytes, total_bytes }) => {
                assert!(used_bytes * 100 >= (total_bytes - (64 << 10)) * 94, "{used_bytes} of {total_bytes}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(index * 100 > total * 94);
    rig.write(index, at(0), data(0, 16, 999));
    for i in 0..4 {
        rig.write(index + 1 + i, at(i), Body::Tombstone);
    }
    assert!(rig.engine.stats().used_bytes / (64 << 10) == index - 1 - 4);
    rig.write(index + 5, at(index), data(at(index).start, 16, 5));
    assert!(rig.read(at(1)).states.iter().all(|state| *state == BlockState::Zero));
    assert_eq!(rig.read(at(1)).stamps[0], stamp(index + 2), "a tombstone keeps its version");
    rig.reopen();
    assert_eq!(rig.read(at(1)).stamps[0], stamp(index + 2), "also over a restart");
    assert_eq!(rig.ask(Request::Forget { volume: volume() }), Reply::Done);
    assert_eq!((rig.engine.stats().used_bytes, rig.engine.stats().used_slots), (0, 0));
}

/// Symptom: after a crash the promise was lower than the one in an answer. Cause: the answer to one promise named the next
/// one, which was not durable yet.
#[test]
fn a_promise_is_answered_with_what_is_durable() {
    let mut rig = Rig::new();
    rig.engine.submit(Token(1), Request::Promise { volume: volume(), epoch: Epoch(8) });
    rig.device.take(&mut rig.engine);
    rig.engine.submit(Token(2), Request::Promise { volume: volume(), epoch: Epoch(9) });
    let answers = rig.run().into_iter().filter_map(|effect| match effect {
        Effect::Reply { token, reply: Reply::Sealed { promised, .. } } => Some((token, promised)),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [(Token(1), Epoch(8)), (Token(2), Epoch(9))]);
}

#[test]
fn content_that_is_written_off_is_unknown_until_it_is_written() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    rig.write(2, range(1, 2), Body::Lost);
    rig.write(3, range(40, 1), Body::Lost);
    for _ in 0..2 {
        let [_, lost, ..] = rig.read(range(0, 4)).states[..] else { panic!("four blocks") };
        assert_eq!((lost, rig.read(range(40, 1)).states[0]), (BlockState::Unknown, BlockState::Unknown));
        assert!(matches!(rig.read(range(0, 4)).states[3], BlockState::Data(_)), "its neighbours are as before");
        assert_eq!(rig.read(range(0, 3)).stamps, [stamp(1), stamp(2), stamp(2)]);
        assert!(rig.lane().list.iter().any(|entry| entry.stamp == stamp(2) && !entry.tombstone));
        rig.reopen();
    }
    rig.write(4, range(1, 1), data(1, 1, 9));
    rig.write(5, range(2, 1), Body::Tombstone);
    rig.reopen();
    let states = rig.read(range(0, 4)).states;
    assert!(matches!(states[1], BlockState::Data(_)) && states[2] == BlockState::Zero, "{states:?}");
}

#[test]
fn a_released_volume_leaves_its_promise_and_nothing_else() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 16), data(0, 16, 7));
    let release = |epoch| Request::Release { volume: volume(), epoch: Epoch(epoch) };
    let promises = |rig: &Rig| rig.engine.promises().collect::<Vec<_>>();
    assert_eq!(rig.ask(release(7)), Reply::Done);
    for _ in 0..2 {
        assert_eq!((promises(&rig), rig.engine.lanes().count()), (vec![(volume(), Epoch(7))], 0));
        assert_eq!((rig.engine.stats().used_bytes, rig.engine.stats().used_slots), (0, 0));
        rig.reopen();
    }
    assert_eq!(rig.ask(release(3)), Reply::Done);
    assert_eq!(promises(&rig), [(volume(), Epoch(7))], "never a lower one");
    assert_eq!(rig.ask(Request::Forget { volume: volume() }), Reply::Done);
    assert_eq!(promises(&rig), []);
}

#[test]
fn prefix_is_gap_free_and_settle_trims_the_list() {
    let mut rig = Rig::new();
    for index in [1, 2, 4] {
        rig.write(index, range(index, 1), data(index, 1, index));
    }
    assert_eq!(rig.lane().prefix, 2);
    rig.write(3, range(3, 1), Body::Held);
    assert_eq!((rig.lane().prefix, rig.lane().list.len()), (4, 4));
    rig.settle(3);
    assert_eq!((rig.lane().settled, rig.lane().list.len()), (3, 1));
    assert_eq!(rig.read(range(1, 4)).stamps, [stamp(2), stamp(2), stamp(3), stamp(4)].map(|s| s.max(stamp(3))));
    rig.write(5, range(9, 1), data(9, 1, 1));
    rig.reopen();
    assert_eq!((rig.lane().prefix, rig.lane().settled, rig.lane().list.len()), (5, 3, 2));
    let Reply::Sealed { promised, lanes } = rig.ask(Request::Promise { volume: volume(), epoch: Epoch(9) }) else {
        panic!("a promise is sealed")
    };
    assert_eq!((promised, lanes[0].1.prefix), (Epoch(9), 5));
    let join = Request::JoinStart { key: key(), epoch: Epoch(9), config: 2, join: 3, base: 7 };
    assert_eq!(rig.ask(join), Reply::Done);
    rig.reopen();
    let lane = rig.lane();
    assert_eq!((lane.current, lane.prefix, lane.join, lane.list.len()), (Epoch(9), 7, 3, 0));
    assert_eq!(lane.suspect, [BlockRange::new(4, 1), BlockRange::new(9, 1)]);
    rig.settle(3);
    assert!(rig.lane().suspect.is_empty(), "a member's settle clears suspects, also at the same index");
}

#[test]
fn foreign_and_damaged_devices_are_named() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 1), data(0, 1, 7));
    let mut options = OpenOptions::new(SIZE, true);
    options.cluster = Some(ClusterId::from_u128(77));
    let found = ClusterId::from_u128(1);
    let error = rig.try_open(options).unwrap_err();
    assert_eq!(error, OpenError::OtherCluster { expected: ClusterId::from_u128(77), found });
    assert!(error.to_string().contains(&found.to_string()));
    assert!(matches!(rig.try_open(OpenOptions::new(SIZE / 2, true)), Err(OpenError::SizeMismatch { .. })));
    rig.device.flip_bit(50, 0);
    assert_eq!(rig.try_open(OpenOptions::new(SIZE, true)), Ok(()), "one superblock is enough");
    rig.device.flip_bit(50, 0);
    for place in [50, 65536 + 50] {
        rig.device.flip_bit(place, 0);
    }
    let outcome = rig.try_open(OpenOptions::new(SIZE, true));
    assert!(matches!(outcome, Ok(()) | Err(OpenError::DamagedSuperblocks)), "{outcome:?}");
    for place in [0, 65536] {
        rig.device.flip_bit(place, 0);
    }
    assert_eq!(rig.try_open(OpenOptions::new(SIZE, true)), Err(OpenError::NotAshlar));
}

#[test]
fn damaged_map_pages_are_unknown_never_zero() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 7));
    rig.settle(1);
    rig.engine.checkpoint();
    rig.run();
    rig.reopen();
    let layout = rig.engine.superblock().layout;
    for half in [false, true] {
        rig.device.flip_bit(layout.slot_offset(0, half) + 60, 2);
    }
    rig.reopen();
    assert_eq!(rig.engine.stats().damaged_chunks, 1);
    let read = rig.read(range(0, 8));
    assert_eq!(read.states, [BlockState::Unknown; 8]);
    assert!(read.stamps[0] >= stamp(1));
    rig.write(2, range(0, 4), data(0, 4, 8));
    rig.reopen();
    let states = rig.read(range(0, 5)).states;
    assert!(matches!(states[0], BlockState::Data(_)) && states[4] == BlockState::Unknown, "{states:?}");
}

#[test]
fn a_lost_log_group_that_had_completed_is_corruption() {
    let mut rig = Rig::new();
    for index in 1..=6 {
        rig.write(index, range(0, 1), data(0, 1, index));
    }
    let log = rig.engine.superblock().layout.log;
    let second = (log.offset..log.end())
        .step_by(4096)
        .filter(|at| rig.device.bytes(*at, 8) == crate::disk::GROUP_MAGIC)
        .nth(2)
        .expect("several groups");
    rig.device.flip_bit(second + 70, 1);
    let outcome = rig.try_open(OpenOptions::new(SIZE, true));
    assert!(matches!(outcome, Err(OpenError::LogCorruption { .. })), "{outcome:?}");
}

#[test]
fn a_failed_write_latches_the_device() {
    let mut rig = Rig::new();
    rig.device.fail_writes = true;
    let first = rig.try_write(1, range(0, 1), data(0, 1, 7));
    assert!(matches!(first, Reply::Error(StoreError::Failed(_))), "{first:?}");
    rig.device.fail_writes = false;
    let later = rig.ask(Request::Read { volume: volume(), range: range(0, 1) });
    assert!(matches!(later, Reply::Error(StoreError::Failed(_))));
    assert!(rig.engine.failed().is_some());
}

#[test]
fn impossible_requests_are_refused() {
    let mut rig = Rig::new();
    for (place, blocks) in [(range(1020, 8), 8), (range(0, 33), 33), (range(0, 2), 1)] {
        let reply = rig.try_write(1, place, data(0, blocks, 7));
        assert!(matches!(reply, Reply::Error(StoreError::Refused(_))), "{reply:?}");
    }
    let copy = rig.request(1, range(0, 1), data(0, 1, 3), EntryOrigin::Copy, false);
    assert_eq!(rig.ask(copy), Reply::Done);
    assert!(rig.lane().list.is_empty());
}

#[test]
fn a_checkpoint_reads_all_checksums_that_it_needs() {
    let mut rig = Rig::new();
    let place = |chunk: u64, i: u64| BlockRange::new(chunk * 1024 + i, 1);
    for chunk in 0..60 {
        rig.write(chunk + 1, place(chunk, 0), data(place(chunk, 0).start, 1, 100 + chunk));
    }
    rig.engine.checkpoint();
    rig.run();
    rig.reopen();
    let before = rig.engine.stats().checkpoints;
    for chunk in 0..60 {
        let one = place(chunk, 1);
        let request = rig.request(61 + chunk, one, data(one.start, 1, 200 + chunk), EntryOrigin::Live, true);
        rig.engine.submit(Token(0), request);
    }
    rig.engine.checkpoint();
    assert_eq!((rig.run().len(), rig.engine.stats().checkpoints), (60, before + 1));
    rig.reopen();
    for chunk in 0..60 {
        let both = BlockRange::new(chunk * 1024, 2);
        let payload = rig.read(both).payload.expect("it has data");
        let ids = [0, 4096].map(|at| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap()));
        assert_eq!(ids, [100 + chunk, 200 + chunk]);
    }
}

#[test]
fn no_two_opens_have_the_same_generation_even_without_a_checkpoint() {
    let mut rig = Rig::new();
    let mut seen = vec![rig.engine.superblock().generation];
    for _ in 0..4 {
        // What an open writes of its generation is lost with the power: the next one starts from the same superblock.
        rig.reopen();
        seen.push(rig.engine.superblock().generation);
    }
    let distinct: std::collections::BTreeSet<u64> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "{seen:?}");
}

#[test]
fn groups_go_out_in_their_order_and_before_all_else() {
    let mut rig = Rig::new();
    // More records than a group takes.
    for index in 1..=60 {
        let body = if index == 1 { data(0, 1, 1) } else { Body::Held };
        let request = rig.request(index, range(0, 1), body, EntryOrigin::Live, true);
        rig.engine.submit(Token(index), request);
    }
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    let offsets = effects.iter().map(|effect| match effect {
        Effect::Write { offset, .. } => *offset,
        other => panic!("{other:?}"),
    });
    let [first, second, data] = offsets.collect::<Vec<_>>()[..] else { panic!("{effects:?}") };
    let layout = rig.engine.superblock().layout;
    assert!(first < second && second < layout.log.end(), "{first}, {second}");
    assert!(data >= layout.data.offset);
}

/// Device operations that wait to be carried out: durable writes, other writes, flushes.
fn wanted(rig: &mut Rig) -> (usize, usize, usize) {
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    let mut counts = (0, 0, 0);
    for effect in effects {
        match &effect {
            Effect::Write { durable: true, .. } => counts.0 += 1,
            Effect::Write { durable: false, .. } => counts.1 += 1,
            Effect::Flush { .. } => counts.2 += 1,
            _ => {}
        }
        rig.device.submit(DeviceOp::from_effect(effect).expect("nothing is answered yet"));
    }
    counts
}

/// What lies in the log and has nothing before it needs no flush; data beside the log does, and so does what follows a
/// group that is not complete.
#[test]
fn a_lone_group_is_one_durable_write() {
    let mut rig = Rig::new();
    let submit = |rig: &mut Rig, index: u64, block: u64| {
        let request = rig.request(index, range(block, 1), data(block, 1, index), EntryOrigin::Live, true);
        rig.engine.submit(Token(index), request);
    };
    submit(&mut rig, 1, 0);
    assert_eq!(wanted(&mut rig), (0, 2, 0), "the first write of a block is in its place");
    while rig.device.pending() > 0 {
        rig.device.complete_one(&mut rig.engine);
        let flushes = wanted(&mut rig).2;
        if flushes > 0 {
            break;
        }
    }
    assert_eq!(rig.device.pending(), 1, "a flush");
    rig.run();
    submit(&mut rig, 2, 0);
    assert_eq!(wanted(&mut rig), (1, 0, 0), "an overwrite is in the log");
    let done = |index: u64| Effect::Reply { token: Token(index), reply: Reply::Done };
    rig.device.complete_one(&mut rig.engine);
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    assert_eq!(effects, [done(2)]);
    submit(&mut rig, 3, 0);
    assert_eq!(wanted(&mut rig), (1, 0, 0));
    for index in 4..=11 {
        submit(&mut rig, index, 0);
    }
    assert_eq!(wanted(&mut rig), (0, 1, 0), "beside a group that is not complete");
    while rig.device.pending() > 0 {
        rig.device.complete_one(&mut rig.engine);
    }
    effects.clear();
    rig.engine.effects(&mut effects);
    let flush = effects.iter().filter(|effect| matches!(effect, Effect::Flush { .. })).count();
    assert_eq!((effects.contains(&done(3)), effects.contains(&done(4)), flush), (true, false, 1), "{effects:?}");
}

/// A block in the log changes again after a checkpoint began and before its write-back; then the group of that change
/// never ends, or the checkpoint does. Gives the checkpoints that ended, the ids that the block may have after a crash
/// right then, and the one that it has.
fn overtaken(mutation: Option<Mutation>, seed: u64, ends: bool) -> (u64, Vec<u64>, Option<u64>) {
    let mut rig = Rig::new();
    rig.device = SimDevice::formatted(&options(), false, seed);
    assert_eq!(rig.try_open(OpenOptions { mutation, ..OpenOptions::new(SIZE, false) }), Ok(()));
    assert_eq!(rig.ask(Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 }), Reply::Done);
    rig.write(1, range(0, 2), data(0, 2, 1));
    rig.engine.checkpoint();
    rig.run();
    let before = rig.engine.stats().checkpoints;
    let submit = |rig: &mut Rig, index: u64| {
        let request = rig.request(index, range(0, 2), data(0, 2, index), EntryOrigin::Live, true);
        rig.engine.submit(Token(index), request);
    };
    submit(&mut rig, 2);
    assert!(rig.device.take(&mut rig.engine).is_empty());
    let log = rig.engine.superblock().layout.log;
    let end = log.offset + rig.engine.superblock().head_offset + rig.engine.stats().log_used_bytes;
    rig.engine.checkpoint();
    submit(&mut rig, 3);
    rig.device.faults = Faults { stick_one_in: 1, only: Some(end..end + 3 * 4096), ..Faults::default() };
    let mut answers = run_loose(&mut rig).len();
    assert_eq!((answers, rig.device.stuck()), (1, 1), "the log has the first of both");
    if ends {
        rig.device.release_stuck();
        while rig.engine.stats().checkpoints == before {
            rig.device.complete_one(&mut rig.engine);
            answers += rig.device.take(&mut rig.engine).len();
        }
    }
    let checkpoints = rig.engine.stats().checkpoints - before;
    rig.device.crash();
    rig.device.faults = Faults::default();
    assert_eq!(rig.try_open(OpenOptions { nonce: 77, ..OpenOptions::new(SIZE, false) }), Ok(()));
    let id = |payload: Payload| u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
    (checkpoints, (1 + answers as u64..=3).collect(), rig.read(range(0, 1)).payload.map(id))
}

#[test]
fn a_checkpoint_waits_for_what_overtook_its_write_back() {
    for seed in 0..20 {
        for ends in [false, true] {
            let (checkpoints, may, has) = overtaken(None, seed, ends);
            assert_eq!(checkpoints, u64::from(ends), "seed {seed}");
            assert!(has.is_some_and(|id| may.contains(&id)), "seed {seed}: {has:?} of {may:?}");
        }
    }
    let broken: Vec<_> = (0..20).map(|seed| overtaken(Some(Mutation::NoSecondSeal), seed, false)).collect();
    assert!(broken.iter().all(|(checkpoints, ..)| *checkpoints == 1), "{broken:?}");
    assert!(broken.iter().any(|(_, _, has)| has.is_none()), "without the wait the block is lost: {broken:?}");
}
