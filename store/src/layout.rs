//! Where everything lies on a device: areas computed from its size, and the arithmetic of pages and granules.
//!
//! It must never know what the areas contain.

use ashlar_model::limits::{LOG_BYTES_MAX, LOG_BYTES_MIN};
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS, GRANULE_BYTES, KIB, MIB, TIB};

/// Bytes of a page: the unit of device writes.
pub const PAGE_BYTES: u64 = BLOCK_BYTES as u64;
/// Position of superblock A.
pub const SUPERBLOCK_A: u64 = 0;
/// Position of superblock B.
pub const SUPERBLOCK_B: u64 = 64 * KIB;
/// Start of the log ring.
pub const LOG_START: u64 = MIB;
/// Bytes of one half of a chunk slot: one map page, then one checksum page.
pub const SLOT_HALF_BYTES: u64 = 2 * PAGE_BYTES;
/// Bytes of a chunk slot: two halves, written alternately.
pub const SLOT_BYTES: u64 = 2 * SLOT_HALF_BYTES;
/// Copies of each half of the volume table.
pub const TABLE_COPIES: u64 = 2;
/// Smallest log ring, for tests: a few of the largest commit groups.
pub const LOG_BYTES_FLOOR: u64 = 512 * KIB;
/// Chunks of a volume, far more than one has: blocks up to the end of the last one are counted in 64 bits.
pub const CHUNKS_MAX: u64 = u64::MAX / CHUNK_BLOCKS as u64;
/// Largest device: its granules are still counted in 32 bits.
const SIZE_BYTES_MAX: u64 = 256 * TIB;
const TABLE_BYTES_FLOOR: u64 = 16 * KIB;
const TABLE_BYTES_MIN: u64 = 2 * MIB;
const SLOTS_MIN: u64 = 64;
/// Bit of a physical block's number: the spare block of the granule in the rest of the number.
pub const SPARE: u64 = 1 << 63;

const _: () = {
    assert!(SUPERBLOCK_B + PAGE_BYTES <= LOG_START);
    assert!(CHUNK_GRANULES == 64 && GRANULE_BYTES == GRANULE_BLOCKS * BLOCK_BYTES);
};

/// A run of bytes on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl Area {
    /// First byte after the area.
    pub fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

/// The areas of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of the device.
    pub size_bytes: u64,
    /// The log ring.
    pub log: Area,
    /// The volume table: two halves, each twice.
    pub tables: Area,
    /// Chunk slots.
    pub slots: Area,
    /// Number of chunk slots.
    pub slot_count: u32,
    /// Data granules.
    pub data: Area,
    /// Number of granules.
    pub granule_count: u32,
    /// A spare block for each granule; empty on a device of format 3, which has none.
    pub spares: Area,
}

impl Layout {
    /// Computes the layout of a device of `size_bytes`. `log_bytes` and `table_bytes` replace the defaults.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn new(size_bytes: u64, log_bytes: Option<u64>, table_bytes: Option<u64>) -> Result<Self, String> {
        Self::computed(size_bytes, log_bytes, table_bytes, PAGE_BYTES)
    }

    /// The layout of a device of format 3: granules without spare blocks.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn without_spares(size_bytes: u64, log_bytes: Option<u64>, table_bytes: Option<u64>) -> Result<Self, String> {
        Self::computed(size_bytes, log_bytes, table_bytes, 0)
    }

    fn computed(
        size_bytes: u64,
        log_bytes: Option<u64>,
        table_bytes: Option<u64>,
        spare_bytes: u64,
    ) -> Result<Self, String> {
        let too_large = || format!("a device of {size_bytes} bytes is too large for this format (256 TiB)");
        if size_bytes > SIZE_BYTES_MAX {
            return Err(too_large());
        }
        let size = size_bytes / PAGE_BYTES * PAGE_BYTES;
        // More than the device has does not fit anyway, and sums of it could overflow.
        let log_bytes = log_bytes.unwrap_or((size / 100).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX)).min(SIZE_BYTES_MAX);
        let log_bytes = log_bytes.max(LOG_BYTES_FLOOR).next_multiple_of(PAGE_BYTES);
        let table_bytes = table_bytes.unwrap_or((size / 8192).max(TABLE_BYTES_MIN)).min(SIZE_BYTES_MAX);
        let table_bytes = table_bytes.max(TABLE_BYTES_FLOOR).next_multiple_of(PAGE_BYTES);
        let log = Area { offset: LOG_START, bytes: log_bytes };
        let tables = Area { offset: log.end(), bytes: 2 * TABLE_COPIES * table_bytes };
        let slots_offset = tables.end();
        let mut granules = size.saturating_sub(slots_offset) / (GRANULE_BYTES as u64 + spare_bytes + SLOT_BYTES / 16);
        loop {
            let slot_count = (granules / 16).max(SLOTS_MIN);
            let slots = Area { offset: slots_offset, bytes: slot_count * SLOT_BYTES };
            let data_offset = slots.end().next_multiple_of(GRANULE_BYTES as u64);
            let data = Area { offset: data_offset, bytes: granules * GRANULE_BYTES as u64 };
            let spares = Area { offset: data.end(), bytes: granules * spare_bytes };
            if granules == 0 {
                return Err(format!("a device of {size_bytes} bytes is too small: log and tables leave no data space"));
            }
            if spares.end() > size {
                granules -= 1;
                continue;
            }
            let (Ok(granule_count), Ok(slot_count)) = (u32::try_from(granules), u32::try_from(slot_count)) else {
                return Err(too_large());
            };
            return Ok(Self { size_bytes, log, tables, slots, slot_count, data, granule_count, spares });
        }
    }

    /// Bytes that one volume table may take.
    pub fn table_bytes(&self) -> u64 {
        self.tables.bytes / (2 * TABLE_COPIES)
    }

    /// Device offset of a copy of a half of the volume table.
    pub fn table_offset(&self, half: u64, copy: u64) -> u64 {
        assert!(half < 2 && copy < TABLE_COPIES, "table half {half}, copy {copy}");
        self.tables.offset + (half * TABLE_COPIES + copy) * self.table_bytes()
    }

    /// Device offset of the map page in a slot's half; the checksum page follows.
    pub fn slot_offset(&self, slot: u32, half: bool) -> u64 {
        assert!(slot < self.slot_count, "slot {slot} of {}", self.slot_count);
        self.slots.offset + u64::from(slot) * SLOT_BYTES + u64::from(half) * SLOT_HALF_BYTES
    }

    /// True if granules have a spare block each.
    pub fn has_spares(&self) -> bool {
        self.spares.bytes > 0
    }

    /// Device offset of a place of a granule: 0 to 15, or 16 for the spare block.
    pub fn block_offset(&self, granule: u32, place: usize) -> u64 {
        assert!(granule < self.granule_count, "granule {granule} of {}", self.granule_count);
        if place == GRANULE_BLOCKS {
            assert!(self.has_spares(), "a spare block of a device that has none");
            return self.spares.offset + u64::from(granule) * PAGE_BYTES;
        }
        self.data.offset + u64::from(granule) * GRANULE_BYTES as u64 + (place * BLOCK_BYTES) as u64
    }

    /// Device offset of a physical block, see [`physical_block`].
    pub fn physical_offset(&self, block: u64) -> u64 {
        if block & SPARE != 0 {
            return self.block_offset((block & !SPARE) as u32, GRANULE_BLOCKS);
        }
        self.block_offset((block / GRANULE_BLOCKS as u64) as u32, (block % GRANULE_BLOCKS as u64) as usize)
    }

    /// Bytes of the largest commit group.
    pub fn group_bytes_max(&self) -> u64 {
        (self.log.bytes / 8).clamp(160 * KIB, 4 * MIB) / PAGE_BYTES * PAGE_BYTES
    }
}

/// Number of a place of a granule: sixteen to a granule, counted through the device, so that neighbours have numbers in a
/// row; spare blocks apart from them.
pub fn physical_block(granule: u32, place: usize) -> u64 {
    if place == GRANULE_BLOCKS {
        SPARE | u64::from(granule)
    } else {
        (u64::from(granule) * GRANULE_BLOCKS as u64) + place as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::units::GIB;

    #[test]
    fn areas_follow_each_other_and_end_inside_the_device() {
        for size in [256 * MIB, 10 * GIB + 12345, TIB, 20 * TIB] {
            let layout = Layout::new(size, None, None).unwrap();
            assert_eq!(layout.log.end(), layout.tables.offset);
            assert_eq!(layout.table_offset(1, 1) + layout.table_bytes(), layout.tables.end());
            assert_eq!(layout.tables.end(), layout.slots.offset);
            assert!(layout.slots.end() <= layout.data.offset && layout.data.end() == layout.spares.offset);
            assert!(layout.spares.end() <= size);
            let last = layout.granule_count - 1;
            assert_eq!(layout.physical_offset(physical_block(last, 16)) + PAGE_BYTES, layout.spares.end());
            assert_eq!(layout.physical_offset(physical_block(last, 15)) + PAGE_BYTES, layout.data.end());
            assert!(layout.data.bytes > size / 2, "{layout:?}");
            let old = Layout::without_spares(size, None, None).unwrap();
            assert!(!old.has_spares() && old.granule_count > layout.granule_count && old.data.end() <= size);
            assert!([layout.log.offset, layout.slots.offset, layout.data.offset].iter().all(|o| o % PAGE_BYTES == 0));
        }
        assert!(Layout::new(MIB, None, None).is_err());
    }

    #[test]
    fn sizes_that_no_device_has_are_refused() {
        for size in [u64::MAX, u64::MAX - 4096, 257 * TIB] {
            assert!(Layout::new(size, None, None).unwrap_err().contains("too large"));
        }
        for bytes in [u64::MAX, u64::MAX - 4095, 1 << 62, TIB] {
            assert!(Layout::new(TIB, Some(bytes), None).is_err(), "{bytes}");
            assert!(Layout::new(TIB, None, Some(bytes)).is_err(), "{bytes}");
        }
        assert!(Layout::new(256 * TIB, None, None).is_ok());
    }
}
