//! No read of a lane completes in an epoch after a later epoch has first answered a guest about that lane (rules W7, W13
//! and W14). The later one may serve other lanes before: those whose members it has sealed.
//!
//! A new writer answers nothing before every older read grant has run out, so this holds whatever the bytes are: a
//! read that breaks it saw stale data or was lucky. Late acknowledgements of writes that a quorum has are allowed (Z2).

use super::register::FirstServed;

/// Judges one answer to a guest.
///
/// # Errors
/// If a fenced writer completed a read.
pub fn check(first_served: &FirstServed, epoch: u64, is_read: bool, at: u64) -> Result<(), String> {
    match first_served.range(epoch + 1..).next() {
        Some((later, since)) if is_read => Err(format!(
            "a read completed at {at} in epoch {epoch}, though epoch {later} has answered guests since {since}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fenced_writer_may_acknowledge_but_not_read() {
        let first_served = FirstServed::from([(3, 10), (5, 20)]);
        assert!(check(&first_served, 5, true, 25).is_ok());
        assert!(check(&first_served, 6, true, 25).is_ok());
        assert!(check(&first_served, 4, false, 25).is_ok());
        assert!(check(&first_served, 4, true, 25).unwrap_err().contains("epoch 5"));
        assert!(check(&first_served, 3, true, 25).is_err());
    }
}
