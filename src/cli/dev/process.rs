//! Node processes of a development cluster: start, find, stop, kill. A process is only ever touched by a pid that was
//! recorded and whose command line says that it is that node.

use super::super::client::CliError;
use super::plan::NodePlan;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// Starts a node's daemon in a session of its own, its output in `DIR/nX/log`.
///
/// # Errors
/// It cannot be started.
pub fn spawn(node: &NodePlan) -> Result<Child, CliError> {
    let failed =
        |error: std::io::Error| CliError::failed(format!("cannot start {}", node.name), error, "look at its log file");
    let log = File::options().create(true).append(true).open(node.dir.join("log")).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .arg("node")
        .arg("--config")
        .arg(node.config_path())
        .env_remove("ASHLAR_CONFIG")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log);
    // SAFETY: between fork and exec the child only calls setsid, which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    let child = command.spawn().map_err(failed)?;
    std::fs::write(pid_path(node), child.id().to_string()).map_err(failed)?;
    Ok(child)
}

fn pid_path(node: &NodePlan) -> std::path::PathBuf {
    node.dir.join("pid")
}

/// The process of a node, if it runs: recorded, and still that node's daemon.
pub fn pid_of(node: &NodePlan) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(pid_path(node)).ok()?.trim().parse().ok()?;
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    is_daemon_of(&command_line, &node.config_path()).then_some(pid)
}

/// A dead process that nobody has waited for has an empty command line, so it does not count as running.
fn is_daemon_of(command_line: &[u8], config: &Path) -> bool {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let config = config.as_os_str().as_encoded_bytes();
    arguments.windows(3).any(|three| three == [b"node".as_slice(), b"--config".as_slice(), config])
}

/// Sends a signal to a node's process, if it runs.
pub fn signal(node: &NodePlan, signal: i32) -> bool {
    let Some(pid) = pid_of(node).and_then(|pid| i32::try_from(pid).ok()) else { return false };
    // SAFETY: kill only sends a signal; the pid was verified to be this node's daemon.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Waits until a node's process is gone.
pub fn wait_gone(node: &NodePlan, timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    while pid_of(node).is_some() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(POLL);
    }
    drop(std::fs::remove_file(pid_path(node)));
    true
}

/// Last lines of a node's log, for an error message.
pub fn log_tail(node: &NodePlan) -> String {
    let log = std::fs::read(node.dir.join("log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemon_of_that_directory_counts() {
        let config = Path::new("/d/n1/node.toml");
        assert!(is_daemon_of(b"/bin/ashlar\0node\0--config\0/d/n1/node.toml\0", config));
        assert!(!is_daemon_of(b"/bin/ashlar\0node\0--config\0/d/n10/node.toml\0", config));
        assert!(!is_daemon_of(b"vi\0/d/n1/node.toml\0", config));
        assert!(!is_daemon_of(b"", config));
    }
}
