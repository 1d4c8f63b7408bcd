//! Which unacknowledged writes of the log are torn: they never happened.
//!
//! A write at or below the last group known to have completed is never dropped. It must never apply anything.

use super::recover::Want;
use super::{Mutation, StoreEngine};
use crate::map::block_of_chunk;
use crate::record::{Class, Content, Record, WriteRecord};
use ashlar_model::checksum::block_checksum;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, Payload};
use rustc_hash::{FxHashMap, FxHashSet};

/// A record of the log: (group, record).
pub(super) type At = (usize, usize);

/// The last write of each block of a slot, of those that were not dropped; only if somebody has to know: a write that may
/// be torn, or a block that only the log holds. Any other write just ends what was there before it.
#[derive(Default, Debug)]
pub(super) struct Latest(FxHashMap<u32, FxHashMap<usize, At>>);

impl Latest {
    /// True if the block's last write is this one.
    pub fn is(&self, slot: u32, block: u64, at: At) -> bool {
        self.0.get(&slot).and_then(|blocks| blocks.get(&block_of_chunk(block))) == Some(&at)
    }

    /// Blocks that are remembered.
    #[cfg(any(test, feature = "testing"))]
    pub fn blocks(&self) -> usize {
        self.0.values().map(FxHashMap::len).sum()
    }

    fn set(&mut self, slot: u32, range: BlockRange, at: At) {
        let blocks = self.0.entry(slot).or_default();
        blocks.extend(range.blocks().map(|block| (block_of_chunk(block), at)));
    }

    /// However large the range, the work is no more than what is remembered of the slot.
    fn end(&mut self, slot: u32, range: BlockRange) {
        let Some(blocks) = self.0.get_mut(&slot) else { return };
        let first = block_of_chunk(range.start);
        let gone = first..first + range.count as usize;
        if blocks.len() <= gone.len() {
            blocks.retain(|block, _| !gone.contains(block));
        } else {
            gone.for_each(|block| {
                blocks.remove(&block);
            });
        }
        if blocks.is_empty() {
            self.0.remove(&slot);
        }
    }

    /// Takes a write: `judged` if it may be torn.
    fn add(&mut self, write: &WriteRecord, judged: bool, at: At) {
        match &write.content {
            Content::Held => {}
            Content::Tombstone | Content::Lost => self.end(write.slot, write.range),
            Content::Data { segments, .. } => {
                for ((_, part), segment) in write.parts().zip(segments) {
                    if judged || segment.class == Class::Logged {
                        self.set(write.slot, part, at);
                    } else {
                        self.end(write.slot, part);
                    }
                }
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(&At) -> bool) {
        self.0.retain(|_, blocks| {
            blocks.retain(|_, at| keep(at));
            !blocks.is_empty()
        });
    }
}

impl StoreEngine {
    pub(super) fn redo_start(&mut self) {
        let dropped: FxHashSet<(u64, u32)> = {
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

    fn latest(&mut self) -> Latest {
        let dropped = std::mem::take(&mut self.dropped);
        let ignored = self.broken(Mutation::CompletedIgnored);
        let scan = &self.recovery().scan;
        let groups = &scan.groups;
        let mut latest = Latest::default();
        for (g, group) in groups.iter().enumerate() {
            let judged = group.lsn > scan.completed || ignored;
            for (r, (record, _)) in group.records.iter().enumerate() {
                match record {
                    Record::Write(write) if !dropped.contains(&(group.lsn, r as u32)) => {
                        latest.add(write, judged, (g, r));
                    }
                    Record::Forget(volume) | Record::Release(volume, _) => {
                        latest.retain(|(g, r)| match &groups[*g].records[*r].0 {
                            Record::Write(write) => write.key.volume != *volume,
                            _ => true,
                        })
                    }
                    // Nothing of it was on its way any more.
                    Record::DropLayer { slot, .. } => {
                        latest.0.remove(slot);
                    }
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
                return self.redo_pages(latest);
            }
            for (want, offset, bytes) in reads {
                self.recover_read(want, offset, bytes);
            }
            return;
        }
    }

    /// Torn writes as far as known, and the device reads that are needed to know the rest.
    #[allow(clippy::type_complexity)]
    fn find_torn(&mut self, latest: &Latest) -> (Vec<(u64, u32)>, Vec<(Want, u64, usize)>) {
        let dropped = std::mem::take(&mut self.dropped);
        let (layout, ignored) = (self.sb.layout, self.broken(Mutation::CompletedIgnored));
        let recovery = self.recovery();
        let completed = recovery.scan.completed;
        let (mut torn, mut reads) = (vec![], vec![]);
        for (g, group) in recovery.scan.groups.iter().enumerate().filter(|(_, group)| group.lsn > completed || ignored)
        {
            for (r, (record, first)) in group.records.iter().enumerate() {
                let Record::Write(write) = record else { continue };
                let Content::Data { segments, checksums } = &write.content else { continue };
                if dropped.contains(&(group.lsn, r as u32)) {
                    continue;
                }
                let mut payload_block = *first;
                let mut bad = false;
                for (p, ((_, part), segment)) in write.parts().zip(segments).enumerate() {
                    let needed = |block: &u64| latest.is(write.slot, *block, (g, r));
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
                        let want = Want::Verify { group: g, record: r, part: p, block: None };
                        reads.push((
                            want,
                            layout.block_offset(segment.granule, segment.place_of(part.start)),
                            part.bytes(),
                        ));
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

    pub(super) fn verify_done(&mut self, (group, record): At, part: usize, one: Option<u64>, bytes: Option<Payload>) {
        let layout = self.sb.layout;
        let recovery = self.recovery();
        let Record::Write(write) = &recovery.scan.groups[group].records[record].0 else {
            unreachable!("only writes are verified")
        };
        let Content::Data { segments, checksums } = &write.content else { unreachable!("only data is verified") };
        let (_, whole) = write.parts().nth(part).expect("a part of the write");
        let range = one.map_or(whole, |block| BlockRange::new(block, 1));
        // One block of it may be unreadable, and nobody may need that one: find out which.
        if bytes.is_none() && range.count > 1 {
            let segment = segments[part];
            for block in range.blocks() {
                let want = Want::Verify { group, record, part, block: Some(block) };
                let offset = layout.block_offset(segment.granule, segment.place_of(block));
                self.recover_read(want, offset, BLOCK_BYTES);
            }
            return;
        }
        for (i, block) in range.blocks().enumerate() {
            let sum = checksums[(block - write.range.start) as usize];
            let good = bytes.as_ref().is_some_and(|b| block_checksum(write.key.volume, block, b.block(i)) == sum);
            recovery.verified.insert((group, record, block), good);
        }
        if recovery.reading() == 0 {
            self.redo_verify();
        }
    }
}
