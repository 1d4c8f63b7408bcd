//! How many files and sockets this process may have open.

/// Room for all guests and links of a shard or two, the devices and the control plane.
const WANTED: libc::rlim_t = 16_384;

/// Asks for room for as many descriptors as guests and links may need: most systems start a process with 1024. Without it
/// the last ones are turned away, which the log tells.
pub fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to the place it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 || limit.rlim_cur >= WANTED {
        return;
    }
    limit.rlim_cur = WANTED.min(limit.rlim_max);
    // SAFETY: the kernel reads one `rlimit` from the place it is given.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        tracing::warn!("failed to raise the limit of open files: {}", std::io::Error::last_os_error());
    } else if limit.rlim_cur < WANTED {
        tracing::info!(
            limit = limit.rlim_cur,
            "few files may be open; raise the hard limit (LimitNOFILE) for many guests"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_is_wanted_or_as_much_as_there_is() {
        raise_limit();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        assert!(limit.rlim_cur >= WANTED.min(limit.rlim_max), "{} of {}", limit.rlim_cur, limit.rlim_max);
    }
}
