//! `ashlar device`: add devices, look at them.

use super::Connect;
use super::client::{ApiClient, CliError, path_segment};
use super::emptying::{self, BeginArgs};
use super::output::{Column, OutputArgs, bytes, confirm, text};
use super::watch::{show_list, show_one};
use ashlar_model::units::ByteSize;
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
        /// It never tears an aligned 4 KiB write: busy, it is overwritten in place, which about halves the bytes
        ///
        /// Right for NVMe namespaces whose AWUPF is 4 KiB or more, and for drives with 4 KiB sectors (4Kn) and power-loss
        /// protection. A file on a file system is atomic only if the disk under it is and the file is not fragmented
        /// below 4 KiB. What it is for: an overwrite of a busy device then goes in place after its record, not first into
        /// the log with its data. What a block device promises by itself counts without this. If it is not true, a
        /// power cut can damage blocks.
        #[arg(long)]
        atomic_writes: bool,
        /// Destroy what is on the device
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Put a device in the place of another, which may be lost: every lane that has the old one gets the new one
    Replace {
        /// Identity of the device that goes, or its beginning
        old: String,
        /// Identity of the device that comes, or its beginning
        new: String,
        /// Only this volume
        #[arg(long)]
        volume: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Empty a device: its lanes move to others, and it gets no new ones
    Retire {
        /// Identity, or its beginning
        device: String,
        #[command(flatten)]
        begin: BeginArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Take a retirement back
    Resume {
        /// Identity, or its beginning
        device: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Remove an empty device from the cluster for good
    Remove {
        /// Identity, or its beginning
        device: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// After a restore of the metadata: no lane waits for what this device may hold, as far as another one may hold it
    Disregard {
        /// Identity of the device that is lost or older than the others, or its beginning
        device: String,
        /// Only lanes of this volume
        #[arg(long)]
        volume: Option<String>,
        /// Only this lane
        #[arg(long, requires = "volume")]
        lane: Option<u16>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
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
            show_list(output, &client, "/v1/devices", &COLUMNS)
        }
        DeviceCommand::Show { device, output, connect } => {
            let client = connect.client()?;
            let path = format!("/v1/devices/{}", path_segment(&device));
            show_one(output, &client, &path, render)
        }
        DeviceCommand::Add { path, node, class, power_loss_protected, atomic_writes, force, connect } => {
            let path = if node.is_none() { std::path::absolute(&path).unwrap_or(path) } else { path };
            let body = json!({
                "path": path, "node": node, "class": class,
                "power_loss_protected": power_loss_protected, "atomic_writes": atomic_writes, "force": force,
            });
            let added = connect.client()?.post("/v1/devices", &body, None)?;
            let verb = if added["added"] == true { "added" } else { "was there already" };
            println!("device {} {verb}: {} on node {}", text(&added["id"]), text(&added["path"]), text(&added["node"]));
            Ok(())
        }
        DeviceCommand::Replace { old, new, volume, yes, connect } => {
            replace(&connect.client()?, &old, &new, volume.as_deref(), yes)
        }
        DeviceCommand::Retire { device, begin, connect } => {
            let path = format!("/v1/devices/{}/retire", path_segment(&device));
            emptying::begin(&connect.client()?, &format!("device {device}"), &path, begin)
        }
        DeviceCommand::Resume { device, connect } => {
            let path = format!("/v1/devices/{}/resume", path_segment(&device));
            emptying::resume(&connect.client()?, &format!("device {device}"), &path)
        }
        DeviceCommand::Remove { device, yes, connect } => {
            let (client, path) = (connect.client()?, format!("/v1/devices/{}", path_segment(&device)));
            emptying::remove(&client, &format!("device {device}"), &client.get(&path)?, &path, yes)
        }
        DeviceCommand::Disregard { device, volume, lane, yes, connect } => {
            disregard(&connect.client()?, &device, &json!({ "volume": volume, "lane": lane }), yes)
        }
    }
}

fn replace(client: &ApiClient, old: &str, new: &str, volume: Option<&str>, yes: bool) -> Result<(), CliError> {
    let path = format!("/v1/devices/{}/replace", path_segment(old));
    let body = |dry_run: bool| json!({ "with": new, "volume": volume, "dry_run": dry_run });
    let plan = client.post(&path, &body(true), None)?;
    let volumes = plan["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |device: &Value| format!("{} on node {}", text(&device["id"]), text(&device["node"]));
    let (leaving, joining) = (name(&plan["leaving"]), name(&plan["joining"]));
    if volumes.is_empty() {
        println!("nothing to do: no volume is on device {leaving}");
        return Ok(());
    }
    println!("device {joining} takes the place of {leaving} in");
    for volume in volumes {
        let (lanes, most) = (text(&volume["lanes"]), bytes(&volume["bytes_max"]));
        println!("  volume {}: {lanes} lanes, at most {most} to copy", text(&volume["name"]));
    }
    for warning in plan["warnings"].as_array().map_or(&[][..], Vec::as_slice) {
        println!("warning: {}", text(warning));
    }
    if !yes && !confirm("Go on?") {
        return Err(CliError::refused(
            "nothing was changed",
            "the old device's copies would be given up when the new ones are in sync",
            "add --yes if that is meant",
        ));
    }
    let done = client.post(&path, &body(false), None)?;
    for operation in done["operations"].as_array().map_or(&[][..], Vec::as_slice) {
        println!("begun: {0}; `ashlar operation wait {0}` waits for it", text(operation));
    }
    Ok(())
}

fn disregard(client: &ApiClient, device: &str, scope: &Value, yes: bool) -> Result<(), CliError> {
    let body = |dry_run| json!({ "dry_run": dry_run, "volume": scope["volume"], "lane": scope["lane"] });
    let path = format!("/v1/devices/{}/disregard", path_segment(device));
    let plan = client.post(&path, &body(true), None)?;
    let (name, lanes) = (format!("{} on node {}", text(&plan["id"]), text(&plan["node"])), text(&plan["lanes"]));
    if plan["only_copies"] != 0 {
        println!("{} lanes have no other device and go on waiting for {name}", text(&plan["only_copies"]));
    }
    if plan["lanes"] == 0 {
        println!("nothing to do: no lane that could do without it waits for {name}");
        return Ok(());
    }
    println!("{lanes} lanes go on without what only {name} may hold; writes that no other device has are lost");
    if !yes && !confirm("Go on?") {
        return Err(CliError::refused(
            "nothing was changed",
            "a device that is disregarded may hold the only copy of the newest writes",
            "start its node if it can be had; add --yes if it is lost or older than the others",
        ));
    }
    client.post(&path, &body(false), None)?;
    println!("done: attach the volumes again where they wait for it");
    Ok(())
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
        ("shard", text(&value["shard"])),
        ("written", bytes(&value["written_bytes"])),
        ("bad blocks", text(&value["bad_blocks"])),
        ("repaired", text(&value["repaired_blocks"])),
        ("commits", commits(value)),
        ("4 KiB writes", atomicity(value)),
        ("scrub", scrub(value)),
    ];
    rows.iter().map(|(title, cell)| format!("{title:<12} {cell}\n")).collect()
}

/// How commits are made durable.
fn commits(device: &Value) -> String {
    let answer = match (device["flushes"].as_bool(), device["power_loss_protected"].as_bool()) {
        (Some(true), _) => "each is followed by a flush",
        (Some(false), Some(true)) => "no flush: declared power-loss protected",
        (Some(false), _) => "no flush: the device writes through",
        (None, _) => "-",
    };
    answer.into()
}

/// Whether aligned 4 KiB writes are taken as atomic, and why.
fn atomicity(device: &Value) -> String {
    let answer = match (device["atomic"].as_bool(), device["atomic_declared"].as_bool()) {
        (Some(true), Some(true)) => "atomic: declared",
        (Some(true), _) => "atomic: the device says so",
        (Some(false), _) => "may be torn",
        (None, _) => "-",
    };
    answer.into()
}

/// One line about the background scrub.
fn scrub(device: &Value) -> String {
    let scrub = &device["scrub"];
    let number = |key: &str| scrub[key].as_u64().unwrap_or(0);
    let now = match scrub["pace"].as_str() {
        Some("off") => "off".to_owned(),
        Some("resting") => "resting".to_owned(),
        Some(pace) => {
            let rate = ByteSize(number("rate_bytes_per_s"));
            let how = if pace == "yielding" { " (yielding)" } else { "" };
            format!("{} %, {rate}/s{how}", number("percent"))
        }
        None => return "-".into(),
    };
    let last = match scrub["ended_s_ago"].as_u64() {
        Some(seconds) => format!("last pass ended {} ago", age(seconds)),
        None => "no pass has ended since the start".into(),
    };
    let (damaged, repaired) = (number("damaged_blocks"), device["repaired_blocks"].as_u64().unwrap_or(0));
    format!("{now}, {last}, {damaged} damaged blocks found, {repaired} repaired")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_says_how_commits_last_and_how_far_its_scrub_is() {
        let device = |pace: &str, ended: Value| {
            json!({
                "flushes": false, "power_loss_protected": true, "atomic": true, "atomic_declared": false,
                "repaired_blocks": 2,
                "scrub": {
                    "pace": pace, "rate_bytes_per_s": 4 << 20, "percent": 41, "damaged_blocks": 2, "ended_s_ago": ended,
                },
            })
        };
        let yielding = device("yielding", json!(3 * 3600 + 59));
        assert_eq!(commits(&yielding), "no flush: declared power-loss protected");
        assert_eq!(atomicity(&yielding), "atomic: the device says so");
        let text = "41 %, 4 MiB/s (yielding), last pass ended 3 h ago, 2 damaged blocks found, 2 repaired";
        assert_eq!(scrub(&yielding), text);
        let text = "resting, last pass ended 61 s ago, 2 damaged blocks found, 2 repaired";
        assert_eq!(scrub(&device("resting", json!(61))), text);
        let text = "off, no pass has ended since the start, 2 damaged blocks found, 2 repaired";
        assert_eq!(scrub(&device("off", Value::Null)), text);
        let declared = json!({ "atomic": true, "atomic_declared": true });
        assert_eq!(atomicity(&declared), "atomic: declared");
        assert_eq!(atomicity(&json!({ "atomic": false, "atomic_declared": false })), "may be torn");
        assert_eq!([commits(&json!({})), atomicity(&json!({})), scrub(&json!({}))], ["-", "-", "-"]);
    }
}
