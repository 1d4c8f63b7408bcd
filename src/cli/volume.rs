//! `ashlar volume`: create, look at, attach, detach, delete.

use super::Connect;
use super::client::{ApiClient, CliError, path_segment};
use super::output::{Column, OutputArgs, bytes, confirm, text};
use super::watch::{show_list, show_one};
use ashlar_model::units::ByteSize;
use clap::Subcommand;
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments of `ashlar volume`.
#[derive(Debug, clap::Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Create a volume
    Create(CreateArgs),
    /// All volumes
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// One volume: health, lanes, members
    Show {
        /// Name or identity
        volume: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Make a volume larger. Guests that open it from then on see the new size
    Resize {
        /// Name or identity
        volume: String,
        /// New size: 10GiB, 1TiB, 500M
        #[arg(long)]
        size: ByteSize,
        /// Also if more is promised than the cluster allows
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Delete a volume and all its data
    Delete {
        /// Name or identity
        volume: String,
        /// Also while it is attached
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Attach a volume to a node. Opening its NBD export does the same
    Attach {
        /// Name or identity
        volume: String,
        /// The node; the one that is called if absent
        #[arg(long)]
        node: Option<String>,
        /// Take it from the node that holds it: cleanly if that node answers, else at once
        #[arg(long)]
        takeover: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Put a device out of the in-sync sets of an attached volume; it comes back like a member that was away
    Eject {
        /// Name or identity
        volume: String,
        /// Identity of the device, or its beginning
        device: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Detach a volume
    Detach {
        /// Name or identity
        volume: String,
        /// Also if its holder does not answer and is not known to be down
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Name of the volume
    name: String,
    /// Size: 10GiB, 1TiB, 500M
    #[arg(long)]
    size: ByteSize,
    /// Copies of each block, 1 to 3
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    replicas: u8,
    /// Units of replication, 1 to 64; fits the size if absent
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    lanes: Option<u16>,
    /// Keep copies apart: zone, rack or node; add :soft to fall to the next level if need be
    #[arg(long, value_name = "LEVEL[:soft]")]
    spread: Option<String>,
    /// A copy of every lane on the node of --on: none, prefer or require (refuses if that cannot be); prefer if a node is named
    #[arg(long, value_parser = ["none", "prefer", "require"])]
    locality: Option<String>,
    /// The node that will attach it. Of a node without devices, its zone is preferred
    #[arg(long = "on", alias = "attach-node", value_name = "NODE")]
    attach_node: Option<String>,
    /// Only devices of this class
    #[arg(long)]
    class: Option<String>,
    /// Who must have a write before it is acknowledged
    #[arg(long, value_parser = ["majority", "all"], default_value = "majority")]
    quorum: String,
    /// Writes wait while a lane has fewer members in sync; at most --replicas. 2 of 3 keeps two copies of every write
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    min_in_sync: u8,
    /// Repeat with the same token after a failure: one volume results
    #[arg(long, value_name = "TOKEN")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Runs it.
///
/// # Errors
/// What the API says.
pub fn run(args: VolumeArgs) -> Result<(), CliError> {
    match args.command {
        VolumeCommand::Create(args) => create(args),
        VolumeCommand::List { output, connect } => {
            let client = connect.client()?;
            show_list(output, &client, "/v1/volumes", &COLUMNS)
        }
        VolumeCommand::Show { volume, output, connect } => {
            let client = connect.client()?;
            let path = format!("/v1/volumes/{}", path_segment(&volume));
            show_one(output, &client, &path, render)
        }
        VolumeCommand::Resize { volume, size, force, connect } => {
            let path = format!("/v1/volumes/{}/resize", path_segment(&volume));
            let answer = connect.client()?.post(&path, &json!({ "size_bytes": size.0, "force": force }), None)?;
            println!("volume {} has {}", text(&answer["name"]), bytes(&answer["size_bytes"]));
            Ok(())
        }
        VolumeCommand::Delete { volume, force, yes, connect } => delete(&connect.client()?, &volume, force, yes),
        VolumeCommand::Attach { volume, node, takeover, connect } => {
            let path = format!("/v1/volumes/{}/attach", path_segment(&volume));
            let answer = connect.client()?.post(&path, &json!({ "node": node, "takeover": takeover }), None)?;
            let how = match answer["handover"].as_str() {
                Some("clean") => format!(": clean hand-over from {}", text(&answer["from"])),
                Some(_) => format!(": taken over from {}, which did not hand it over", text(&answer["from"])),
                None => String::new(),
            };
            println!("volume {} is attached to node {}{how}", text(&answer["attached"]), text(&answer["node"]));
            Ok(())
        }
        VolumeCommand::Eject { volume, device, connect } => {
            let path = format!("/v1/volumes/{}/eject", path_segment(&volume));
            let answer = connect.client()?.post(&path, &json!({ "device": device }), None)?;
            println!("volume {}: ejecting device {}", text(&answer["volume"]), text(&answer["ejecting"]));
            Ok(())
        }
        VolumeCommand::Detach { volume, force, connect } => {
            let path = format!("/v1/volumes/{}/detach", path_segment(&volume));
            let answer = connect.client()?.post(&path, &json!({ "force": force }), None)?;
            let how = match (&answer["was_attached"], &answer["clean"]) {
                (Value::Bool(false), _) => "was not attached",
                (_, Value::Bool(true)) => "is detached",
                _ => "is detached; the next attach recovers it",
            };
            println!("volume {} {how}", text(&answer["detached"]));
            Ok(())
        }
    }
}

fn create(args: CreateArgs) -> Result<(), CliError> {
    let client = args.connect.client()?;
    let token = args.idempotency_key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let body = json!({
        "name": args.name, "size_bytes": args.size.0, "replicas": args.replicas, "lanes": args.lanes,
        "spread": args.spread, "locality": args.locality, "attach_node": args.attach_node,
        "class": args.class, "quorum": args.quorum, "min_in_sync": args.min_in_sync,
    });
    let volume = client.post("/v1/volumes", &body, Some(&token))?;
    println!(
        "volume {} created: {}, {} replicas, {} lanes",
        text(&volume["name"]),
        bytes(&volume["size_bytes"]),
        volume["replicas"],
        volume["lane_count"]
    );
    for note in volume["notes"].as_array().map_or(&[][..], Vec::as_slice) {
        println!("note: {}", text(note));
    }
    Ok(())
}

fn delete(client: &ApiClient, volume: &str, force: bool, yes: bool) -> Result<(), CliError> {
    let path = format!("/v1/volumes/{}", path_segment(volume));
    let found = client.get(&path)?;
    let what = format!(
        "volume {} ({}, {} replicas) and all its data",
        text(&found["name"]),
        bytes(&found["size_bytes"]),
        found["replicas"]
    );
    if !yes && !confirm(&format!("Delete {what}?")) {
        return Err(CliError::refused(
            "nothing was deleted",
            format!("this would destroy {what}"),
            "add --yes if that is meant",
        ));
    }
    client.delete(&format!("{path}?force={force}"))?;
    println!("deleted {what}");
    Ok(())
}

const COLUMNS: [Column; 9] = [
    Column::new("NAME", |v| text(&v["name"])),
    Column::new("SIZE", |v| bytes(&v["size_bytes"])),
    Column::new("REPLICAS", |v| text(&v["replicas"])),
    Column::new("HEALTH", |v| text(&v["health"])),
    Column::new("ATTACHED", |v| text(&v["attached"]["node"])),
    Column::wide("LANES", |v| text(&v["lane_count"])),
    Column::wide("EPOCH", |v| text(&v["epoch"])),
    Column::wide("ID", |v| text(&v["id"])),
    Column::wide("REASON", |v| text(&v["reason"])),
];

fn render(value: &Value) -> String {
    let mut lines = String::new();
    let _ = writeln!(lines, "name      {}", text(&value["name"]));
    let _ = writeln!(lines, "id        {}", text(&value["id"]));
    let _ = writeln!(lines, "size      {}", bytes(&value["size_bytes"]));
    let (replicas, quorum) = (text(&value["replicas"]), text(&value["quorum"]));
    let _ = writeln!(lines, "replicas  {replicas} ({quorum} quorum, at least {} in sync)", text(&value["min_in_sync"]));
    let _ = writeln!(lines, "attached  {}", text(&value["attached"]["node"]));
    if !value["caretaker"].is_null() {
        let _ = writeln!(lines, "caretaker {} brings its members in sync", text(&value["caretaker"]));
    }
    let _ = writeln!(lines, "health    {}", text(&value["health"]));
    if !value["reason"].is_null() {
        let _ = writeln!(lines, "reason    {}", text(&value["reason"]));
    }
    for operation in value["operations"].as_array().map_or(&[][..], Vec::as_slice) {
        let (id, state, percent) = (text(&operation["id"]), text(&operation["state"]), text(&operation["percent"]));
        let _ = writeln!(lines, "operation {id} {state}, {percent} %");
    }
    for lane in value["lanes"].as_array().map_or(&[][..], Vec::as_slice) {
        let _ = writeln!(lines, "lane {:<4} {}", text(&lane["lane"]), text(&lane["phase"]));
        for member in lane["members"].as_array().map_or(&[][..], Vec::as_slice) {
            let (node, state) = (text(&member["node"]), text(&member["state"]));
            let _ = writeln!(lines, "          {node:<10} {state:<8} {}", text(&member["device"]));
        }
    }
    lines
}
