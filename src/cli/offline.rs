//! `ashlar cluster restore` and `recover`: what they are asked for. They work on a data directory, not over HTTP, so the
//! daemon's side carries them out.

use super::client::CliError;
use crate::config::Overrides;
use std::path::PathBuf;

/// Whose data directory.
#[derive(Debug, Clone, clap::Args)]
pub struct OfflineArgs {
    /// Configuration file of the daemon, which must not run (or ASHLAR_CONFIG)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides `data_dir` of the file
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// What is to be done with a data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OfflineTask {
    /// Found a new group with the metadata of a backup.
    Restore {
        /// The backup.
        file: PathBuf,
        /// It is meant.
        yes: bool,
        /// Metadata that is there already is moved aside.
        overwrite: bool,
    },
    /// Found a new group with the metadata that is there.
    Recover {
        /// The other voters are lost, and this is meant.
        sure: bool,
    },
}

/// A task with the daemon's configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offline {
    /// The configuration file.
    pub config: PathBuf,
    /// What flags say.
    pub overrides: Overrides,
    /// What is to be done.
    pub task: OfflineTask,
}

impl OfflineArgs {
    /// The task with its directory.
    ///
    /// # Errors
    /// No configuration file is named.
    pub fn task(self, task: OfflineTask) -> Result<Offline, CliError> {
        let from_environment = || std::env::var_os("ASHLAR_CONFIG").map(PathBuf::from);
        let config = self.config.or_else(from_environment).ok_or_else(|| {
            CliError::usage(
                "no configuration file",
                "the command works on the data directory of a daemon",
                "give the daemon's configuration with --config FILE, or set ASHLAR_CONFIG",
            )
        })?;
        Ok(Offline { config, overrides: Overrides { data_dir: self.data_dir, ..Overrides::default() }, task })
    }
}
