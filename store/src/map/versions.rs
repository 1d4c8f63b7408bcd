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

    /// The newest version listed for a block, up to a generation.
    pub fn newest(&self, volume: VolumeId, chunk: u64, block: u64, generation: u32) -> Option<Stamp> {
        let seen = |one: &&Version| one.range.contains(block) && one.generation <= generation;
        self.0.get(&(volume, chunk))?.iter().filter(seen).map(|one| one.stamp).max()
    }
}
