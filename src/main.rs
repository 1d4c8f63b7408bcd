//! The ashlar binary: arguments lead to the daemon or to a command, nothing else.

use ashlar::cli::{self, Action};
use ashlar::{config, daemon};
use std::process::ExitCode;

/// Small allocations cost the data plane a third of what the system's allocator takes for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
