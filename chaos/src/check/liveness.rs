//! After faults have stopped, everything is whole again within a bound: one writer serves, every member is in sync,
//! every request is answered, every list is empty and no block is damaged.

/// After faults have stopped, everything is whole again within this, in microseconds.
pub const BOUND_US: u64 = 120_000_000;

/// Judges how long it took; `None`: it is not whole yet.
///
/// # Errors
/// If it took too long, or is taking too long.
pub fn check(whole_after_us: Option<u64>, waited_us: u64) -> Result<(), String> {
    match whole_after_us {
        Some(after_us) if after_us <= BOUND_US => Ok(()),
        None if waited_us < BOUND_US => Ok(()),
        _ => Err(format!("not whole {BOUND_US} us after the last fault")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_fine_within_the_bound() {
        assert!(check(Some(BOUND_US), BOUND_US).is_ok());
        assert!(check(None, BOUND_US - 1).is_ok());
        assert!(check(None, BOUND_US).is_err());
        assert!(check(Some(BOUND_US + 1), BOUND_US + 1).is_err());
    }
}
