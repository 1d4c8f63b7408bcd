//! The command line. One file per command.
//!
//! Invariant: it is an HTTP client like any other; only `dev` also starts and stops daemons, and `store` reads devices
//! that no daemon uses. `cluster restore` and `recover`, which write a data directory, are passed on.

mod client;
mod cluster;
mod completion;
mod dev;
mod device;
mod doctor;
mod emptying;
mod nbd;
mod node;
mod offline;
mod operation;
mod output;
mod placement;
mod store;
mod volume;
mod watch;
mod yaml;

pub use offline::{Offline, OfflineTask};

use crate::config::Overrides;
use clap::{Parser, Subcommand};
use client::{ApiClient, CliError};
use std::path::PathBuf;
use std::process::ExitCode;

/// Ashlar: replicated block storage. One binary: daemon, command line, and a whole cluster for trying it out.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A whole cluster on this machine, for development and for trying things out
    Dev(dev::DevArgs),
    /// Run the daemon, or look at nodes
    Node(node::NodeArgs),
    /// The cluster as a whole
    Cluster(cluster::ClusterArgs),
    /// Devices that keep replicas
    Device(device::DeviceArgs),
    /// Volumes
    Volume(volume::VolumeArgs),
    /// Where replicas are and why, and what would happen if
    Placement(placement::PlacementArgs),
    /// What is wrong, what the cluster does about it, and what you could do
    Doctor(doctor::DoctorArgs),
    /// Long work: members that come back or are replaced, nodes and devices that are emptied
    Operation(operation::OperationArgs),
    /// What is on a device, and whether it is intact, without a daemon
    Store(store::StoreArgs),
    /// NBD without a cluster: serve a file
    Nbd(nbd::NbdArgs),
    /// Completion for a shell: `ashlar completion bash > /etc/bash_completion.d/ashlar`
    Completion(completion::CompletionArgs),
}

/// Where a command calls.
#[derive(Debug, Clone, clap::Args)]
pub struct Connect {
    /// API of any node of the cluster
    #[arg(long, env = "ASHLAR_ENDPOINT", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    endpoint: String,
}

impl Connect {
    fn client(&self) -> Result<ApiClient, CliError> {
        ApiClient::new(&self.endpoint)
    }
}

/// What the arguments ask for.
pub enum Action {
    /// Run the daemon with this configuration file.
    Daemon {
        /// The file.
        config: PathBuf,
        /// Flags and environment.
        overrides: Overrides,
    },
    /// Do something with a data directory that no daemon uses.
    Offline(Offline),
    /// Run a command.
    Command(Box<Command>),
}

/// Reads the arguments; ends the process with usage where they are wrong.
pub fn parse() -> Action {
    let command = Cli::parse().command;
    match command {
        Command::Node(args) if args.command.is_none() => match args.daemon() {
            Ok((config, overrides)) => Action::Daemon { config, overrides },
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(i32::from(error.exit));
            }
        },
        Command::Cluster(args) => match args.offline() {
            Ok(Some(offline)) => Action::Offline(offline),
            Ok(None) => Action::Command(Box::new(Command::Cluster(args))),
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(i32::from(error.exit));
            }
        },
        other => Action::Command(Box::new(other)),
    }
}

/// Runs a command and returns its exit code.
pub fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Dev(args) => dev::run(args),
        Command::Node(args) => node::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Device(args) => device::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Placement(args) => placement::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Operation(args) => operation::run(args),
        Command::Store(args) => store::run(args),
        Command::Nbd(args) => nbd::run(args),
        Command::Completion(args) => completion::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_lines_parse() {
        for line in [
            "ashlar dev",
            "ashlar dev --dir /d --nodes 4 --replicas 2 --volume v --size 1GiB --device-size 2GiB --detach",
            "ashlar dev --power-loss-protected true --atomic-writes true --roles disaggregated --zones 2 --fresh --yes --lanes 8",
            "ashlar dev --atomic-writes --detach",
            "ashlar dev stop --dir /d",
            "ashlar dev kill n1 --dir /d",
            "ashlar dev start n1 --dir /d",
            "ashlar dev status --dir /d -o json",
            "ashlar node --config /etc/ashlar.toml",
            "ashlar node list -o wide",
            "ashlar node join --endpoint http://10.0.0.7:7070",
            "ashlar cluster init --name test",
            "ashlar cluster status --watch",
            "ashlar cluster backup cluster.backup",
            "ashlar cluster restore cluster.backup --config /etc/ashlar.toml --overwrite --yes",
            "ashlar cluster recover --data-dir /d --config /etc/ashlar.toml --yes-i-know-that-other-voters-are-lost",
            "ashlar device disregard 71204b52 --yes",
            "ashlar device disregard 71204b52 --volume v --lane 3 --yes",
            "ashlar device add /dev/nvme0n1 --power-loss-protected --atomic-writes --class nvme",
            "ashlar volume create v --size 10GiB --replicas 2 --spread zone:soft --locality prefer --quorum all",
            "ashlar volume create v --size 10GiB --min-in-sync 2",
            "ashlar volume create v --size 10GiB --locality require --on n1",
            "ashlar volume create v --size 10GiB --attach-node n1",
            "ashlar device replace 71204b52 9a3f --volume v --yes",
            "ashlar volume delete v --yes --force",
            "ashlar volume resize v --size 2TiB --force",
            "ashlar volume attach v --takeover",
            "ashlar volume eject v 71204b52",
            "ashlar volume show v -o json",
            "ashlar nbd serve disk.img --socket /run/nbd.sock --name disk --read-only",
            "ashlar nbd serve disk.img --stdio",
            "ashlar operation list -o wide",
            "ashlar volume list --watch -o json",
            "ashlar operation show rejoin-v-71204b52 --watch",
            "ashlar device retire 71204b52 --yes --detach",
            "ashlar device resume 71204b52",
            "ashlar device remove 71204b52 --yes",
            "ashlar node drain n3 --dry-run --force",
            "ashlar node resume n3",
            "ashlar node remove n3 --yes",
            "ashlar placement explain v -o json",
            "ashlar placement what-if --lose n3 --drain n4 --add n5:4TiB --add n6:1TiB:nvme --label n2:zone=b",
            "ashlar doctor",
            "ashlar operation wait replace-v-71204b52 --timeout 600",
            "ashlar operation cancel replace-v-71204b52",
            "ashlar store inspect /dev/nvme0n1 -o json",
            "ashlar store check device.img -o wide",
            "ashlar completion bash",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in ["ashlar volume create v --size 10gib", "ashlar volume create v", "ashlar dev --roles x"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
