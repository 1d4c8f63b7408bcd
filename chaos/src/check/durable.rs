//! Acknowledged writes survive: what a register holds at the end is not older than any write that was acknowledged.

use super::register::{Kind, Operation};

/// Judges what a register holds at the end (zero for zeroes).
///
/// # Errors
/// The acknowledged write that is lost.
pub fn check(operations: &[Operation], last: u64) -> Result<(), String> {
    // When the write that left this had ended at the latest: never, if it was not answered.
    let writes = operations.iter().filter(|operation| match operation.kind {
        Kind::Write(value) => value == last,
        Kind::Zero => last == 0,
        Kind::Read(_) => false,
    });
    let ends = writes.map(|write| write.end.unwrap_or(u64::MAX));
    let Some(ended) = ends.chain((last == 0).then_some(0)).max() else {
        return Err(format!("the register holds {last}, which nobody wrote"));
    };
    let newer = operations.iter().find(|operation| match operation.kind {
        Kind::Write(value) => value != last && operation.end.is_some() && operation.start > ended,
        Kind::Zero => last != 0 && operation.end.is_some() && operation.start > ended,
        Kind::Read(_) => false,
    });
    match newer {
        Some(lost) => Err(format!("{:?}, acknowledged at {:?}, is lost: {last} is older", lost.kind, lost.end)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: Kind, start: u64, end: Option<u64>) -> Operation {
        Operation { kind, start, end, epoch: 1 }
    }

    #[test]
    fn the_last_acknowledged_write_is_there_or_a_later_one() {
        let first = operation(Kind::Write(1), 1, Some(2));
        let second = operation(Kind::Write(2), 3, Some(4));
        let unanswered = operation(Kind::Write(3), 1, None);
        assert!(check(&[first, second, unanswered], 2).is_ok());
        assert!(check(&[first, second, unanswered], 3).is_ok());
        assert!(check(&[first, second, unanswered], 1).is_err());
        assert!(check(&[first, second, unanswered], 0).is_err());
        assert!(check(&[first, second], 7).is_err());
    }

    #[test]
    fn a_zeroing_is_a_write() {
        let first = operation(Kind::Write(1), 1, Some(2));
        let zero = operation(Kind::Zero, 3, Some(4));
        assert!(check(&[first, zero], 0).is_ok());
        assert!(check(&[first, zero], 1).is_err());
        assert!(check(&[], 0).is_ok());
    }

    #[test]
    fn either_of_two_at_the_same_time_may_be_last() {
        let both = [operation(Kind::Write(1), 1, Some(4)), operation(Kind::Write(2), 2, Some(3))];
        assert!(check(&both, 1).is_ok() && check(&both, 2).is_ok());
    }
}
