//! The map: which granule and checksum each block has, and who owns which slot.
//!
//! A chunk is a stack of layers, one per snapshot generation that wrote it; each has a slot. The same functions serve the
//! running engine and the replay of the log. It must never do I/O.

mod chunk;
mod order;
mod stamps;
mod sums;
mod versions;

pub use chunk::{Chunk, DamagedPage, GRANULE_MAP_BYTES, ordered_chunks_max};
pub use order::{GRANULE_PLACES, ORDER_BYTES, Order};
pub use stamps::EPOCH_MAX;
pub use sums::Sums;

use crate::disk::NO_GRANULE;
use crate::record::{Class, Content, WriteRecord};
use crate::table::DirectoryEntry;
use ashlar_model::lane::ListEntry;
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{BlockRange, LaneKey, Stamp, VolumeId};
use rustc_hash::FxHashMap;
use versions::Versions;

/// Mask of a part's blocks within its granule.
pub fn part_mask(part: BlockRange) -> u16 {
    let first = (part.start % GRANULE_BLOCKS as u64) as u32;
    (((1u32 << part.count) - 1) << first) as u16
}

/// Block of its chunk.
pub fn block_of_chunk(block: u64) -> usize {
    (block % CHUNK_BLOCKS as u64) as usize
}

/// Chunk of a block.
pub fn chunk_of(block: u64) -> u64 {
    block / CHUNK_BLOCKS as u64
}

/// Physical granules that changed hands.
#[derive(Debug, Default)]
pub struct Moved {
    /// Nobody owns them any more.
    pub freed: Vec<u32>,
    /// They have an owner now.
    pub taken: Vec<u32>,
}

/// What a newer layer takes over of a granule of the next older one.
#[derive(Clone, Copy, Debug)]
pub struct Absorbed<'a> {
    /// The blocks that it needs.
    pub mask: u16,
    /// It had no granule there and gets the older one's; otherwise their data is in its own granule already.
    pub moves: bool,
    /// One checksum for each of them, in order.
    pub sums: &'a [u32],
}

/// All slots, and the listed versions per chunk.
#[derive(Debug, Default)]
pub struct ChunkMap {
    slots: Vec<Option<Box<Chunk>>>,
    /// The half of each slot that holds its page (or will, once the running checkpoint has ended).
    halves: Vec<bool>,
    /// Newest layer of each chunk.
    tops: FxHashMap<VolumeId, FxHashMap<u64, u32>>,
    /// The next older layer, for the few that have one.
    parents: FxHashMap<u32, u32>,
    /// Slots whose map page has not been read yet.
    unread: FxHashMap<u32, DirectoryEntry>,
    /// How many of them each volume has.
    unread_of: FxHashMap<VolumeId, usize>,
    versions: Versions,
    count: usize,
    /// Changes and device writes so far, see [`Chunk::touched`].
    touches: u32,
    /// Layers with blocks elsewhere than their numbers say, and how many there may be.
    ordered: usize,
    ordered_max: usize,
}

impl ChunkMap {
    /// An empty map.
    pub fn new(slot_count: u32) -> Self {
        let slots = (0..slot_count).map(|_| None).collect();
        Self { slots, halves: vec![true; slot_count as usize], ..Self::default() }
    }

    /// A granule is another's now: the layer, whose page has been read, has none there, and what it had is unknown.
    pub fn disown(&mut self, slot: u32, granule: usize) {
        let Some(chunk) = self.slots[slot as usize].as_deref_mut() else { return };
        self.ordered -= usize::from(chunk.is_ordered());
        chunk.lose(granule, chunk.valid(granule));
        chunk.place(granule, NO_GRANULE);
        self.ordered += usize::from(chunk.is_ordered());
    }

    /// Layers whose pages have been read, with blocks elsewhere than their numbers say: as counted, and as they are.
    #[cfg(any(test, feature = "testing"))]
    pub fn ordered(&self) -> (usize, usize) {
        (self.ordered, self.iter().filter(|(_, chunk)| chunk.is_ordered()).count())
    }

    /// So many layers may have blocks elsewhere than their numbers say.
    pub fn allow_ordered(&mut self, layers: usize) {
        self.ordered_max = layers;
    }

    /// True if one more may.
    pub fn may_order_more(&self) -> bool {
        self.ordered < self.ordered_max
    }

    /// Takes what a directory names; the pages are to be read.
    pub fn restore(&mut self, directory: Vec<DirectoryEntry>) {
        for entry in directory {
            self.halves[entry.slot as usize] = entry.half;
            self.unread.insert(entry.slot, entry);
            *self.unread_of.entry(entry.key.volume).or_default() += 1;
            self.link(entry.slot, entry.key.volume, entry.chunk, entry.generation);
        }
    }

    /// Number of slots in use.
    pub fn slot_count(&self) -> usize {
        self.count
    }

    /// Slots whose page is to be read.
    pub fn unread(&self) -> impl Iterator<Item = u32> + '_ {
        self.unread.keys().copied()
    }

    /// How many slots of a volume have a page that is to be read.
    pub fn unread_of(&self, volume: VolumeId) -> usize {
        self.unread_of.get(&volume).copied().unwrap_or(0)
    }

    /// What the directory says of a slot whose page is to be read.
    pub fn unread_entry(&self, slot: u32) -> Option<DirectoryEntry> {
        self.unread.get(&slot).copied()
    }

    /// The half that holds a slot's page.
    pub fn half(&self, slot: u32) -> bool {
        self.halves[slot as usize]
    }

    /// The next page of the slot goes to the other half: the directory of the last checkpoint names this one.
    pub fn turn(&mut self, slot: u32) {
        self.halves[slot as usize] ^= true;
    }

    /// Newest layer of a chunk.
    pub fn top(&self, volume: VolumeId, chunk: u64) -> Option<u32> {
        self.tops.get(&volume)?.get(&chunk).copied()
    }

    /// The next older layer.
    pub fn parent(&self, slot: u32) -> Option<u32> {
        if self.parents.is_empty() { None } else { self.parents.get(&slot).copied() }
    }

    /// Layers of a chunk, newest first.
    pub fn layers(&self, volume: VolumeId, chunk: u64) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.top(volume, chunk), |slot| self.parent(*slot))
    }

    /// The next newer layer of a chunk.
    pub fn above(&self, volume: VolumeId, chunk: u64, slot: u32) -> Option<u32> {
        self.layers(volume, chunk).take_while(|one| *one != slot).last()
    }

    /// Snapshot generation of a slot in use.
    pub fn generation(&self, slot: u32) -> u32 {
        match &self.slots[slot as usize] {
            Some(chunk) => chunk.generation,
            None => self.unread.get(&slot).unwrap_or_else(|| unreachable!("slot {slot} is not in use")).generation,
        }
    }

    /// The layer that one generation wrote.
    pub fn layer(&self, volume: VolumeId, chunk: u64, generation: u32) -> Option<u32> {
        self.layers(volume, chunk).find(|slot| self.generation(*slot) == generation)
    }

    /// Layer in a slot, if its page has been read.
    pub fn chunk(&self, slot: u32) -> Option<&Chunk> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// Layer in a slot, if its page has been read.
    pub fn chunk_mut(&mut self, slot: u32) -> Option<&mut Chunk> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// A layer is being changed, or a device write on it begins or ends.
    pub fn touch(&mut self, slot: u32) {
        self.touches = self.touches.wrapping_add(1);
        let touched = self.touches;
        if let Some(chunk) = self.chunk_mut(slot) {
            chunk.touched = touched;
        }
    }

    /// Puts a layer whose page has been read, or a new one, into a slot.
    pub fn put(&mut self, slot: u32, chunk: Box<Chunk>) {
        assert!(self.slots[slot as usize].is_none(), "slot {slot} is in use");
        match self.unread.remove(&slot) {
            Some(entry) => {
                let left = self.unread_of.get_mut(&entry.key.volume).expect("it was counted");
                *left -= 1;
                if *left == 0 {
                    self.unread_of.remove(&entry.key.volume);
                }
            }
            None => self.link(slot, chunk.volume, chunk.chunk, chunk.generation),
        }
        self.ordered += usize::from(chunk.is_ordered());
        self.slots[slot as usize] = Some(chunk);
    }

    /// Removes a layer whose page has been read.
    pub fn remove(&mut self, slot: u32) -> Box<Chunk> {
        let chunk = self.slots[slot as usize].take().expect("a layer in use is removed");
        self.count -= 1;
        self.ordered -= usize::from(chunk.is_ordered());
        let below = self.parents.remove(&slot);
        let (volume, number) = (chunk.volume, chunk.chunk);
        if self.top(volume, number) == Some(slot) {
            let tops = self.tops.get_mut(&volume).expect("just seen");
            match below {
                Some(below) => tops.insert(number, below),
                None => tops.remove(&number),
            };
            if tops.is_empty() {
                self.tops.remove(&volume);
            }
        } else {
            let above = self.above(volume, number, slot).expect("it was linked");
            match below {
                Some(below) => self.parents.insert(above, below),
                None => self.parents.remove(&above),
            };
        }
        chunk
    }

    fn link(&mut self, slot: u32, volume: VolumeId, chunk: u64, generation: u32) {
        self.count += 1;
        let layers: Vec<u32> = self.layers(volume, chunk).collect();
        let newer = layers.iter().take_while(|one| self.generation(**one) > generation).count();
        if let Some(below) = layers.get(newer) {
            self.parents.insert(slot, *below);
        }
        match newer.checked_sub(1) {
            Some(above) => {
                self.parents.insert(layers[above], slot);
            }
            None => {
                self.tops.entry(volume).or_default().insert(chunk, slot);
            }
        }
    }

    /// All layers whose pages have been read.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Chunk)> {
        self.slots.iter().enumerate().filter_map(|(slot, chunk)| Some((slot as u32, chunk.as_deref()?)))
    }

    /// The layers that have a granule, of those whose pages have been read, and where. It looks at all of them.
    pub fn owners(&self, granule: u32) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.iter().flat_map(move |(slot, chunk)| {
            (0..CHUNK_GRANULES).filter(move |at| chunk.granule(*at) == granule).map(move |at| (slot, at))
        })
    }

    /// Chunks of a volume.
    pub fn chunks_of_volume(&self, volume: VolumeId) -> Vec<u64> {
        self.tops.get(&volume).map_or_else(Vec::new, |tops| tops.keys().copied().collect())
    }

    /// Slots of a volume.
    pub fn slots_of_volume(&self, volume: VolumeId) -> Vec<u32> {
        let chunks = self.chunks_of_volume(volume);
        chunks.into_iter().flat_map(|chunk| self.layers(volume, chunk)).collect()
    }

    /// What the table remembers of the slots.
    pub fn directory(&self) -> impl Iterator<Item = DirectoryEntry> + '_ {
        let read = self.iter().map(|(slot, chunk)| DirectoryEntry {
            key: LaneKey { volume: chunk.volume, lane: chunk.lane },
            chunk: chunk.chunk,
            generation: chunk.generation,
            slot,
            half: self.half(slot),
            as_of: chunk.as_of,
        });
        read.chain(self.unread.values().copied())
    }

    /// Applies a write to its slot, whose page has been read.
    pub fn apply(&mut self, write: &WriteRecord, moved: &mut Moved) {
        if matches!(write.content, Content::Held) {
            return;
        }
        let (volume, number) = (write.key.volume, write.range.chunk());
        if self.slots[write.slot as usize].is_none() {
            self.put(write.slot, Chunk::new(volume, write.key.lane, number, write.generation));
        }
        let below = self.parent(write.slot).is_some();
        self.touch(write.slot);
        let chunk = self.slots[write.slot as usize].as_deref_mut().expect("just made sure");
        self.ordered -= usize::from(chunk.is_ordered());
        apply_parts(chunk, write, below, moved);
        self.ordered += usize::from(chunk.is_ordered());
    }

    /// Remembers a listed version.
    pub fn list(&mut self, volume: VolumeId, stamp: Stamp, range: BlockRange, generation: u32) {
        self.versions.add(volume, stamp, range, generation);
    }

    /// An entry left its list.
    pub fn unlist(&mut self, volume: VolumeId, entry: &ListEntry) {
        self.versions.remove(volume, entry);
    }

    /// Drops the listed versions of a volume.
    pub fn unlist_all(&mut self, volume: VolumeId) {
        self.versions.forget(volume);
    }

    /// The slot whose granules take the version of an entry that leaves its list: its own layer's, or that of the next
    /// newer one, which has it if its own was merged away.
    pub fn slot_of_entry(&self, volume: VolumeId, entry: &ListEntry) -> Option<u32> {
        let chunk = entry.range.chunk();
        if self.parents.is_empty() {
            return self.top(volume, chunk);
        }
        let newer = self.layers(volume, chunk).take_while(|slot| self.generation(*slot) >= entry.generation).last();
        newer.or_else(|| self.top(volume, chunk))
    }

    /// Versions of a range within a chunk, as a generation sees it: the newest listed one, else the newest of the granule.
    pub fn stamps(&self, volume: VolumeId, range: BlockRange, generation: u32) -> Vec<Stamp> {
        let mut stamps = self.versions.newest(volume, range, generation);
        let layers = || self.layers(volume, range.chunk()).filter_map(|slot| self.chunk(slot));
        for (block, stamp) in range.blocks().zip(&mut stamps).filter(|(_, stamp)| **stamp == Stamp::default()) {
            let granule = block_of_chunk(block) / GRANULE_BLOCKS;
            let seen = layers().filter(|chunk| chunk.generation <= generation);
            *stamp = seen.map(|chunk| chunk.stamp(granule)).max().unwrap_or_default();
        }
        stamps
    }

    /// What a newer layer still needs of a granule of the next older one: blocks that are read through it.
    pub fn needed(&self, from: u32, into: u32, granule: usize) -> u16 {
        let (Some(from), Some(into)) = (self.chunk(from), self.chunk(into)) else { return 0 };
        from.valid(granule) & !(into.valid(granule) | into.holes(granule) | into.unknown(granule))
    }

    /// A newer layer takes over blocks of a granule of the next older one. What it would need beyond them was damaged, and
    /// stays unknown. In a replay one of both may have been damaged: then the blocks are where nobody knows any more, unless
    /// the granule that has them is still known.
    pub fn absorb(&mut self, from: u32, into: u32, granule: usize, taken: Absorbed<'_>, moved: &mut Moved) {
        let ordered = |map: &Self| {
            [from, into].into_iter().filter(|slot| map.chunk(*slot).is_some_and(Chunk::is_ordered)).count()
        };
        let before = ordered(self);
        self.absorb_granule(from, into, granule, taken, moved);
        self.ordered = self.ordered - before + ordered(self);
    }

    fn absorb_granule(&mut self, from: u32, into: u32, granule: usize, taken: Absorbed<'_>, moved: &mut Moved) {
        let Absorbed { mask, moves, sums } = taken;
        let need = self.needed(from, into, granule);
        let below = self.parent(from).is_some();
        let older = self.chunk_mut(from).expect("a layer that is merged");
        let (physical, stamp) = (older.granule(granule), older.stamp(granule));
        let (holes, unknown) = (older.holes(granule), older.unknown(granule));
        let order = older.order(granule);
        older.place(granule, NO_GRANULE);
        older.clear(granule, u16::MAX, false);
        self.touch(into);
        let newer = self.chunk_mut(into).expect("a layer that is merged into");
        let own = newer.valid(granule) | newer.holes(granule) | newer.unknown(granule);
        let lost = (unknown | (need & !mask)) & !own;
        if lost != 0 {
            newer.lose(granule, lost);
        }
        if below && holes & !own != 0 {
            newer.clear(granule, holes & !own, true);
        }
        newer.raise(granule, stamp);
        let before = newer.granule(granule);
        let freed = if moves { before } else { physical };
        if freed != NO_GRANULE && (!moves || physical != NO_GRANULE) {
            moved.freed.push(freed);
        }
        if moves && physical != NO_GRANULE {
            newer.place(granule, physical);
            newer.set_order(granule, order);
        } else if moves || before == NO_GRANULE {
            if mask & !own != 0 {
                newer.lose(granule, mask & !own);
            }
            return;
        }
        let bits = (0..GRANULE_BLOCKS).filter(|bit| mask & 1 << bit != 0);
        for (bit, sum) in bits.zip(sums) {
            newer.set_sum(granule * GRANULE_BLOCKS + bit, *sum);
            newer.fill(granule, 1 << bit);
        }
    }

    /// A newer layer takes over the versions of an older one that goes.
    pub fn keep_stamps(&mut self, from: u32, into: u32) {
        for granule in 0..CHUNK_GRANULES {
            let Some(stamp) = self.chunk(from).map(|chunk| chunk.stamp(granule)) else { return };
            if let Some(newer) = self.chunk_mut(into) {
                newer.raise(granule, stamp);
            }
        }
    }

    /// A layer now belongs to a newer generation, which has none of its own.
    pub fn relabel(&mut self, slot: u32, generation: u32) {
        if let Some(chunk) = self.chunk_mut(slot) {
            chunk.generation = generation;
        }
    }
}

/// Applies the parts of a write to its layer; `below`: there is an older one.
fn apply_parts(chunk: &mut Chunk, write: &WriteRecord, below: bool, moved: &mut Moved) {
    chunk.lane = write.key.lane;
    for (i, (granule, part)) in write.parts().enumerate() {
        let mask = part_mask(part);
        if !write.listed {
            chunk.raise(granule, write.stamp);
        }
        let old = chunk.granule(granule);
        if matches!(write.content, Content::Lost) {
            // Its place is kept: what a crash may bring back is there.
            chunk.lose(granule, mask);
            continue;
        }
        let Content::Data { segments, checksums } = &write.content else {
            if chunk.clear(granule, mask, below) && old != NO_GRANULE {
                moved.freed.push(old);
                chunk.place(granule, NO_GRANULE);
            }
            continue;
        };
        let segment = segments[i];
        // A logged block goes wherever its granule is. In a replay that may be the place before a redirect that
        // turned out to be torn.
        let stays = segment.class == Class::Logged && old != NO_GRANULE;
        if segment.granule != old && !stays {
            moved.taken.push(segment.granule);
            if old != NO_GRANULE {
                moved.freed.push(old);
            }
            chunk.place(granule, segment.granule);
        }
        if segment.class != Class::Logged {
            put_in_place(chunk, granule, part, segment.place);
        }
        chunk.fill(granule, mask);
        for block in part.blocks() {
            chunk.set_sum(block_of_chunk(block), checksums[(block - write.range.start) as usize]);
        }
    }
}

/// The blocks of a part lie where the write put them: one block at a place, or each where its number says. In a replay, that
/// may have been another one's, if an acknowledged write that moved that one away has rotted and passes for a torn one: what
/// is at its new place is not its content then, and does not verify.
fn put_in_place(chunk: &mut Chunk, granule: usize, part: BlockRange, place: Option<u8>) {
    let order = chunk.order(granule);
    let mut put = order;
    let first = block_of_chunk(part.start) % GRANULE_BLOCKS;
    match place {
        Some(place) => put.put(first, usize::from(place)),
        None if order.is_plain(part_mask(part)) => return,
        None => (first..first + part.count as usize).for_each(|block| put.put(block, block)),
    }
    if put != order {
        chunk.set_order(granule, put);
    }
}
