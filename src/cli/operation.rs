//! `ashlar operation`: long work and how far it is.

use super::Connect;
use super::client::{ApiClient, CliError, path_segment};
use super::output::{Column, OutputArgs, bytes, text};
use super::watch::{follow, show_list, show_one};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const BAR_CELLS: usize = 30;

/// Arguments of `ashlar operation`.
#[derive(Debug, clap::Args)]
pub struct OperationArgs {
    #[command(subcommand)]
    command: OperationCommand,
}

#[derive(Debug, Subcommand)]
enum OperationCommand {
    /// Everything that runs or waits
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// One operation
    Show {
        /// Its name
        operation: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        connect: Connect,
    },
    /// Wait until it is done
    Wait {
        /// Its name
        operation: String,
        /// Give up after this many seconds; the operation goes on
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        #[command(flatten)]
        connect: Connect,
    },
    /// Take a replacement back whose new device is not in sync yet
    Cancel {
        /// Its name
        operation: String,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Runs it.
///
/// # Errors
/// What the API says.
pub fn run(args: OperationArgs) -> Result<(), CliError> {
    match args.command {
        OperationCommand::List { output, connect } => {
            let client = connect.client()?;
            show_list(output, &client, "/v1/operations", &COLUMNS)
        }
        OperationCommand::Show { operation, output, connect } => {
            let client = connect.client()?;
            show_one(output, &client, &path_of(&operation), render)
        }
        OperationCommand::Wait { operation, timeout, connect } => wait(&connect.client()?, &operation, timeout),
        OperationCommand::Cancel { operation, connect } => {
            let path = format!("{}/cancel", path_of(&operation));
            let answer = connect.client()?.post(&path, &json!({}), None)?;
            match answer["taken_back"].as_u64() {
                Some(count) => println!("cancelled; {count} changes under way were taken back"),
                None => {
                    println!("cancelled: device {} stays in volume {}", text(&answer["stays"]), text(&answer["volume"]))
                }
            }
            Ok(())
        }
    }
}

fn path_of(operation: &str) -> String {
    format!("/v1/operations/{}", path_segment(operation))
}

/// Shows how far an operation is until it is done.
///
/// # Errors
/// What the API says, or the time is over.
pub fn wait(client: &ApiClient, operation: &str, timeout_s: Option<u64>) -> Result<(), CliError> {
    let until = timeout_s.map(|limit_s| Instant::now() + Duration::from_secs(limit_s));
    let in_place = std::io::stdout().is_terminal();
    let mut told = String::new();
    let mut is_done = false;
    let (mut most_lanes, mut was_emptying) = (0, false);
    let ended = follow(client, &path_of(operation), until, |board| {
        let Some(value) = board.items.values().next() else {
            if was_emptying {
                return Err(given_up(operation));
            }
            if !told.is_empty() {
                // It was there: a lane's change that others of the volume do not share ends without a trace.
                is_done = true;
                return Ok(true);
            }
            return Err(CliError::not_found(
                format!("{operation} is gone, with its volume"),
                "look at `ashlar volume list`",
            ));
        };
        was_emptying = value["lanes_left"].as_u64().is_some_and(|left| left > 0);
        most_lanes = most_lanes.max(value["lanes_left"].as_u64().unwrap_or(0));
        let line = progress(value, most_lanes);
        if in_place {
            print!("\r\x1b[K{line}");
            drop(std::io::stdout().flush());
        } else if line != told {
            println!("{line}");
        }
        told = line;
        is_done = value["state"] == "done";
        Ok(is_done)
    });
    if in_place {
        println!();
    }
    match ended {
        Err(error) if !is_done && until.is_some_and(|until| Instant::now() >= until) => {
            let why = if told.is_empty() { error.why } else { told };
            Err(CliError { what: format!("{operation} is not done"), why, ..error })
        }
        other => other,
    }
}

/// What is emptied stays to be seen until it is empty: if it is gone, somebody took it back, or its node was given up.
fn given_up(operation: &str) -> CliError {
    CliError::refused(
        format!("{operation} did not end"),
        "it was taken back, or its node came back, or went out and is rebuilt elsewhere",
        "look at `ashlar node list` and `ashlar operation list`: lanes are still there",
    )
}

/// One line: a bar, how far it is, how fast, or what it waits for. What is emptied is measured by the most lanes that it had.
fn progress(value: &Value, most_lanes: u64) -> String {
    let emptied = value["lanes_left"].as_u64().map(|left| 100.0 * (1.0 - left as f64 / most_lanes.max(1) as f64));
    let done = if value["state"] == "done" { 100.0 } else { 0.0 };
    let percent = value["percent"].as_f64().or(emptied).unwrap_or(done).clamp(0.0, 100.0);
    let full = (percent / 100.0 * BAR_CELLS as f64) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR_CELLS - full));
    let rest = match value["state"].as_str() {
        Some("waiting") => format!("waits: {}", text(&value["reason"])),
        Some("running") if emptied.is_some() => format!("{} of them moving", text(&value["lanes_moving"])),
        Some("running") => format!("{}/s, {} left", bytes(&value["rate_bytes_per_s"]), eta(&value["eta_s"])),
        _ => text(&value["state"]),
    };
    let lanes = match value["lanes_left"].as_u64() {
        Some(left) => format!("{left} lanes left"),
        None => format!("{} of {} lanes", text(&value["lanes_done"]), text(&value["lanes_total"])),
    };
    format!("[{bar}] {percent:.1} %, {lanes}, {rest}")
}

fn eta(value: &Value) -> String {
    match value.as_u64() {
        None => "-".into(),
        Some(seconds @ 0..120) => format!("{seconds} s"),
        Some(seconds @ 120..7200) => format!("{} min", seconds / 60),
        Some(seconds) => format!("{} h", seconds / 3600),
    }
}

const COLUMNS: [Column; 11] = [
    Column::new("ID", |v| text(&v["id"])),
    Column::new("KIND", |v| text(&v["kind"])),
    Column::new("VOLUME", |v| text(&v["volume"])),
    Column::new("NODE", |v| text(&v["node"])),
    Column::new("STATE", |v| text(&v["state"])),
    Column::new("PERCENT", |v| text(&v["percent"])),
    Column::new("LANES", lanes),
    Column::new("RATE", |v| bytes(&v["rate_bytes_per_s"])),
    Column::new("LEFT", |v| eta(&v["eta_s"])),
    Column::wide("DEVICE", |v| text(&v["device"])),
    Column::wide("REASON", |v| text(&v["reason"])),
];

fn lanes(value: &Value) -> String {
    match value["lanes_left"].as_u64() {
        Some(left) => format!("{left} left"),
        None => format!("{}/{}", text(&value["lanes_done"]), text(&value["lanes_total"])),
    }
}

fn render(value: &Value) -> String {
    if value["lanes_left"].is_u64() {
        return render_emptying(value);
    }
    let rows = [
        ("id", text(&value["id"])),
        ("kind", text(&value["kind"])),
        ("volume", text(&value["volume"])),
        ("device", format!("{} on node {}", text(&value["device"]), text(&value["node"]))),
        ("leaving", text(&value["leaving"])),
        ("state", text(&value["state"])),
        ("waits for", text(&value["reason"])),
        ("done", format!("{} %", text(&value["percent"]))),
        ("lanes", format!("{} of {}", text(&value["lanes_done"]), text(&value["lanes_total"]))),
        ("copied", bytes(&value["copied_bytes"])),
        ("held already", bytes(&value["compared_bytes"])),
        ("rate", bytes(&value["rate_bytes_per_s"])),
        ("left", eta(&value["eta_s"])),
    ];
    rows.iter().map(|(title, cell)| format!("{title:<12} {cell}\n")).collect()
}

fn render_emptying(value: &Value) -> String {
    let rows = [
        ("id", text(&value["id"])),
        ("kind", text(&value["kind"])),
        ("node", text(&value["node"])),
        ("device", text(&value["device"])),
        ("state", text(&value["state"])),
        ("waits for", text(&value["reason"])),
        ("lanes", format!("{} left, {} of them moving", text(&value["lanes_left"]), text(&value["lanes_moving"]))),
        ("left to copy", format!("at most {}", bytes(&value["bytes_left_max"]))),
    ];
    rows.iter().map(|(title, cell)| format!("{title:<12} {cell}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_or_what_it_waits_for() {
        let running = json!({
            "state": "running", "percent": 50.0, "lanes_done": 1, "lanes_total": 4, "rate_bytes_per_s": 8 << 20,
            "eta_s": 90,
        });
        assert_eq!(progress(&running, 0), "[###############...............] 50.0 %, 1 of 4 lanes, 8 MiB/s, 90 s left");
        let waiting = json!({
            "state": "waiting", "percent": 0.0, "lanes_done": 0, "lanes_total": 4, "reason": "node n3 is not up",
        });
        let line = format!("[{}] 0.0 %, 0 of 4 lanes, waits: node n3 is not up", ".".repeat(BAR_CELLS));
        assert_eq!(progress(&waiting, 0), line);
        let draining = json!({ "state": "running", "lanes_left": 6, "lanes_moving": 2 });
        let line = "[#######.......................] 25.0 %, 6 lanes left, 2 of them moving";
        assert_eq!(progress(&draining, 8), line);
        let drained = json!({ "state": "done", "lanes_left": 0, "lanes_moving": 0 });
        assert_eq!(progress(&drained, 8), format!("[{}] 100.0 %, 0 lanes left, done", "#".repeat(BAR_CELLS)));
        assert_eq!(eta(&json!(7300)), "2 h");
    }
}
