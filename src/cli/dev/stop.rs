//! The ways down: stop, kill, Ctrl-C.

use super::super::client::{ApiClient, CliError, path_segment};
use super::plan::{DevPlan, NodePlan};
use super::{process, say, state};
use serde_json::json;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const WATCH_PERIOD: Duration = Duration::from_millis(200);

/// Notices Ctrl-C and SIGTERM, and keeps the children that must be waited for.
pub struct Interrupt {
    arrived: Arc<AtomicBool>,
    children: Mutex<Vec<Child>>,
}

impl Interrupt {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system gives no signals.
    pub fn listen() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::failed("cannot listen for signals", error, "try again");
        let arrived = Arc::new(AtomicBool::new(false));
        let flag = arrived.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut signals = {
            let _inside = runtime.enter();
            use tokio::signal::unix::{SignalKind, signal};
            (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
        };
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = signals.0.recv() => {}
                        _ = signals.1.recv() => {}
                    }
                    if flag.swap(true, Ordering::SeqCst) {
                        std::process::exit(1); // asked twice: go at once, the nodes stay
                    }
                }
            });
        });
        Ok(Self { arrived, children: Mutex::default() })
    }

    /// True once a signal arrived.
    pub fn arrived(&self) -> bool {
        self.arrived.load(Ordering::SeqCst)
    }

    /// Keeps a child.
    pub fn adopt(&self, child: Child) {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }

    /// Takes note of children that ended, so that they do not linger.
    pub fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// The named node, or all.
///
/// # Errors
/// There is no such node.
pub fn chosen<'a>(plan: &'a DevPlan, name: Option<&str>) -> Result<Vec<&'a NodePlan>, CliError> {
    let Some(name) = name else { return Ok(plan.nodes.iter().collect()) };
    plan.node(name).map(|node| vec![node]).ok_or_else(|| {
        let names: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        CliError::not_found(format!("there is no node '{name}'"), format!("name one of {}", names.join(", ")))
    })
}

/// Stops nodes cleanly.
///
/// # Errors
/// One does not stop in time.
pub fn stop(plan: &DevPlan, name: Option<&str>) -> Result<(), CliError> {
    let chosen = chosen(plan, name)?;
    if chosen.len() == plan.nodes.len() {
        detach_all(plan);
    }
    let stopping: Vec<&NodePlan> = chosen.into_iter().filter(|node| process::signal(node, libc::SIGTERM)).collect();
    for node in stopping {
        if !process::wait_gone(node, STOP_TIMEOUT) {
            return Err(CliError::failed(
                format!("{} does not stop", node.name),
                format!("it still runs after {} s", STOP_TIMEOUT.as_secs()),
                format!("kill it with `ashlar dev kill {}`", node.name),
            ));
        }
        say(&format!("{} stopped", node.name));
    }
    Ok(())
}

/// Detaching needs the metadata service, which goes when all nodes stop at once: so it comes first. Best effort.
fn detach_all(plan: &DevPlan) {
    for node in plan.nodes.iter().filter(|node| process::pid_of(node).is_some()) {
        let Ok(client) = ApiClient::new(&node.api) else { continue };
        let Ok(volumes) = client.get_all("/v1/volumes") else { continue };
        for volume in super::super::output::items(&volumes).iter().filter(|volume| !volume["attached"].is_null()) {
            let name = volume["name"].as_str().unwrap_or_default();
            let path = format!("/v1/volumes/{}/detach", path_segment(name));
            match client.post(&path, &json!({ "force": false }), None) {
                Ok(_) => say(&format!("volume '{name}' is detached")),
                Err(error) => say(&format!("volume '{name}' is not detached: {}", error.why)),
            }
        }
        return;
    }
}

/// SIGKILL.
///
/// # Errors
/// One survives it.
pub fn kill(plan: &DevPlan, name: Option<&str>) -> Result<(), CliError> {
    let killed: Vec<&NodePlan> =
        chosen(plan, name)?.into_iter().filter(|node| process::signal(node, libc::SIGKILL)).collect();
    for node in killed {
        if !process::wait_gone(node, KILL_TIMEOUT) {
            return Err(CliError::failed(
                format!("{} is still there", node.name),
                "the system did not end it yet",
                "wait and look again",
            ));
        }
        say(&format!("{} killed", node.name));
    }
    Ok(())
}

/// Watches the nodes until a signal arrives, then stops them. A node that died stays down until it is started.
///
/// # Errors
/// One does not stop.
pub fn watch(dir: &Path, plan: &DevPlan, interrupt: &Interrupt) -> Result<(), CliError> {
    let running = || plan.nodes.iter().map(process::pid_of).collect::<Vec<_>>();
    let mut before = running();
    say("Ctrl-C stops all nodes");
    while !interrupt.arrived() {
        std::thread::sleep(WATCH_PERIOD);
        interrupt.reap();
        let now = running();
        for (node, (was, is)) in plan.nodes.iter().zip(before.iter().zip(&now)) {
            match (was, is) {
                (Some(pid), None) => {
                    say(&format!("{} (pid {pid}) ended; start it with `ashlar dev start {}`", node.name, node.name))
                }
                (None, Some(pid)) => say(&format!("{} runs again (pid {pid})", node.name)),
                _ => {}
            }
        }
        if now != before {
            state::write_cluster_file(dir, plan)?;
            before = now;
        }
        if before.iter().all(Option::is_none) {
            say("all nodes have ended");
            return Ok(());
        }
    }
    say("stops all nodes");
    let result = stop(plan, None);
    state::write_cluster_file(dir, plan)?;
    result
}
