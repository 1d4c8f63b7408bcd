//! Writes that a device acknowledges and does not carry out, or carries out elsewhere, and cannot be held to yet.
//!
//! A lie that a crash uncovers before later commits have proved the write looks like a torn write, and no store can tell
//! the two apart. So what a lie has spoiled is remembered: the device can still make it good, until it is convicted.

use crate::layout::PAGE_BYTES;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// What a device lies about.
#[derive(Debug, Default)]
pub struct Lies {
    /// So many of the next writes inside `within` are lies.
    pub count: u64,
    /// Where writes are struck, in bytes.
    pub within: Range<u64>,
    /// Offsets where they land instead, the last one first. With none left, or no room there, they are lost.
    pub to: Vec<u64>,
    /// Pages as they should be, by offset.
    owed: BTreeMap<usize, Vec<u8>>,
}

impl Lies {
    /// Pages that are not as they should be.
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Nothing will make the lies good any more.
    pub fn convict(&mut self) {
        self.owed.clear();
    }

    /// A write is about to land: false if it does, otherwise it is acknowledged and that is all, or it lands elsewhere.
    pub(super) fn tell(&mut self, offset: usize, bytes: &[u8], view: &mut [u8], media: &mut [u8]) -> bool {
        let range = offset as u64..(offset + bytes.len()) as u64;
        if self.count == 0 || range.start < self.within.start || range.end > self.within.end {
            self.overwritten(offset, bytes.len());
            return false;
        }
        self.count -= 1;
        for (at, page) in (offset..).step_by(PAGE_BYTES as usize).zip(bytes.chunks(PAGE_BYTES as usize)) {
            self.owed.insert(at, page.to_vec());
        }
        let fits = |to: &u64| {
            let end = to + bytes.len() as u64;
            end <= self.within.end && (end <= range.start || *to >= range.end)
        };
        let Some(to) = self.to.pop().filter(fits) else { return true };
        let place = to as usize..to as usize + bytes.len();
        for at in place.clone().step_by(PAGE_BYTES as usize) {
            self.owed.entry(at).or_insert_with(|| view[at..at + PAGE_BYTES as usize].to_vec());
        }
        view[place.clone()].copy_from_slice(bytes);
        media[place].copy_from_slice(bytes);
        true
    }

    /// What lies spoiled has been written anew.
    pub(super) fn overwritten(&mut self, offset: usize, bytes: usize) {
        if !self.owed.is_empty() {
            self.owed.retain(|at, _| *at < offset || *at >= offset + bytes);
        }
    }

    /// Everything turns up after all, also where a sector could not be read: the write would have mended that.
    pub(super) fn make_good(&mut self, view: &mut [u8], media: &mut [u8], unreadable: &mut HashSet<u64>) {
        self.count = 0;
        for (at, bytes) in std::mem::take(&mut self.owed) {
            unreadable.remove(&(at as u64));
            view[at..at + bytes.len()].copy_from_slice(&bytes);
            media[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}
