//! Bytes that a simulated device has been given for a place.
//!
//! It must never know whether they are durable.

use ashlar_model::Payload;
use std::ops::Range;

/// A write in the device's volatile cache, or still on its way.
#[derive(Clone, Debug)]
pub(super) struct CachedWrite {
    pub offset: usize,
    pub bytes: Vec<u8>,
}

impl CachedWrite {
    pub fn new(offset: u64, parts: &[Payload]) -> Self {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        Self { offset: offset as usize, bytes: parts.concat() }
    }

    pub fn place(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes.len()
    }

    pub fn touches(&self, other: &Self) -> bool {
        self.place().start < other.place().end && other.place().start < self.place().end
    }

    pub fn apply(&self, target: &mut [u8]) {
        target[self.place()].copy_from_slice(&self.bytes);
    }

    /// Applies the aligned units that `keep` chooses; true if some were kept and some were not.
    pub fn tear(&self, target: &mut [u8], unit: usize, mut keep: impl FnMut() -> bool) -> bool {
        let (mut kept, mut dropped) = (false, false);
        let mut at = self.offset;
        while at < self.place().end {
            let end = (at / unit * unit + unit).min(self.place().end);
            if keep() {
                target[at..end].copy_from_slice(&self.bytes[at - self.offset..end - self.offset]);
                kept = true;
            } else {
                dropped = true;
            }
            at = end;
        }
        kept && dropped
    }
}
