//! `ashlar placement`: where replicas are and why, and what would happen if.

use super::Connect;
use super::client::{CliError, path_segment};
use super::output::{OutputArgs, bytes, show, text};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Arguments of `ashlar placement`.
#[derive(Debug, clap::Args)]
pub struct PlacementArgs {
    #[command(subcommand)]
    command: PlacementCommand,
}

#[derive(Debug, Subcommand)]
enum PlacementCommand {
    /// Where a volume's copies are, which devices could have them, and what rules the others out
    Explain {
        /// Name or identity
        volume: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// What would move and what would not answer. Nothing is changed
    WhatIf {
        /// A node or device is lost for good
        #[arg(long, value_name = "NODE|DEVICE")]
        lose: Vec<String>,
        /// A node or device is emptied
        #[arg(long, value_name = "NODE|DEVICE")]
        drain: Vec<String>,
        /// A device is added, to a node that may be new
        #[arg(long, value_name = "NODE:SIZE[:CLASS]", value_parser = new_device)]
        add: Vec<Value>,
        /// A node's label changes
        #[arg(long, value_name = "NODE:KEY=VALUE", value_parser = new_label)]
        label: Vec<Value>,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
}

fn new_device(argument: &str) -> Result<Value, String> {
    let mut parts = argument.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(node), Some(size), None, None) => Ok(json!({ "node": node, "size": size })),
        (Some(node), Some(size), Some(class), None) => Ok(json!({ "node": node, "size": size, "class": class })),
        _ => Err("write NODE:SIZE or NODE:SIZE:CLASS, for instance n7:4TiB:nvme".into()),
    }
}

fn new_label(argument: &str) -> Result<Value, String> {
    let parts = argument.split_once(':').and_then(|(node, rest)| Some((node, rest.split_once('=')?)));
    let (node, (key, value)) = parts.ok_or("write NODE:KEY=VALUE, for instance n7:zone=b")?;
    Ok(json!({ "node": node, "key": key, "value": value }))
}

/// Runs it.
///
/// # Errors
/// What the API says.
pub fn run(args: PlacementArgs) -> Result<(), CliError> {
    match args.command {
        PlacementCommand::Explain { volume, output, connect } => {
            let client = connect.client()?;
            let path = format!("/v1/volumes/{}/placement", path_segment(&volume));
            show(output, || client.get(&path), |value, _| render_explanation(value))
        }
        PlacementCommand::WhatIf { lose, drain, add, label, output, connect } => {
            let client = connect.client()?;
            let question = json!({ "lose": lose, "drain": drain, "add": add, "label": label });
            show(output, || client.post("/v1/placement/what-if", &question, None), |value, _| render_answer(value))
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn render_explanation(value: &Value) -> String {
    let mut lines = String::new();
    let (explanation, spread) = (&value["explanation"], &value["spread"]);
    let softness = if spread["soft"] == true { "if possible" } else { "always" };
    let _ = writeln!(
        lines,
        "volume {}: copies in different {}s, {softness}",
        text(&value["volume"]),
        text(&spread["level"])
    );
    if let Some(fallback) = explanation["fallback"].as_str() {
        let _ = writeln!(lines, "{fallback}");
    }
    for lane in list(&explanation["lanes"]) {
        let zones = list(&lane["zones"]).iter().map(text);
        let members =
            list(&lane["nodes"]).iter().zip(zones).map(|(node, zone)| format!("{} (zone {zone})", text(node)));
        let _ = writeln!(lines, "lane {:<3} {}", text(&lane["lane"]), members.collect::<Vec<_>>().join(", "));
    }
    let mut ruled_out = BTreeMap::<String, Vec<String>>::new();
    for candidate in list(&explanation["candidates"]) {
        let rule = candidate["removed_by"].as_str().unwrap_or("could have a lane").to_owned();
        let short = text(&candidate["device"]).chars().take(8).collect::<String>();
        ruled_out.entry(rule).or_default().push(format!("{} on {}", short, text(&candidate["node_name"])));
    }
    for (rule, devices) in ruled_out {
        let _ = writeln!(lines, "{rule}: {}", devices.join(", "));
    }
    for one in list(&value["moves"]) {
        let (lane, reason) = (text(&one["lane"]), text(&one["reason"]));
        let _ = writeln!(
            lines,
            "lane {lane} shall move from {} to {}: {reason}",
            text(&one["leaving"]),
            text(&one["joining"])
        );
    }
    for one in list(&value["waiting"]) {
        let _ = writeln!(
            lines,
            "lane {} should leave {}: {}",
            text(&one["lane"]),
            text(&one["leaving"]),
            text(&one["why"])
        );
    }
    lines
}

/// A number of things, as people say it.
fn count(number: &Value, thing: &str) -> String {
    let plural = if *number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", text(number))
}

fn render_answer(value: &Value) -> String {
    let mut lines = String::new();
    let _ = writeln!(
        lines,
        "{} would move, at most {} to copy",
        count(&value["lanes"], "lane"),
        bytes(&value["bytes_max"])
    );
    for (key, title) in [("moves", "reason"), ("to", "node")] {
        for row in list(&value[key]) {
            let what = if key == "to" { format!("to {}", text(&row[title])) } else { text(&row[title]) };
            let _ =
                writeln!(lines, "  {what:<18} {}, at most {}", count(&row["lanes"], "lane"), bytes(&row["bytes_max"]));
        }
    }
    for one in list(&value["blocked"]) {
        let _ = writeln!(
            lines,
            "lane {} of volume {} has no place: {}",
            text(&one["lane"]),
            text(&one["volume"]),
            text(&one["why"])
        );
    }
    for health in ["unavailable", "degraded"] {
        let names = list(&value[health]["names"]).iter().map(text).collect::<Vec<_>>().join(", ");
        if !names.is_empty() {
            let _ = writeln!(lines, "{} {health} until then: {names}", count(&value[health]["count"], "volume"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_labels_read_as_written() {
        assert_eq!(new_device("n7:4TiB"), Ok(json!({ "node": "n7", "size": "4TiB" })));
        assert_eq!(new_device("n7:4TiB:nvme"), Ok(json!({ "node": "n7", "size": "4TiB", "class": "nvme" })));
        assert_eq!(new_label("n7:zone=b"), Ok(json!({ "node": "n7", "key": "zone", "value": "b" })));
        for wrong in ["n7", "n7:4TiB:nvme:x", ""] {
            assert!(new_device(wrong).is_err() && new_label(wrong).is_err(), "{wrong}");
        }
    }
}
