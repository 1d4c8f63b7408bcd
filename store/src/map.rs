//! The resident map: which granule and checksum each block has, who owns which slot, and which granules are free.
//!
//! The same functions serve the running engine and the replay of the log. It must never do I/O.

use crate::disk::{self, MAP_MAGIC, MapEntryDisk, MapPageDisk, NO_GRANULE};
use crate::layout::{Layout, PAGE_BYTES, SLOT_BYTES};
use crate::record::{Content, WriteRecord, granule_parts};
use crate::table::DirectoryEntry;
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::lane::ListEntry;
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, BlockRange, DeviceId, Epoch, LaneKey, Stamp, VolumeId};
use std::collections::HashMap;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64, U128};

/// One granule of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Physical granule or [`NO_GRANULE`].
    pub granule: u32,
    /// Newest version that left a list, or was never in one.
    pub stamp: Stamp,
    /// Snapshot generation.
    pub generation: u32,
    /// Blocks with data.
    pub valid: u16,
    /// Blocks with unknown content.
    pub unknown: u16,
    /// Goes up with every change and every device write: tells a reader that it raced. Not on disk.
    pub touched: u32,
}

const EMPTY: Entry = Entry {
    granule: NO_GRANULE,
    stamp: Stamp { epoch: Epoch(0), index: 0 },
    generation: 0,
    valid: 0,
    unknown: 0,
    touched: 0,
};

/// A map page that does not verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedPage;

/// A chunk that has a slot.
#[derive(Debug)]
pub struct Chunk {
    /// Volume and lane.
    pub key: LaneKey,
    /// Number in the volume.
    pub chunk: u64,
    /// Granules.
    pub entries: [Entry; CHUNK_GRANULES],
    /// Block checksums.
    pub sums: Box<[u32; CHUNK_BLOCKS]>,
}

impl Chunk {
    fn new(key: LaneKey, chunk: u64) -> Box<Self> {
        Box::new(Self { key, chunk, entries: [EMPTY; CHUNK_GRANULES], sums: Box::new([0; CHUNK_BLOCKS]) })
    }

    /// A chunk whose metadata is lost: all of it unknown.
    pub fn unknown(entry: DirectoryEntry, stamp: Stamp) -> Box<Self> {
        let mut chunk = Self::new(entry.key, entry.chunk);
        for granule in &mut chunk.entries {
            (granule.unknown, granule.stamp) = (u16::MAX, stamp);
        }
        chunk
    }

    /// Reads a slot's pages: `Ok(None)` if the slot is empty.
    ///
    /// # Errors
    /// The map page is damaged.
    pub fn decode(device: DeviceId, offset: u64, slot: u32, bytes: &[u8]) -> Result<Option<Box<Self>>, DamagedPage> {
        let page = disk::open_map_page(device, offset, slot, bytes).ok_or(DamagedPage)?;
        if page.used.get() == 0 {
            return Ok(None);
        }
        let key = LaneKey { volume: disk::map_page_volume(&page), lane: page.lane.get() };
        let mut chunk = Self::new(key, page.chunk.get());
        for (entry, disk) in chunk.entries.iter_mut().zip(&page.entries) {
            *entry = Entry {
                granule: disk.granule.get(),
                stamp: Stamp { epoch: Epoch(disk.epoch.get()), index: disk.index.get() },
                generation: disk.generation.get(),
                valid: disk.valid.get(),
                unknown: disk.unknown.get(),
                touched: 0,
            };
        }
        let sums = bytes.get(PAGE_BYTES as usize..SLOT_BYTES as usize).ok_or(DamagedPage)?;
        if disk::sums_checksum(device, offset + PAGE_BYTES, sums) == page.sums_checksum.get() {
            for (sum, bytes) in chunk.sums.iter_mut().zip(sums.chunks_exact(4)) {
                *sum = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        } else {
            for entry in &mut chunk.entries {
                entry.unknown |= entry.valid;
                entry.valid = 0;
            }
        }
        Ok(Some(chunk))
    }
}

/// A slot's two pages as bytes; an empty slot without a chunk.
pub fn encode_slot(device: DeviceId, layout: &Layout, slot: u32, chunk: Option<&Chunk>) -> AlignedBuffer {
    let offset = layout.slot_offset(slot);
    let mut buffer = AlignedBuffer::zeroed(SLOT_BYTES as usize);
    let (map, sums) = buffer.split_at_mut(PAGE_BYTES as usize);
    if let Some(chunk) = chunk {
        for (bytes, sum) in sums.chunks_exact_mut(4).zip(chunk.sums.iter()) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
    }
    let entry = |i: usize| {
        let entry = chunk.map_or(EMPTY, |chunk| chunk.entries[i]);
        MapEntryDisk {
            granule: U32::new(entry.granule),
            epoch: U64::new(entry.stamp.epoch.0),
            index: U64::new(entry.stamp.index),
            generation: U32::new(entry.generation),
            valid: U16::new(entry.valid),
            unknown: U16::new(entry.unknown),
        }
    };
    let mut page = MapPageDisk {
        magic: MAP_MAGIC,
        volume: U128::new(chunk.map_or(0, |chunk| chunk.key.volume.as_u128())),
        chunk: U64::new(chunk.map_or(0, |chunk| chunk.chunk)),
        lane: U16::new(chunk.map_or(0, |chunk| chunk.key.lane)),
        used: U16::new(u16::from(chunk.is_some())),
        slot: U32::new(slot),
        sums_checksum: U64::new(disk::sums_checksum(device, offset + PAGE_BYTES, sums)),
        entries: std::array::from_fn(entry),
        reserved: [0; 2248],
        checksum: U64::new(0),
    };
    disk::seal_map_page(device, offset, &mut page);
    map.copy_from_slice(page.as_bytes());
    buffer
}

/// Checksum of a slot's two pages as an image in the log.
pub fn image_checksum(device: DeviceId, layout: &Layout, slot: u32, pages: &[u8]) -> u64 {
    metadata_checksum(device.as_u128(), layout.slot_offset(slot), pages)
}

/// Mask of a part's blocks within its granule.
pub fn part_mask(part: BlockRange) -> u16 {
    let first = (part.start % GRANULE_BLOCKS as u64) as u32;
    (((1u32 << part.count) - 1) << first) as u16
}

/// Block of its chunk.
pub fn block_of_chunk(block: u64) -> usize {
    (block % CHUNK_BLOCKS as u64) as usize
}

/// All slots, and the listed versions per chunk.
#[derive(Debug, Default)]
pub struct ChunkMap {
    slots: Vec<Option<Box<Chunk>>>,
    index: HashMap<(VolumeId, u64), u32>,
    listed: HashMap<(VolumeId, u64), Vec<(Stamp, BlockRange)>>,
}

impl ChunkMap {
    /// An empty map.
    pub fn new(slot_count: u32) -> Self {
        Self { slots: (0..slot_count).map(|_| None).collect(), ..Self::default() }
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.index.len()
    }

    /// Slot of a chunk.
    pub fn slot_of(&self, volume: VolumeId, chunk: u64) -> Option<u32> {
        self.index.get(&(volume, chunk)).copied()
    }

    /// Chunk in a slot.
    pub fn chunk(&self, slot: u32) -> Option<&Chunk> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// Chunk in a slot.
    pub fn chunk_mut(&mut self, slot: u32) -> Option<&mut Chunk> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Puts a chunk into a slot, replacing what is there.
    pub fn put(&mut self, slot: u32, chunk: Option<Box<Chunk>>) {
        if let Some(old) = self.slots[slot as usize].take()
            && self.index.get(&(old.key.volume, old.chunk)) == Some(&slot)
        {
            self.index.remove(&(old.key.volume, old.chunk));
        }
        if let Some(chunk) = &chunk {
            self.index.insert((chunk.key.volume, chunk.chunk), slot);
        }
        self.slots[slot as usize] = chunk;
    }

    /// All chunks.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Chunk)> {
        self.slots.iter().enumerate().filter_map(|(slot, chunk)| Some((slot as u32, chunk.as_deref()?)))
    }

    /// Slots of a volume.
    pub fn slots_of_volume(&self, volume: VolumeId) -> Vec<u32> {
        self.iter().filter(|(_, chunk)| chunk.key.volume == volume).map(|(slot, _)| slot).collect()
    }

    /// What the table remembers of the slots.
    pub fn directory(&self) -> Vec<DirectoryEntry> {
        self.iter().map(|(slot, chunk)| DirectoryEntry { key: chunk.key, chunk: chunk.chunk, slot }).collect()
    }

    /// Applies a write to its slot. Gives the granules that lost their last block.
    pub fn apply(&mut self, write: &WriteRecord) -> Vec<u32> {
        let mut freed = Vec::new();
        if matches!(write.content, Content::Held) {
            return freed;
        }
        let number = write.range.chunk();
        let fits = self.chunk(write.slot).is_some_and(|c| c.key.volume == write.key.volume && c.chunk == number);
        if !fits {
            self.put(write.slot, Some(Chunk::new(write.key, number)));
        }
        let chunk = self.slots[write.slot as usize].as_deref_mut().expect("just made sure");
        chunk.key = write.key;
        for (i, (granule, part)) in write.parts().enumerate() {
            let entry = &mut chunk.entries[granule];
            let mask = part_mask(part);
            entry.touched = entry.touched.wrapping_add(1);
            entry.generation = entry.generation.max(write.generation);
            entry.unknown &= !mask;
            if !write.listed {
                entry.stamp = entry.stamp.max(write.stamp);
            }
            if let Content::Data { segments, checksums } = &write.content {
                entry.granule = segments[i].granule;
                entry.valid |= mask;
                for block in part.blocks() {
                    chunk.sums[block_of_chunk(block)] = checksums[(block - write.range.start) as usize];
                }
            } else {
                entry.valid &= !mask;
                if entry.valid == 0 && entry.granule != NO_GRANULE {
                    freed.push(entry.granule);
                    entry.granule = NO_GRANULE;
                }
            }
        }
        freed
    }

    /// Remembers a listed version.
    pub fn list(&mut self, volume: VolumeId, stamp: Stamp, range: BlockRange) {
        self.listed.entry((volume, range.chunk())).or_default().push((stamp, range));
    }

    /// Entries left a list. With `keep`, their versions move into the granules; returns the slots that changed.
    pub fn unlist(&mut self, volume: VolumeId, gone: &[ListEntry], keep: bool) -> Vec<u32> {
        let mut changed = Vec::new();
        for entry in gone {
            let place = (volume, entry.range.chunk());
            if let Some(listed) = self.listed.get_mut(&place) {
                if let Some(i) = listed.iter().position(|one| *one == (entry.stamp, entry.range)) {
                    listed.swap_remove(i);
                }
                if listed.is_empty() {
                    self.listed.remove(&place);
                }
            }
            let slot = self.index.get(&place).copied().filter(|_| keep);
            let Some((slot, chunk)) = slot.and_then(|slot| Some((slot, self.slots[slot as usize].as_deref_mut()?)))
            else {
                continue;
            };
            for (granule, _) in granule_parts(entry.range) {
                let stamp = &mut chunk.entries[granule].stamp;
                *stamp = (*stamp).max(entry.stamp);
            }
            changed.push(slot);
        }
        changed
    }

    /// Removes a volume. Gives its granules and slots.
    pub fn forget(&mut self, volume: VolumeId) -> (Vec<u32>, Vec<u32>) {
        let slots = self.slots_of_volume(volume);
        let mut granules = Vec::new();
        for slot in &slots {
            let chunk = self.chunk(*slot).expect("listed as in use");
            granules.extend(chunk.entries.iter().map(|entry| entry.granule).filter(|granule| *granule != NO_GRANULE));
            self.put(*slot, None);
        }
        self.listed.retain(|(owner, _), _| *owner != volume);
        (granules, slots)
    }

    /// Drops the listed versions of a volume.
    pub fn unlist_all(&mut self, volume: VolumeId) {
        self.listed.retain(|(owner, _), _| *owner != volume);
    }

    /// Rebuilds the index after a replay, in which slots may have changed hands.
    pub fn rebuild_index(&mut self) {
        self.index = self.iter().map(|(slot, chunk)| ((chunk.key.volume, chunk.chunk), slot)).collect();
    }

    /// Version of a block: the newest listed one, else its granule's.
    pub fn stamp(&self, volume: VolumeId, block: u64) -> Stamp {
        let chunk = block / CHUNK_BLOCKS as u64;
        let listed = self
            .listed
            .get(&(volume, chunk))
            .and_then(|listed| listed.iter().filter(|(_, range)| range.contains(block)).map(|(stamp, _)| *stamp).max());
        listed.unwrap_or_else(|| {
            let chunk = self.slot_of(volume, chunk).and_then(|slot| self.chunk(slot));
            chunk.map_or(EMPTY.stamp, |chunk| chunk.entries[block_of_chunk(block) / GRANULE_BLOCKS].stamp)
        })
    }
}
