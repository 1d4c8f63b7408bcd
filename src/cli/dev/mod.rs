//! `ashlar dev`: a whole cluster on this machine, as processes on loopback with file-backed devices.

mod bring_up;
mod files;
mod plan;
mod process;
mod state;
mod stop;

use super::client::{ApiClient, CliError};
use super::output::{Column, OutputArgs, confirm, show, table, text};
use ashlar_model::units::ByteSize;
use clap::{Subcommand, ValueEnum};
use plan::{DevPlan, DevRequest};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use stop::Interrupt;

/// Arguments of `ashlar dev`.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    /// Directory of the cluster; its state survives a stop
    #[arg(long, global = true, default_value = "./ashlar-dev")]
    dir: PathBuf,
    /// Nodes; 3, or what the roles and replicas need
    #[arg(long)]
    nodes: Option<usize>,
    /// Copies of each block
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    replicas: u8,
    /// Name of the volume
    #[arg(long, default_value = "vol")]
    volume: String,
    /// Size of the volume
    #[arg(long, default_value = "2GiB")]
    size: ByteSize,
    /// Size of each device file
    #[arg(long, default_value = "4GiB")]
    device_size: ByteSize,
    /// Treat the files as if they had power-loss protection: no flush per commit
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, value_name = "true|false")]
    power_loss_protected: bool,
    /// Treat aligned 4 KiB writes to the files as never torn: busy files are overwritten in place
    ///
    /// About half of the bytes of overwrites. A power cut keeps it true only if the disk under the files never tears a
    /// 4 KiB write and no file is fragmented below 4 KiB; killed processes do no harm. See `ashlar device add --help`.
    #[arg(
        long,
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "true|false"
    )]
    atomic_writes: bool,
    /// Same roles everywhere, or a first node without devices
    #[arg(long, value_enum, default_value_t)]
    roles: DevRoles,
    /// Spread the nodes over this many zones
    #[arg(long, default_value_t = 1)]
    zones: usize,
    /// Lanes of the volume, 1 to 64; fits the size if absent
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    lanes: Option<u16>,
    /// Device files of each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    devices: u16,
    /// Shards of each daemon: threads of the data plane, each with a part of the devices and volumes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Return when ready; the nodes go on
    #[arg(long)]
    detach: bool,
    /// Destroy what is in the directory and start over
    #[arg(long)]
    fresh: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum DevRoles {
    #[default]
    Hyperconverged,
    Disaggregated,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Stop all nodes, or one, cleanly
    Stop {
        /// The node
        node: Option<String>,
    },
    /// Start all nodes that are down, or one
    Start {
        /// The node
        node: Option<String>,
    },
    /// SIGKILL all nodes, or one
    Kill {
        /// The node
        node: Option<String>,
    },
    /// What runs
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs it.
///
/// # Errors
/// What went wrong on the way.
pub fn run(args: DevArgs) -> Result<(), CliError> {
    let dir = std::path::absolute(&args.dir)
        .map_err(|error| CliError::usage("--dir is not usable", error.to_string(), "name another directory"))?;
    let dir = dir.canonicalize().unwrap_or(dir);
    match &args.command {
        None => up(&args, &dir),
        Some(DevCommand::Stop { node }) => {
            let plan = state::require_plan(&dir)?;
            let result = stop::stop(&plan, node.as_deref());
            state::write_cluster_file(&dir, &plan)?;
            result
        }
        Some(DevCommand::Kill { node }) => {
            let plan = state::require_plan(&dir)?;
            let result = stop::kill(&plan, node.as_deref());
            state::write_cluster_file(&dir, &plan)?;
            result
        }
        Some(DevCommand::Start { node }) => {
            let plan = state::require_plan(&dir)?;
            start(&dir, &plan, node.as_deref())
        }
        Some(DevCommand::Status { output }) => {
            let plan = state::require_plan(&dir)?;
            show(*output, || Ok(status(&plan)), render_status)
        }
    }
}

/// The whole cluster: new, or as it was.
fn up(args: &DevArgs, dir: &Path) -> Result<(), CliError> {
    let interrupt = Interrupt::listen()?;
    if args.fresh {
        // A command that cannot work must not destroy what is there.
        DevPlan::new(&request_of(args, dir))?;
        start_over(dir, args.yes)?;
    }
    let plan = match state::load_plan(dir)? {
        Some(plan) => {
            say(&format!("resumes the cluster in {} ({} nodes)", dir.display(), plan.nodes.len()));
            plan
        }
        None => new_plan(args, dir)?,
    };
    files::prepare(&plan)?;
    let result = bring_up::bring_up(dir, &plan, &interrupt);
    state::write_cluster_file(dir, &plan)?;
    match result {
        Ok(()) => {}
        // What runs stays: the next `ashlar dev` goes on from here, and the logs can be read.
        Err(error) if args.detach => return Err(error),
        Err(error) => {
            let _ = stop::stop(&plan, None);
            state::write_cluster_file(dir, &plan)?;
            return Err(error);
        }
    }
    print_ready(dir, &plan);
    if args.detach {
        return Ok(());
    }
    stop::watch(dir, &plan, &interrupt)
}

fn request_of(args: &DevArgs, dir: &Path) -> DevRequest {
    DevRequest {
        dir: dir.to_owned(),
        nodes: args.nodes,
        replicas: args.replicas,
        volume: args.volume.clone(),
        size_bytes: args.size.0,
        device_bytes: args.device_size.0,
        power_loss_protected: args.power_loss_protected,
        atomic_writes: args.atomic_writes,
        disaggregated: args.roles == DevRoles::Disaggregated,
        zones: args.zones,
        lanes: args.lanes,
        devices: args.devices,
        shards: args.shards,
    }
}

fn new_plan(args: &DevArgs, dir: &Path) -> Result<DevPlan, CliError> {
    let plan = DevPlan::new(&request_of(args, dir))?;
    files::check_space(dir, &plan)?;
    state::store_plan(dir, &plan)?;
    Ok(plan)
}

/// Deletes only what this command made.
fn start_over(dir: &Path, yes: bool) -> Result<(), CliError> {
    let Some(plan) = state::load_plan(dir)? else { return Ok(()) };
    let what = format!("the development cluster in {} with all its data", dir.display());
    if !yes && !confirm(&format!("Destroy {what}?")) {
        return Err(CliError::refused(
            "nothing was deleted",
            format!("--fresh would destroy {what}"),
            "add --yes if that is meant",
        ));
    }
    stop::kill(&plan, None)?;
    let failed = |error: std::io::Error| {
        CliError::failed("cannot delete the old cluster", error, "delete the directory by hand")
    };
    for node in &plan.nodes {
        match std::fs::remove_dir_all(&node.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    for file in ["cluster.json", "dev.json"] {
        match std::fs::remove_file(dir.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}

fn start(dir: &Path, plan: &DevPlan, name: Option<&str>) -> Result<(), CliError> {
    let interrupt = Interrupt::listen()?;
    let chosen = stop::chosen(plan, name)?;
    let result = chosen.iter().try_for_each(|node| bring_up::start_node(node).map(drop));
    state::write_cluster_file(dir, plan)?;
    result?;
    bring_up::wait_ready(&chosen, &interrupt)
}

fn status(plan: &DevPlan) -> Value {
    let nodes = plan.nodes.iter().map(|node| {
        let ready = ApiClient::new(&node.api).and_then(|client| client.get("/readyz"));
        let state = match (process::pid_of(node), &ready) {
            (None, _) => "stopped",
            (Some(_), Ok(_)) => "ready",
            (Some(_), Err(_)) => "not ready",
        };
        json!({ "name": node.name, "state": state, "pid": process::pid_of(node), "api": format!("http://{}", node.api), "dir": node.dir })
    });
    let nodes: Vec<Value> = nodes.collect();
    let mut running = plan.nodes.iter().filter(|node| process::pid_of(node).is_some());
    let volume = running.find_map(|node| {
        let path = format!("/v1/volumes/{}", super::client::path_segment(&plan.volume));
        ApiClient::new(&node.api).and_then(|client| client.get(&path)).ok()
    });
    let volume = json!({
        "name": plan.volume,
        "nbd_uri": plan.nbd_uri(),
        "health": volume.as_ref().map_or(Value::Null, |volume| volume["health"].clone()),
        "attached": volume.as_ref().map_or(Value::Null, |volume| volume["attached"]["node"].clone()),
    });
    json!({ "nodes": nodes, "volumes": [volume] })
}

fn render_status(value: &Value, wide: bool) -> String {
    const COLUMNS: [Column; 5] = [
        Column::new("NODE", |v| text(&v["name"])),
        Column::new("STATE", |v| text(&v["state"])),
        Column::new("PID", |v| text(&v["pid"])),
        Column::new("API", |v| text(&v["api"])),
        Column::wide("DIR", |v| text(&v["dir"])),
    ];
    const VOLUMES: [Column; 4] = [
        Column::new("VOLUME", |v| text(&v["name"])),
        Column::new("HEALTH", |v| text(&v["health"])),
        Column::new("ATTACHED", |v| text(&v["attached"])),
        Column::new("URI", |v| text(&v["nbd_uri"])),
    ];
    let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
    format!("{}\n{}", table(&list("nodes"), &COLUMNS, wide), table(&list("volumes"), &VOLUMES, wide))
}

fn print_ready(dir: &Path, plan: &DevPlan) {
    println!(
        "\nready: {} nodes, volume '{}' of {} with {} replicas",
        plan.nodes.len(),
        plan.volume,
        ByteSize(plan.size_bytes),
        plan.replicas
    );
    for node in &plan.nodes {
        if let Some(socket) = node.nbd_socket() {
            println!("  NBD at {}  {}", node.name, plan::nbd_uri(&plan.volume, &socket));
        }
    }
    let api = plan.nodes.first().map_or("", |node| node.api.as_str());
    println!("  API        http://{api}");
    let uri = plan.nbd_uri().unwrap_or_default();
    let last = plan.nodes.last().map_or("n1", |node| node.name.as_str());
    println!("\ntry:");
    println!("  copy data in      nbdcopy FILE '{uri}'");
    println!(
        "  kill a node       ashlar dev kill {last} --dir {0}; later: ashlar dev start {last} --dir {0}",
        dir.display()
    );
    println!("  look at it        ASHLAR_ENDPOINT=http://{api} ashlar volume show {} --watch", plan.volume);
}

fn say(line: &str) {
    eprintln!("ashlar dev: {line}");
}
