//! The recorded in-sync set is never empty (I7) and holds wanted members only, each once.

/// Judges one lane's set.
///
/// # Errors
/// What is wrong with it.
pub fn check<D: PartialEq + std::fmt::Debug>(lane: u16, in_sync: &[D], members_max: usize) -> Result<(), String> {
    if in_sync.is_empty() {
        return Err(format!("the in-sync set of lane {lane} is empty"));
    }
    if in_sync.len() > members_max {
        return Err(format!("the in-sync set of lane {lane} has more than {members_max} members: {in_sync:?}"));
    }
    let twice = |(i, device)| in_sync[..i].contains(device);
    if in_sync.iter().enumerate().any(twice) {
        return Err(format!("the in-sync set of lane {lane} names a device twice: {in_sync:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_one_to_three_different_members() {
        assert!(check(0, &[7, 8, 9], 3).is_ok());
        assert!(check::<u64>(0, &[], 3).is_err());
        assert!(check(0, &[7, 8, 7], 3).is_err());
        assert!(check(0, &[7, 8, 9, 10], 3).is_err());
    }
}
