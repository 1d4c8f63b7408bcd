//! `ashlar completion`: generated from the command definitions.

use super::Cli;
use super::client::CliError;
use clap::CommandFactory;

/// Arguments of `ashlar completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Writes the script to stdout.
///
/// # Errors
/// None; the signature is that of every command.
pub fn run(args: &CompletionArgs) -> Result<(), CliError> {
    clap_complete::generate(args.shell, &mut Cli::command(), "ashlar", &mut std::io::stdout());
    Ok(())
}
