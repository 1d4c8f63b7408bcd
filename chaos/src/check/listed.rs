//! The list invariant (I4): what a member holds above settled is in its list, with that stamp.

use super::content::Content;
use ashlar_model::lane::ListEntry;

/// Judges one member's lane; `content` has the lane's blocks only.
///
/// # Errors
/// A block that no entry names.
pub fn check(content: &Content, list: &[ListEntry], settled: u64) -> Result<(), String> {
    for (block, held) in content.iter().filter(|(_, held)| held.stamp.index > settled) {
        if !list.iter().any(|entry| entry.stamp == held.stamp && entry.range.contains(*block)) {
            return Err(format!("block {block} is held at {:?}, above settled {settled}, and not listed", held.stamp));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::content::Held;
    use super::*;
    use ashlar_model::lane::EntryOrigin;
    use ashlar_model::{BlockRange, Epoch, Stamp};

    #[test]
    fn unsettled_blocks_must_be_listed_with_their_stamp() {
        let stamp = |index| Stamp { epoch: Epoch(2), index };
        let entry = |index, block| ListEntry {
            stamp: stamp(index),
            range: BlockRange::new(block, 2),
            tombstone: false,
            origin: EntryOrigin::Live,
            generation: 0,
        };
        let content = Content::from([(4, Held { stamp: stamp(9), values: [1, 1] })]);
        assert!(check(&content, &[entry(9, 3)], 8).is_ok());
        assert!(check(&content, &[], 9).is_ok());
        assert!(check(&content, &[], 8).is_err());
        assert!(check(&content, &[entry(8, 3)], 8).is_err());
        assert!(check(&content, &[entry(9, 5)], 8).is_err());
    }
}
