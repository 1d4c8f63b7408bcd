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

    /// Words of the bitmap that [`Self::from_words`] reads: a set bit is one in use, except those of `freed`.
    pub fn words_without(&self, freed: impl Iterator<Item = u32>) -> Vec<u64> {
        let mut words = self.words.clone();
        for item in freed {
            words[item as usize / 64] &= !(1 << (item % 64));
        }
        words
    }

    /// Reads a bitmap; `None` if it is not one of `count`.
    pub fn from_words(count: u32, words: Vec<u64>) -> Option<Self> {
        let beyond = if count.is_multiple_of(64) { 0 } else { words.last()? >> (count % 64) };
        let used = words.iter().map(|word| word.count_ones()).sum();
        (words.len() == (count as usize).div_ceil(64) && beyond == 0).then_some(Self { words, count, used, cursor: 0 })
    }

    /// Those in use here and not in `other`.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        let words = self.words.iter().zip(&other.words).enumerate();
        words.flat_map(|(at, (mine, theirs))| {
            let only = mine & !theirs;
            (0..64u32).filter(move |bit| only & 1 << bit != 0).map(move |bit| at as u32 * 64 + bit)
        })
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

    /// True if one is in use.
    pub fn is_used(&self, item: u32) -> bool {
        self.words[item as usize / 64] & (1 << (item % 64)) != 0
    }
}
