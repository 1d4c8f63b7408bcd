//! Commit groups as they lie in the log: which bytes are one, whether it is the next one, and what it holds.
//!
//! Recovery and offline inspection read them by the same rules. It must never know how the bytes were read.

use crate::disk::{self, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeaderDisk};
use crate::layout::{Layout, PAGE_BYTES};
use crate::record::{Content, Reader, Record, Segment};
use ashlar_model::DeviceId;
use zerocopy::FromBytes;

/// A header whose sizes are possible at this place of the ring, and the bytes of header and records.
pub fn header_at(layout: &Layout, place: u64, page: &[u8]) -> Option<(GroupHeaderDisk, u64)> {
    let (header, _) = GroupHeaderDisk::read_from_prefix(page).ok()?;
    let area = (GROUP_HEADER_BYTES as u64 + u64::from(header.record_bytes.get())).next_multiple_of(PAGE_BYTES);
    let bytes = area + u64::from(header.payload_blocks.get()) * PAGE_BYTES;
    let fits = bytes <= layout.group_bytes_max() && place + bytes <= layout.log.bytes;
    (header.magic == GROUP_MAGIC && fits).then_some((header, area))
}

/// True if it may be group `lsn`, after one with checksum `previous`, of an open no earlier than `generation`.
pub fn is_next(header: &GroupHeaderDisk, lsn: u64, previous: u64, generation: u64) -> bool {
    header.lsn.get() == lsn
        && header.previous.get() == previous
        && header.generation.get() >= generation
        && header.completed.get() < lsn
}

/// True if header and records (`bytes`, from the header's first) are what was written.
pub fn verifies(device: DeviceId, header: &GroupHeaderDisk, bytes: &[u8]) -> bool {
    let end = GROUP_HEADER_BYTES + header.record_bytes.get() as usize;
    bytes.get(..end).is_some_and(|bytes| disk::group_checksum(device, header.lsn.get(), bytes) == header.checksum.get())
}

/// The records, each with the number of its first payload block; `None` if the group does not verify or says what is not
/// possible on this device.
pub fn records(
    device: DeviceId,
    layout: &Layout,
    header: &GroupHeaderDisk,
    bytes: &[u8],
) -> Option<Vec<(Record, usize)>> {
    if !verifies(device, header, bytes) {
        return None;
    }
    let end = GROUP_HEADER_BYTES + header.record_bytes.get() as usize;
    let mut reader = Reader(&bytes[GROUP_HEADER_BYTES..end]);
    let mut records = Vec::new();
    let mut payload = 0;
    while !reader.0.is_empty() {
        let record = Record::decode(&mut reader)?;
        let blocks = record.payload_blocks() as usize;
        records.push((record, payload));
        payload += blocks;
    }
    let counts = payload == header.payload_blocks.get() as usize
        && records.len() == header.record_count.get() as usize
        && records.iter().all(|(record, _)| exists(layout, record));
    counts.then_some(records)
}

/// Slots and granules of a record exist on the device.
fn exists(layout: &Layout, record: &Record) -> bool {
    let slot = |slot: u32| slot < layout.slot_count;
    match record {
        Record::Write(write) => match &write.content {
            Content::Held => true,
            Content::Tombstone | Content::Lost => slot(write.slot),
            Content::Data { segments, .. } => {
                let there =
                    |one: &Segment| one.granule < layout.granule_count && (one.place.is_none() || layout.has_spares());
                slot(write.slot) && segments.iter().all(there)
            }
        },
        Record::Absorb { from: one, into, .. } | Record::DropLayer { slot: one, into } => slot(*one) && slot(*into),
        Record::Relabel { slot: one, .. } => slot(*one),
        _ => true,
    }
}
