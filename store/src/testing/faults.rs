//! Which faults a simulated device has, how often, where, and how often they have bitten.
//!
//! It must never know what a fault does: that is the device's.

use super::Prng;
use std::ops::Range;

/// Faults by chance: each strikes once in so many operations, zero is never. None by default.
///
/// A fault that is off draws nothing from the device's randomness: a run without faults stays the same run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Faults {
    /// A write is acknowledged and never applied.
    pub lose_one_in: u64,
    /// A write is acknowledged and applied at another aligned place; its own keeps the old bytes.
    pub misdirect_one_in: u64,
    /// A write is applied a second time, later: over the first newer write that touches it, if that comes before the
    /// next flush.
    pub duplicate_one_in: u64,
    /// An operation stays pending until [`Faults::slow_by`] others have completed, or nothing else is left to do.
    pub slow_one_in: u64,
    /// How many others overtake a slow operation.
    pub slow_by: u64,
    /// An operation never completes, until `SimDevice::release_stuck`.
    pub stick_one_in: u64,
    /// A read finds that one of its pages has become unreadable, until that page is written.
    pub unreadable_one_in: u64,
    /// A read finds that one of its bits has flipped, for good.
    pub rot_one_in: u64,
    /// Only operations that lie inside this range of bytes are struck, and misdirected writes stay inside it. Flushes
    /// lie nowhere, and are spared then.
    pub only: Option<Range<u64>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            lose_one_in: 0,
            misdirect_one_in: 0,
            duplicate_one_in: 0,
            slow_one_in: 0,
            slow_by: 8,
            stick_one_in: 0,
            unreadable_one_in: 0,
            rot_one_in: 0,
            only: None,
        }
    }
}

impl Faults {
    /// Whether an operation on these bytes (`None`: a flush) may be struck.
    pub(super) fn cover(&self, range: Option<&Range<u64>>) -> bool {
        match (&self.only, range) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(only), Some(range)) => only.start <= range.start && range.end <= only.end,
        }
    }
}

/// True once in `one_in` times; never, and without a draw, if that is zero.
pub(super) fn strikes(prng: &mut Prng, one_in: u64) -> bool {
    one_in != 0 && prng.one_in(one_in)
}

/// How often each fault has bitten, since the device was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultCounts {
    /// Writes of which a power cut kept a part.
    pub torn: u64,
    /// Writes that were acknowledged and not applied.
    pub lost: u64,
    /// Writes that were applied elsewhere.
    pub misdirected: u64,
    /// Stale copies of a write that overwrote a newer one.
    pub duplicated: u64,
    /// Operations that others overtook until `slow_by` was reached.
    pub slowed: u64,
    /// Operations that got stuck.
    pub stuck: u64,
    /// Reads that failed because of an unreadable page.
    pub unreadable: u64,
    /// Bits flipped, by chance and by `SimDevice::flip_bit`.
    pub rotten: u64,
    /// Writes refused for lack of space.
    pub full: u64,
    /// Reads failed by the switch.
    pub read_errors: u64,
    /// Writes failed by the switch.
    pub write_errors: u64,
    /// Flushes failed by the switch.
    pub flush_errors: u64,
    /// Discards carried out. No fault, but the bytes are gone.
    pub discards: u64,
}
