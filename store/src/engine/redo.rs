//! Replay: the pages that it needs, what the log adds to them and to the table, and which blocks only the log holds.
//!
//! Nothing but what the log says is applied. It must never do device writes.

use super::pins::{Pin, pin_key};
use super::scan::ReadGroup;
use super::verify::Latest;
use super::{Mutation, Phase, StoreEngine};
use crate::map::{Absorbed, Moved, block_of_chunk};
use crate::record::{Class, Content, Record, WriteRecord};
use ashlar_model::VolumeId;
use ashlar_model::checksum::block_checksum;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS};
use rustc_hash::FxHashSet;

/// Map pages that a replay reads at once.
const READS_MAX: usize = 64;

impl StoreEngine {
    /// True while the replay waits for its pages.
    pub(super) fn replaying(&self) -> bool {
        matches!(&self.phase, Phase::Opening(recovery) if recovery.needed.is_some())
    }

    /// The pages of every chunk that the log or a list names are read first.
    pub(super) fn redo_pages(&mut self, latest: Latest) {
        let scan = std::mem::take(&mut self.recovery().scan);
        let mut slots = FxHashSet::default();
        for (key, lane) in self.table.lanes() {
            slots.extend(lane.list.iter().flat_map(|entry| self.map.layers(key.volume, entry.range.chunk())));
        }
        for (record, _) in scan.groups.iter().flat_map(|group| &group.records) {
            match record {
                Record::Write(write) => slots.extend(self.map.layers(write.key.volume, write.range.chunk())),
                Record::Forget(volume) | Record::Release(volume, _) => slots.extend(self.map.slots_of_volume(*volume)),
                Record::Absorb { from, into, .. } => slots.extend([*from, *into]),
                Record::DropLayer { slot, into } => slots.extend([*slot, *into]),
                Record::Relabel { slot, .. } => slots.extend([*slot]),
                _ => {}
            }
        }
        // Those that the log itself brings have no page yet.
        slots.retain(|slot| self.map.unread_entry(*slot).is_some());
        let recovery = self.recovery();
        recovery.scan = scan;
        recovery.latest = latest;
        recovery.needed = Some(slots.into_iter().collect());
        self.redo_loaded();
    }

    /// One more page was read; after the last one the log is applied.
    pub(super) fn redo_loaded(&mut self) {
        while self.in_flight() < READS_MAX {
            let Some(slot) = self.recovery().needed.as_mut().and_then(Vec::pop) else { break };
            self.slot_ready(slot);
        }
        if self.in_flight() == 0 {
            self.redo_apply();
        }
    }

    fn redo_apply(&mut self) {
        let scan = std::mem::take(&mut self.recovery().scan);
        let latest = std::mem::take(&mut self.recovery().latest);
        let skipped = usize::from(self.broken(Mutation::ShortReplay));
        for group in scan.groups.iter().skip(skipped) {
            for (r, (record, _)) in group.records.iter().enumerate() {
                if self.dropped.contains(&(group.lsn, r as u32)) {
                    continue;
                }
                if let Err(text) = self.redo_record(record) {
                    return self.inconsistent(format!("{text} (record {r} of group {})", group.lsn));
                }
            }
        }
        self.redo_pins(&scan.groups, &latest);
        #[cfg(any(test, feature = "testing"))]
        {
            self.stats.replayed_blocks = latest.blocks() as u64;
        }
        self.stats.dropped_writes = self.dropped_now.len() as u64;
        self.dropped = FxHashSet::default();
        self.recover_end();
    }

    fn redo_forget(&mut self, volume: VolumeId) {
        self.map.unlist_all(volume);
        for slot in self.map.slots_of_volume(volume) {
            let chunk = self.remove_layer(slot);
            chunk.granules().for_each(|granule| self.release_granule(granule));
            self.slots.release(slot);
        }
    }

    fn redo_record(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Write(write) => return self.redo_write(write),
            Record::Promise(volume, epoch) => self.table.promise(*volume, *epoch),
            Record::Start(key, epoch, config, at) => self.table.start(*key, *epoch, *config, *at),
            Record::Settle(key, index, config, member) => {
                let mut gone = Vec::new();
                self.table.settle(*key, *index, *config, *member, &mut gone);
                self.keep_versions(key.volume, &gone);
            }
            Record::JoinStart(key, epoch, config, join, at) => {
                for entry in self.table.join_start(*key, *epoch, *config, *join, *at) {
                    self.map.unlist(key.volume, &entry);
                }
            }
            Record::Forget(volume) => {
                self.table.forget(*volume);
                self.redo_forget(*volume);
            }
            Record::Release(volume, epoch) => {
                self.table.release(*volume, *epoch);
                self.redo_forget(*volume);
            }
            Record::Absorb { from, into, granule, moves, mask, sums } => {
                let linked = self.map.chunk(*into).is_some() && self.map.chunk(*from).is_some();
                if !linked || self.map.parent(*into) != Some(*from) {
                    return Err(format!("slot {from} is not the layer below slot {into}"));
                }
                self.mark_dirty(*from);
                self.mark_dirty(*into);
                let mut moved = Moved::default();
                let taken = Absorbed { mask: *mask, moves: *moves, sums };
                self.map.absorb(*from, *into, usize::from(*granule), taken, &mut moved);
                moved.freed.into_iter().for_each(|granule| self.release_granule(granule));
            }
            Record::Relabel { slot, .. } if self.map.chunk(*slot).is_none() => {
                return Err(format!("slot {slot} is not in use"));
            }
            Record::DropLayer { slot, into } if self.map.parent(*into) != Some(*slot) => {
                return Err(format!("slot {slot} is not the layer below slot {into}"));
            }
            Record::Relabel { slot, generation } => {
                self.mark_dirty(*slot);
                self.map.relabel(*slot, *generation);
            }
            Record::DropLayer { slot, into } => {
                self.mark_dirty(*into);
                self.map.keep_stamps(*slot, *into);
                self.remove_layer(*slot).granules().for_each(|granule| self.release_granule(granule));
                self.slots.release(*slot);
            }
            Record::Dropped { .. } => {}
        }
        Ok(())
    }

    fn redo_write(&mut self, write: &WriteRecord) -> Result<(), String> {
        if !matches!(write.content, Content::Held) {
            self.redo_content(write)?;
        }
        if write.listed {
            self.table.add_entry(write);
            self.map.list(write.key.volume, write.stamp, write.range, write.generation);
        }
        if write.origin == EntryOrigin::Live {
            self.table.live_done(write.key, write.stamp);
        }
        Ok(())
    }

    fn redo_content(&mut self, write: &WriteRecord) -> Result<(), String> {
        let name = (write.key.volume, write.range.chunk(), write.generation);
        let new = self.map.chunk(write.slot).is_none();
        match self.map.chunk(write.slot) {
            Some(chunk) if (chunk.volume, chunk.chunk, chunk.generation) == name => {}
            None if self.slots.claim(write.slot) => {}
            _ => return Err(format!("slot {} is not chunk {} of volume {}", write.slot, name.1, name.0)),
        }
        let mut moved = Moved::default();
        self.map.apply(write, &mut moved);
        self.mark_dirty(write.slot);
        if new {
            self.count_cached(write.slot);
        }
        for granule in moved.taken {
            let free = self.granules.claim(granule);
            let owned = self.owned.as_mut().is_some_and(|owned| owned.claim(granule));
            // A damaged page may have owned it: then it is in use, without a known owner.
            let good = if owned { free || self.stats.damaged_chunks > 0 } else { self.redo_disown(granule, write) };
            if !good {
                return Err(format!("granule {granule} is claimed twice"));
            }
        }
        moved.freed.into_iter().for_each(|granule| self.release_granule(granule));
        Ok(())
    }

    /// A write took a granule that another place has in this replay: when it was accepted, that one had given it up. The
    /// replay sees that otherwise where a damaged page knows nothing, or where an acknowledged write that moved the content
    /// away has rotted and passes for a torn one. What the layer had there now is not known; without damage it is an error.
    fn redo_disown(&mut self, granule: u32, write: &WriteRecord) -> bool {
        if self.stats.damaged_chunks == 0 && self.dropped.is_empty() {
            return false;
        }
        // The write has it already, wherever its slot is among the others.
        let own = |slot: u32, at: usize| slot == write.slot && write.parts().any(|(granule, _)| granule == at);
        let other = self.map.owners(granule).find(|(slot, at)| !own(*slot, *at));
        let Some((slot, at)) = other else { return false };
        self.mark_dirty(slot);
        let chunk = self.map.chunk(slot).expect("just found");
        tracing::error!(granule, chunk = chunk.chunk, volume = %chunk.volume, "content is lost: its space is in use again");
        self.map.disown(slot, at);
        true
    }

    /// Blocks whose newest content is only in the log are pinned again.
    fn redo_pins(&mut self, groups: &[ReadGroup], latest: &Latest) {
        for (g, group) in groups.iter().enumerate() {
            for (r, (record, first)) in group.records.iter().enumerate() {
                let Record::Write(write) = record else { continue };
                let Content::Data { segments, checksums } = &write.content else { continue };
                let mut payload_block = *first;
                for ((_, part), _) in write.parts().zip(segments).filter(|(_, one)| one.class == Class::Logged) {
                    let payload = group.payload.as_ref().expect("counted");
                    for (i, block) in part.blocks().enumerate() {
                        let checksum = checksums[(block - write.range.start) as usize];
                        let last = latest.is(write.slot, block, (g, r));
                        let payload = payload.slice((payload_block + i) * BLOCK_BYTES, BLOCK_BYTES);
                        if last
                            && self.holds(write.slot, block, checksum)
                            && block_checksum(write.key.volume, block, &payload) == checksum
                        {
                            let pin = Pin { payload, checksum, op: 0, lsn: group.lsn };
                            self.pins.insert(pin_key(write.slot, block), pin);
                        }
                    }
                    payload_block += part.count as usize;
                }
            }
        }
    }

    /// True if the block is in this slot with this checksum.
    fn holds(&self, slot: u32, block: u64, checksum: u32) -> bool {
        let i = block_of_chunk(block);
        self.map.chunk(slot).is_some_and(|chunk| {
            chunk.valid(i / GRANULE_BLOCKS) & (1 << (i % GRANULE_BLOCKS)) != 0 && chunk.sum(i) == Some(checksum)
        })
    }
}
