//! A real file, and the bytes of the format.

use super::rig::{SIZE, data, key, options, range, stamp, volume};
use crate::api::{Reply, Request, Token, Write};
use crate::device::{BlockingDevice, BlockingDriver};
use crate::disk::{GROUP_MAGIC, MAP_MAGIC, Superblock};
use crate::engine::{Effect, OpenOptions, StoreEngine, format};
use crate::layout::SUPERBLOCK_A;
use crate::map::{ChunkMap, Moved};
use crate::record::{Class, Content, Segment, WriteRecord};
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{DeviceId, Epoch};

fn open(device: &BlockingDevice) -> StoreEngine {
    let mut engine = StoreEngine::open(OpenOptions::new(device.size_bytes(), device.volatile_cache()));
    assert_eq!(BlockingDriver::new(device).run_until_idle(&mut engine), [Effect::Opened]);
    engine
}

#[test]
fn a_file_keeps_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    let device = BlockingDevice::create(&path, SIZE).unwrap();
    assert!(BlockingDevice::open(&path).unwrap_err().to_string().contains("another process"));
    device.format(&options()).unwrap();
    assert_eq!(device.superblock().unwrap().cluster, options().cluster);
    let mut engine = open(&device);
    let write = |index| {
        let body = data(0, 20, index);
        let (key, stamp, range) = (key(), stamp(index), range(0, 20));
        Request::Write(Write { key, stamp, range, body, origin: EntryOrigin::Live, listed: true, generation: 0 })
    };
    engine.submit(Token(1), Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 });
    engine.submit(Token(2), write(1));
    engine.submit(Token(3), write(2));
    let replies = BlockingDriver::new(&device).run_until_idle(&mut engine);
    assert!(replies.iter().all(|one| matches!(one, Effect::Reply { reply: Reply::Done, .. })) && replies.len() == 3);
    drop(engine);
    drop(device);
    let device = BlockingDevice::open(&path).unwrap();
    let mut engine = open(&device);
    engine.submit(Token(4), Request::Read { volume: volume(), range: range(0, 20) });
    let replies = BlockingDriver::new(&device).run_until_idle(&mut engine);
    let [Effect::Reply { reply: Reply::Read(read), .. }] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(read.payload.as_ref().unwrap()[..8], 2u64.to_le_bytes());
    assert_eq!(engine.lanes().next().unwrap().1.prefix, 2);
}

/// The format on disk: these bytes never change within a format version.
#[test]
fn golden_bytes() {
    let writes = format(&options()).unwrap();
    let (offset, superblock) = &writes[3];
    assert_eq!(*offset, SUPERBLOCK_A);
    assert_eq!(&superblock[..8], b"ASHLARSB");
    assert_eq!(superblock[8..12], 4u32.to_le_bytes());
    assert_eq!(superblock[16..32], 1u128.to_le_bytes());
    let sb = Superblock::decode(SUPERBLOCK_A, superblock).unwrap();
    let mut map = ChunkMap::new(4);
    let segments = vec![Segment { granule: 3, class: Class::Fresh, place: None }];
    let write = WriteRecord {
        key: key(),
        stamp: stamp(9),
        range: range(17, 2),
        origin: EntryOrigin::Copy,
        listed: false,
        generation: 6,
        slot: 2,
        content: Content::Data { segments: segments.into(), checksums: [0x11, 0x22].into() },
    };
    map.apply(&write, &mut Moved::default());
    let pages = map.chunk_mut(2).unwrap().encode(DeviceId::from_u128(2), &sb.layout, 2, true, 77);
    assert_eq!(pages[..8], MAP_MAGIC);
    assert_eq!(pages[48..56], 77u64.to_le_bytes());
    let entry = &pages[64 + 28..64 + 56];
    let expected = [3, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(entry, expected);
    assert_eq!(pages[4096 + 17 * 4..4096 + 19 * 4], [0x11, 0, 0, 0, 0x22, 0, 0, 0]);
    let group = first_group();
    assert_eq!(group[..8], GROUP_MAGIC);
    assert_eq!(group[48..64], [43, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let table = &writes[0].1;
    golden("superblock", superblock);
    golden("table", table);
    golden("slot", &pages);
    golden("group", &group);
}

/// A device that a program before spare blocks formatted opens, and its superblock is written as that program does.
#[test]
fn the_format_before_is_read_and_written_as_it_was() {
    let page = std::fs::read(path("superblock-3")).unwrap();
    assert_eq!(page[8..12], 3u32.to_le_bytes());
    let sb = Superblock::decode(SUPERBLOCK_A, &page).unwrap();
    assert!(!sb.layout.has_spares());
    assert_eq!(sb.encode(SUPERBLOCK_A)[..], page[..]);
}

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/tests/golden/{name}.bin"))
}

/// Compares with the file of that name; `ASHLAR_WRITE_GOLDEN=1` writes it, after a change of the format.
fn golden(name: &str, bytes: &[u8]) {
    let path = path(name);
    if std::env::var_os("ASHLAR_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    let differs = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!((differs, bytes.len()), (None, expected.len()), "{name}: first byte that differs, and length");
}

/// The first commit group of a fresh device: one `Start`.
fn first_group() -> Vec<u8> {
    let rig = super::rig::Rig::new();
    let log = rig.engine.superblock().layout.log;
    rig.device.bytes(log.offset, 4096).to_vec()
}
