//! Processes of a cluster under test: touched only by a pid that was written down and whose command line still says
//! that it is a daemon of this test's directory.

use std::path::Path;
use std::time::{Duration, Instant};

/// True if `pid` is a daemon whose configuration lies under `dir`.
pub fn is_daemon_under(pid: i32, dir: &Path) -> bool {
    let Ok(command_line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let mut prefix = dir.as_os_str().as_encoded_bytes().to_vec();
    prefix.push(b'/');
    arguments.windows(3).any(|three| three[0] == b"node" && three[1] == b"--config" && three[2].starts_with(&prefix))
}

/// Sends a signal to a daemon of this test; false if it is not (or no longer) one.
pub fn signal(pid: i32, dir: &Path, signal: i32) -> bool {
    assert!(pid > 1, "a daemon has a pid of its own");
    // SAFETY: kill only sends a signal; the pid was verified to be a daemon of this test's directory.
    is_daemon_under(pid, dir) && unsafe { libc::kill(pid, signal) == 0 }
}

/// Waits until daemons are gone.
pub fn wait_gone(pids: &[i32], dir: &Path, timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    while pids.iter().any(|pid| is_daemon_under(*pid, dir)) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Every daemon of this test that runs, known or not: for the last clean-up.
pub fn daemons_under(dir: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_daemon_under(*pid, dir)).collect()
}
