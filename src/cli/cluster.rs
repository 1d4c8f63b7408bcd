//! `ashlar cluster`: found it, look at it, change its settings.

use super::Connect;
use super::client::{CliError, path_segment};
use super::output::{Column, OutputArgs, bytes, items, show, table, text};
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
    /// Settings, each with its default and its range
    Get {
        /// Only this one
        key: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Change a setting
    Set {
        /// Its key, as `ashlar cluster get` lists it
        key: String,
        /// Its value, in the unit that the key ends in
        value: u64,
        #[command(flatten)]
        connect: Connect,
    },
}

const SETTINGS: &[Column] = &[
    Column::new("KEY", |item| text(&item["key"])),
    Column::new("VALUE", |item| text(&item["value"])),
    Column::new("DEFAULT", |item| text(&item["default"])),
    Column::new("FROM", |item| text(&item["min"])),
    Column::new("TO", |item| text(&item["max"])),
    Column::wide("WHEN TO CHANGE IT", |item| text(&item["reason"])),
];

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
        ClusterCommand::Get { key, output, connect } => {
            let client = connect.client()?;
            let read = || client.get_all("/v1/settings").and_then(|list| chosen(list, key.as_deref()));
            show(output, read, |value, wide| table(items(value), SETTINGS, wide))
        }
        ClusterCommand::Set { key, value, connect } => {
            let path = format!("/v1/settings/{}", path_segment(&key));
            let set = connect.client()?.put(&path, &json!({ "value": value }))?;
            println!("{} is {}", text(&set["key"]), text(&set["value"]));
            Ok(())
        }
    }
}

/// The list, or only the setting of this key.
fn chosen(mut list: Value, key: Option<&str>) -> Result<Value, CliError> {
    let Some(key) = key else { return Ok(list) };
    let Some(item) = items(&list).iter().find(|item| item["key"] == key).cloned() else {
        return Err(CliError::not_found(format!("there is no setting '{key}'"), "look at `ashlar cluster get`"));
    };
    list["items"] = json!([item]);
    Ok(list)
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
        "nodes     {} up, {} suspect, {} down, {} out, {} draining",
        text(&nodes["up"]),
        text(&nodes["suspect"]),
        text(&nodes["down"]),
        text(&nodes["out"]),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_or_all() {
        let list = json!({ "items": [{ "key": "a" }, { "key": "b" }], "stale": false });
        assert_eq!(chosen(list.clone(), None).unwrap(), list);
        assert_eq!(chosen(list.clone(), Some("b")).unwrap(), json!({ "items": [{ "key": "b" }], "stale": false }));
        assert_eq!(chosen(list, Some("c")).unwrap_err().exit, 3);
    }
}
