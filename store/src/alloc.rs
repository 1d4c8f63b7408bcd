//! Which granules are free: one bit each, and a cursor that keeps sequential writes together.
//!
//! It must never know what a granule holds.

/// The allocator.
#[derive(Debug, Default)]
pub struct Allocator {
    words: Vec<u64>,
    count: u32,
    used: u32,
    cursor: u32,
}

impl Allocator {
    /// All of `count` are free.
    pub fn new(count: u32) -> Self {
        Self { words: vec![0; (count as usize).div_ceil(64)], count, used: 0, cursor: 0 }
    }

    /// Number in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Number in all.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Marks one as used; `false` if it was used or does not exist.
    pub fn claim(&mut self, item: u32) -> bool {
        if item >= self.count || self.is_used(item) {
            return false;
        }
        self.words[item as usize / 64] |= 1 << (item % 64);
        self.used += 1;
        true
    }

    /// Frees a used one.
    pub fn release(&mut self, item: u32) {
        assert!(item < self.count && self.is_used(item), "release of {item}, which is free");
        self.words[item as usize / 64] &= !(1 << (item % 64));
        self.used -= 1;
    }

    /// Takes a free one: `hint` if it is free, else the next after the last one taken.
    pub fn take(&mut self, hint: Option<u32>) -> Option<u32> {
        if let Some(hint) = hint
            && self.claim(hint)
        {
            self.cursor = hint;
            return Some(hint);
        }
        if self.used == self.count {
            return None;
        }
        let start = self.cursor as usize / 64;
        let words = self.words.len();
        for i in 0..=words {
            let word = (start + i) % words;
            let free = !self.words[word];
            if free != 0 {
                let item = word as u32 * 64 + free.trailing_zeros();
                if self.claim(item) {
                    self.cursor = item;
                    return Some(item);
                }
            }
        }
        None
    }

    fn is_used(&self, item: u32) -> bool {
        self.words[item as usize / 64] & (1 << (item % 64)) != 0
    }
}
