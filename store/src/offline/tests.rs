//! Devices in files: what is found on them, clean or with one flipped bit, and that nothing is ever changed.

use super::check::check_device;
use super::map::OfflineDevice;
use super::*;
use crate::api::{Body, Reply, Request, Token, Write};
use crate::device::{BlockingDevice, BlockingDriver};
use crate::disk::{Superblock, SuperblockDisk, open_map_page};
use crate::engine::{Effect, FormatOptions, OpenOptions, StoreEngine};
use crate::layout::{PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use ashlar_model::checksum::{block_checksums, metadata_checksum};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{BlockRange, ClusterId, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeId};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const SIZE: u64 = 8 << 20;

fn volume() -> VolumeId {
    VolumeId::from_u128(5)
}

fn options() -> FormatOptions {
    FormatOptions {
        cluster: ClusterId::from_u128(1),
        device: DeviceId::from_u128(2),
        size_bytes: SIZE,
        power_loss_protected: false,
        atomic_declared: false,
        log_bytes: Some(1 << 20),
        table_bytes: Some(64 << 10),
    }
}

fn data(start: u64, blocks: u32, id: u64) -> Body {
    let bytes = id.to_le_bytes().repeat(blocks as usize * 512);
    let checksums: Vec<u32> = block_checksums(volume(), start, &bytes).collect();
    Body::Data { payload: Payload::copied_from(&bytes), checksums: checksums.into() }
}

/// A device in a file that no daemon has.
struct Stopped {
    _folder: TempDir,
    path: PathBuf,
}

/// Submits requests and sees them done.
struct Running<'a> {
    device: &'a BlockingDevice,
    engine: StoreEngine,
}

impl Running<'_> {
    fn ask(&mut self, request: Request) {
        self.engine.submit(Token(1), request);
        let replies = BlockingDriver::new(self.device).run_until_idle(&mut self.engine);
        assert!(matches!(replies[..], [Effect::Reply { reply: Reply::Done, .. }]), "{replies:?}");
    }

    fn write(&mut self, index: u64, start: u64, body: Body, blocks: u32) {
        let (stamp, range) = (Stamp { epoch: Epoch(1), index }, BlockRange::new(start, blocks));
        let (key, origin) = (LaneKey { volume: volume(), lane: 0 }, EntryOrigin::Live);
        self.ask(Request::Write(Write { key, stamp, range, body, origin, listed: true, generation: 0 }));
    }

    fn data(&mut self, index: u64, start: u64, blocks: u32) {
        self.write(index, start, data(start, blocks, index), blocks);
    }

    fn checkpoint(&mut self) {
        self.engine.checkpoint();
        assert!(BlockingDriver::new(self.device).run_until_idle(&mut self.engine).is_empty());
    }
}

impl Stopped {
    /// Blocks 0 to 19 as of a checkpoint; then, only in the log: two of them again, others, and a tombstone. Then a crash.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let device = BlockingDevice::create(&path, SIZE).unwrap();
        device.format(&options()).unwrap();
        let mut engine = StoreEngine::open(OpenOptions::new(SIZE, true));
        assert_eq!(BlockingDriver::new(&device).run_until_idle(&mut engine), [Effect::Opened]);
        let mut run = Running { device: &device, engine };
        run.ask(Request::Start { key: LaneKey { volume: volume(), lane: 0 }, epoch: Epoch(1), config: 1, base: 0 });
        run.data(1, 0, 20);
        run.checkpoint();
        run.data(2, 4, 2);
        run.data(3, 100, 3);
        run.write(4, 10, Body::Tombstone, 1);
        run.data(5, 200, 1);
        Self { _folder: folder, path }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn edit(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes();
        edit(&mut bytes);
        std::fs::write(&self.path, bytes).unwrap();
    }

    fn flip(&self, offset: u64) {
        self.edit(|bytes| bytes[offset as usize] ^= 0x10);
    }

    fn inspect(&self) -> Survey {
        self.unchanged(|path| inspect(path).unwrap())
    }

    fn check(&self) -> CheckReport {
        self.unchanged(|path| check(path, &mut |_| ()).unwrap())
    }

    fn refused(&self) -> (String, String) {
        let check = self.unchanged(|path| check(path, &mut |_| ()).map(|_| ()).unwrap_err());
        assert!(!check.hint().is_empty());
        let inspect = self.unchanged(|path| inspect(path).map_or_else(|error| error.to_string(), |_| String::new()));
        (check.to_string(), inspect)
    }

    /// Whatever is done, every byte stays as it is.
    fn unchanged<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let before = xxh3_64(&self.bytes());
        let result = look(&self.path);
        assert_eq!(xxh3_64(&self.bytes()), before, "looking has changed the device");
        result
    }

    /// Device offset of a block that was written with this index.
    fn find(&self, index: u64) -> u64 {
        let layout = self.inspect().superblock().unwrap().layout;
        let (bytes, block) = (self.bytes(), index.to_le_bytes().repeat(512));
        let is_it = |at: &u64| bytes[*at as usize..*at as usize + 4096] == block;
        (layout.data.offset..layout.data.end()).step_by(4096).find(is_it).expect("it is there")
    }

    /// Device offset of the only map page in use.
    fn map_page(&self) -> u64 {
        let survey = self.inspect();
        let sb = survey.superblock().unwrap();
        let halves = [false, true].map(|half| sb.layout.slot_offset(0, half));
        let as_of = |offset: u64| {
            let page = &self.bytes()[offset as usize..][..4096];
            open_map_page(sb.device, offset, 0, page).map(|page| page.as_of.get())
        };
        halves.into_iter().find(|offset| as_of(*offset) == Some(sb.sequence)).expect("the checkpoint wrote it")
    }
}

/// Damage of a list: part and place.
fn damage(findings: &[Finding]) -> Vec<(Part, Option<u64>)> {
    findings.iter().filter(|one| one.damage).map(|one| (one.part, one.offset)).collect()
}

fn ranges(report: &CheckReport) -> Vec<(u64, u64)> {
    assert!(report.damaged.iter().all(|range| range.volume == volume()));
    report.damaged.iter().map(|range| (range.start, range.blocks)).collect()
}

#[test]
fn a_device_after_a_crash_is_clean() {
    let device = Stopped::new();
    let survey = device.inspect();
    assert!(survey.is_clean(), "{:?}", survey.findings);
    assert_eq!(survey.in_force, Some(0), "an open and a checkpoint have each written one since formatting");
    let usage = survey.usage.as_ref().unwrap();
    assert_eq!((usage.slots_used, usage.granules_used), (1, 2), "as of the checkpoint");
    let [one] = &usage.volumes[..] else { panic!("{usage:?}") };
    assert_eq!((one.volume, one.promise, one.chunks, one.granules, one.blocks), (volume(), Epoch(1), 1, 2, 20));
    assert_eq!((one.lanes[0].lane, one.lanes[0].state.prefix), (0, 1));
    let log = survey.log.as_ref().unwrap();
    assert_eq!((log.groups, log.payload_blocks, &log.tail), (4, 2, &Tail::Whole));
    assert_eq!((log.records["write"], log.records["tombstone"]), (3, 1));
    let report = device.check();
    assert_eq!(report.verdict(), Verdict::Clean, "{:?}", report.findings);
    assert_eq!(report.findings, []);
    assert_eq!(report.verified_bytes, (19 + 3 + 1) * PAGE_BYTES);
    assert_eq!(report.stats.unread_slots, 0);
    assert_eq!(report.stats.scrub_passes, 1);
}

#[test]
fn a_flipped_bit_in_data_is_named_by_its_block() {
    let device = Stopped::new();
    // Blocks 0 to 3 come first; 4 and 5 have newer content in the log.
    let first = device.find(1);
    for (block, offset) in
        [(2, first + 2 * PAGE_BYTES), (3, first + 3 * PAGE_BYTES), (101, device.find(3) + PAGE_BYTES)]
    {
        device.flip(offset + 77);
        assert!(ranges(&device.check()).iter().any(|(start, count)| (*start..start + count).contains(&block)));
    }
    device.flip(first + 4 * PAGE_BYTES);
    let report = device.check();
    assert_eq!(ranges(&report), [(2, 2), (101, 1)], "what was overwritten since is of no importance");
    assert_eq!((report.verdict(), damage(&report.findings)), (Verdict::Damaged, vec![]));
    assert!(device.inspect().is_clean(), "data is not looked at");
}

#[test]
fn a_damaged_map_page_makes_its_chunk_unknown() {
    let device = Stopped::new();
    let page = device.map_page();
    device.flip(page + 64);
    assert_eq!(damage(&device.inspect().findings), [(Part::MapPage, Some(page))]);
    assert_eq!(device.inspect().usage.unwrap().volumes[0].unknown_blocks, 1024);
    let report = device.check();
    assert_eq!((report.verdict(), damage(&report.findings)), (Verdict::Damaged, vec![(Part::MapPage, Some(page))]));
    // All but what the log writes anew: 4, 5, the tombstone at 10, 100 to 102, 200.
    assert_eq!(ranges(&report), [(0, 4), (6, 4), (11, 89), (103, 97), (201, 823)]);
    assert_eq!(report.stats.damaged_chunks, 1);
}

#[test]
fn a_damaged_checksum_page_makes_its_data_unknown() {
    let device = Stopped::new();
    let page = device.map_page() + PAGE_BYTES;
    device.flip(page + 9);
    assert_eq!(damage(&device.inspect().findings), [(Part::ChecksumPage, Some(page))]);
    let report = device.check();
    assert_eq!(
        (report.verdict(), damage(&report.findings)),
        (Verdict::Damaged, vec![(Part::ChecksumPage, Some(page))])
    );
    assert_eq!(ranges(&report), [(0, 4), (6, 4), (11, 9)]);
}

#[test]
fn one_damaged_copy_of_the_table_is_repaired_and_two_are_the_end() {
    let device = Stopped::new();
    let places: Vec<u64> = device.inspect().tables.iter().map(|copy| copy.offset).collect();
    for (flipped, whole) in [(0, 1), (1, 0)] {
        device.flip(places[flipped] + 5);
        let survey = device.inspect();
        assert_eq!(damage(&survey.findings), [(Part::Table, Some(places[flipped]))]);
        assert!(survey.tables[whole].fault.is_none() && survey.usage.is_some());
        let report = device.check();
        assert_eq!((report.verdict(), ranges(&report)), (Verdict::Damaged, vec![]));
        assert_eq!(damage(&report.findings), [(Part::Table, Some(places[flipped]))]);
        device.flip(places[flipped] + 5);
    }
    places.iter().for_each(|place| device.flip(place + 5));
    let report = device.check();
    assert_eq!(report.verdict(), Verdict::Unusable);
    assert!(report.unusable.as_ref().unwrap().contains("volume table"), "{:?}", report.unusable);
    assert_eq!(damage(&report.findings).len(), 2);
    assert!(device.inspect().log.is_some(), "the rest is still shown");
}

#[test]
fn each_superblock_can_be_lost() {
    let device = Stopped::new();
    for (flipped, at) in [SUPERBLOCK_A, SUPERBLOCK_B].into_iter().enumerate() {
        device.flip(at + 40);
        let survey = device.inspect();
        assert_eq!(damage(&survey.findings), [(Part::Superblock, Some(at))]);
        assert_eq!(survey.in_force, Some(1 - flipped));
        let report = device.check();
        assert_eq!((report.verdict(), ranges(&report)), (Verdict::Damaged, vec![]), "{:?}", report.unusable);
        assert_eq!(damage(&report.findings), [(Part::Superblock, Some(at))]);
        device.flip(at + 40);
    }
    [SUPERBLOCK_A, SUPERBLOCK_B].iter().for_each(|at| device.flip(at + 40));
    let report = device.check();
    assert_eq!(report.verdict(), Verdict::Unusable);
    assert_eq!(report.unusable.as_deref(), Some("both superblocks are damaged"));
    assert_eq!(damage(&device.inspect().findings).len(), 2);
}

#[test]
fn a_lost_group_of_the_log_is_told_from_a_torn_one() {
    let device = Stopped::new();
    let log = device.inspect().log.unwrap();
    device.flip(log.head + 70);
    let report = device.check();
    assert_eq!(report.verdict(), Verdict::Unusable);
    assert!(report.unusable.as_ref().unwrap().contains("the log is damaged"), "{:?}", report.unusable);
    assert_eq!(damage(&report.findings), [(Part::Log, Some(log.head))]);
    let tail = device.inspect().log.unwrap().tail;
    assert!(matches!(tail, Tail::Lost { completed } if completed >= log.head_lsn), "{tail:?}");
    device.flip(log.head + 70);
    // The last group: nothing proves that it had completed.
    let last = log.end - PAGE_BYTES;
    device.flip(last + 70);
    let report = device.check();
    assert_eq!(report.verdict(), Verdict::Clean);
    assert_eq!((report.findings[0].part, report.findings[0].offset, report.findings.len()), (Part::Log, Some(last), 1));
    assert_eq!(device.inspect().log.unwrap().tail, Tail::Torn);
}

#[test]
fn a_flipped_bit_in_logged_data_is_named_by_its_block() {
    let device = Stopped::new();
    let log = device.inspect().log.unwrap();
    device.flip(log.head + PAGE_BYTES + 5);
    let report = device.check();
    assert_eq!((report.verdict(), ranges(&report)), (Verdict::Damaged, vec![(4, 1)]));
}

#[test]
fn what_is_no_device_of_ours_is_refused() {
    let device = Stopped::new();
    device.edit(|bytes| bytes.truncate(SIZE as usize / 2));
    let (check, inspect) = device.refused();
    assert!(check.contains("was formatted with 8388608 bytes and has 4194304 now"), "{check}");
    assert_eq!(inspect, "", "what is left is shown");
    let findings = device.inspect().findings;
    assert_eq!(damage(&findings), [(Part::Device, Some(SIZE / 2))]);
    device.edit(|bytes| bytes.fill(7));
    assert!(device.refused().0.contains("this is not an Ashlar device"));
    device.edit(Vec::clear);
    assert_eq!(device.refused().0, device.refused().1);
    assert!(check_error(Path::new("/dev/null")).contains("neither a block device nor a file"));
    assert!(check_error(Path::new("/nonexistent")).contains("No such file"));
}

fn check_error(path: &Path) -> String {
    check(path, &mut |_| ()).unwrap_err().to_string()
}

#[test]
fn another_format_version_is_refused() {
    let device = Stopped::new();
    device.edit(|bytes| {
        for at in [SUPERBLOCK_A, SUPERBLOCK_B] {
            let page = &mut bytes[at as usize..][..4096];
            let mut disk = SuperblockDisk::read_from_bytes(page).unwrap();
            disk.version = U32::new(99);
            let body = offset_of!(SuperblockDisk, checksum);
            disk.checksum = U64::new(metadata_checksum(disk.device.get(), at, &disk.as_bytes()[..body]));
            page.copy_from_slice(disk.as_bytes());
            assert!(Superblock::decode(at, page).is_err());
        }
    });
    let (check, inspect) = device.refused();
    assert!(check.contains("format version 99"), "{check}");
    assert_eq!(check, inspect);
}

#[test]
fn a_daemon_and_a_check_exclude_each_other() {
    let device = Stopped::new();
    let daemon = BlockingDevice::open(&device.path).unwrap();
    assert!(check_error(&device.path).contains("a daemon uses this device"));
    drop(daemon);
    let (one, other) = (OfflineDevice::open(&device.path).unwrap(), OfflineDevice::open(&device.path).unwrap());
    assert!(BlockingDevice::open(&device.path).is_err());
    drop((one, other));
    BlockingDevice::open(&device.path).unwrap();
}

#[test]
fn memory_that_cannot_be_read_is_an_error_and_no_signal() {
    let device = Stopped::new();
    let offline = OfflineDevice::open(&device.path).unwrap();
    let map = offline.map(SIZE).unwrap();
    assert!(map.page(SIZE - PAGE_BYTES).is_ok());
    assert!(map.page(SIZE).is_err() && map.page(u64::MAX - 5).is_err());
    std::fs::File::options().write(true).open(&device.path).unwrap().set_len(SIZE / 2).unwrap();
    assert!(map.page(SIZE - PAGE_BYTES).unwrap_err().to_string().contains("read of 4096 bytes at"));
    assert!(offline.read(SIZE - PAGE_BYTES, 4096).is_err());
    assert!(map.page(0).is_ok());
}

/// The end of the file stands for sectors that fail.
#[test]
fn data_that_cannot_be_read_is_named_by_place_and_block() {
    let device = Stopped::new();
    let (place, last) = (device.find(3) + PAGE_BYTES, device.find(5));
    let offline = OfflineDevice::open(&device.path).unwrap();
    std::fs::File::options().write(true).open(&device.path).unwrap().set_len(place).unwrap();
    let report = check_device(&offline, &mut |_| ()).unwrap();
    // Nothing proves that the last write had completed: its block is named by its place only.
    assert_eq!((report.verdict(), ranges(&report)), (Verdict::Damaged, vec![(101, 2)]));
    assert_eq!(report.stats.dropped_writes, 1);
    assert_eq!(damage(&report.findings), [(Part::Data, Some(place)), (Part::Data, Some(last))]);
    let found = report.findings.iter().find(|one| one.offset == Some(place)).unwrap();
    assert!(found.text.starts_with("8192 bytes cannot be read: "), "{}", found.text);
}
