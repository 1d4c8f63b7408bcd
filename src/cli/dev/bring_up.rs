//! From nothing, or from what is there, to a cluster that serves its volume. Every step may be repeated.

use super::super::client::{ApiClient, CliError, EXIT_UNAVAILABLE, path_segment};
use super::plan::{DevPlan, NodePlan};
use super::stop::Interrupt;
use super::{process, say, state};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Starts what is down and completes what is missing.
///
/// # Errors
/// A step failed; the steps before it stand.
pub fn bring_up(dir: &Path, plan: &DevPlan, interrupt: &Interrupt) -> Result<(), CliError> {
    for node in &plan.nodes {
        if let Some(child) = start_node(node)? {
            interrupt.adopt(child);
        }
    }
    state::write_cluster_file(dir, plan)?;
    for node in &plan.nodes {
        let client = ApiClient::new(&node.api)?;
        wait(node, interrupt, "answer", || client.get("/healthz").map(drop))?;
    }
    found_and_join(plan)?;
    wait_ready(&plan.nodes.iter().collect::<Vec<_>>(), interrupt)?;
    for node in &plan.nodes {
        add_devices(plan, node, interrupt)?;
    }
    create_volume(plan, interrupt)
}

/// Starts a node unless it runs.
///
/// # Errors
/// It cannot be started.
pub fn start_node(node: &NodePlan) -> Result<Option<std::process::Child>, CliError> {
    if let Some(pid) = process::pid_of(node) {
        say(&format!("{} runs already (pid {pid})", node.name));
        return Ok(None);
    }
    let child = process::spawn(node)?;
    say(&format!("{} starts (pid {})", node.name, child.id()));
    Ok(Some(child))
}

/// Waits until nodes are ready.
///
/// # Errors
/// One is not ready in time, or ended.
pub fn wait_ready(nodes: &[&NodePlan], interrupt: &Interrupt) -> Result<(), CliError> {
    for node in nodes {
        let client = ApiClient::new(&node.api)?;
        wait(node, interrupt, "be ready", || client.get("/readyz").map(drop))?;
        say(&format!("{} is ready", node.name));
    }
    Ok(())
}

fn wait(
    node: &NodePlan,
    interrupt: &Interrupt,
    what: &str,
    mut attempt: impl FnMut() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let until = Instant::now() + READY_TIMEOUT;
    loop {
        let Err(error) = attempt() else { return Ok(()) };
        if interrupt.arrived() {
            return Err(CliError::failed("interrupted", "a signal arrived", "run it again to go on"));
        }
        interrupt.reap();
        let log = node.dir.join("log");
        if process::pid_of(node).is_none() {
            let tail = process::log_tail(node);
            return Err(CliError::failed(format!("{} ended", node.name), tail, format!("read {}", log.display())));
        }
        if error.exit != EXIT_UNAVAILABLE {
            return Err(error);
        }
        if Instant::now() > until {
            let why = format!("{}; {}", error.why, process::log_tail(node));
            let what = format!("{} does not {what} within {} s", node.name, READY_TIMEOUT.as_secs());
            return Err(CliError::new(EXIT_UNAVAILABLE, what, why, format!("read {}", log.display())));
        }
        std::thread::sleep(POLL);
    }
}

/// True if the node belongs to a cluster, whatever else it waits for.
fn has_cluster(client: &ApiClient) -> bool {
    match client.get("/readyz") {
        Ok(_) => true,
        Err(error) => !error.why.contains("belongs to no cluster"),
    }
}

fn found_and_join(plan: &DevPlan) -> Result<(), CliError> {
    let Some((first, others)) = plan.nodes.split_first() else { return Ok(()) };
    let client = ApiClient::new(&first.api)?;
    if !has_cluster(&client) {
        client.post("/v1/cluster", &json!({ "name": "dev" }), None)?;
        say(&format!("{} founded the cluster", first.name));
    }
    for node in others {
        let client = ApiClient::new(&node.api)?;
        if !has_cluster(&client) {
            client.post("/v1/join", &json!({ "endpoint": first.api }), None)?;
            say(&format!("{} joined", node.name));
        }
    }
    Ok(())
}

fn add_devices(plan: &DevPlan, node: &NodePlan, interrupt: &Interrupt) -> Result<(), CliError> {
    let client = ApiClient::new(&node.api)?;
    let mut known = Value::Null;
    wait(node, interrupt, "list devices", || client.get_all("/v1/devices").map(|list| known = list))?;
    for path in &node.devices {
        let is_known = known["items"].as_array().is_some_and(|devices| {
            devices.iter().any(|device| device["node"] == node.name.as_str() && device["path"] == json!(path))
        });
        if is_known {
            continue;
        }
        // An earlier attempt may have formatted the file for this cluster: it is taken as it is then.
        let body = json!({
            "path": path, "class": "ssd",
            "power_loss_protected": plan.power_loss_protected, "atomic_writes": plan.atomic_writes,
        });
        client.post("/v1/devices", &body, None)?;
        say(&format!("{} serves its device", node.name));
    }
    Ok(())
}

fn create_volume(plan: &DevPlan, interrupt: &Interrupt) -> Result<(), CliError> {
    let Some(first) = plan.nodes.first() else { return Ok(()) };
    let client = ApiClient::new(&first.api)?;
    let path = format!("/v1/volumes/{}", path_segment(&plan.volume));
    match client.get(&path) {
        Ok(_) => return Ok(()),
        Err(error) if error.exit == 3 => {}
        Err(error) => return Err(error),
    }
    let body = json!({
        "name": plan.volume, "size_bytes": plan.size_bytes, "replicas": plan.replicas, "lanes": plan.lanes,
    });
    wait(first, interrupt, "create the volume", || client.post("/v1/volumes", &body, None).map(drop))?;
    say(&format!("volume '{}' is created", plan.volume));
    Ok(())
}
