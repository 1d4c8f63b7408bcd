//! Emptying nodes and devices, for `ashlar node` and `ashlar device`: said first, asked about, then begun.

use super::client::{ApiClient, CliError};
use super::operation;
use super::output::{bytes, confirm, text};
use serde_json::{Value, json};

/// How it is begun.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct BeginArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Begin although some lanes have no other place now
    #[arg(long)]
    force: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Return at once; `ashlar operation wait` waits for it
    #[arg(long)]
    detach: bool,
}

/// Empties what `what` names by a call of `path`.
///
/// # Errors
/// What the API says, or nobody said yes.
pub fn begin(client: &ApiClient, what: &str, path: &str, args: BeginArgs) -> Result<(), CliError> {
    let body = |dry_run: bool| json!({ "dry_run": dry_run, "force": args.force });
    let plan = client.post(path, &body(true), None)?;
    println!("{what}: {} lanes move elsewhere, at most {} to copy", text(&plan["lanes"]), bytes(&plan["bytes_max"]));
    for blocked in plan["blocked"].as_array().map_or(&[][..], Vec::as_slice) {
        println!(
            "warning: lane {} of volume {}: {}",
            text(&blocked["lane"]),
            text(&blocked["volume"]),
            text(&blocked["why"])
        );
    }
    for volume in plan["attached_volumes"].as_array().map_or(&[][..], Vec::as_slice) {
        println!("note: volume {} stays attached there until its guests let go", text(volume));
    }
    if args.dry_run {
        return Ok(());
    }
    if !args.yes && !confirm("Go on?") {
        let why = "its lanes would get other devices, and it gets no new ones";
        return Err(CliError::refused("nothing was changed", why, "add --yes if that is meant"));
    }
    let begun = client.post(path, &body(false), None)?;
    let id = text(&begun["id"]);
    println!("begun: {id}; `ashlar operation wait {id}` waits for it, `ashlar operation cancel {id}` takes it back");
    if args.detach || plan["lanes"] == 0 {
        return Ok(());
    }
    operation::wait(client, &id, None)
}

/// Takes it back.
///
/// # Errors
/// What the API says.
pub fn resume(client: &ApiClient, what: &str, path: &str) -> Result<(), CliError> {
    let answer = client.post(path, &json!({}), None)?;
    println!("{what} is in normal use; {} changes under way were taken back", text(&answer["taken_back"]));
    Ok(())
}

/// Removes what is empty for good.
///
/// # Errors
/// What the API says, or nobody said yes.
pub fn remove(client: &ApiClient, what: &str, shown: &Value, path: &str, yes: bool) -> Result<(), CliError> {
    println!(
        "{what} ({} lanes, state {}) is removed from the cluster for good",
        text(&shown["lane_count"]),
        text(&shown["state"])
    );
    if !yes && !confirm("Go on?") {
        let why = "what is removed does not come back under its name or identity";
        return Err(CliError::refused("nothing was changed", why, "add --yes if that is meant"));
    }
    client.delete(path)?;
    println!("{what} is removed");
    Ok(())
}
