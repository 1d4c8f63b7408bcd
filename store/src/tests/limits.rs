//! What is bounded stays bounded: the table, reads after an open, the log, what is kept in memory.

use super::rig::{Rig, SIZE, data, key, options, range, run_loose, stamp, volume};
use crate::api::{Body, Reply, Request, StoreError, Token, Write};
use crate::engine::{Effect, FormatOptions, OpenOptions, StoreEngine, format};
use crate::testing::Faults;
use crate::testing::fuzz::memory::Memory;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, Epoch, LaneKey, VolumeId};

const CHUNK: u64 = 1024;

fn is_full(reply: &Reply) -> bool {
    match reply {
        Reply::Error(StoreError::Full { .. }) => true,
        Reply::Done | Reply::Sealed { .. } => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_request_makes_the_table_larger_than_its_area() {
    let mut rig = Rig::new();
    let mut index = 0;
    loop {
        index += 1;
        if is_full(&rig.try_write(index, range(0, 1), Body::Held)) {
            break;
        }
    }
    let other = |number: u64| VolumeId::from_u128(100 + u128::from(number));
    let mut full = [0; 3];
    for number in 0..50 {
        let promise = Request::Promise { volume: other(number), epoch: Epoch(3) };
        let lane = LaneKey { volume: other(1000 + number), lane: 2 };
        let start = Request::Start { key: lane, epoch: Epoch(3), config: 1, base: 0 };
        let place = range((1 + number) * CHUNK, 1);
        let copy = rig.request(1, place, data(place.start, 1, 9), EntryOrigin::Copy, false);
        for (request, full) in [promise, start, copy].into_iter().zip(&mut full) {
            *full += u32::from(is_full(&rig.ask(request)));
        }
    }
    assert!(full[0] > 0 && full[1] > 0, "{full:?}");
    assert!(full[0] < 50 && full[1] < 50, "a deletion or an epoch has room that writes leave: {full:?}");
    assert_eq!(full[2], 50, "writes leave it");
    let again = Request::Start { key: key(), epoch: Epoch(2), config: 1, base: index };
    assert_eq!(rig.ask(again), Reply::Done, "a lane that is there needs nothing");
    let again = Request::Promise { volume: volume(), epoch: Epoch(7) };
    assert!(matches!(rig.ask(again), Reply::Sealed { .. }));
    rig.engine.checkpoint();
    rig.run();
    rig.reopen();
    assert!(rig.engine.failed().is_none());
    rig.settle(index);
    rig.write(1, range(0, 1), data(0, 1, 1));
}

#[test]
fn an_open_remembers_nothing_of_writes_that_need_no_look() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    for index in 2..202 {
        let chunk = index % 50;
        rig.write(index, BlockRange::new(chunk * CHUNK, 1024), Body::Tombstone);
    }
    rig.reopen();
    assert_eq!(rig.engine.stats().replayed_blocks, 0, "tombstones, and a write that is proven");
    for granule in 0..2 {
        rig.write(202 + granule, range(granule * 16, 16), data(granule * 16, 16, 3));
    }
    rig.write(204, range(3, 2), data(3, 2, 4));
    rig.write(205, range(4, 1), Body::Tombstone);
    rig.write(206, range(16, 16), data(16, 16, 5));
    rig.reopen();
    assert_eq!(rig.engine.stats().replayed_blocks, 1 + 16, "one that only the log holds, and the last write");
}

#[test]
fn a_deletion_right_after_an_open_reads_a_few_pages_at_a_time() {
    let mut rig = Rig::new();
    for chunk in 0..60 {
        rig.write(chunk + 1, BlockRange::new(chunk * CHUNK, 1024), Body::Tombstone);
    }
    rig.settle(60);
    rig.engine.checkpoint();
    rig.run();
    rig.device.crash();
    rig.engine = StoreEngine::open(OpenOptions { nonce: 77, ..OpenOptions::new(SIZE, true) });
    while !rig.engine.is_open() {
        rig.device.take(&mut rig.engine);
        rig.device.complete_one(&mut rig.engine);
    }
    assert_eq!(rig.engine.stats().unread_slots, 60);
    rig.engine.submit(Token(1), Request::Forget { volume: volume() });
    let mut rest = Vec::new();
    loop {
        assert!(rig.engine.in_flight() <= 40, "{} reads at once", rig.engine.in_flight());
        rest.extend(rig.device.take(&mut rig.engine));
        if rig.device.pending() == 0 {
            break;
        }
        rig.device.complete_one(&mut rig.engine);
    }
    assert!(rest.contains(&Effect::Reply { token: Token(1), reply: Reply::Done }), "{rest:?}");
    assert_eq!(rig.engine.stats().used_slots, 0);
}

/// A device with data in 32 granules, opened again, whose write-backs never end.
fn held_back(options: OpenOptions) -> Rig {
    let mut rig = Rig::new();
    for granule in 0..32 {
        rig.write(granule + 1, range(granule * 16, 16), data(granule * 16, 16, granule + 1));
    }
    rig.settle(32);
    rig.engine.checkpoint();
    rig.run();
    rig.device.crash();
    assert_eq!(rig.try_open(options), Ok(()));
    let place = rig.engine.superblock().layout.data;
    rig.device.faults = Faults { stick_one_in: 1, only: Some(place.offset..place.end()), ..Faults::default() };
    rig
}

fn submit_overwrite(rig: &mut Rig, number: u64, blocks: BlockRange) {
    let (origin, body) = (EntryOrigin::Live, data(blocks.start, blocks.count, 1000 + number));
    let stamp = stamp(33 + number);
    let write = Write { key: key(), stamp, range: blocks, body, origin, listed: false, generation: 0 };
    rig.engine.submit(Token(1000), Request::Write(write));
}

/// Overwrites with write-backs that never end: what the log and the pins hold at most, and all writes in the end.
fn overwrites_held_back(options: OpenOptions) -> (u64, u64) {
    let mut rig = held_back(options);
    let (mut log, mut pinned, mut answers) = (0, 0, 0);
    for write in 0..256u64 {
        submit_overwrite(&mut rig, write, range(write % 256 * 2, 2));
        answers += run_loose(&mut rig).len();
        log = rig.engine.stats().log_used_bytes.max(log);
        pinned = rig.engine.stats().pinned_bytes.max(pinned);
    }
    assert!(answers < 256, "some wait");
    rig.device.faults = Faults::default();
    rig.device.release_stuck();
    let rest = rig.run();
    assert!(rest.iter().all(|effect| matches!(effect, Effect::Reply { reply: Reply::Done, .. })), "{rest:?}");
    assert_eq!(answers + rest.len(), 256);
    (log, pinned)
}

#[test]
fn the_log_stays_short_while_write_backs_do_not_end() {
    let options = OpenOptions { nonce: 77, restart_log_bytes: 64 << 10, ..OpenOptions::new(SIZE, true) };
    let (log, _) = overwrites_held_back(options);
    assert!(log <= 320 << 10, "{log} bytes of log");
}

#[test]
fn pinned_blocks_stay_few_while_write_backs_do_not_end() {
    let options = OpenOptions { nonce: 77, pinned_bytes_max: 64 << 10, ..OpenOptions::new(SIZE, true) };
    let (_, pinned) = overwrites_held_back(options);
    assert!(pinned <= (128 + 8) << 10, "{pinned} bytes are pinned");
}

#[test]
fn more_is_written_back_at_once_the_nearer_pins_are_to_where_writes_wait() {
    let options = OpenOptions { nonce: 77, pinned_bytes_max: 24 * 4096, ..OpenOptions::new(SIZE, true) };
    let mut rig = held_back(options);
    let mut at_once = vec![];
    for write in 0..48 {
        submit_overwrite(&mut rig, write, range(write * 8, 1));
        assert_eq!(run_loose(&mut rig).len(), 1);
        at_once.push(rig.device.stuck());
    }
    assert_eq!((at_once[23], at_once[24]), (0, 16 + 2), "the checkpoint begins above the limit");
    assert_eq!(at_once[47], 25, "all that it has to write back");
}

#[test]
fn the_cache_does_not_remember_chunks_that_have_gone() {
    let mut rig = Rig::new();
    let volume = VolumeId::from_u128(77);
    let key = LaneKey { volume, lane: 0 };
    for round in 1..=10_000 {
        assert_eq!(rig.ask(Request::Start { key, epoch: Epoch(round), config: 1, base: 0 }), Reply::Done);
        let (origin, body) = (EntryOrigin::Live, Body::Tombstone);
        let write = Write { key, stamp: stamp(1), range: range(0, 1), body, origin, listed: true, generation: 0 };
        assert_eq!(rig.ask(Request::Write(write)), Reply::Done);
        assert_eq!(rig.ask(Request::Forget { volume }), Reply::Done);
    }
    assert!(rig.engine.clock_len() <= 1100, "{} names of at most one chunk", rig.engine.clock_len());
}

#[test]
fn the_cache_of_checksums_keeps_its_limit_while_new_chunks_come() {
    let size_bytes = 340 << 20;
    let image = vec![0; size_bytes as usize];
    let mut memory = Memory::new(&image);
    for (offset, bytes) in format(&FormatOptions { size_bytes, ..options() }).unwrap() {
        memory.write(offset, &bytes);
    }
    let mut engine = StoreEngine::open(OpenOptions { checksum_cache_bytes: 0, ..OpenOptions::new(size_bytes, true) });
    assert_eq!(memory.run(&mut engine), [Effect::Opened]);
    let mut ask = |engine: &mut StoreEngine, request: Request| {
        engine.submit(Token(1), request);
        assert_eq!(memory.run(engine), [Effect::Reply { token: Token(1), reply: Reply::Done }]);
    };
    ask(&mut engine, Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 });
    let mut most = 0;
    for chunk in 0..300 {
        let place = range(chunk * CHUNK, 1);
        let (origin, body) = (EntryOrigin::Live, data(place.start, 1, 5));
        let write =
            Write { key: key(), stamp: stamp(chunk + 1), range: place, body, origin, listed: false, generation: 0 };
        ask(&mut engine, Request::Write(write));
        most = engine.stats().cached_chunks.max(most);
    }
    assert!((64..=72).contains(&most), "{most} chunks");
}
