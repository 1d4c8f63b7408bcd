//! Inputs to begin with: one of each kind that is right, so that a fuzzer starts beyond the first check.
//!
//! It must never change with the machine: the files in `store/fuzz/seeds` are these.

use super::log::{self, Base, VOLUMES};
use super::memory::Memory;
use super::{pages, superblock};
use crate::api::{Body, Reply, Request, Token, Write};
use crate::disk::Superblock;
use crate::engine::{Effect, FormatOptions, OpenOptions, StoreEngine, format, read_superblocks};
use crate::layout::{SUPERBLOCK_A, SUPERBLOCK_B};
use crate::map::{ChunkMap, Moved};
use crate::record::{Class, Content, Record, Segment, WriteRecord};
use crate::table::{DirectoryEntry, VolumeTable};
use ashlar_model::checksum::block_checksums;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, ClusterId, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeId};

/// A file for the folder of a target.
#[derive(Debug)]
pub struct Seed {
    /// Target.
    pub target: &'static str,
    /// File.
    pub name: String,
    /// Input.
    pub bytes: Vec<u8>,
}

/// All of them.
pub fn all() -> Vec<Seed> {
    let seed = |target: &'static str| {
        move |(name, bytes): (&str, Vec<u8>)| Seed { target, name: format!("valid-{name}"), bytes }
    };
    let logs = log_seeds().into_iter().map(seed("log"));
    let pages = page_seeds().into_iter().map(seed("map_page"));
    logs.chain(pages).chain(superblock_seeds().into_iter().map(seed("superblock"))).collect()
}

/// Some blocks of data.
pub(super) fn data(volume: VolumeId, start: u64, blocks: u32, id: u64) -> Body {
    let bytes = id.to_le_bytes().repeat(blocks as usize * 512);
    let checksums: Vec<u32> = block_checksums(volume, start, &bytes).collect();
    Body::Data { payload: Payload::copied_from(&bytes), checksums: checksums.into() }
}

fn options() -> FormatOptions {
    FormatOptions {
        cluster: ClusterId::from_u128(1),
        device: DeviceId::from_u128(2),
        size_bytes: 7 << 20,
        power_loss_protected: false,
        atomic_declared: false,
        log_bytes: Some(512 << 10),
        table_bytes: Some(64 << 10),
    }
}

/// An engine at work, and the index of its last write.
struct Workload<'a> {
    memory: Memory<'a>,
    engine: StoreEngine,
    index: u64,
}

impl Workload<'_> {
    /// Submits requests together, and waits for all of them.
    fn ask(&mut self, requests: Vec<Request>) {
        requests.into_iter().for_each(|request| self.engine.submit(Token(0), request));
        for effect in self.memory.run(&mut self.engine) {
            let refused = matches!(effect, Effect::Reply { reply: Reply::Error(_), .. });
            assert!(!refused, "{effect:?}");
        }
    }

    /// The next write of the first volume.
    fn next(&mut self, start: u64, blocks: u32, generation: u32) -> Request {
        let body = data(VOLUMES[0], start, blocks, self.index + 1);
        self.next_body(start, blocks, body, generation)
    }

    fn next_body(&mut self, start: u64, blocks: u32, body: Body, generation: u32) -> Request {
        self.index += 1;
        write(lane(0), self.index, BlockRange::new(start, blocks), body, generation)
    }
}

fn lane(lane: u16) -> LaneKey {
    LaneKey { volume: VOLUMES[0], lane }
}

fn write(key: LaneKey, index: u64, range: BlockRange, body: Body, generation: u32) -> Request {
    let origin = if key.lane == 0 { EntryOrigin::Live } else { EntryOrigin::Copy };
    let stamp = Stamp { epoch: Epoch(1), index };
    Request::Write(Write { key, stamp, range, body, origin, listed: key.lane == 0, generation })
}

/// A device whose log holds every kind of record, and crosses the end of the ring.
pub(super) fn device_with_log() -> Base {
    let options = options();
    let blank = vec![0xA5; options.size_bytes as usize];
    let mut memory = Memory::new(&blank);
    for (offset, bytes) in format(&options).expect("it fits") {
        memory.write(offset, &bytes);
    }
    let engine = StoreEngine::open(OpenOptions::new(options.size_bytes, true));
    let mut work = Workload { memory, engine, index: 0 };
    assert_eq!(work.memory.run(&mut work.engine), [Effect::Opened]);
    work.ask(vec![Request::Start { key: lane(0), epoch: Epoch(1), config: 1, base: 0 }]);
    for _ in 0..4 {
        let writes = vec![work.next(1, 30, 0), work.next(1024, 3, 0)];
        work.ask(writes);
    }
    work.engine.checkpoint();
    work.ask(vec![]);
    every_record(&mut work);
    let (a, b) = (work.memory.read(SUPERBLOCK_A, 4096), work.memory.read(SUPERBLOCK_B, 4096));
    Base { image: work.memory.image(), sb: read_superblocks(Some(&a), Some(&b)).expect("it was formatted") }
}

/// Writes of the older generation are fresh: one that only the log holds would make the drop begin a checkpoint, and
/// that would end this log.
fn every_record(work: &mut Workload<'_>) {
    let other = LaneKey { volume: VOLUMES[1], lane: 0 };
    let held = work.next_body(40, 1, Body::Held, 0);
    let writes = vec![work.next(40, 5, 0), held, work.next(60, 8, 0)];
    work.ask(writes);
    work.ask(vec![Request::Settle { key: lane(0), index: 9, config: 2, member: true }]);
    let writes = vec![work.next(8, 4, 1), work.next(20, 2, 1), work.next_body(30, 1, Body::Tombstone, 1)];
    work.ask(writes);
    let join = Request::JoinStart { key: lane(1), epoch: Epoch(1), config: 1, join: 2, base: 3 };
    work.ask(vec![join, Request::Promise { volume: VOLUMES[0], epoch: Epoch(1) }]);
    let copied = data(VOLUMES[0], 2048, 4, 99);
    work.ask(vec![write(lane(1), 3, BlockRange::new(2048, 4), copied, 1)]);
    work.ask(vec![Request::Start { key: other, epoch: Epoch(1), config: 1, base: 0 }]);
    work.ask(vec![write(other, 1, BlockRange::new(0, 2), data(other.volume, 0, 2, 5), 0)]);
    work.ask(vec![Request::DropGeneration { volume: VOLUMES[0], generation: 0, into: 1 }]);
    work.ask(vec![Request::Forget { volume: VOLUMES[1] }]);
    let writes = vec![work.next(9, 2, 1), work.next(1030, 1, 1)];
    work.ask(writes);
    let writes = vec![work.next(0, 20, 1), work.next(2, 1, 1)];
    work.ask(writes);
    let last = work.next(8, 4, 1);
    work.ask(vec![last]);
}

fn command(which: u8, place: u16, bytes: &[u8]) -> Vec<u8> {
    let mut command = vec![which];
    if which == log::OVERWRITE {
        command.extend(place.to_le_bytes());
    }
    command.extend((bytes.len() as u16).to_le_bytes());
    command.extend(bytes);
    command
}

fn log_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let base = log::base();
    let mut groups = Vec::new();
    log::walk(&mut Memory::new(&base.image), &base.sb, false, &mut |records| groups.push(records.to_vec()));
    let flags = (log::SEALED | log::CHECKPOINT) as u8;
    let again =
        |groups: &[Vec<u8>]| groups.iter().flat_map(|group| command(log::APPEND, 0, group)).collect::<Vec<u8>>();
    let header = command(log::OVERWRITE, 0, b"ASHLARLG");
    let fresh = LaneKey { volume: VOLUMES[1], lane: 4 };
    let mut records = Vec::new();
    Record::Start(fresh, Epoch(1), 1, 0).encode(&mut records);
    Record::Write(record(fresh, 0, 60)).encode(&mut records);
    Record::Settle(fresh, 1, 1, true).encode(&mut records);
    Record::Dropped { lsn: base.sb.head_lsn, ordinal: 1 }.encode(&mut records);
    let mut largest = Vec::new();
    Record::Start(fresh, Epoch(1), 1, u64::MAX - 1).encode(&mut largest);
    let stamp = Stamp { epoch: Epoch(1), index: u64::MAX };
    Record::Write(WriteRecord { stamp, content: Content::Held, ..record(fresh, 0, 0) }).encode(&mut largest);
    vec![
        ("nothing", vec![log::WHOLE as u8]),
        ("same-header", [vec![flags], header].concat()),
        ("torn-group", [vec![log::NO_FLUSHES as u8], command(log::OVERWRITE, 70, &[0; 16])].concat()),
        ("all-again", [vec![0], again(&groups)].concat()),
        ("last-again", [vec![flags], again(&groups[groups.len() - 1..])].concat()),
        ("new-volume", [vec![flags], command(log::APPEND, 0, &records)].concat()),
        ("largest-index", [vec![flags], command(log::APPEND, 0, &largest)].concat()),
    ]
}

/// A write of three blocks from the fifteenth of its chunk.
fn record(key: LaneKey, slot: u32, granule: u32) -> WriteRecord {
    let segment = |granule| Segment { granule, class: Class::Fresh, place: None };
    WriteRecord {
        key,
        stamp: Stamp { epoch: Epoch(1), index: 1 },
        range: BlockRange::new(7 * 1024 + 15, 3),
        origin: EntryOrigin::Live,
        listed: true,
        generation: 2,
        slot,
        content: Content::Data {
            segments: smallvec::smallvec![segment(granule), segment(granule + 1)],
            checksums: [1, 2, 3].into(),
        },
    }
}

fn page_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let entry = pages::ENTRY;
    let mut map = ChunkMap::new(16);
    map.apply(&record(entry.key, entry.slot, 3), &mut Moved::default());
    let chunk = map.chunk_mut(entry.slot).expect("just written");
    chunk.clear(0, 1 << 15, true);
    chunk.lose(5, 7);
    let both = chunk.encode(pages::DEVICE, pages::layout(), entry.slot, entry.half, entry.as_of);
    let (page, sums) = both.split_at(4096);
    let input = |flags: usize, map: &[u8], sums: &[u8]| {
        [&[flags as u8][..], &(map.len() as u16).to_le_bytes(), map, sums].concat()
    };
    let sealed = pages::SEALED | pages::NAMED | pages::SUMMED;
    let mut table = VolumeTable::default();
    table.start(entry.key, Epoch(1), 1, 0);
    table.add_entry(&record(entry.key, 0, 1));
    table.join_start(LaneKey { lane: 4, ..entry.key }, Epoch(2), 2, 3, 4);
    table.add_entry(&record(LaneKey { lane: 4, ..entry.key }, 0, 2));
    table.join_start(LaneKey { lane: 4, ..entry.key }, Epoch(3), 2, 4, 4);
    let other = DirectoryEntry { slot: 1, chunk: 8, half: false, ..entry };
    let mut largest = VolumeTable::default();
    largest.start(entry.key, Epoch(1), 1, u64::MAX);
    let largest = largest.encode(0, std::iter::empty(), &[]);
    let table = table.encode(2, [entry, other].into_iter(), &[1, 0x8000_0000_0000_0001]);
    vec![
        ("whole-pages", input(0, page, sums)),
        ("some-entries", input(sealed, &page[..64 + 8 * 28], &sums[..80])),
        ("other-sums", input(pages::SEALED | pages::NAMED, &page[..64 + 8 * 28], &[])),
        ("table", [vec![pages::TABLE as u8], table].concat()),
        ("largest-prefix", [vec![pages::TABLE as u8], largest].concat()),
    ]
}

fn superblock_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let writes = format(&options()).expect("it fits");
    let (b, a) = (&writes[2].1, &writes[3].1);
    let bytes = 208;
    let input = |flags: usize, a: &[u8], b: &[u8]| [&[flags as u8][..], &(a.len() as u16).to_le_bytes(), a, b].concat();
    let sealed = superblock::SEALED | superblock::NAMED;
    let mut large = Superblock::decode(SUPERBLOCK_A, a).expect("just made");
    large.layout = crate::layout::Layout::new(20 << 40, None, None).expect("it fits");
    let large = large.encode(SUPERBLOCK_A);
    let (mut size, mut log) = (a[..bytes].to_vec(), a[..bytes].to_vec());
    size[48..56].fill(0xFF);
    log[80..88].fill(0xFF);
    vec![
        ("whole-pages", input(0, a, b)),
        ("largest-areas", input(sealed | sealed << 4, &size, &log)),
        ("first-bytes", input(sealed | sealed << 4, &a[..bytes], &b[..bytes])),
        ("large", input(sealed, &large[..bytes], &[])),
        ("unsealed", input(0, &a[..bytes], &b[..bytes])),
    ]
}
