//! The fixed structures of the device, byte for byte: superblock, map page, commit group header.
//!
//! Numbers are little-endian; every structure carries its own checksum, seeded with the device and its position. It must
//! never know what drives them.

use crate::layout::{Area, Layout, PAGE_BYTES};
use crate::map::ORDER_BYTES;
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES};
use ashlar_model::{AlignedBuffer, ClusterId, DeviceId, VolumeId};
use std::mem::{offset_of, size_of};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First bytes of a superblock.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"ASHLARSB";
/// First bytes of a commit group.
pub const GROUP_MAGIC: [u8; 8] = *b"ASHLARLG";
/// First bytes of a map page.
pub const MAP_MAGIC: [u8; 8] = *b"ASHLARMP";
/// Version of this format.
pub const FORMAT_VERSION: u32 = 4;
/// The format before it, which is still served: its granules have no spare blocks, so they are only overwritten in place.
pub const FORMAT_WITHOUT_SPARES: u32 = 3;
/// No granule: `MapEntryDisk::granule`.
pub const NO_GRANULE: u32 = u32::MAX;
/// Superblock flag: an operator declared that the device keeps acknowledged writes without a flush.
pub const FLAG_POWER_LOSS_PROTECTED: u32 = 1;
/// Superblock flag: an operator declared that the device never tears an aligned 4 KiB write.
pub const FLAG_ATOMIC_DECLARED: u32 = 2;
/// Superblock flag, a decision of the last open: the commits are followed by flushes.
pub const FLAG_FLUSHES: u32 = 4;
/// Superblock flag, a decision of the last open: aligned 4 KiB writes are taken as atomic.
pub const FLAG_ATOMIC: u32 = 8;

/// The superblock: one page.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct SuperblockDisk {
    /// [`SUPERBLOCK_MAGIC`].
    pub magic: [u8; 8],
    /// [`FORMAT_VERSION`], or [`FORMAT_WITHOUT_SPARES`].
    pub version: U32,
    /// Flags.
    pub flags: U32,
    /// Cluster.
    pub cluster: U128,
    /// Device.
    pub device: U128,
    /// Bytes of the device.
    pub size_bytes: U64,
    /// The valid superblock with the larger number counts.
    pub sequence: U64,
    /// Number of the open: larger with each one, by a random part, so that no two have the same.
    pub generation: U64,
    /// Offset and bytes of: log, tables, slots, data.
    pub areas: [[U64; 2]; 4],
    /// Number of slots.
    pub slot_count: U32,
    /// Number of granules.
    pub granule_count: U32,
    /// Where the log scan starts, from the start of the ring.
    pub head_offset: U64,
    /// Number of the group there.
    pub head_lsn: U64,
    /// Checksum of the group before it. Pages and table reflect exactly the groups before the head.
    pub head_previous: U64,
    /// Groups up to this one completed: a mismatch among them is corruption.
    pub completed_lsn: U64,
    /// Half of the volume table that counts.
    pub table_half: U64,
    /// Bytes of the table.
    pub table_bytes: U64,
    /// Checksum of the table.
    pub table_checksum: U64,
    /// Slot where the scrub goes on.
    pub scrub_slot: U64,
    /// Offset and bytes of the spare blocks.
    pub spares: [U64; 2],
    /// Zero.
    pub reserved: [u8; 3864],
    /// Checksum of all before.
    pub checksum: U64,
}

/// One granule of a chunk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct MapEntryDisk {
    /// Physical granule or [`NO_GRANULE`].
    pub granule: U32,
    /// One bit per block: it holds data.
    pub valid: U16,
    /// One bit per block: zeroes, whatever an older generation holds.
    pub holes: U16,
    /// One bit per block: damaged metadata, content not known.
    pub unknown: U16,
    /// Zero.
    pub reserved: U16,
    /// Epoch of the newest settled write.
    pub epoch: U64,
    /// Index of the newest settled write.
    pub index: U64,
}

/// The map page of a chunk slot.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct MapPageDisk {
    /// [`MAP_MAGIC`].
    pub magic: [u8; 8],
    /// Volume.
    pub volume: U128,
    /// Chunk of the volume.
    pub chunk: U64,
    /// Lane that wrote last.
    pub lane: U16,
    /// Zero.
    pub reserved: U16,
    /// This slot.
    pub slot: U32,
    /// Snapshot generation of this layer of the chunk.
    pub generation: U32,
    /// Zero.
    pub reserved2: U32,
    /// Number of the checkpoint that wrote this (the sequence of its superblock).
    pub as_of: U64,
    /// Checksum of the checksum page.
    pub sums_checksum: U64,
    /// The granules.
    pub entries: [MapEntryDisk; CHUNK_GRANULES],
    /// Where the blocks of each granule lie, see [`Order`](crate::map::Order).
    pub orders: [[u8; ORDER_BYTES]; CHUNK_GRANULES],
    /// Zero.
    pub reserved3: [u8; 1656],
    /// Checksum of all before.
    pub checksum: U64,
}

/// Header of a commit group; records follow at once, payload blocks from the next page on.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct GroupHeaderDisk {
    /// [`GROUP_MAGIC`].
    pub magic: [u8; 8],
    /// Checksum of the rest of the header and the record area.
    pub checksum: U64,
    /// Number of the group.
    pub lsn: U64,
    /// Checksum of the group before.
    pub previous: U64,
    /// Groups up to this one completed when this was written.
    pub completed: U64,
    /// Number of the open.
    pub generation: U64,
    /// Bytes of the records.
    pub record_bytes: U32,
    /// Number of records.
    pub record_count: U32,
    /// Payload blocks.
    pub payload_blocks: U32,
    /// Zero.
    pub reserved: U32,
}

/// Bytes of a group header.
pub const GROUP_HEADER_BYTES: usize = size_of::<GroupHeaderDisk>();

const _: () = {
    assert!(size_of::<SuperblockDisk>() == 4096 && offset_of!(SuperblockDisk, checksum) == 4088);
    assert!(offset_of!(SuperblockDisk, cluster) == 16 && offset_of!(SuperblockDisk, size_bytes) == 48);
    assert!(offset_of!(SuperblockDisk, areas) == 72 && offset_of!(SuperblockDisk, head_offset) == 144);
    assert!(offset_of!(SuperblockDisk, table_checksum) == 192 && offset_of!(SuperblockDisk, spares) == 208);
    assert!(size_of::<MapEntryDisk>() == 28 && offset_of!(MapEntryDisk, epoch) == 12);
    assert!(size_of::<MapPageDisk>() == 4096 && offset_of!(MapPageDisk, entries) == 64);
    assert!(offset_of!(MapPageDisk, checksum) == 4088);
    assert!(GROUP_HEADER_BYTES == 64 && offset_of!(GroupHeaderDisk, record_bytes) == 48);
};

/// A superblock in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Cluster that the device belongs to.
    pub cluster: ClusterId,
    /// Identity of this formatting.
    pub device: DeviceId,
    /// Declared by an operator: no flushes needed.
    pub power_loss_protected: bool,
    /// Declared by an operator: aligned 4 KiB writes are never torn.
    pub atomic_declared: bool,
    /// Decided by the last open: commits are followed by flushes.
    pub flushes: bool,
    /// Decided by the last open: aligned 4 KiB writes are taken as atomic.
    pub atomic: bool,
    /// Areas.
    pub layout: Layout,
    /// Larger is newer.
    pub sequence: u64,
    /// Number of the open.
    pub generation: u64,
    /// Ring offset of the log scan's start.
    pub head_offset: u64,
    /// Number of the group there.
    pub head_lsn: u64,
    /// Checksum of the group before it.
    pub head_previous: u64,
    /// Groups known to have completed.
    pub completed_lsn: u64,
    /// Half of the table that counts.
    pub table_half: u64,
    /// Bytes of the table.
    pub table_bytes: u64,
    /// Its checksum.
    pub table_checksum: u64,
    /// Slot where the scrub goes on.
    pub scrub_slot: u64,
}

/// Why a page is not a superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SuperblockFault {
    /// No magic.
    Foreign,
    /// Another format version.
    Version(u32),
    /// Magic, but a wrong checksum or impossible values.
    Damaged,
}

impl Superblock {
    /// The page for position `offset`.
    pub fn encode(&self, offset: u64) -> AlignedBuffer {
        let area = |area: Area| [U64::new(area.offset), U64::new(area.bytes)];
        let layout = &self.layout;
        let mut disk = SuperblockDisk {
            magic: SUPERBLOCK_MAGIC,
            version: U32::new(self.version()),
            flags: U32::new(self.flags()),
            cluster: U128::new(self.cluster.as_u128()),
            device: U128::new(self.device.as_u128()),
            size_bytes: U64::new(layout.size_bytes),
            sequence: U64::new(self.sequence),
            generation: U64::new(self.generation),
            areas: [area(layout.log), area(layout.tables), area(layout.slots), area(layout.data)],
            slot_count: U32::new(layout.slot_count),
            granule_count: U32::new(layout.granule_count),
            head_offset: U64::new(self.head_offset),
            head_lsn: U64::new(self.head_lsn),
            head_previous: U64::new(self.head_previous),
            completed_lsn: U64::new(self.completed_lsn),
            table_half: U64::new(self.table_half),
            table_bytes: U64::new(self.table_bytes),
            table_checksum: U64::new(self.table_checksum),
            scrub_slot: U64::new(self.scrub_slot),
            spares: if layout.has_spares() { area(layout.spares) } else { [U64::new(0); 2] },
            reserved: [0; 3864],
            checksum: U64::new(0),
        };
        let body = &disk.as_bytes()[..offset_of!(SuperblockDisk, checksum)];
        disk.checksum = U64::new(metadata_checksum(self.device.as_u128(), offset, body));
        AlignedBuffer::copied_from(disk.as_bytes())
    }

    /// The format of the device.
    pub fn version(&self) -> u32 {
        if self.layout.has_spares() { FORMAT_VERSION } else { FORMAT_WITHOUT_SPARES }
    }

    fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.power_loss_protected, FLAG_POWER_LOSS_PROTECTED)
            | flag(self.atomic_declared, FLAG_ATOMIC_DECLARED)
            | flag(self.flushes, FLAG_FLUSHES)
            | flag(self.atomic, FLAG_ATOMIC)
    }

    /// Reads the page at position `offset`.
    ///
    /// # Errors
    /// What the page is instead.
    pub fn decode(offset: u64, page: &[u8]) -> Result<Self, SuperblockFault> {
        let (disk, _) = SuperblockDisk::read_from_prefix(page).map_err(|_| SuperblockFault::Damaged)?;
        if disk.magic != SUPERBLOCK_MAGIC {
            return Err(SuperblockFault::Foreign);
        }
        let body = &page[..offset_of!(SuperblockDisk, checksum)];
        if metadata_checksum(disk.device.get(), offset, body) != disk.checksum.get() {
            return Err(SuperblockFault::Damaged);
        }
        let compute = match disk.version.get() {
            FORMAT_VERSION => Layout::new,
            FORMAT_WITHOUT_SPARES => Layout::without_spares,
            other => return Err(SuperblockFault::Version(other)),
        };
        let area = |area: [U64; 2]| Area { offset: area[0].get(), bytes: area[1].get() };
        let areas = disk.areas.map(area);
        let layout = Layout {
            size_bytes: disk.size_bytes.get(),
            log: areas[0],
            tables: areas[1],
            slots: areas[2],
            slot_count: disk.slot_count.get(),
            data: areas[3],
            granule_count: disk.granule_count.get(),
            spares: if disk.version.get() == FORMAT_VERSION { area(disk.spares) } else { no_spares(areas[3]) },
        };
        let expected = compute(layout.size_bytes, Some(layout.log.bytes), Some(layout.table_bytes()));
        let sane = expected == Ok(layout)
            && disk.table_half.get() < 2
            && disk.table_bytes.get() <= layout.table_bytes()
            && disk.head_offset.get() < layout.log.bytes
            && disk.head_offset.get().is_multiple_of(PAGE_BYTES);
        if !sane {
            return Err(SuperblockFault::Damaged);
        }
        Ok(Self {
            cluster: ClusterId::from_u128(disk.cluster.get()),
            device: DeviceId::from_u128(disk.device.get()),
            power_loss_protected: disk.flags.get() & FLAG_POWER_LOSS_PROTECTED != 0,
            atomic_declared: disk.flags.get() & FLAG_ATOMIC_DECLARED != 0,
            flushes: disk.flags.get() & FLAG_FLUSHES != 0,
            atomic: disk.flags.get() & FLAG_ATOMIC != 0,
            layout,
            sequence: disk.sequence.get(),
            generation: disk.generation.get(),
            head_offset: disk.head_offset.get(),
            head_lsn: disk.head_lsn.get(),
            head_previous: disk.head_previous.get(),
            completed_lsn: disk.completed_lsn.get(),
            table_half: disk.table_half.get(),
            table_bytes: disk.table_bytes.get(),
            table_checksum: disk.table_checksum.get(),
            scrub_slot: disk.scrub_slot.get(),
        })
    }
}

/// The area of the spare blocks of a device that has none, behind its data. The superblock has zeroes for it.
fn no_spares(data: Area) -> Area {
    Area { offset: data.offset.saturating_add(data.bytes), bytes: 0 }
}

/// Seals a map page in place: sets its checksum for `slot`'s position.
pub fn seal_map_page(device: DeviceId, offset: u64, page: &mut MapPageDisk) {
    let sum = metadata_checksum(device.as_u128(), offset, &page.as_bytes()[..offset_of!(MapPageDisk, checksum)]);
    page.checksum = U64::new(sum);
}

/// Reads a map page; `None` if it is damaged or belongs elsewhere.
pub fn open_map_page(device: DeviceId, offset: u64, slot: u32, bytes: &[u8]) -> Option<MapPageDisk> {
    let (page, _) = MapPageDisk::read_from_prefix(bytes).ok()?;
    let sum = metadata_checksum(device.as_u128(), offset, &bytes[..offset_of!(MapPageDisk, checksum)]);
    (page.magic == MAP_MAGIC && page.checksum.get() == sum && page.slot.get() == slot).then_some(page)
}

/// Checksum of a checksum page (at its device offset).
pub fn sums_checksum(device: DeviceId, offset: u64, bytes: &[u8]) -> u64 {
    assert_eq!(bytes.len(), CHUNK_BLOCKS * 4, "a checksum page has one number per block");
    metadata_checksum(device.as_u128(), offset, bytes)
}

/// The volume of a map page.
pub fn map_page_volume(page: &MapPageDisk) -> VolumeId {
    VolumeId::from_u128(page.volume.get())
}

/// Checksum of a group: all of header (after the checksum) and records, seeded with device and number.
pub fn group_checksum(device: DeviceId, lsn: u64, header_and_records: &[u8]) -> u64 {
    metadata_checksum(device.as_u128(), lsn, &header_and_records[16..])
}
