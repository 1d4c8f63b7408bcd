//! `ashlar cluster`: found it, look at it.

use super::Connect;
use super::client::CliError;
use super::output::{OutputArgs, bytes, show, text};
use clap::Subcommand;
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments of `ashlar cluster`.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Found a cluster with the node that is called
    Init {
        /// Name of the cluster
        #[arg(long, default_value = "ashlar")]
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Health, metadata service, nodes, devices, volumes
    Status {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Runs it.
///
/// # Errors
/// What the API says.
pub fn run(args: ClusterArgs) -> Result<(), CliError> {
    match args.command {
        ClusterCommand::Init { name, connect } => {
            let founded = connect.client()?.post("/v1/cluster", &json!({ "name": name }), None)?;
            println!(
                "cluster {name} founded: id {}, node {}",
                text(&founded["cluster_id"]),
                text(&founded["node_name"])
            );
            Ok(())
        }
        ClusterCommand::Status { output, connect } => {
            let client = connect.client()?;
            show(output, || client.get("/v1/cluster"), |value, _| render(value))
        }
    }
}

fn render(value: &Value) -> String {
    let (metadata, nodes, devices, volumes) =
        (&value["metadata"], &value["nodes"], &value["devices"], &value["volumes"]);
    let mut lines = String::new();
    let stale = if value["stale"] == true { " (no quorum: what follows may be old)" } else { "" };
    let _ = writeln!(lines, "cluster   {} {}{stale}", text(&value["name"]), text(&value["id"]));
    let _ = writeln!(lines, "health    {}", text(&value["health"]));
    let _ = writeln!(
        lines,
        "metadata  leader {}, term {}, voters {}",
        text(&metadata["leader"]),
        text(&metadata["term"]),
        text(&metadata["voters"])
    );
    let _ = writeln!(
        lines,
        "nodes     {} up, {} suspect, {} down, {} draining",
        text(&nodes["up"]),
        text(&nodes["suspect"]),
        text(&nodes["down"]),
        text(&nodes["draining"])
    );
    let _ = writeln!(
        lines,
        "devices   {} ({} failed), {} capacity, {} promised",
        text(&devices["total"]),
        text(&devices["failed"]),
        bytes(&devices["capacity_bytes"]),
        bytes(&devices["committed_bytes"])
    );
    let _ = writeln!(
        lines,
        "volumes   {} ({} attached): {} healthy, {} degraded, {} unavailable",
        text(&volumes["total"]),
        text(&volumes["attached"]),
        text(&volumes["healthy"]),
        text(&volumes["degraded"]),
        text(&volumes["unavailable"])
    );
    lines
}
