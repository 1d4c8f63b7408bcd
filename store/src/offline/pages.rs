//! What the volume table and the pages it names say: which volumes are here, and how full the device is.
//!
//! All of it is as of the last checkpoint; what the log adds comes with the recovery. It must never guess at a page that
//! does not verify.

use super::map::MetadataMap;
use super::{Finding, Part};
use crate::disk::{self, Superblock};
use crate::layout::PAGE_BYTES;
use crate::map::Chunk;
use crate::table::{DirectoryEntry, TableContent};
use ashlar_model::lane::LaneState;
use ashlar_model::units::{CHUNK_BLOCKS, CHUNK_GRANULES};
use ashlar_model::{Epoch, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// A lane of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneSurvey {
    /// Its number.
    pub lane: u16,
    /// What is kept of it.
    pub state: LaneState,
}

/// A volume's part of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeSurvey {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch promised.
    pub promise: Epoch,
    /// Lanes, in order.
    pub lanes: Vec<LaneSurvey>,
    /// Chunks with data or holes.
    pub chunks: u64,
    /// Slots: one per chunk and snapshot generation that wrote it.
    pub slots: u64,
    /// Granules.
    pub granules: u64,
    /// Blocks with data.
    pub blocks: u64,
    /// Blocks whose content is known to be lost, and those of damaged pages.
    pub unknown_blocks: u64,
}

/// How full a device is, and with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Volumes, in order.
    pub volumes: Vec<VolumeSurvey>,
    /// Slots in use.
    pub slots_used: u64,
    /// Granules marked as in use.
    pub granules_used: u64,
    /// Free granules in a row, at most.
    pub free_run: u64,
}

/// Reads the pages that the table names.
pub(super) fn survey(
    map: &MetadataMap<'_>,
    sb: &Superblock,
    content: &TableContent,
    findings: &mut Vec<Finding>,
) -> Usage {
    let mut volumes: BTreeMap<VolumeId, VolumeSurvey> = BTreeMap::new();
    for (volume, promise) in content.table.promises() {
        volume_of(&mut volumes, volume).promise = promise;
    }
    for (key, state) in content.table.lanes() {
        volume_of(&mut volumes, key.volume).lanes.push(LaneSurvey { lane: key.lane, state: state.clone() });
    }
    let mut chunks = BTreeSet::new();
    let mut directory: Vec<&DirectoryEntry> = content.directory.iter().collect();
    directory.sort_unstable_by_key(|entry| entry.slot);
    for entry in directory {
        let volume = volume_of(&mut volumes, entry.key.volume);
        volume.slots += 1;
        volume.chunks += u64::from(chunks.insert((entry.key.volume, entry.chunk)));
        match map_page(map, sb, entry) {
            Ok(chunk) => {
                count(volume, &chunk);
                findings.extend(checksum_page(map, sb, entry, &chunk));
            }
            Err(finding) => {
                volume.unknown_blocks += CHUNK_BLOCKS as u64;
                findings.push(finding);
            }
        }
    }
    Usage {
        volumes: volumes.into_values().collect(),
        slots_used: content.directory.len() as u64,
        granules_used: content.granules.iter().map(|word| u64::from(word.count_ones())).sum(),
        free_run: free_run(&content.granules, sb.layout.granule_count),
    }
}

fn volume_of(volumes: &mut BTreeMap<VolumeId, VolumeSurvey>, volume: VolumeId) -> &mut VolumeSurvey {
    volumes.entry(volume).or_insert_with(|| VolumeSurvey {
        volume,
        promise: Epoch(0),
        lanes: vec![],
        chunks: 0,
        slots: 0,
        granules: 0,
        blocks: 0,
        unknown_blocks: 0,
    })
}

fn count(volume: &mut VolumeSurvey, chunk: &Chunk) {
    volume.granules += chunk.granules().count() as u64;
    for granule in 0..CHUNK_GRANULES {
        volume.blocks += u64::from(chunk.valid(granule).count_ones());
        volume.unknown_blocks += u64::from(chunk.unknown(granule).count_ones());
    }
}

fn name(entry: &DirectoryEntry) -> String {
    format!("slot {}, chunk {} of volume {}", entry.slot, entry.chunk, entry.key.volume)
}

fn map_page(map: &MetadataMap<'_>, sb: &Superblock, entry: &DirectoryEntry) -> Result<Box<Chunk>, Finding> {
    let offset = sb.layout.slot_offset(entry.slot, entry.half);
    let damaged = |why: String| {
        let text = format!("{}: {why}; the content of its {CHUNK_BLOCKS} blocks is unknown", name(entry));
        Finding::damage(Part::MapPage, offset, text)
    };
    let page = map.page(offset).map_err(|error| damaged(error.to_string()))?;
    if disk::open_map_page(sb.device, offset, entry.slot, page).is_none() {
        return Err(damaged("does not verify".into()));
    }
    let other = || damaged(format!("is not the page that checkpoint {} wrote: a lost write", entry.as_of));
    Chunk::decode(sb.device, &sb.layout, entry, page).map_err(|_| other())
}

fn checksum_page(map: &MetadataMap<'_>, sb: &Superblock, entry: &DirectoryEntry, chunk: &Chunk) -> Option<Finding> {
    let offset = sb.layout.slot_offset(entry.slot, entry.half) + PAGE_BYTES;
    let why = match map.page(offset) {
        Ok(page) if disk::sums_checksum(sb.device, offset, page) == chunk.sums_checksum => return None,
        Ok(_) => "does not verify".to_owned(),
        Err(error) => error.to_string(),
    };
    let text = format!("{}: {why}; the content of its blocks is unknown", name(entry));
    Some(Finding::damage(Part::ChecksumPage, offset, text))
}

/// Free granules in a row, at most.
fn free_run(words: &[u64], count: u32) -> u64 {
    let (mut run, mut best) = (0, 0);
    for granule in 0..count {
        let used = words.get(granule as usize / 64).is_none_or(|word| word & 1 << (granule % 64) != 0);
        run = if used { 0 } else { run + 1 };
        best = best.max(run);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_crosses_words() {
        let mut words = vec![u64::MAX, u64::MAX];
        assert_eq!(free_run(&words, 128), 0);
        words[0] &= !(0b111 << 61);
        words[1] &= !0b11;
        words[0] &= !(0b1111 << 3);
        assert_eq!(free_run(&words, 128), 5);
        assert_eq!(free_run(&[0, 0], 100), 100);
    }
}
