//! `ashlar device`: add devices, look at them.

use super::Connect;
use super::client::{CliError, path_segment};
use super::output::{Column, OutputArgs, bytes, items, show, table, text};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `ashlar device`.
#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// All devices
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// One device
    Show {
        /// Identity, or its beginning
        device: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Format a blank device and put it to use
    Add {
        /// Block device or preallocated file, on the node
        path: PathBuf,
        /// Node that has it; the one that is called if absent
        #[arg(long)]
        node: Option<String>,
        /// nvme, ssd, hdd or an own name
        #[arg(long, default_value = "ssd")]
        class: String,
        /// Its write cache survives a power cut: commits need no flush
        #[arg(long)]
        power_loss_protected: bool,
        /// Destroy what is on the device
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Runs it.
///
/// # Errors
/// What the API says.
pub fn run(args: DeviceArgs) -> Result<(), CliError> {
    match args.command {
        DeviceCommand::List { output, connect } => {
            let client = connect.client()?;
            show(output, || client.get("/v1/devices"), |value, wide| table(items(value), &COLUMNS, wide))
        }
        DeviceCommand::Show { device, output, connect } => {
            let client = connect.client()?;
            let path = format!("/v1/devices/{}", path_segment(&device));
            show(output, || client.get(&path), |value, _| render(value))
        }
        DeviceCommand::Add { path, node, class, power_loss_protected, force, connect } => {
            let path = if node.is_none() { std::path::absolute(&path).unwrap_or(path) } else { path };
            let body = json!({
                "path": path, "node": node, "class": class,
                "power_loss_protected": power_loss_protected, "force": force,
            });
            let added = connect.client()?.post("/v1/devices", &body, None)?;
            let verb = if added["added"] == true { "added" } else { "was there already" };
            println!("device {} {verb}: {} on node {}", text(&added["id"]), text(&added["path"]), text(&added["node"]));
            Ok(())
        }
    }
}

const COLUMNS: [Column; 11] = [
    Column::new("ID", |v| text(&v["id"])),
    Column::new("NODE", |v| text(&v["node"])),
    Column::new("STATE", |v| text(&v["state"])),
    Column::new("SERVING", |v| text(&v["serving"])),
    Column::new("CAPACITY", |v| bytes(&v["capacity_bytes"])),
    Column::new("USED", |v| bytes(&v["used_bytes"])),
    Column::new("LANES", |v| text(&v["lane_count"])),
    Column::new("PATH", |v| text(&v["path"])),
    Column::wide("CLASS", |v| text(&v["class"])),
    Column::wide("PROMISED", |v| bytes(&v["committed_bytes"])),
    Column::wide("BAD", |v| text(&v["bad_blocks"])),
];

fn render(value: &Value) -> String {
    let rows = [
        ("id", text(&value["id"])),
        ("node", text(&value["node"])),
        ("path", text(&value["path"])),
        ("class", text(&value["class"])),
        ("state", text(&value["state"])),
        ("serving", text(&value["serving"])),
        ("failed", text(&value["failed"])),
        ("capacity", bytes(&value["capacity_bytes"])),
        ("used", bytes(&value["used_bytes"])),
        ("promised", bytes(&value["committed_bytes"])),
        ("lanes", text(&value["lane_count"])),
        ("written", bytes(&value["written_bytes"])),
        ("bad blocks", text(&value["bad_blocks"])),
        ("repaired", text(&value["repaired_blocks"])),
        ("flushes", text(&value["flushes"])),
    ];
    rows.iter().map(|(title, cell)| format!("{title:<11} {cell}\n")).collect()
}
