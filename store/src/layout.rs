//! Where everything lies on a device: areas computed from its size, and the arithmetic of pages and granules.
//!
//! It must never know what the areas contain.

use ashlar_model::limits::{LOG_BYTES_MAX, LOG_BYTES_MIN};
use ashlar_model::units::{BLOCK_BYTES, CHUNK_GRANULES, GRANULE_BYTES, KIB, MIB};

/// Bytes of a page: the unit of device writes.
pub const PAGE_BYTES: u64 = BLOCK_BYTES as u64;
/// Position of superblock A.
pub const SUPERBLOCK_A: u64 = 0;
/// Position of superblock B.
pub const SUPERBLOCK_B: u64 = 64 * KIB;
/// Start of the log ring.
pub const LOG_START: u64 = MIB;
/// Bytes of a chunk slot: one map page, then one checksum page.
pub const SLOT_BYTES: u64 = 2 * PAGE_BYTES;
/// Smallest log ring, for tests: a few of the largest commit groups.
pub const LOG_BYTES_FLOOR: u64 = 512 * KIB;
const TABLE_BYTES_FLOOR: u64 = 16 * KIB;
const TABLE_BYTES_MIN: u64 = 4 * MIB;
const SLOTS_MIN: u64 = 64;

const _: () = {
    assert!(SUPERBLOCK_B + PAGE_BYTES <= LOG_START);
    assert!(CHUNK_GRANULES == 64 && GRANULE_BYTES == 16 * BLOCK_BYTES);
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
    /// Both halves of the volume table.
    pub table: [Area; 2],
    /// Chunk slots.
    pub slots: Area,
    /// Number of chunk slots.
    pub slot_count: u32,
    /// Data granules.
    pub data: Area,
    /// Number of granules.
    pub granule_count: u32,
}

impl Layout {
    /// Computes the layout of a device of `size_bytes`. `log_bytes` and `table_bytes` replace the defaults.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn new(size_bytes: u64, log_bytes: Option<u64>, table_bytes: Option<u64>) -> Result<Self, String> {
        let size = size_bytes / PAGE_BYTES * PAGE_BYTES;
        let log_bytes = log_bytes.unwrap_or((size / 100).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX));
        let log_bytes = log_bytes.max(LOG_BYTES_FLOOR).next_multiple_of(PAGE_BYTES);
        let table_bytes = table_bytes.unwrap_or((size / 256).max(TABLE_BYTES_MIN)).max(TABLE_BYTES_FLOOR);
        let table_bytes = table_bytes.next_multiple_of(PAGE_BYTES);
        let log = Area { offset: LOG_START, bytes: log_bytes };
        let halves = [
            Area { offset: log.end(), bytes: table_bytes },
            Area { offset: log.end() + table_bytes, bytes: table_bytes },
        ];
        let slots_offset = halves[1].end();
        let mut granules = size.saturating_sub(slots_offset) / (GRANULE_BYTES as u64 + SLOT_BYTES / 16);
        loop {
            let slot_count = (granules / 16).max(SLOTS_MIN);
            let slots = Area { offset: slots_offset, bytes: slot_count * SLOT_BYTES };
            let data_offset = slots.end().next_multiple_of(GRANULE_BYTES as u64);
            let data = Area { offset: data_offset, bytes: granules * GRANULE_BYTES as u64 };
            if granules == 0 {
                return Err(format!("a device of {size_bytes} bytes is too small: log and tables leave no data space"));
            }
            if data.end() > size {
                granules -= 1;
                continue;
            }
            let (Ok(granule_count), Ok(slot_count)) = (u32::try_from(granules), u32::try_from(slot_count)) else {
                return Err(format!("a device of {size_bytes} bytes is too large for this format (256 TiB)"));
            };
            return Ok(Self { size_bytes, log, table: halves, slots, slot_count, data, granule_count });
        }
    }

    /// Device offset of a slot's map page; the checksum page follows.
    pub fn slot_offset(&self, slot: u32) -> u64 {
        assert!(slot < self.slot_count, "slot {slot} of {}", self.slot_count);
        self.slots.offset + u64::from(slot) * SLOT_BYTES
    }

    /// Device offset of a block of a granule.
    pub fn block_offset(&self, granule: u32, block: usize) -> u64 {
        assert!(granule < self.granule_count, "granule {granule} of {}", self.granule_count);
        self.data.offset + u64::from(granule) * GRANULE_BYTES as u64 + (block * BLOCK_BYTES) as u64
    }

    /// Bytes of the largest commit group.
    pub fn group_bytes_max(&self) -> u64 {
        (self.log.bytes / 8).clamp(160 * KIB, 4 * MIB) / PAGE_BYTES * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::units::{GIB, TIB};

    #[test]
    fn areas_follow_each_other_and_end_inside_the_device() {
        for size in [256 * MIB, 10 * GIB + 12345, TIB, 20 * TIB] {
            let layout = Layout::new(size, None, None).unwrap();
            assert_eq!(layout.log.end(), layout.table[0].offset);
            assert_eq!(layout.table[0].end(), layout.table[1].offset);
            assert_eq!(layout.table[1].end(), layout.slots.offset);
            assert!(layout.slots.end() <= layout.data.offset && layout.data.end() <= size);
            assert!(layout.data.bytes > size / 2, "{layout:?}");
            assert!([layout.log.offset, layout.slots.offset, layout.data.offset].iter().all(|o| o % PAGE_BYTES == 0));
        }
        assert!(Layout::new(MIB, None, None).is_err());
    }
}
