//! The ashlar binary: arguments lead to the daemon or to a command, nothing else.

use ashlar::cli::{self, Action};
use ashlar::{config, daemon};
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse() {
        Action::Daemon { config: path, overrides } => match config::load(&path, overrides) {
            Ok(config) => daemon::run(config),
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(2)
            }
        },
        Action::Command(command) => cli::run(*command),
    }
}
