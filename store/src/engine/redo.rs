//! Replay: which unacknowledged writes are torn, what the rest leaves behind, and which blocks only the log holds.
//!
//! A write at or below the last group known to have completed is never dropped. It must never do device writes.

use super::checkpoint::pin_key;
use super::recover::Want;
use super::types::OpenError;
use super::{Phase, Pin, StoreEngine};
use crate::disk::NO_GRANULE;
use crate::layout::SLOT_BYTES;
use crate::map::{Chunk, block_of_chunk, image_checksum};
use crate::record::{Class, Content, Record, WriteRecord};
use ashlar_model::checksum::block_checksum;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::{BLOCK_BYTES, GRANULE_BLOCKS};
use ashlar_model::{Payload, Stamp, VolumeId};
use std::collections::{BTreeSet, HashMap, HashSet};

/// A record of the log: (group, record).
type Place = (usize, usize);

impl StoreEngine {
    pub(super) fn redo_start(&mut self) {
        let dropped: HashSet<(u64, u32)> = {
            let groups = &self.recovery().scan.groups;
            let all = groups.iter().flat_map(|group| &group.records);
            all.filter_map(|(record, _)| match record {
                Record::Dropped { lsn, ordinal } => Some((*lsn, *ordinal)),
                _ => None,
            })
            .collect()
        };
        self.dropped = dropped;
        self.redo_verify();
    }

    /// The last write of each block that was not dropped.
    fn latest(&mut self) -> HashMap<(VolumeId, u64), Place> {
        let dropped = std::mem::take(&mut self.dropped);
        let mut latest = HashMap::new();
        for (g, group) in self.recovery().scan.groups.iter().enumerate() {
            for (r, (record, _)) in group.records.iter().enumerate() {
                match record {
                    Record::Write(write)
                        if !matches!(write.content, Content::Held) && !dropped.contains(&(group.lsn, r as u32)) =>
                    {
                        latest.extend(write.range.blocks().map(|block| ((write.key.volume, block), (g, r))));
                    }
                    Record::Forget(volume) => latest.retain(|(owner, _), _| owner != volume),
                    _ => {}
                }
            }
        }
        self.dropped = dropped;
        latest
    }

    /// Finds torn writes above the completed groups, until no more are found; then applies the rest.
    fn redo_verify(&mut self) {
        loop {
            let latest = self.latest();
            let (torn, reads) = self.find_torn(&latest);
            if !torn.is_empty() {
                self.dropped_now.extend(torn.iter().copied());
                self.dropped.extend(torn);
                continue;
            }
            if reads.is_empty() {
                return self.redo_apply(latest);
            }
            for (want, offset, bytes) in reads {
                self.recover_read(want, offset, bytes);
            }
            return;
        }
    }

    /// Torn writes as far as known, and the device reads that are needed to know the rest.
    #[allow(clippy::type_complexity)]
    fn find_torn(&mut self, latest: &HashMap<(VolumeId, u64), Place>) -> (Vec<(u64, u32)>, Vec<(Want, u64, usize)>) {
        let dropped = std::mem::take(&mut self.dropped);
        let layout = self.sb.layout;
        let recovery = self.recovery();
        let completed = recovery.scan.completed;
        let (mut torn, mut reads) = (vec![], vec![]);
        for (g, group) in recovery.scan.groups.iter().enumerate().filter(|(_, group)| group.lsn > completed) {
            for (r, (record, first)) in group.records.iter().enumerate() {
                let Record::Write(write) = record else { continue };
                let Content::Data { segments, checksums } = &write.content else { continue };
                if dropped.contains(&(group.lsn, r as u32)) {
                    continue;
                }
                let mut payload_block = *first;
                let mut bad = false;
                for (p, ((_, part), segment)) in write.parts().zip(segments).enumerate() {
                    let needed = |block: &u64| latest.get(&(write.key.volume, *block)) == Some(&(g, r));
                    if segment.class == Class::Logged {
                        let payload = group.payload.as_ref().expect("counted");
                        for (i, block) in part.blocks().enumerate().filter(|(_, block)| needed(block)) {
                            let sum = checksums[(block - write.range.start) as usize];
                            let good = *recovery.verified.entry((g, r, block)).or_insert_with(|| {
                                block_checksum(write.key.volume, block, payload.block(payload_block + i)) == sum
                            });
                            bad |= !good;
                        }
                        payload_block += part.count as usize;
                        continue;
                    }
                    let mut unknown = false;
                    for block in part.blocks().filter(needed) {
                        match recovery.verified.get(&(g, r, block)) {
                            Some(good) => bad |= !good,
                            None => unknown = true,
                        }
                    }
                    if unknown {
                        let in_granule = (part.start % GRANULE_BLOCKS as u64) as usize;
                        let want = Want::Verify { group: g, record: r, part: p };
                        reads.push((want, layout.block_offset(segment.granule, in_granule), part.bytes()));
                    }
                }
                if bad {
                    torn.push((group.lsn, r as u32));
                }
            }
        }
        self.dropped = dropped;
        (torn, reads)
    }

    pub(super) fn verify_done(&mut self, group: usize, record: usize, part: usize, bytes: Option<Payload>) {
        let recovery = self.recovery();
        let Record::Write(write) = &recovery.scan.groups[group].records[record].0 else {
            unreachable!("only writes are verified")
        };
        let Content::Data { checksums, .. } = &write.content else { unreachable!("only data is verified") };
        let (_, range) = write.parts().nth(part).expect("a part of the write");
        for (i, block) in range.blocks().enumerate() {
            let sum = checksums[(block - write.range.start) as usize];
            let good = bytes.as_ref().is_some_and(|b| block_checksum(write.key.volume, block, b.block(i)) == sum);
            recovery.verified.insert((group, record, block), good);
        }
        if recovery.reading() == 0 {
            self.redo_verify();
        }
    }

    /// Applies the log to pages and table.
    fn redo_apply(&mut self, latest: HashMap<(VolumeId, u64), Place>) {
        let map_lsn = self.sb.map_lsn;
        let scan = std::mem::take(&mut self.recovery().scan);
        let base = self.redo_images(&scan);
        self.redo_damaged(&base);
        let listed: Vec<_> =
            self.table.lanes().flat_map(|(key, lane)| lane.list.iter().map(move |e| (key, *e))).collect();
        for (key, entry) in listed {
            self.map.list(key.volume, entry.stamp, entry.range);
        }
        for group in &scan.groups {
            for (r, (record, _)) in group.records.iter().enumerate() {
                if self.dropped.contains(&(group.lsn, r as u32)) {
                    continue;
                }
                self.redo_record(record, group.lsn, map_lsn, &base);
            }
        }
        self.redo_pins(&scan.groups, &latest);
        if let Err(error) = self.redo_allocators() {
            return self.open_failed(error);
        }
        self.sb.generation += 1;
        self.stats.dropped_writes = self.dropped_now.len() as u64;
        self.dropped = HashSet::new();
        self.phase = Phase::Finishing;
    }

    /// Puts page images into their slots. Gives, per slot, the group that its pages reflect.
    fn redo_images(&mut self, scan: &super::scan::Scan) -> HashMap<u32, u64> {
        let mut base = HashMap::new();
        for group in &scan.groups {
            for (record, first) in &group.records {
                let Record::PageImage { slot, as_of, checksum } = record else { continue };
                let payload = group.payload.as_ref().expect("counted");
                let pages = payload.slice(first * BLOCK_BYTES, SLOT_BYTES as usize);
                let offset = self.sb.layout.slot_offset(*slot);
                // An image that does not verify is a torn tail: the page in place was not touched yet.
                if image_checksum(self.sb.device, &self.sb.layout, *slot, &pages) == *checksum
                    && let Ok(chunk) = Chunk::decode(self.sb.device, offset, *slot, &pages)
                {
                    self.map.put(*slot, chunk);
                    self.imaged.insert(*slot);
                    base.insert(*slot, *as_of);
                }
            }
        }
        base
    }

    /// Slots with damaged pages and no image: their range is unknown, with a version that is not too old.
    fn redo_damaged(&mut self, base: &HashMap<u32, u64>) {
        for slot in std::mem::take(&mut self.recovery().damaged) {
            let Some(entry) = self.recovery().directory_entry(slot).filter(|_| !base.contains_key(&slot)) else {
                continue;
            };
            tracing::error!(slot, volume = %entry.key.volume, chunk = entry.chunk, "damaged map page: content unknown");
            let lane = self.table.lane(entry.key);
            let index = lane.map_or(0, |lane| lane.settled.max(lane.prefix));
            let stamp = Stamp { epoch: lane.map(|lane| lane.current).unwrap_or_default(), index };
            self.map.put(slot, Some(Chunk::unknown(entry, stamp)));
            self.dirty.insert(slot);
            self.stats.damaged_chunks += 1;
        }
    }

    fn redo_record(&mut self, record: &Record, lsn: u64, map_lsn: u64, base: &HashMap<u32, u64>) {
        let lanes = lsn > map_lsn;
        match record {
            Record::Write(write) => self.redo_write(write, lsn, map_lsn, base),
            Record::Promise(volume, epoch) if lanes => self.table.promise(*volume, *epoch),
            Record::Start(key, epoch, config, at) if lanes => self.table.start(*key, *epoch, *config, *at),
            Record::Settle(key, index, config, member) if lanes => {
                let gone = self.table.settle(*key, *index, *config, *member);
                let changed = self.map.unlist(key.volume, &gone, true);
                self.dirty.extend(changed);
            }
            Record::JoinStart(key, epoch, config, join, at) if lanes => {
                let gone = self.table.join_start(*key, *epoch, *config, *join, *at);
                self.map.unlist(key.volume, &gone, false);
            }
            Record::Forget(volume) => {
                if lanes {
                    self.table.forget(*volume);
                    self.map.unlist_all(*volume);
                }
                for slot in self.map.slots_of_volume(*volume) {
                    if lsn > base.get(&slot).copied().unwrap_or(map_lsn) {
                        self.map.put(slot, None);
                        self.dirty.remove(&slot);
                    }
                }
            }
            _ => {}
        }
    }

    fn redo_write(&mut self, write: &WriteRecord, lsn: u64, map_lsn: u64, base: &HashMap<u32, u64>) {
        if lsn > base.get(&write.slot).copied().unwrap_or(map_lsn) && !matches!(write.content, Content::Held) {
            self.map.apply(write);
            self.dirty.insert(write.slot);
        }
        if lsn > map_lsn {
            if write.listed {
                self.table.add_entry(write);
                self.map.list(write.key.volume, write.stamp, write.range);
            }
            if write.origin == EntryOrigin::Live {
                self.table.live_done(write.key, write.stamp);
            }
        }
    }

    /// Blocks whose newest content is only in the log are pinned again.
    fn redo_pins(&mut self, groups: &[super::scan::ReadGroup], latest: &HashMap<(VolumeId, u64), Place>) {
        for (g, group) in groups.iter().enumerate() {
            for (r, (record, first)) in group.records.iter().enumerate() {
                let Record::Write(write) = record else { continue };
                let Content::Data { segments, checksums } = &write.content else { continue };
                let mut payload_block = *first;
                for ((_, part), _) in write.parts().zip(segments).filter(|(_, one)| one.class == Class::Logged) {
                    let payload = group.payload.as_ref().expect("counted");
                    for (i, block) in part.blocks().enumerate() {
                        let checksum = checksums[(block - write.range.start) as usize];
                        let volume = write.key.volume;
                        let last = latest.get(&(volume, block)) == Some(&(g, r));
                        let payload = payload.slice((payload_block + i) * BLOCK_BYTES, BLOCK_BYTES);
                        if last
                            && self.map.holds(volume, block, write.slot, checksum)
                            && block_checksum(volume, block, &payload) == checksum
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

    /// Rebuilds the allocators from the map; a granule with two owners means that something is badly wrong.
    fn redo_allocators(&mut self) -> Result<(), OpenError> {
        let wrong = |text: String| Err(OpenError::Inconsistent(text));
        let mut chunks = BTreeSet::new();
        for (slot, chunk) in self.map.iter() {
            let name = (chunk.key.volume, chunk.chunk);
            if !chunks.insert(name) || !self.slots.claim(slot) {
                return wrong(format!("chunk {} of volume {} has two slots", name.1, name.0));
            }
            for granule in chunk.entries.iter().map(|entry| entry.granule).filter(|granule| *granule != NO_GRANULE) {
                if !self.granules.claim(granule) {
                    return wrong(format!("granule {granule} is claimed twice (again by chunk {name:?})"));
                }
            }
        }
        self.map.rebuild_index();
        Ok(())
    }
}

impl crate::map::ChunkMap {
    /// True if the block is in this slot with this checksum.
    fn holds(&self, volume: VolumeId, block: u64, slot: u32, checksum: u32) -> bool {
        let i = block_of_chunk(block);
        self.chunk(slot).is_some_and(|chunk| {
            chunk.key.volume == volume
                && chunk.chunk == block / ashlar_model::units::CHUNK_BLOCKS as u64
                && chunk.entries[i / GRANULE_BLOCKS].valid & (1 << (i % GRANULE_BLOCKS)) != 0
                && chunk.sums[i] == checksum
        })
    }
}
