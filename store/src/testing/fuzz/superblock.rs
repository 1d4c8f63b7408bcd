//! Any bytes as the two superblocks of a device.
//!
//! It must never accept a layout that leaves the device.

use super::{number, page, split};
use crate::disk::{FORMAT_VERSION, SUPERBLOCK_MAGIC, Superblock, SuperblockFault};
use crate::engine::{OpenError, read_superblocks};
use crate::layout::{Layout, PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use ashlar_model::checksum::metadata_checksum;

/// Flags of the input, per page: A has these, B has them shifted left by four.
pub(super) const SEALED: usize = 1;
/// Magic and version are right.
pub(super) const NAMED: usize = 2;
/// The page could not be read.
const MISSING: usize = 4;
/// The page is as short as the input left it.
const SHORT: usize = 8;

/// Place of the checksum.
const BODY_BYTES: usize = PAGE_BYTES as usize - 8;

/// Input: flags, bytes of page A as two bytes, that page's first bytes, and the rest for page B.
///
/// # Panics
/// If a rule is broken.
pub fn check_superblock(mut input: &[u8]) {
    let flags = number(&mut input, 1);
    let length = number(&mut input, 2);
    let first = split(&mut input, length);
    let a = make(SUPERBLOCK_A, flags, first);
    let b = make(SUPERBLOCK_B, flags >> 4, input);
    let decoded_a = a.as_deref().map(|page| check_page(SUPERBLOCK_A, page));
    let decoded_b = b.as_deref().map(|page| check_page(SUPERBLOCK_B, page));
    let good = [decoded_a, decoded_b].into_iter().flatten().filter_map(Result::ok);
    let newest = good.map(|sb| sb.sequence).max();
    match read_superblocks(a.as_deref(), b.as_deref()) {
        Ok(chosen) => assert_eq!(Some(chosen.sequence), newest, "the newest superblock that is good"),
        Err(OpenError::NotAshlar | OpenError::DamagedSuperblocks | OpenError::Version { .. }) => {
            assert_eq!(newest, None, "one superblock is enough");
        }
        Err(other) => panic!("an error of another kind: {other}"),
    }
}

/// The page that flags and bytes of the input make; `None`: it cannot be read.
fn make(offset: u64, flags: usize, bytes: &[u8]) -> Option<Vec<u8>> {
    if flags & MISSING != 0 {
        return None;
    }
    if flags & SHORT != 0 {
        return Some(bytes.to_vec());
    }
    let mut page = page(bytes);
    if flags & NAMED != 0 {
        page[..8].copy_from_slice(&SUPERBLOCK_MAGIC);
        page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    }
    if flags & SEALED != 0 {
        let device = u128::from_le_bytes(page[32..48].try_into().expect("sixteen bytes"));
        let sum = metadata_checksum(device, offset, &page[..BODY_BYTES]);
        page[BODY_BYTES..].copy_from_slice(&sum.to_le_bytes());
    }
    Some(page)
}

/// What decodes lies inside its device, and is the same after it was written again.
fn check_page(offset: u64, page: &[u8]) -> Result<Superblock, SuperblockFault> {
    let sb = Superblock::decode(offset, page)?;
    check_layout(&sb.layout);
    assert!(sb.head_offset < sb.layout.log.bytes && sb.table_bytes <= sb.layout.table_bytes(), "{sb:?}");
    let again = sb.encode(offset);
    assert_eq!(Superblock::decode(offset, &again), Ok(sb.clone()), "it is the same when it is written again");
    assert_eq!(sb.encode(offset)[..], again[..]);
    Ok(sb)
}

fn check_layout(layout: &Layout) {
    let areas = [layout.log, layout.tables, layout.slots, layout.data, layout.spares];
    let mut end = SUPERBLOCK_B + PAGE_BYTES;
    for area in areas {
        assert!(area.offset >= end && area.offset.is_multiple_of(PAGE_BYTES), "{layout:?}");
        end = area.offset.checked_add(area.bytes).expect("an area has an end");
    }
    assert!(end <= layout.size_bytes, "{layout:?}");
    let last_slot = layout.slot_offset(layout.slot_count - 1, true);
    assert!(layout.slots.offset <= last_slot && last_slot < layout.slots.end(), "{layout:?}");
    assert!(layout.block_offset(layout.granule_count - 1, 15) < layout.data.end(), "{layout:?}");
    assert!(layout.table_offset(1, 1) + layout.table_bytes() == layout.tables.end(), "{layout:?}");
    assert!(layout.group_bytes_max() <= layout.log.bytes / 2, "{layout:?}");
}
