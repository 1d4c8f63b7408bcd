//! Rare branches that every batch of some size must take: a batch that misses one proves little.

use std::collections::BTreeMap;

/// Seeds from which on a batch must have every mark.
pub const SEEDS_MIN: u64 = 400;

/// The marks.
pub const REQUIRED: &[&str] = &[
    "a block is overwritten beside its old content",
    "a copy is sent again",
    "a joiner cannot keep up",
    "a late read is asked elsewhere",
    "a lost read is asked again",
    "a member is ejected",
    "a recovery fetch is late",
    "recovery leaves out a member",
    "a restored lane goes on without a stale device",
    "sim: a device has freed what had left it",
    "sim: a move of lanes is taken back",
    "sim: a write was lost or misdirected",
    "sim: an operator disregards a device",
    "sim: device replaced",
    "sim: every copy of a block is damaged",
    "sim: healed",
    "sim: lanes move",
    "sim: metadata of a store rots",
    "sim: metadata restored",
    "sim: silent link given up",
    "writes are sent again",
];

/// Marks that a batch lacks.
pub fn missing(seeds: u64, marks: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    let required = REQUIRED.iter().filter(|_| seeds >= SEEDS_MIN);
    required.filter(|mark| !marks.contains_key(**mark)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_must_have_every_mark() {
        let mut marks: BTreeMap<&'static str, u64> = REQUIRED.iter().map(|mark| (*mark, 1)).collect();
        assert!(missing(SEEDS_MIN, &marks).is_empty());
        marks.remove(REQUIRED[0]);
        assert_eq!(missing(SEEDS_MIN, &marks), [REQUIRED[0]]);
        assert!(missing(SEEDS_MIN - 1, &marks).is_empty());
    }
}
