//! Any bytes as a map page with its checksum page, or as a volume table.
//!
//! It must never take more memory than a small multiple of the input.

use super::{number, page, split};
use crate::disk::{self, MAP_MAGIC, MapPageDisk, NO_GRANULE};
use crate::layout::{Layout, PAGE_BYTES};
use crate::map::{Chunk, DamagedPage};
use crate::table::{DirectoryEntry, TableContent, VolumeTable};
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{DeviceId, LaneKey, VolumeId};
use std::sync::OnceLock;
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, IntoBytes};

/// The input is a volume table.
pub(super) const TABLE: usize = 1;
/// The map page carries the right checksum.
pub(super) const SEALED: usize = 2;
/// The map page says that it is the one which the directory names.
pub(super) const NAMED: usize = 4;
/// The map page carries the checksum page's checksum.
pub(super) const SUMMED: usize = 8;

/// The directory's word for the page of the input.
pub(super) const ENTRY: DirectoryEntry = DirectoryEntry {
    key: LaneKey { volume: VolumeId::from_u128(5), lane: 3 },
    chunk: 7,
    generation: 2,
    slot: 9,
    half: true,
    as_of: 4,
};
pub(super) const DEVICE: DeviceId = DeviceId::from_u128(2);

pub(super) fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| Layout::new(8 << 20, Some(1 << 20), Some(64 << 10)).expect("it fits"))
}

/// Input: flags; then either a volume table, or the bytes of the map page as two bytes, its first bytes, and the rest
/// for the checksum page.
///
/// # Panics
/// If a rule is broken.
pub fn check_map_page(mut input: &[u8]) {
    let flags = number(&mut input, 1);
    if flags & TABLE != 0 {
        return check_table(input);
    }
    let length = number(&mut input, 2);
    let map = page(split(&mut input, length));
    let sums = page(input);
    let (offset, sums) = (layout().slot_offset(ENTRY.slot, ENTRY.half), &sums[..PAGE_BYTES as usize]);
    let Ok((mut map, _)) = MapPageDisk::read_from_prefix(&map) else { unreachable!("a whole page") };
    if flags & NAMED != 0 {
        map.magic = MAP_MAGIC;
        (map.volume, map.chunk) = (U128::new(ENTRY.key.volume.as_u128()), U64::new(ENTRY.chunk));
        (map.slot, map.generation, map.as_of) =
            (U32::new(ENTRY.slot), U32::new(ENTRY.generation), U64::new(ENTRY.as_of));
    }
    if flags & SUMMED != 0 {
        map.sums_checksum = U64::new(disk::sums_checksum(DEVICE, offset + PAGE_BYTES, sums));
    }
    if flags & SEALED != 0 {
        disk::seal_map_page(DEVICE, offset, &mut map);
    }
    let cut = number(&mut &sums[..2], 2) % (PAGE_BYTES as usize);
    assert_eq!(Chunk::decode(DEVICE, layout(), &ENTRY, &map.as_bytes()[..cut]).err(), Some(DamagedPage), "cut short");
    if let Ok(chunk) = Chunk::decode(DEVICE, layout(), &ENTRY, map.as_bytes()) {
        check_chunk(chunk, offset, &map, sums);
    }
}

/// What was decoded is what the page says, and is the same after it was written again.
fn check_chunk(mut chunk: Box<Chunk>, offset: u64, map: &MapPageDisk, sums: &[u8]) {
    for (i, entry) in map.entries.iter().enumerate() {
        let (valid, holes, unknown) = (chunk.valid(i), chunk.holes(i), chunk.unknown(i));
        assert_eq!((chunk.granule(i), valid), (entry.granule.get(), entry.valid.get()));
        assert_eq!((holes, unknown), (entry.holes.get(), entry.unknown.get()));
        assert_eq!(chunk.order(i).encode(), map.orders[i]);
        assert!(valid == 0 || chunk.granule(i) != NO_GRANULE, "data without a place in granule {i}");
        assert!(valid & holes | valid & unknown | holes & unknown == 0, "two things at once in granule {i}");
    }
    assert!(chunk.granules().count() <= CHUNK_GRANULES && !chunk.has_sums());
    let good = chunk.sums_checksum == disk::sums_checksum(DEVICE, offset + PAGE_BYTES, sums);
    let valid = |chunk: &Chunk| (0..CHUNK_GRANULES).map(|i| chunk.valid(i).count_ones()).sum::<u32>();
    let before = valid(&chunk);
    let lost = chunk.sums_read(good.then_some(sums));
    assert_eq!(lost, if good { 0 } else { before });
    assert_eq!(valid(&chunk), before - lost);
    assert!(chunk.has_sums() && (0..CHUNK_BLOCKS).all(|block| chunk.sum(block).is_some()));
    let block =
        (0..CHUNK_BLOCKS).find(|block| chunk.valid(block / GRANULE_BLOCKS) >> (block % GRANULE_BLOCKS) & 1 == 1);
    if let Some(block) = block {
        assert_eq!(chunk.sum(block).map(u32::to_le_bytes).as_ref().map(|sum| &sum[..]), sums.chunks(4).nth(block));
    }
    let once = chunk.encode(DEVICE, layout(), ENTRY.slot, ENTRY.half, ENTRY.as_of);
    let (map, sums) = once.split_at(PAGE_BYTES as usize);
    let mut again = Chunk::decode(DEVICE, layout(), &ENTRY, map).expect("what was written is read");
    assert_eq!(again.sums_checksum, disk::sums_checksum(DEVICE, offset + PAGE_BYTES, sums));
    assert_eq!(again.sums_read(Some(sums)), 0);
    assert_eq!(again.encode(DEVICE, layout(), ENTRY.slot, ENTRY.half, ENTRY.as_of)[..], once[..]);
}

fn encode(content: &TableContent) -> Vec<u8> {
    let TableContent { table, directory, granules } = content;
    let bytes = table.encode(directory.len(), directory.iter().copied(), granules);
    let bound = table.bytes(directory.len(), granules.len() as u32 * 64);
    assert!(bytes.len() <= bound, "{} bytes, {bound} were thought to be enough", bytes.len());
    bytes
}

/// What decodes takes as much memory as its bytes allow, and is the same after it was written again.
fn check_table(bytes: &[u8]) {
    let Some(content) = VolumeTable::decode(bytes) else { return };
    assert!(content.directory.capacity() * 16 <= bytes.len() + 64, "memory for entries that are not there");
    assert!(content.granules.capacity() <= bytes.len() + 64, "memory for words that are not there");
    let once = encode(&content);
    assert_eq!(once.len(), bytes.len(), "nothing is lost");
    let again = VolumeTable::decode(&once).expect("what was written is read");
    assert_eq!((&again.directory, &again.granules), (&content.directory, &content.granules));
    assert!(again.table.lanes().eq(content.table.lanes()) && again.table.promises().eq(content.table.promises()));
    assert_eq!(encode(&again), once);
    for (key, state) in content.table.lanes() {
        assert_eq!(content.table.lane(key), Some(state));
        assert!(state.list.iter().all(|entry| entry.range.is_within_chunk()));
    }
}
