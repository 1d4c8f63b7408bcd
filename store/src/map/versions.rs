//! Versions of recent writes: those that a lane's list names, per chunk.
//!
//! It must never know what the writes wrote.

use ashlar_model::lane::ListEntry;
use ashlar_model::{BlockRange, Stamp, VolumeId};
use rustc_hash::FxHashMap;

/// Listed versions per chunk.
#[derive(Debug, Default)]
pub struct Versions(FxHashMap<(VolumeId, u64), Vec<Version>>);

#[derive(PartialEq, Eq, Debug)]
struct Version {
    stamp: Stamp,
    range: BlockRange,
    generation: u32,
}

impl Versions {
    /// Remembers a listed version.
    pub fn add(&mut self, volume: VolumeId, stamp: Stamp, range: BlockRange, generation: u32) {
        self.0.entry((volume, range.chunk())).or_default().push(Version { stamp, range, generation });
    }

    /// An entry left its list.
    pub fn remove(&mut self, volume: VolumeId, entry: &ListEntry) {
        let place = (volume, entry.range.chunk());
        let Some(listed) = self.0.get_mut(&place) else { return };
        if let Some(i) = listed.iter().position(|one| (one.stamp, one.range) == (entry.stamp, entry.range)) {
            listed.swap_remove(i);
        }
        if listed.is_empty() {
            self.0.remove(&place);
        }
    }

    /// Forgets a volume.
    pub fn forget(&mut self, volume: VolumeId) {
        self.0.retain(|(owner, _), _| *owner != volume);
    }

    /// The newest version listed for each block of a range within a chunk, up to a generation; zero if there is none.
    pub fn newest(&self, volume: VolumeId, range: BlockRange, generation: u32) -> Vec<Stamp> {
        let mut stamps = vec![Stamp::default(); range.count as usize];
        let listed = self.0.get(&(volume, range.chunk())).into_iter().flatten();
        for one in listed.filter(|one| one.generation <= generation) {
            let Some(common) = one.range.intersection(range) else { continue };
            let first = (common.start - range.start) as usize;
            for stamp in &mut stamps[first..first + common.count as usize] {
                *stamp = (*stamp).max(one.stamp);
            }
        }
        stamps
    }
}
