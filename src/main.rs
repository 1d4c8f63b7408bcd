//! The ashlar binary: arguments lead to the daemon or to a command, nothing else.

use ashlar::cli::{self, Action};
use ashlar::{config, daemon};
use std::ffi::{c_int, c_long};
use std::process::ExitCode;

/// Small allocations cost the data plane a third of what the system's allocator takes for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Free memory goes back to the system after this, instead of after a second: under load it is soon used again, and each
/// huge page would be zeroed and mapped once more.
const PURGE_DELAY_MS: c_long = 60_000;
/// The allocator's number for that delay (mimalloc.h: `mi_option_purge_delay`).
const OPTION_PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    /// Sets an option that the environment has not set (here `MIMALLOC_PURGE_DELAY`).
    fn mi_option_set_default(option: c_int, value: c_long);
    #[cfg(test)]
    fn mi_option_get(option: c_int) -> c_long;
}

fn keep_free_memory_for_a_while() {
    // SAFETY: the allocator is linked into this program, the call takes no pointers, and no other thread runs yet.
    unsafe { mi_option_set_default(OPTION_PURGE_DELAY, PURGE_DELAY_MS) };
}

fn main() -> ExitCode {
    keep_free_memory_for_a_while();
    match cli::parse() {
        Action::Daemon { config: path, overrides } => match config::load(&path, overrides) {
            Ok(config) => daemon::run(config),
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(2)
            }
        },
        Action::Offline(offline) => match config::load(&offline.config, offline.overrides) {
            Ok(config) => daemon::restore::run(&config, &offline.task),
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(2)
            }
        },
        Action::Command(command) => cli::run(*command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_kept_for_a_while() {
        // SAFETY: no pointers; this is the only test of this program, so nobody else reads or sets options.
        let delay = || unsafe { mi_option_get(OPTION_PURGE_DELAY) };
        assert_eq!(delay(), 1000, "the allocator's own: it is the option that is meant");
        keep_free_memory_for_a_while();
        assert_eq!(delay(), PURGE_DELAY_MS);
    }
}
