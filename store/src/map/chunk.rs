//! One layer of a chunk: its granules, packed, and as much of its checksums as is in memory.
//!
//! It must never know what changes it or when it is written.

use super::order::{ORDERS_BYTES, Order, Orders};
use super::stamps::Stamps;
use super::sums::Sums;
use crate::disk::{self, MAP_MAGIC, MapEntryDisk, MapPageDisk, NO_GRANULE};
use crate::layout::{Layout, PAGE_BYTES, SLOT_HALF_BYTES};
use crate::table::DirectoryEntry;
use ashlar_model::units::{CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{AlignedBuffer, DeviceId, Epoch, Stamp, VolumeId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64, U128};

/// Memory of the map that a granule may take, if nothing else is said.
pub const GRANULE_MAP_BYTES: usize = 24;
/// Memory of a chunk for finding it, about.
const FINDING_BYTES: usize = 48;

/// A map page that does not verify, or is not the one that its slot should hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedPage;

/// Masks that few chunks need.
#[derive(Clone, Debug)]
struct Marks {
    holes: [u16; CHUNK_GRANULES],
    unknown: [u16; CHUNK_GRANULES],
}

/// One layer of a chunk: what one snapshot generation wrote of it.
#[derive(Debug)]
pub struct Chunk {
    /// Volume.
    pub volume: VolumeId,
    /// Number in the volume.
    pub chunk: u64,
    /// Checkpoint that wrote the page on the device; zero: none did.
    pub as_of: u64,
    /// Checksums, if any are in memory.
    pub sums: Option<Box<Sums>>,
    /// Checksum of the checksum page on the device.
    pub sums_checksum: u64,
    /// Snapshot generation.
    pub generation: u32,
    /// Number of the last change or device write, among those of all chunks: tells a reader that it raced. Not on disk.
    pub touched: u32,
    /// Lane that wrote last.
    pub lane: u16,
    /// The page on the device is old.
    pub dirty: bool,
    /// A running checkpoint wants the page as it is now, before it changes.
    pub frozen: bool,
    /// Its checksums were used since the cache last looked.
    pub used: bool,
    granules: [u32; CHUNK_GRANULES],
    stamps: Stamps,
    valid: [u16; CHUNK_GRANULES],
    marks: Option<Box<Marks>>,
    /// If a block lies elsewhere than its number says.
    orders: Option<Orders>,
}

/// Memory of the map per granule of a full chunk.
const _: () = assert!(size_of::<Chunk>() + FINDING_BYTES <= GRANULE_MAP_BYTES * CHUNK_GRANULES);

/// How many chunks may have blocks in other places than their numbers say, on a device of so many granules: all chunks in
/// full, and these orders, take what the map may take, so many bytes for each granule.
pub fn ordered_chunks_max(granule_count: u32, granule_bytes: usize) -> usize {
    let left = (granule_bytes * CHUNK_GRANULES).saturating_sub(FINDING_BYTES + size_of::<Chunk>());
    (granule_count as usize).div_ceil(CHUNK_GRANULES) * left / ORDERS_BYTES
}

impl Chunk {
    /// A layer without data.
    pub fn new(volume: VolumeId, lane: u16, chunk: u64, generation: u32) -> Box<Self> {
        Box::new(Self {
            volume,
            chunk,
            as_of: 0,
            sums: Some(Sums::empty()),
            sums_checksum: 0,
            generation,
            touched: 0,
            lane,
            dirty: false,
            frozen: false,
            used: true,
            granules: [NO_GRANULE; CHUNK_GRANULES],
            stamps: Stamps::default(),
            valid: [0; CHUNK_GRANULES],
            marks: None,
            orders: None,
        })
    }

    /// A layer whose metadata is lost: all of it unknown.
    pub fn lost(entry: &DirectoryEntry, stamp: Stamp) -> Box<Self> {
        let mut chunk = Self::new(entry.key.volume, entry.key.lane, entry.chunk, entry.generation);
        for granule in 0..CHUNK_GRANULES {
            chunk.raise(granule, stamp);
            chunk.marks().unknown[granule] = u16::MAX;
        }
        chunk
    }

    fn marks(&mut self) -> &mut Marks {
        let none = || Box::new(Marks { holes: [0; CHUNK_GRANULES], unknown: [0; CHUNK_GRANULES] });
        self.marks.get_or_insert_with(none)
    }

    /// Physical granule or [`NO_GRANULE`].
    pub fn granule(&self, granule: usize) -> u32 {
        self.granules[granule]
    }

    /// All physical granules.
    pub fn granules(&self) -> impl Iterator<Item = u32> + '_ {
        self.granules.iter().copied().filter(|granule| *granule != NO_GRANULE)
    }

    /// Blocks of a granule with data.
    pub fn valid(&self, granule: usize) -> u16 {
        self.valid[granule]
    }

    /// Blocks of a granule that are zeroes whatever is below.
    pub fn holes(&self, granule: usize) -> u16 {
        self.marks.as_ref().map_or(0, |marks| marks.holes[granule])
    }

    /// Blocks of a granule with unknown content.
    pub fn unknown(&self, granule: usize) -> u16 {
        self.marks.as_ref().map_or(0, |marks| marks.unknown[granule])
    }

    /// Newest version that left a list, or was never in one.
    pub fn stamp(&self, granule: usize) -> Stamp {
        self.stamps.get(granule)
    }

    /// Makes a granule's version at least this.
    pub fn raise(&mut self, granule: usize, stamp: Stamp) {
        self.stamps.raise(granule, stamp);
    }

    /// Sets a granule's place; its blocks lie in order there.
    pub fn place(&mut self, granule: usize, physical: u32) {
        self.granules[granule] = physical;
        self.set_order(granule, Order::default());
    }

    /// Where the blocks of a granule lie in it.
    pub fn order(&self, granule: usize) -> Order {
        self.orders.as_ref().map_or_else(Order::default, |orders| orders.get(granule))
    }

    /// Sets where the blocks of a granule lie in it.
    pub fn set_order(&mut self, granule: usize, order: Order) {
        let Some(orders) = &mut self.orders else {
            if order != Order::default() {
                self.orders.insert(Orders::default()).set(granule, order);
            }
            return;
        };
        orders.set(granule, order);
        if order == Order::default() && orders.is_plain() {
            self.orders = None;
        }
    }

    /// True if a block lies elsewhere than its number says, which takes memory.
    pub fn is_ordered(&self) -> bool {
        self.orders.is_some()
    }

    /// Blocks got data.
    pub fn fill(&mut self, granule: usize, mask: u16) {
        self.valid[granule] |= mask;
        self.unmark(granule, mask);
    }

    /// Blocks became zeroes; `hole`: a layer below has to be hidden. True if no block has data any more, or may have: what is
    /// unknown since a checksum page was damaged has data for a replay, which reads the map page only.
    pub fn clear(&mut self, granule: usize, mask: u16, hole: bool) -> bool {
        self.valid[granule] &= !mask;
        self.unmark(granule, mask);
        if hole {
            self.marks().holes[granule] |= mask;
        }
        self.valid[granule] | self.unknown(granule) == 0
    }

    /// The content of blocks is not known any more.
    pub fn lose(&mut self, granule: usize, mask: u16) {
        self.valid[granule] &= !mask;
        let marks = self.marks();
        marks.unknown[granule] |= mask;
        marks.holes[granule] &= !mask;
    }

    fn unmark(&mut self, granule: usize, mask: u16) {
        if let Some(marks) = &mut self.marks {
            marks.holes[granule] &= !mask;
            marks.unknown[granule] &= !mask;
        }
    }

    /// A block's checksum, if it is in memory.
    pub fn sum(&self, block: usize) -> Option<u32> {
        self.sums.as_ref()?.get(block)
    }

    /// Sets a block's checksum.
    pub fn set_sum(&mut self, block: usize, sum: u32) {
        self.sums.get_or_insert_with(Sums::absent).set(block, sum);
    }

    /// True if all checksums are in memory.
    pub fn has_sums(&self) -> bool {
        self.sums.as_ref().is_some_and(|sums| sums.is_complete())
    }

    /// The checksum page was read (`None`: it is damaged). Gives the number of blocks that became unknown.
    pub fn sums_read(&mut self, page: Option<&[u8]>) -> u32 {
        let mut lost = 0;
        let sums = self.sums.get_or_insert_with(Sums::absent);
        let missing = |sums: &Sums, granule: usize, valid: u16| {
            let absent = |bit: &usize| valid & 1 << bit != 0 && !sums.knows(granule * GRANULE_BLOCKS + bit);
            (0..GRANULE_BLOCKS).filter(absent).fold(0u16, |mask, bit| mask | 1 << bit)
        };
        let gone: Vec<(usize, u16)> = match page {
            Some(_) => vec![],
            None => (0..CHUNK_GRANULES).map(|i| (i, missing(sums, i, self.valid[i]))).collect(),
        };
        sums.complete(page);
        for (granule, mask) in gone.into_iter().filter(|(_, mask)| *mask != 0) {
            self.lose(granule, mask);
            lost += mask.count_ones();
        }
        lost
    }

    /// Reads the map page in a half of a slot; it must be the one that `entry` names.
    ///
    /// # Errors
    /// It is not, or is damaged.
    pub fn decode(
        device: DeviceId,
        layout: &Layout,
        entry: &DirectoryEntry,
        bytes: &[u8],
    ) -> Result<Box<Self>, DamagedPage> {
        let offset = layout.slot_offset(entry.slot, entry.half);
        let page = disk::open_map_page(device, offset, entry.slot, bytes).ok_or(DamagedPage)?;
        let same = disk::map_page_volume(&page) == entry.key.volume
            && page.chunk.get() == entry.chunk
            && page.generation.get() == entry.generation
            && page.as_of.get() == entry.as_of;
        if !same {
            return Err(DamagedPage);
        }
        let mut chunk = Self::new(entry.key.volume, page.lane.get(), entry.chunk, entry.generation);
        chunk.sums = None;
        chunk.as_of = entry.as_of;
        chunk.sums_checksum = page.sums_checksum.get();
        for (i, disk) in page.entries.iter().enumerate() {
            if !possible(disk) {
                return Err(DamagedPage);
            }
            chunk.granules[i] = disk.granule.get();
            chunk.raise(i, Stamp { epoch: Epoch(disk.epoch.get()), index: disk.index.get() });
            chunk.valid[i] = disk.valid.get();
            let order = Order::decode(&page.orders[i]).ok_or(DamagedPage)?;
            let may_move = layout.has_spares() && chunk.granules[i] != NO_GRANULE;
            if order != Order::default() && !may_move {
                return Err(DamagedPage);
            }
            chunk.set_order(i, order);
            if disk.holes.get() != 0 || disk.unknown.get() != 0 {
                let marks = chunk.marks();
                (marks.holes[i], marks.unknown[i]) = (disk.holes.get(), disk.unknown.get());
            }
        }
        Ok(chunk)
    }

    /// Both pages for a half of a slot, as checkpoint `as_of` writes them.
    pub fn encode(&mut self, device: DeviceId, layout: &Layout, slot: u32, half: bool, as_of: u64) -> AlignedBuffer {
        let offset = layout.slot_offset(slot, half);
        let mut buffer = AlignedBuffer::zeroed(SLOT_HALF_BYTES as usize);
        let (map, sums) = buffer.split_at_mut(PAGE_BYTES as usize);
        self.sums.as_ref().expect("a dirty chunk has its checksums").encode(sums);
        self.as_of = as_of;
        self.sums_checksum = disk::sums_checksum(device, offset + PAGE_BYTES, sums);
        let entry = |i: usize| MapEntryDisk {
            granule: U32::new(self.granules[i]),
            valid: U16::new(self.valid[i]),
            holes: U16::new(self.holes(i)),
            unknown: U16::new(self.unknown(i)),
            reserved: U16::new(0),
            epoch: U64::new(self.stamp(i).epoch.0),
            index: U64::new(self.stamp(i).index),
        };
        let mut page = MapPageDisk {
            magic: MAP_MAGIC,
            volume: U128::new(self.volume.as_u128()),
            chunk: U64::new(self.chunk),
            lane: U16::new(self.lane),
            reserved: U16::new(0),
            slot: U32::new(slot),
            generation: U32::new(self.generation),
            reserved2: U32::new(0),
            as_of: U64::new(as_of),
            sums_checksum: U64::new(self.sums_checksum),
            entries: std::array::from_fn(entry),
            orders: std::array::from_fn(|i| self.order(i).encode()),
            reserved3: [0; 1656],
            checksum: U64::new(0),
        };
        disk::seal_map_page(device, offset, &mut page);
        map.copy_from_slice(page.as_bytes());
        buffer
    }
}

/// Data has a place, and a block is one thing at most.
fn possible(entry: &MapEntryDisk) -> bool {
    let (valid, holes, unknown) = (entry.valid.get(), entry.holes.get(), entry.unknown.get());
    let once = valid & holes == 0 && valid & unknown == 0 && holes & unknown == 0;
    once && (valid == 0 || entry.granule.get() != NO_GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::LaneKey;

    /// A page of one layer with a block of data, after a change of its first entry.
    fn page(change: impl Fn(&mut MapEntryDisk)) -> Result<Box<Chunk>, DamagedPage> {
        let layout = Layout::new(8 << 20, Some(1 << 20), Some(64 << 10)).unwrap();
        let (device, volume) = (DeviceId::from_u128(2), VolumeId::from_u128(5));
        let key = LaneKey { volume, lane: 0 };
        let entry = DirectoryEntry { key, chunk: 3, generation: 0, slot: 4, half: true, as_of: 7 };
        let mut chunk = Chunk::new(volume, 0, 3, 0);
        chunk.place(0, 9);
        chunk.fill(0, 1);
        let bytes = chunk.encode(device, &layout, entry.slot, entry.half, entry.as_of);
        let offset = layout.slot_offset(entry.slot, entry.half);
        let mut page = disk::open_map_page(device, offset, entry.slot, &bytes).unwrap();
        change(&mut page.entries[0]);
        disk::seal_map_page(device, offset, &mut page);
        Chunk::decode(device, &layout, &entry, page.as_bytes())
    }

    #[test]
    fn an_entry_that_nothing_wrote_is_damage_whatever_the_checksum_says() {
        assert_eq!(page(|_| {}).unwrap().granule(0), 9);
        assert!(page(|entry| entry.granule = U32::new(NO_GRANULE)).is_err());
        assert!(page(|entry| entry.holes = U16::new(3)).is_err());
        assert!(page(|entry| entry.unknown = U16::new(1)).is_err());
        assert!(page(|entry| (entry.holes, entry.unknown) = (U16::new(2), U16::new(2))).is_err());
        assert!(page(|entry| (entry.holes, entry.unknown) = (U16::new(2), U16::new(4))).is_ok());
    }
}
