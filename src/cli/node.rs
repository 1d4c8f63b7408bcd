//! `ashlar node`: run the daemon, join, look at nodes.

use super::Connect;
use super::client::{ApiClient, CliError, path_segment};
use super::emptying::{self, BeginArgs};
use super::output::{Column, OutputArgs, text};
use super::watch::{show_list, show_one};
use crate::config::Overrides;
use crate::observe::logs::LogFormat;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `ashlar node`. Without a subcommand it runs the daemon.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    /// Configuration file of the daemon (or ASHLAR_CONFIG)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides `name` of the file
    #[arg(long)]
    name: Option<String>,
    /// Overrides `data_dir` of the file
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Overrides `api_address` of the file
    #[arg(long, value_name = "ADDRESS")]
    api_address: Option<String>,
    /// Overrides `data_address` of the file
    #[arg(long, value_name = "ADDRESS")]
    data_address: Option<String>,
    /// Overrides `log.format` of the file
    #[arg(long, value_enum)]
    log_format: Option<LogFormatFlag>,
    /// Overrides `log.level` of the file; ASHLAR_LOG wins over both
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Overrides `spin_us` of the file: how long the data plane looks for the next message before it sleeps
    #[arg(long, env = "ASHLAR_SPIN_US", hide_env_values = true, value_name = "MICROSECONDS")]
    spin_us: Option<u32>,
    /// Overrides `shards` of the file: threads of the data plane
    #[arg(long, env = "ASHLAR_SHARDS", hide_env_values = true, value_name = "NUMBER")]
    shards: Option<u16>,
    #[command(subcommand)]
    pub(super) command: Option<NodeCommand>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatFlag {
    Human,
    Json,
}

/// Subcommands of `ashlar node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// One node
    Show {
        /// Name or number
        node: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Empty a node: its lanes move to others, and it gets no new ones
    Drain {
        /// Name or number
        node: String,
        #[command(flatten)]
        begin: BeginArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Take a drain back
    Resume {
        /// Name or number
        node: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Remove an empty node from the cluster for good
    Remove {
        /// Name or number
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Make the node whose API is called join a cluster
    Join {
        /// API of a node that belongs to the cluster
        #[arg(long = "endpoint", value_name = "URL")]
        existing: String,
        /// API of the node that joins
        #[arg(long, env = "ASHLAR_ENDPOINT", default_value = "http://127.0.0.1:7070", value_name = "URL")]
        api: String,
    },
}

impl NodeArgs {
    /// What the daemon is told on the command line and in the environment.
    ///
    /// # Errors
    /// No configuration file is named.
    pub fn daemon(self) -> Result<(PathBuf, Overrides), CliError> {
        let from_environment = || std::env::var_os("ASHLAR_CONFIG").map(PathBuf::from);
        let config = self.config.or_else(from_environment).ok_or_else(|| {
            CliError::usage(
                "no configuration file",
                "the daemon needs one",
                "run `ashlar node --config FILE`, or set ASHLAR_CONFIG",
            )
        })?;
        let overrides = Overrides {
            name: self.name,
            data_dir: self.data_dir,
            api_address: self.api_address,
            data_address: self.data_address,
            log_format: self.log_format.map(|format| match format {
                LogFormatFlag::Human => LogFormat::Human,
                LogFormatFlag::Json => LogFormat::Json,
            }),
            log_filter: std::env::var("ASHLAR_LOG").ok().filter(|text| !text.is_empty()).or(self.log_level),
            spin_us: self.spin_us,
            shards: self.shards,
        };
        Ok((config, overrides))
    }
}

/// Runs a subcommand.
///
/// # Errors
/// What the API says.
pub fn run(args: NodeArgs) -> Result<(), CliError> {
    match args.command {
        Some(NodeCommand::List { output, connect }) => {
            let client = connect.client()?;
            show_list(output, &client, "/v1/nodes", &COLUMNS)
        }
        Some(NodeCommand::Show { node, output, connect }) => {
            let client = connect.client()?;
            let path = format!("/v1/nodes/{}", path_segment(&node));
            show_one(output, &client, &path, render)
        }
        Some(NodeCommand::Drain { node, begin, connect }) => {
            let path = format!("/v1/nodes/{}/drain", path_segment(&node));
            emptying::begin(&connect.client()?, &format!("node {node}"), &path, begin)
        }
        Some(NodeCommand::Resume { node, connect }) => {
            let path = format!("/v1/nodes/{}/resume", path_segment(&node));
            emptying::resume(&connect.client()?, &format!("node {node}"), &path)
        }
        Some(NodeCommand::Remove { node, yes, connect }) => {
            let (client, path) = (connect.client()?, format!("/v1/nodes/{}", path_segment(&node)));
            emptying::remove(&client, &format!("node {node}"), &client.get(&path)?, &path, yes)
        }
        Some(NodeCommand::Join { existing, api }) => {
            let joined = ApiClient::new(&api)?.post("/v1/join", &json!({ "endpoint": existing }), None)?;
            println!(
                "node {} joined cluster {} as number {}",
                text(&joined["node_name"]),
                text(&joined["cluster_id"]),
                joined["node_id"]
            );
            Ok(())
        }
        None => Err(CliError::usage("no command", "the daemon is started elsewhere", "run `ashlar node --help`")),
    }
}

const COLUMNS: [Column; 11] = [
    Column::new("NAME", |v| text(&v["name"])),
    Column::new("STATE", |v| text(&v["state"])),
    Column::new("ROLES", |v| text(&v["roles"])),
    Column::new("ZONE", |v| text(&v["labels"]["zone"])),
    Column::new("DEVICES", |v| text(&v["device_count"])),
    Column::new("LANES", |v| text(&v["lane_count"])),
    Column::new("LEADS", |v| text(&v["leads_metadata"])),
    Column::new("API", |v| text(&v["api_address"])),
    Column::wide("ID", |v| text(&v["id"])),
    Column::wide("DATA", |v| text(&v["data_address"])),
    Column::wide("SHARDS", |v| text(&v["shards"])),
];

fn render(value: &Value) -> String {
    let rows = [
        ("name", text(&value["name"])),
        ("number", text(&value["id"])),
        ("state", text(&value["state"])),
        ("not out", text(&value["not_out_because"])),
        ("roles", text(&value["roles"])),
        ("region", text(&value["labels"]["region"])),
        ("zone", text(&value["labels"]["zone"])),
        ("rack", text(&value["labels"]["rack"])),
        ("api", text(&value["api_address"])),
        ("data", text(&value["data_address"])),
        ("shards", text(&value["shards"])),
        ("devices", text(&value["devices"])),
        ("lanes", text(&value["lane_count"])),
        ("volumes", text(&value["attached_volumes"])),
    ];
    rows.iter().map(|(title, cell)| format!("{title:<9} {cell}\n")).collect()
}
