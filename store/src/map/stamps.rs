//! The newest settled version of each granule of a chunk, packed.
//!
//! It must never give a version that is too old. Too new it may be: that costs a copy of what is the same.

use ashlar_model::units::CHUNK_GRANULES;
use ashlar_model::{Epoch, Stamp};

/// Largest epoch that the map keeps: it has 32 bits in memory.
pub const EPOCH_MAX: u64 = u32::MAX as u64;

/// Bits of an index that each granule has of its own.
const OWN_BITS: u32 = 48;
const OWN: u64 = (1 << OWN_BITS) - 1;

/// Ten bytes for each granule. Indices of a lane ascend, one for each write; what they have above 48 bits is kept once, and
/// when that grows, which next to no lane sees, all versions of the chunk count as the first ones behind the step.
#[derive(Debug)]
pub struct Stamps {
    epochs: [u32; CHUNK_GRANULES],
    low: [u32; CHUNK_GRANULES],
    high: [u16; CHUNK_GRANULES],
    /// What all indices have above their own bits.
    base: u64,
}

impl Default for Stamps {
    fn default() -> Self {
        Self { epochs: [0; CHUNK_GRANULES], low: [0; CHUNK_GRANULES], high: [0; CHUNK_GRANULES], base: 0 }
    }
}

impl Stamps {
    /// A granule's version.
    pub fn get(&self, granule: usize) -> Stamp {
        let own = u64::from(self.high[granule]) << 32 | u64::from(self.low[granule]);
        let epoch = Epoch(u64::from(self.epochs[granule]));
        // None at all has no index either.
        let base = if epoch == Epoch(0) { 0 } else { self.base };
        Stamp { epoch, index: base + own }
    }

    /// Makes a granule's version at least this.
    pub fn raise(&mut self, granule: usize, stamp: Stamp) {
        if stamp <= self.get(granule) {
            return;
        }
        self.epochs[granule] = u32::try_from(stamp.epoch.0).unwrap_or(u32::MAX);
        if self.epochs[granule] == 0 {
            return self.set_own(granule, stamp.index.min(OWN));
        }
        if stamp.index & !OWN > self.base {
            self.base = stamp.index & !OWN;
            for other in (0..CHUNK_GRANULES).filter(|one| self.epochs[*one] != 0) {
                (self.low[other], self.high[other]) = (0, 0);
            }
        }
        self.set_own(granule, stamp.index.saturating_sub(self.base));
    }

    fn set_own(&mut self, granule: usize, own: u64) {
        (self.low[granule], self.high[granule]) = (own as u32, (own >> 32) as u16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never older than the newest that came, and exactly that while indices have 48 bits.
        #[test]
        fn no_version_is_too_old(steps in proptest::collection::vec((0..4usize, 0u64..4, 0u64..1 << 20, 40u32..54), 1..60)) {
            let (mut stamps, mut naive, mut large) = (Stamps::default(), [Stamp::default(); 4], false);
            for (granule, epoch, index, shift) in steps {
                let stamp = Stamp { epoch: Epoch(epoch), index: index << shift >> 12 };
                large |= stamp.index > OWN;
                naive[granule] = naive[granule].max(stamp);
                stamps.raise(granule, stamp);
                for (i, newest) in naive.iter().enumerate() {
                    let found = stamps.get(i);
                    prop_assert!(found.epoch == newest.epoch);
                    prop_assert!(found.index >= newest.index || newest.epoch == Epoch(0), "{:?} for {:?}", found, newest);
                    prop_assert!(large || found == *newest);
                }
            }
        }
    }
}
