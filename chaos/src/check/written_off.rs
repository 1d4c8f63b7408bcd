//! A block is written off only when no device of the in-sync set that can answer has its newest content.

use ashlar_model::Stamp;

/// What a device of the in-sync set has of a block: the version that it acknowledged last, and whether its bytes are good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// The machine.
    pub machine: usize,
    /// Version.
    pub stamp: Stamp,
    /// The bytes verify.
    pub good: bool,
}

/// Judges a write-off. `copies` are those of devices that can answer, `newest` is the newest version on any device.
///
/// # Errors
/// If one of them has good bytes of that version.
pub fn check(block: u64, newest: Stamp, copies: &[Copy]) -> Result<(), String> {
    match copies.iter().find(|copy| copy.good && copy.stamp == newest) {
        Some(copy) => Err(format!("block {block} is written off though machine {} has {newest:?} of it", copy.machine)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::Epoch;

    #[test]
    fn a_good_copy_of_the_newest_version_must_not_be_given_up() {
        let stamp = |index| Stamp { epoch: Epoch(2), index };
        let copy = |machine, index, good| Copy { machine, stamp: stamp(index), good };
        assert!(check(7, stamp(5), &[copy(0, 5, false), copy(1, 4, true)]).is_ok());
        assert!(check(7, stamp(5), &[copy(0, 5, false), copy(1, 5, true)]).unwrap_err().contains("machine 1"));
    }
}
