//! Every acknowledged write that was not overwritten is durable on a quorum of the recorded set (I1).

use super::content::Content;
use ashlar_model::Stamp;

/// Judges one register: `newest` is the newest version under which an acknowledged value is known to be durable
/// somewhere. A member that has this or a newer version of the block has the write.
///
/// # Errors
/// If fewer than `quorum` members have it.
pub fn check(members: &[(usize, &Content)], block: u64, newest: Stamp, quorum: usize) -> Result<(), String> {
    let has = |content: &Content| content.get(&block).is_some_and(|held| held.stamp >= newest);
    let holders = members.iter().filter(|(_, content)| has(content)).count();
    if holders >= quorum {
        return Ok(());
    }
    let held: Vec<_> = members.iter().map(|(device, content)| (device, content.get(&block))).collect();
    Err(format!("an acknowledged write of block {block} ({newest:?}) is on {holders} of {quorum} members: {held:?}"))
}

#[cfg(test)]
mod tests {
    use super::super::content::Held;
    use super::*;
    use ashlar_model::Epoch;

    #[test]
    fn a_quorum_must_have_it_or_something_newer() {
        let stamp = |epoch, index| Stamp { epoch: Epoch(epoch), index };
        let at = |stamp| Content::from([(1, Held { stamp, values: [0, 0] })]);
        let (old, same, newer) = (at(stamp(1, 9)), at(stamp(2, 3)), at(stamp(2, 7)));
        let members = [(0, &old), (1, &same), (2, &newer)];
        assert!(check(&members, 1, stamp(2, 3), 2).is_ok());
        assert!(check(&members, 1, stamp(2, 3), 3).is_err());
        assert!(check(&members, 2, stamp(1, 1), 1).is_err());
    }
}
