//! Pages that are read when they are needed: map pages after an open, checksum pages any time; and the cache's limit.
//!
//! A page that does not verify makes its range unknown, never zero. It must never do more than one page's damage.

use super::types::Purpose;
use super::{Mutation, StoreEngine};
use crate::alloc::Allocator;
use crate::disk;
use crate::layout::PAGE_BYTES;
use crate::map::Chunk;
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{AlignedBuffer, Stamp, VolumeId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::collections::hash_map::Entry;

/// Map pages read ahead of need after an open.
const BACKGROUND_READS: usize = 32;
/// Chunks whose checksums are always kept, however small the cache.
const CACHED_MIN: usize = 64;

/// Chunks that a new one makes the cache look at: more than one, so that those in use are passed.
const EVICT_STEPS: usize = 16;
/// Old names that the clock may have besides one per chunk.
const CLOCK_SPARE: usize = 1024;

/// What is being read.
#[derive(Debug, Default)]
pub(super) struct Loads {
    maps: FxHashSet<u32>,
    /// Map pages that were read a second time, because they did not verify.
    again: FxHashSet<u32>,
    /// Checksum pages, and the reads that wait for them.
    sums: FxHashMap<u32, Vec<u64>>,
    /// Those of them that are read a second time.
    sums_again: FxHashSet<u32>,
    /// Map pages to be read when nobody asks for them.
    background: Vec<u32>,
    /// The volume whose map pages were put first among them.
    hurried: Option<VolumeId>,
    /// Chunks whose checksums are in memory.
    pub cached: usize,
    /// Slots of them, in the order in which they are looked at; one that has gone, or has given up its checksums, may be
    /// named once more.
    clock: VecDeque<u32>,
}

impl StoreEngine {
    /// True if no map page is still to be read.
    pub(super) fn all_pages_read(&self) -> bool {
        self.owned.is_none()
    }

    /// True if all pages of a chunk's map have been read; starts to read them if not.
    pub(super) fn chunk_ready(&mut self, volume: VolumeId, chunk: u64) -> bool {
        if self.all_pages_read() {
            return true;
        }
        let layers: Vec<u32> = self.map.layers(volume, chunk).collect();
        layers.into_iter().filter(|slot| !self.slot_ready(*slot)).count() == 0
    }

    /// True if a slot's map page has been read; starts to read it if not.
    pub(super) fn slot_ready(&mut self, slot: u32) -> bool {
        if self.map.chunk(slot).is_some() {
            return true;
        }
        if self.loads.maps.insert(slot) {
            let offset = self.layout().slot_offset(slot, self.map.half(slot));
            self.issue_read(Purpose::LoadMap { slot }, offset, PAGE_BYTES as usize);
        }
        false
    }

    /// A map page was read, or could not be.
    pub(super) fn map_loaded(&mut self, slot: u32, page: Option<AlignedBuffer>) {
        self.loads.maps.remove(&slot);
        let Some(entry) = self.map.unread_entry(slot) else { return };
        let read = page.and_then(|page| Chunk::decode(self.sb.device, self.layout(), &entry, &page).ok());
        // Once more, before all of it is given up.
        if read.is_none() && self.loads.again.insert(slot) {
            self.slot_ready(slot);
            return;
        }
        let damaged = read.is_none();
        let chunk = read.unwrap_or_else(|| {
            tracing::error!(slot, volume = %entry.key.volume, chunk = entry.chunk, "damaged map page: content unknown");
            if self.broken(Mutation::DamagedIsZero) {
                return Chunk::new(entry.key.volume, entry.key.lane, entry.chunk, entry.generation);
            }
            let lane = self.table.lane(entry.key);
            let index = lane.map_or(0, |lane| lane.settled.max(lane.prefix));
            Chunk::lost(&entry, Stamp { epoch: lane.map(|lane| lane.current).unwrap_or_default(), index })
        });
        let claimed = self.claim_owned(chunk.granules());
        let complete = chunk.has_sums();
        self.map.put(slot, chunk);
        if complete {
            self.count_cached(slot);
        }
        if damaged {
            self.stats.damaged_chunks += 1;
            self.mark_dirty(slot);
        }
        if let Err(granule) = claimed {
            let text =
                format!("granule {granule} is claimed by chunk {} of volume {}, ", entry.chunk, entry.key.volume);
            self.inconsistent(format!("{text}and by another one or by nobody: the map contradicts itself"));
        } else if self.replaying() {
            self.redo_loaded();
        }
    }

    /// Notes who owns granules; gives one that has another owner, or that is marked as free.
    fn claim_owned(&mut self, granules: impl Iterator<Item = u32>) -> Result<(), u32> {
        let Some(owned) = &mut self.owned else { return Ok(()) };
        for granule in granules {
            if granule >= self.granules.count() || !self.granules.is_used(granule) || !owned.claim(granule) {
                return Err(granule);
            }
        }
        Ok(())
    }

    /// Starts to look for the owners of all granules.
    pub(super) fn load_begin(&mut self) {
        self.owned = Some(Allocator::new(self.granules.count()));
    }

    /// Everything is replayed: the rest of the pages is read in the background.
    pub(super) fn load_rest(&mut self) {
        self.loads.background = self.map.unread().collect();
    }

    /// True if all map pages of a volume have been read. If not, they are the next that are read in the background: there
    /// may be too many to read them all at once.
    pub(super) fn volume_ready(&mut self, volume: VolumeId) -> bool {
        if self.map.unread_of(volume) == 0 {
            return true;
        }
        if self.loads.hurried != Some(volume) {
            self.loads.hurried = Some(volume);
            let slots: FxHashSet<u32> = self.map.slots_of_volume(volume).into_iter().collect();
            // The last one is read first.
            let background = &mut self.loads.background;
            let mut first: Vec<u32> = background.extract_if(.., |slot| slots.contains(slot)).collect();
            background.append(&mut first);
        }
        false
    }

    /// Reads on in the background; once all pages are read, compares what they claim with what is marked as in use.
    pub(super) fn load_step(&mut self) {
        if self.owned.is_none() {
            return;
        }
        while self.loads.maps.len() < BACKGROUND_READS {
            let Some(slot) = self.loads.background.pop() else { break };
            if self.map.unread_entry(slot).is_some() {
                self.slot_ready(slot);
            }
        }
        if self.loads.maps.is_empty() && self.loads.background.is_empty() {
            self.load_end();
        }
    }

    fn load_end(&mut self) {
        let owned = self.owned.take().expect("it is being looked for");
        let freed: FxHashSet<u32> = self.freed_on_the_way().collect();
        let leaked: Vec<u32> = self.granules.without(&owned).filter(|granule| !freed.contains(granule)).collect();
        if leaked.is_empty() {
            return;
        }
        self.stats.leaked_granules = leaked.len() as u64;
        let damaged = self.stats.damaged_chunks;
        tracing::warn!(granules = leaked.len(), damaged, "granules without an owner: free after the next checkpoint");
        if self.broken(Mutation::DamagedReused) {
            leaked.into_iter().for_each(|granule| self.granules.release(granule));
            return;
        }
        // Until the medium says that they are free, a replay would find them in use.
        self.leaked = leaked;
        self.checkpoint_wanted = true;
    }

    /// Granules that the map has given up, and the allocator not yet.
    pub(super) fn freed_on_the_way(&self) -> impl Iterator<Item = u32> + '_ {
        let ops = self.ops.values().flat_map(|op| op.granules_freed.iter().copied());
        ops.chain(self.limbo.iter().copied()).chain(self.leaked.iter().copied())
    }

    /// True if a block's checksum is in memory; starts to read its page if not.
    pub(super) fn sum_ready(&mut self, slot: u32, block: usize) -> bool {
        let chunk = self.map.chunk_mut(slot).expect("its map page was read before");
        chunk.used = true;
        let ready = chunk.sum(block).is_some();
        if !ready {
            self.want_sums(slot);
        }
        ready
    }

    /// Starts to read a checksum page unless it is here.
    pub(super) fn want_sums(&mut self, slot: u32) {
        let Some(chunk) = self.map.chunk(slot).filter(|chunk| !chunk.has_sums()) else { return };
        let as_of = chunk.as_of;
        if let Entry::Vacant(entry) = self.loads.sums.entry(slot) {
            entry.insert(Vec::new());
            self.read_sums(slot, as_of);
        }
    }

    fn read_sums(&mut self, slot: u32, as_of: u64) {
        let offset = self.layout().slot_offset(slot, self.map.half(slot)) + PAGE_BYTES;
        self.issue_read(Purpose::LoadSums { slot, as_of }, offset, PAGE_BYTES as usize);
    }

    /// A read goes on when the slot's checksums are here.
    pub(super) fn wait_for_sums(&mut self, slot: u32, read: u64) {
        self.want_sums(slot);
        self.loads.sums.get_mut(&slot).expect("being read").push(read);
    }

    /// A checksum page was read, or could not be.
    pub(super) fn sums_loaded(&mut self, slot: u32, as_of: u64, page: Option<AlignedBuffer>) {
        let waiting = self.loads.sums.remove(&slot).expect("it was being read");
        let wanted = self.map.chunk(slot).filter(|chunk| !chunk.has_sums() && chunk.as_of == as_of);
        if let Some(chunk) = wanted {
            let offset = self.layout().slot_offset(slot, self.map.half(slot)) + PAGE_BYTES;
            let good = |page: &AlignedBuffer| {
                page.len() == CHUNK_BLOCKS * 4
                    && disk::sums_checksum(self.sb.device, offset, page) == chunk.sums_checksum
            };
            let page = page.filter(good);
            // Once more, before all of it is given up.
            if page.is_none() && self.loads.sums_again.insert(slot) {
                self.loads.sums.insert(slot, waiting);
                return self.read_sums(slot, as_of);
            }
            let chunk = self.map.chunk_mut(slot).expect("just seen");
            let lost = chunk.sums_read(page.as_deref());
            self.count_cached(slot);
            if page.is_none() {
                tracing::error!(slot, blocks = lost, "damaged checksum page: content unknown");
                self.stats.damaged_chunks += 1;
                self.mark_dirty(slot);
            }
        }
        self.loads.sums_again.remove(&slot);
        for read in waiting {
            self.restart_read(read);
        }
        self.evict(EVICT_STEPS);
    }

    fn cached_max(&self) -> usize {
        ((self.options.checksum_cache_bytes / PAGE_BYTES) as usize).max(CACHED_MIN)
    }

    /// True if there may be one more dirty slot: dirty pages stay in memory until a checkpoint has written them.
    pub(super) fn may_change(&mut self, slot: Option<u32>) -> bool {
        let chunk = slot.and_then(|slot| self.map.chunk(slot));
        let (dirty, complete) = chunk.map_or((false, true), |chunk| (chunk.dirty, chunk.has_sums()));
        if !complete {
            self.want_sums(slot.expect("it has a chunk"));
            // A checkpoint is about to begin: it needs whole pages.
            if self.gathering() {
                return false;
            }
        }
        dirty || self.dirty.len() < self.cached_max()
    }

    /// Dirty slots that start a checkpoint.
    pub(super) fn dirty_limit(&self) -> usize {
        self.cached_max() / 2
    }

    /// Looks at all chunks whose checksums are in memory.
    pub(super) fn evict_all(&mut self) {
        self.evict(self.loads.clock.len());
    }

    /// Gives up checksums that were not used for a while, above the limit. Looks at so many chunks at most: while nothing
    /// can be given up, each new one must not look at all.
    fn evict(&mut self, steps: usize) {
        let max = self.cached_max();
        let writing = self.checkpoint_as_of();
        for _ in 0..steps {
            if self.loads.cached <= max {
                return;
            }
            let Some(slot) = self.loads.clock.pop_front() else { return };
            let Some(chunk) = self.map.chunk_mut(slot).filter(|chunk| chunk.has_sums()) else { continue };
            let kept = chunk.dirty || chunk.frozen || Some(chunk.as_of) == writing;
            if kept || std::mem::take(&mut chunk.used) {
                self.loads.clock.push_back(slot);
                continue;
            }
            chunk.sums = None;
            self.loads.cached -= 1;
        }
    }

    /// The checksums of a chunk of the map are in memory from now on.
    pub(super) fn count_cached(&mut self, slot: u32) {
        self.loads.cached += 1;
        self.loads.clock.push_back(slot);
        if self.loads.clock.len() > 2 * self.loads.cached + CLOCK_SPARE {
            let (map, mut seen) = (&self.map, FxHashSet::default());
            let here = |slot: &u32| map.chunk(*slot).is_some_and(|chunk| chunk.has_sums());
            self.loads.clock.retain(|slot| here(slot) && seen.insert(*slot));
        }
        self.evict(EVICT_STEPS);
    }

    /// Length of the cache's clock.
    #[cfg(test)]
    pub(crate) fn clock_len(&self) -> usize {
        self.loads.clock.len()
    }
}
