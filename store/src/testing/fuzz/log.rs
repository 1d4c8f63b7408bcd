//! A device whose log was written over: recovery ends in an answer, and what it answers stays so.
//!
//! The device holds the log of a small workload, across the end of the ring. An input writes over its beginning, and
//! appends groups of its own; with a flag, every group is sealed and chained anew. It must never ask what was
//! acknowledged: that is the crash tests' question.

use super::memory::Memory;
use super::{number, split};
use crate::api::{BlockState, Body, Reply, Request, Token, Write};
use crate::disk::{GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeaderDisk, Superblock, group_checksum};
use crate::engine::{Effect, OpenOptions, StoreEngine};
use crate::layout::{Layout, PAGE_BYTES};
use crate::record::{Reader, Record};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{BlockRange, LaneKey, Payload, Stamp, VolumeId};
use std::sync::OnceLock;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Flag of the input: groups are sealed and chained after they were written over.
pub(super) const SEALED: usize = 1;
/// Flag: the device needs no flushes.
pub(super) const NO_FLUSHES: usize = 2;
/// Flag: a write and a checkpoint between both opens.
pub(super) const CHECKPOINT: usize = 4;
/// Flag: whole chunks are read, not only the blocks at their beginning, where the workload wrote. It takes its time.
pub(super) const WHOLE: usize = 8;
/// Command: the bytes go over the log.
pub(super) const OVERWRITE: u8 = 0;
/// Command: the bytes are the records of a new group.
pub(super) const APPEND: u8 = 1;

const COMMANDS_MAX: usize = 64;
/// Appended groups must not reach the head of the log.
const APPENDED_BYTES_MAX: u64 = 128 << 10;
/// Blocks of one read.
const READ_BLOCKS: u32 = 64;
/// Blocks of a chunk that hold what the workload wrote.
const WRITTEN_BLOCKS: u64 = 128;
/// Volumes and chunks that are read.
pub(super) const VOLUMES: [VolumeId; 2] = [VolumeId::from_u128(5), VolumeId::from_u128(6)];
const CHUNKS: u64 = 3;

/// Where the chain of groups goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    position: u64,
    lsn: u64,
    previous: u64,
    generation: u64,
}

/// The device of the workload, with its superblock.
pub(super) struct Base {
    pub image: Vec<u8>,
    pub sb: Superblock,
}

pub(super) fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(super::seeds::device_with_log)
}

/// Input: flags; then commands: which, for `OVERWRITE` the place after the head of the log as two bytes, the length
/// as two bytes, and as many bytes. All of the input is tried as records too.
///
/// # Panics
/// If a rule is broken.
pub fn check_log(mut input: &[u8]) {
    check_records(input);
    let base = base();
    let mut memory = Memory::new(&base.image);
    let flags = number(&mut input, 1);
    let ring = base.sb.layout.log;
    let mut appended = Vec::new();
    for _ in 0..COMMANDS_MAX {
        if input.is_empty() {
            break;
        }
        let append = number(&mut input, 1) & 1 == usize::from(APPEND);
        let place = if append { 0 } else { number(&mut input, 2) as u64 };
        let length = number(&mut input, 2);
        let bytes = split(&mut input, length);
        if append {
            appended.push(bytes);
            continue;
        }
        let at = (base.sb.head_offset + place) % ring.bytes;
        let room = (ring.bytes - at).min(bytes.len() as u64) as usize;
        memory.write(ring.offset + at, &bytes[..room]);
    }
    let tail = walk(&mut memory, &base.sb, flags & SEALED != 0, &mut |_| {});
    append_groups(&mut memory, &base.sb, tail, &appended);
    check_opens(memory, flags);
}

/// Each record that the bytes begin with is the same after it was written again.
fn check_records(bytes: &[u8]) {
    for start in 0..bytes.len().min(64) {
        let mut reader = Reader(&bytes[start..]);
        let Some(record) = Record::decode(&mut reader) else { continue };
        let mut once = Vec::new();
        record.encode(&mut once);
        assert_eq!(once.len(), bytes.len() - start - reader.0.len(), "{record:?}");
        let mut again = Reader(&once);
        assert_eq!(Record::decode(&mut again).as_ref(), Some(&record));
        assert!(again.0.is_empty());
        assert!(record.payload_blocks() <= ashlar_model::limits::WRITE_BLOCKS_MAX);
    }
}

/// The header at a place of the ring, the bytes of its header area, and of all of the group.
fn group_at(memory: &Memory<'_>, layout: &Layout, place: u64) -> Option<(GroupHeaderDisk, u64, u64)> {
    let bytes = memory.read(layout.log.offset + place, GROUP_HEADER_BYTES);
    let (header, _) = GroupHeaderDisk::read_from_prefix(&bytes).ok()?;
    let area = (GROUP_HEADER_BYTES as u64 + u64::from(header.record_bytes.get())).next_multiple_of(PAGE_BYTES);
    let all = area + u64::from(header.payload_blocks.get()) * PAGE_BYTES;
    let fits = all <= layout.group_bytes_max() && place + all <= layout.log.bytes;
    (header.magic == GROUP_MAGIC && fits).then_some((header, area, all))
}

/// Follows the chain, and seals its groups if asked to. `each` sees the bytes of their records.
pub(super) fn walk(memory: &mut Memory<'_>, sb: &Superblock, seal: bool, each: &mut dyn FnMut(&[u8])) -> Tail {
    let ring = sb.layout.log;
    let mut tail = Tail { position: sb.head_offset, lsn: sb.head_lsn, previous: sb.head_previous, generation: 0 };
    let mut left = ring.bytes;
    loop {
        let places = [tail.position % ring.bytes, 0];
        let ours = |place: &u64| {
            let (header, _, all) = group_at(memory, &sb.layout, *place)?;
            (header.lsn.get() == tail.lsn && all <= left).then_some((*place, header, all))
        };
        let Some((place, mut header, all)) = places.iter().find_map(ours) else { return tail };
        let end = GROUP_HEADER_BYTES + header.record_bytes.get() as usize;
        let mut bytes = memory.read(ring.offset + place, end);
        if seal {
            header.previous = U64::new(tail.previous);
            header.record_count = U32::new(decodable(&bytes[GROUP_HEADER_BYTES..]).len() as u32);
            seal_group(sb, &mut header, &mut bytes);
            memory.write(ring.offset + place, &bytes);
        }
        each(&bytes[GROUP_HEADER_BYTES..]);
        left -= all;
        tail = Tail {
            position: place + all,
            lsn: tail.lsn + 1,
            previous: header.checksum.get(),
            generation: header.generation.get(),
        };
    }
}

fn seal_group(sb: &Superblock, header: &mut GroupHeaderDisk, bytes: &mut [u8]) {
    bytes[..GROUP_HEADER_BYTES].copy_from_slice(header.as_bytes());
    header.checksum = U64::new(group_checksum(sb.device, header.lsn.get(), bytes));
    bytes[..GROUP_HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// The records that the bytes begin with.
pub(super) fn decodable(bytes: &[u8]) -> Vec<Record> {
    let mut reader = Reader(bytes);
    std::iter::from_fn(|| Record::decode(&mut reader)).collect()
}

/// Writes groups that are right in everything but what their records say. Each calls those before it complete.
fn append_groups(memory: &mut Memory<'_>, sb: &Superblock, mut tail: Tail, groups: &[&[u8]]) {
    let ring = sb.layout.log;
    let mut left = APPENDED_BYTES_MAX;
    for records in groups.iter().map(|bytes| decodable(bytes)).filter(|records| !records.is_empty()) {
        let mut bytes = vec![0; GROUP_HEADER_BYTES];
        records.iter().for_each(|record| record.encode(&mut bytes));
        let payload_blocks: u32 = records.iter().map(Record::payload_blocks).sum();
        let all = (bytes.len() as u64).next_multiple_of(PAGE_BYTES) + u64::from(payload_blocks) * PAGE_BYTES;
        if all > left || all > sb.layout.group_bytes_max() {
            continue;
        }
        left -= all;
        let place = if tail.position + all <= ring.bytes { tail.position } else { 0 };
        let mut header = GroupHeaderDisk {
            magic: GROUP_MAGIC,
            checksum: U64::new(0),
            lsn: U64::new(tail.lsn),
            previous: U64::new(tail.previous),
            completed: U64::new(tail.lsn - 1),
            generation: U64::new(tail.generation),
            record_bytes: U32::new((bytes.len() - GROUP_HEADER_BYTES) as u32),
            record_count: U32::new(records.len() as u32),
            payload_blocks: U32::new(payload_blocks),
            reserved: U32::new(0),
        };
        seal_group(sb, &mut header, &mut bytes);
        memory.write(ring.offset + place, &bytes);
        tail = Tail { position: place + all, lsn: tail.lsn + 1, previous: header.checksum.get(), ..tail };
    }
}

/// Opens the device twice. What the first open accepted, the second one accepts and reads alike.
fn check_opens(mut memory: Memory<'_>, flags: usize) {
    let Some(mut engine) = open(&mut memory, flags) else { return };
    let mut states = read_all(&mut memory, &mut engine, flags);
    if flags & CHECKPOINT != 0 {
        let reply = ask(&mut memory, &mut engine, write_somewhere());
        assert!(matches!(reply, Reply::Done | Reply::Error(_)), "{reply:?}");
        engine.checkpoint();
        assert_eq!(memory.run(&mut engine), []);
        states = read_all(&mut memory, &mut engine, flags);
    }
    if engine.failed().is_some() {
        return;
    }
    let mut engine = open(&mut memory, flags).expect("what was opened can be opened again");
    let again = read_all(&mut memory, &mut engine, flags);
    assert!(engine.failed().is_none(), "{:?}", engine.failed());
    assert_eq!(again, states, "it reads as before");
}

/// The engine, if the device can be opened.
fn open(memory: &mut Memory<'_>, flags: usize) -> Option<StoreEngine> {
    let mut engine = StoreEngine::open(OpenOptions::new(base().sb.layout.size_bytes, flags & NO_FLUSHES == 0));
    let effects = memory.run(&mut engine);
    let opened = effects.contains(&Effect::Opened);
    let failed = effects.iter().any(|effect| matches!(effect, Effect::OpenFailed(_)));
    assert!(opened != failed && effects.len() == 1, "{effects:?}");
    assert_eq!(engine.is_open(), opened);
    assert!(opened || engine.failed().is_some());
    opened.then_some(engine)
}

fn ask(memory: &mut Memory<'_>, engine: &mut StoreEngine, request: Request) -> Reply {
    engine.submit(Token(1), request);
    let mut effects = memory.run(engine);
    match (effects.pop(), effects.is_empty()) {
        (Some(Effect::Reply { reply, .. }), true) => reply,
        other => panic!("one answer to a request, not {other:?}"),
    }
}

/// Content of a range; `None`: the device has failed.
type Content = Option<(Vec<BlockState>, Option<Payload>)>;

/// Reads every block that the workload knows, and those that the lists name.
fn read_all(memory: &mut Memory<'_>, engine: &mut StoreEngine, flags: usize) -> Vec<Content> {
    let (chunk_blocks, per_read) = (CHUNK_BLOCKS as u64, READ_BLOCKS as usize);
    let blocks = if flags & WHOLE == 0 { WRITTEN_BLOCKS } else { chunk_blocks };
    let starts = |chunk: u64| (0..blocks).step_by(per_read).map(move |at| chunk * chunk_blocks + at);
    let ranges = (0..CHUNKS).flat_map(starts).map(|start| BlockRange::new(start, READ_BLOCKS));
    let known = VOLUMES.into_iter().flat_map(|volume| ranges.clone().map(move |range| (volume, range)));
    let mut wanted: Vec<(VolumeId, BlockRange)> = known.collect();
    let listed = engine.lanes().flat_map(|(key, lane)| lane.list.iter().map(move |entry| (key.volume, entry.range)));
    wanted.extend(listed.take(32));
    let mut contents = Vec::new();
    for (volume, range) in wanted {
        let newest = Request::Read { volume, range };
        for request in [newest, Request::ReadSnapshot { volume, range, generation: 0 }] {
            contents.push(match ask(memory, engine, request) {
                Reply::Read(result) => {
                    assert_eq!(
                        (result.states.len(), result.stamps.len()),
                        (range.count as usize, range.count as usize)
                    );
                    Some((result.states, result.payload))
                }
                Reply::Error(_) => None,
                other => panic!("no answer to a read: {other:?}"),
            });
        }
    }
    contents
}

fn write_somewhere() -> Request {
    let key = LaneKey { volume: VOLUMES[0], lane: 0 };
    let stamp = Stamp { epoch: ashlar_model::Epoch(1), index: 1000 };
    let body = super::seeds::data(VOLUMES[0], 16, 2, 77);
    let range = BlockRange::new(16, 2);
    debug_assert!(matches!(body, Body::Data { .. }));
    Request::Write(Write { key, stamp, range, body, origin: EntryOrigin::Live, listed: true, generation: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Class, Content};
    use std::collections::HashSet;
    use std::mem::discriminant;

    #[test]
    fn the_log_holds_every_kind_of_record_and_crosses_the_end_of_the_ring() {
        let base = base();
        let mut records = Vec::new();
        let tail = walk(&mut Memory::new(&base.image), &base.sb, false, &mut |bytes| records.extend(decodable(bytes)));
        assert!(tail.position < base.sb.head_offset, "{tail:?} {}", base.sb.head_offset);
        let dropped = Record::Dropped { lsn: 1, ordinal: 1 };
        let kinds: HashSet<_> = records.iter().chain([&dropped]).map(discriminant).collect();
        assert_eq!(kinds.len(), 10, "{records:#?}");
        let data = records.iter().filter_map(|record| match record {
            Record::Write(write) => Some(&write.content),
            _ => None,
        });
        let contents: HashSet<_> = data.clone().map(discriminant).collect();
        assert_eq!(contents.len(), 3);
        let segments = data.flat_map(|content| match content {
            Content::Data { segments, .. } => &segments[..],
            _ => &[],
        });
        let classes: Vec<Class> = segments.map(|segment| segment.class).collect();
        assert!(classes.contains(&Class::Fresh) && classes.contains(&Class::Logged));
    }

    #[test]
    fn groups_are_sealed_and_appended_so_that_recovery_applies_them() {
        let (base, volume) = (base(), VolumeId::from_u128(77));
        let mut memory = Memory::new(&base.image);
        let ring = base.sb.layout.log;
        // The epoch of the first record: any byte of a record serves.
        memory.write(ring.offset + base.sb.head_offset + GROUP_HEADER_BYTES as u64 + 19, &[1]);
        let tail = walk(&mut memory, &base.sb, true, &mut |_| {});
        let mut records = Vec::new();
        Record::Promise(volume, ashlar_model::Epoch(3)).encode(&mut records);
        append_groups(&mut memory, &base.sb, tail, &[&records]);
        let engine = open(&mut memory, 0).expect("nothing is wrong with it");
        assert!(engine.promises().any(|(one, epoch)| (one, epoch.0) == (volume, 3)));
    }
}
