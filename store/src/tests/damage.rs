//! One bad sector is one sector's damage: the device opens, and everything else is there.

use super::rig::{Rig, SIZE, data, key, options, range, run_loose, stamp, volume};
use crate::api::{BlockState, Body, Reply, Request, StoreError, Token, Write};
use crate::engine::{Effect, OpenError, OpenOptions};
use crate::layout::{SUPERBLOCK_A, SUPERBLOCK_B};
use crate::offline::inspect;
use crate::table::{TableContent, VolumeTable};
use crate::testing::{Faults, SimDevice};
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, Epoch};

/// Device offset of the end of the log.
fn log_end(rig: &Rig) -> u64 {
    let sb = rig.engine.superblock();
    let log = sb.layout.log;
    log.offset + (sb.head_offset + rig.engine.stats().log_used_bytes) % log.bytes
}

fn checkpoint(rig: &mut Rig) {
    rig.engine.checkpoint();
    rig.run();
}

fn is_data(rig: &mut Rig, range: BlockRange) -> bool {
    rig.read(range).states.iter().all(|state| matches!(state, BlockState::Data(_)))
}

#[test]
fn an_unreadable_page_behind_the_log_is_no_part_of_it() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    checkpoint(&mut rig);
    rig.write(2, range(16, 4), data(16, 4, 2));
    rig.write(3, range(0, 2), data(0, 2, 3));
    let end = log_end(&rig);
    rig.device.unreadable.insert(end);
    rig.reopen();
    assert_eq!(rig.lane().prefix, 3);
    assert!(is_data(&mut rig, range(0, 4)) && is_data(&mut rig, range(16, 4)));
    rig.write(4, range(32, 1), data(32, 1, 4));
    rig.reopen();
    assert_eq!(rig.lane().prefix, 4);
}

#[test]
fn an_unreadable_first_page_of_the_ring_is_no_part_of_a_log_further_on() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    checkpoint(&mut rig);
    assert_ne!(rig.engine.superblock().head_offset, 0);
    rig.write(2, range(16, 4), data(16, 4, 2));
    rig.device.unreadable.insert(rig.engine.superblock().layout.log.offset);
    rig.reopen();
    assert_eq!(rig.lane().prefix, 2);
    assert!(is_data(&mut rig, range(0, 4)) && is_data(&mut rig, range(16, 4)));
}

#[test]
fn a_group_that_an_open_gave_up_does_not_come_back_over_what_that_open_wrote_instead() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 16), data(0, 16, 1));
    let log = rig.engine.superblock().layout.log;
    let last = log.end() - 4096;
    for epoch in 2.. {
        if log_end(&rig) == last {
            break;
        }
        let promise = Request::Promise { volume: volume(), epoch: Epoch(epoch) };
        assert!(matches!(rig.ask(promise), Reply::Sealed { .. }));
    }
    checkpoint(&mut rig);
    rig.write(2, range(16, 16), data(16, 16, 2));
    assert_eq!(log_end(&rig), log.offset, "its group is the last page of the ring");
    rig.device.unreadable.insert(last);
    rig.reopen();
    assert_eq!(rig.lane().prefix, 1);
    rig.write(2, range(0, 1), data(0, 1, 3));
    assert_eq!(log_end(&rig), log.offset + 2 * 4096, "with its block the group does not fit before the end");
    rig.device.unreadable.clear();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    std::fs::write(&path, rig.device.bytes(0, SIZE as usize)).unwrap();
    let survey = inspect(&path).unwrap().log.expect("it has a log");
    assert_eq!((survey.groups, survey.end), (1, log_end(&rig)), "the offline check follows the same one");
    rig.reopen();
    let Body::Data { checksums, .. } = data(0, 1, 3) else { unreachable!() };
    assert_eq!(rig.read(range(0, 1)).states, [BlockState::Data(checksums[0])]);
    assert_eq!(rig.read(range(16, 1)).states, [BlockState::Zero]);
}

#[test]
fn an_unreadable_header_of_a_completed_group_keeps_the_device_closed() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    checkpoint(&mut rig);
    let second = log_end(&rig);
    rig.write(2, range(16, 4), data(16, 4, 2));
    rig.write(3, range(32, 4), data(32, 4, 3));
    rig.device.unreadable.insert(second);
    rig.device.crash();
    let outcome = rig.try_open(OpenOptions::new(SIZE, true));
    assert!(matches!(outcome, Err(OpenError::LogCorruption { .. })), "{outcome:?}");
}

#[test]
fn a_log_that_cannot_be_read_at_all_keeps_the_device_closed() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    let log = rig.engine.superblock().layout.log;
    rig.device.unreadable.extend((log.offset..log.end()).step_by(4096));
    rig.device.crash();
    let outcome = rig.try_open(OpenOptions::new(SIZE, true));
    assert!(matches!(outcome, Err(OpenError::Io(_))), "{outcome:?}");
}

#[test]
fn an_unreadable_payload_block_of_a_completed_group_is_one_bad_block() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    checkpoint(&mut rig);
    let group = log_end(&rig);
    rig.write(2, range(0, 4), data(0, 4, 2));
    assert_eq!(rig.engine.stats().classes[1], 1, "it goes into the log");
    rig.write(3, range(32, 4), data(32, 4, 3));
    rig.device.unreadable.insert(group + 2 * 4096);
    rig.reopen();
    let Body::Data { checksums, .. } = data(0, 4, 2) else { unreachable!() };
    let expected =
        [0, 1, 2, 3].map(|i| if i == 1 { BlockState::Bad(checksums[i]) } else { BlockState::Data(checksums[i]) });
    assert_eq!(rig.read(range(0, 4)).states, expected);
    assert!(is_data(&mut rig, range(32, 4)));
}

#[test]
fn a_checksum_page_is_read_again_before_it_is_given_up() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    rig.settle(1);
    checkpoint(&mut rig);
    rig.reopen();
    rig.engine.submit(Token(5000), Request::Read { volume: volume(), range: range(0, 4) });
    assert!(rig.device.take(&mut rig.engine).is_empty());
    assert_eq!(rig.device.pending(), 1);
    rig.device.fail_reads = true;
    rig.device.complete_one(&mut rig.engine);
    rig.device.fail_reads = false;
    let effects = rig.run();
    let [Effect::Reply { reply: Reply::Read(read), .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(read.states.iter().all(|state| matches!(state, BlockState::Data(_))), "{read:?}");
    assert_eq!(rig.engine.stats().damaged_chunks, 0);
}

#[test]
fn an_unreadable_block_that_a_later_write_replaced_spoils_no_other() {
    let mut rig = Rig::new();
    let submit = |rig: &mut Rig, index: u64, place: BlockRange, id: u64| {
        let body = data(place.start, place.count, id);
        let request = rig.request(index, place, body, EntryOrigin::Live, true);
        rig.engine.submit(Token(index), request);
    };
    // While the first one's group is on its way, the others gather in one: it is not proven to be complete.
    submit(&mut rig, 1, range(64, 1), 1);
    submit(&mut rig, 2, range(0, 4), 2);
    submit(&mut rig, 3, range(0, 1), 3);
    assert_eq!(rig.run().len(), 3);
    assert_eq!(rig.engine.stats().classes, [2, 1, 0]);
    let place = rig.find(2);
    rig.device.unreadable.insert(place);
    rig.reopen();
    assert_eq!(rig.lane().prefix, 3);
    assert!(is_data(&mut rig, range(0, 4)), "the write of four is whole");
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

/// A device whose table names this chunk, sealed as if the engine had written it.
fn with_chunk(chunk: u64) -> Rig {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    rig.settle(1);
    checkpoint(&mut rig);
    let (mut sb, layout) = (rig.engine.superblock().clone(), rig.engine.superblock().layout);
    let bytes = rig.device.bytes(layout.table_offset(sb.table_half, 0), sb.table_bytes as usize).to_vec();
    let TableContent { table, mut directory, granules } = VolumeTable::decode(&bytes).unwrap();
    assert_eq!(directory.len(), 1);
    directory[0].chunk = chunk;
    let bytes = table.encode(1, directory.into_iter(), &granules);
    for copy in [0, 1] {
        overwrite(&mut rig, layout.table_offset(sb.table_half, copy), &bytes);
    }
    sb.table_checksum = metadata_checksum(sb.device.as_u128(), layout.table_offset(sb.table_half, 0), &bytes);
    for offset in [SUPERBLOCK_A, SUPERBLOCK_B] {
        overwrite(&mut rig, offset, &sb.encode(offset));
    }
    rig.device.crash();
    rig
}

fn overwrite(rig: &mut Rig, offset: u64, bytes: &[u8]) {
    for (at, byte) in (offset..).zip(bytes) {
        let changed = rig.device.bytes(at, 1)[0] ^ byte;
        (0..8).filter(|bit| changed & 1 << bit != 0).for_each(|bit| rig.device.flip_bit(at, bit));
    }
}

#[test]
fn a_table_that_names_a_chunk_beyond_all_volumes_is_damaged() {
    for chunk in [u64::MAX, u64::MAX / 1024] {
        let outcome = with_chunk(chunk).try_open(OpenOptions::new(SIZE, true));
        assert!(matches!(outcome, Err(OpenError::DamagedTable(_))), "{outcome:?}");
    }
    let mut rig = with_chunk(u64::MAX / 1024 - 1);
    assert_eq!(rig.try_open(OpenOptions::new(SIZE, true)), Ok(()));
    rig.engine.scrub(64 << 20);
    rig.run();
    assert_eq!(rig.engine.stats().damaged_chunks, 1, "its page says another one");
    let beyond = rig.try_write(2, range(u64::MAX / 1024 * 1024, 1), Body::Tombstone);
    assert!(matches!(beyond, Reply::Error(StoreError::Refused(_))), "{beyond:?}");
}

#[test]
fn space_that_a_damaged_layer_had_given_up_is_whose_write_took_it_last() {
    let mut rig = Rig::new();
    rig.write(1, range(16, 16), data(16, 16, 1));
    rig.settle(1);
    checkpoint(&mut rig);
    rig.write(2, range(0, 1), data(0, 1, 2));
    let place = rig.find(2);
    rig.write(3, range(0, 1), Body::Tombstone);
    rig.write(4, range(1024, 16), data(1024, 16, 4));
    assert_eq!(rig.find(4), place, "the space is in use again");
    let layout = rig.engine.superblock().layout;
    for half in [false, true] {
        rig.device.flip_bit(layout.slot_offset(0, half) + 60, 2);
    }
    rig.reopen();
    let states = rig.read(range(0, 3)).states;
    assert_eq!(states, [BlockState::Zero, BlockState::Unknown, BlockState::Unknown]);
    assert!(is_data(&mut rig, range(1024, 16)));
}

/// A rotten write had left the space that the write to `last` took. `earlier`: the chunk of `last` has the lowest slot.
fn rotten_write(earlier: bool, last: BlockRange) {
    let mut rig = Rig::new();
    rig.device = SimDevice::formatted(&options(), false, 4);
    assert_eq!(rig.try_open(OpenOptions::new(SIZE, false)), Ok(()));
    assert_eq!(rig.ask(Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 }), Reply::Done);
    if earlier {
        let first = last.chunk() * 1024;
        rig.write(6, range(first, 16), data(first, 16, 6));
    }
    rig.write(1, range(0, 16), data(0, 16, 1));
    checkpoint(&mut rig);
    let old = rig.find(1);
    // The write to another granule in its group never ends, so nothing proves that the group is complete.
    let stuck = old + (2 << 16)..old + (3 << 16);
    rig.device.faults = Faults { stick_one_in: 1, only: Some(stuck), ..Faults::default() };
    let writes = [(2, range(4096, 1)), (3, range(0, 16)), (4, range(1024, 16))];
    for (index, place) in writes {
        let body = if index == 2 { Body::Held } else { data(place.start, place.count, index) };
        let request = rig.request(index, place, body, EntryOrigin::Live, true);
        rig.engine.submit(Token(index), request);
    }
    assert_eq!(run_loose(&mut rig).len(), 2);
    let request = rig.request(5, last, data(last.start, last.count, 5), EntryOrigin::Live, true);
    rig.engine.submit(Token(5), request);
    assert_eq!(run_loose(&mut rig).len(), 1);
    assert_eq!(rig.find(5), old, "the space is in use again");
    let place = rig.find(3);
    rig.device.flip_bit(place, 1);
    rig.device.crash();
    rig.device.faults = Faults::default();
    assert_eq!(rig.try_open(OpenOptions { nonce: 77, ..OpenOptions::new(SIZE, false) }), Ok(()));
    assert_eq!(rig.read(range(0, 16)).states, [BlockState::Unknown; 16]);
    assert!(is_data(&mut rig, last));
}

#[test]
fn a_rotten_write_that_passes_for_a_torn_one_gives_nobody_the_space_that_it_had_left() {
    rotten_write(false, range(2048, 16));
}

#[test]
fn space_that_a_rotten_write_had_left_is_its_next_owners_whatever_the_order_of_slots() {
    rotten_write(true, range(2048 + 32, 16));
}

#[test]
fn space_that_a_rotten_write_had_left_may_be_in_use_again_in_the_same_chunk() {
    rotten_write(false, range(32, 16));
}
