//! Replicas are equal: everywhere at and below settled at any time, and altogether when nothing is under way.

use super::content::{Content, Held, LOST};

/// Compares members at and below settled, which `settled_of` gives for a block.
///
/// # Errors
/// A block of which two members hold different settled content.
pub fn at_settled(members: &[(usize, &Content)], settled_of: impl Fn(u64) -> u64) -> Result<(), String> {
    let Some(((first, one), others)) = members.split_first() else { return Ok(()) };
    let blocks = members.iter().flat_map(|(_, content)| content.keys());
    for block in blocks {
        let settled = settled_of(*block);
        // A block that was written off is damaged on the others: there is nothing to compare.
        let says = |held: &Held| held.stamp.index <= settled && held.values != LOST;
        let is_settled = |content: &Content| content.get(block).is_none_or(says);
        // Whoever holds something newer says nothing about what is settled.
        let holders: Vec<_> = [(*first, *one)].into_iter().chain(others.iter().copied()).collect();
        let mut settled_holders = holders.into_iter().filter(|(_, content)| is_settled(content));
        let Some((a, reference)) = settled_holders.next() else { continue };
        let values = |content: &Content| content.get(block).map_or([0, 0], |held| held.values);
        if let Some((b, other)) = settled_holders.find(|(_, content)| values(content) != values(reference)) {
            return Err(format!(
                "devices {a} and {b} differ in block {block}, settled at {settled}: {:?} and {:?}",
                reference.get(block),
                other.get(block)
            ));
        }
    }
    Ok(())
}

/// Compares everything.
///
/// # Errors
/// A block of which two members hold different content.
pub fn altogether(members: &[(usize, &Content)]) -> Result<(), String> {
    at_settled(members, |_| u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::{Epoch, Stamp};

    fn content(blocks: &[(u64, u64, u64)]) -> Content {
        let held = |index, value| Held { stamp: Stamp { epoch: Epoch(1), index }, values: [value, value] };
        blocks.iter().map(|(block, index, value)| (*block, held(*index, *value))).collect()
    }

    #[test]
    fn settled_content_must_be_equal() {
        let (one, other) = (content(&[(1, 5, 50), (2, 6, 60)]), content(&[(1, 5, 50), (2, 6, 61)]));
        let members = [(0, &one), (1, &other)];
        assert!(at_settled(&members, |_| 5).is_ok());
        assert!(at_settled(&members, |_| 6).unwrap_err().contains("block 2"));
        assert!(altogether(&members).is_err());
        assert!(altogether(&members[..1]).is_ok());
    }

    #[test]
    fn a_missing_block_is_zeroes() {
        let (one, other) = (content(&[(1, 5, 0)]), content(&[]));
        assert!(altogether(&[(0, &one), (1, &other)]).is_ok());
        let one = content(&[(1, 5, 9)]);
        assert!(altogether(&[(0, &one), (1, &other)]).is_err());
        assert!(altogether(&[(0, &other), (1, &one)]).is_err());
    }

    #[test]
    fn a_newer_unsettled_write_hides_nothing_else() {
        let (one, newer, bad) = (content(&[(1, 5, 50)]), content(&[(1, 9, 90)]), content(&[(1, 4, 40)]));
        assert!(at_settled(&[(0, &newer), (1, &one)], |_| 5).is_ok());
        assert!(at_settled(&[(0, &newer), (1, &one), (2, &bad)], |_| 5).is_err());
    }
}
