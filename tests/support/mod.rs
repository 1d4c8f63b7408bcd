//! What the end-to-end tests share: clusters of real processes, an HTTP client, real tools, a prober and a checker.
//!
//! Nothing here knows the inside of the daemon: it sees the command line, the HTTP API, NBD and the files.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod api;
pub mod cluster;
pub mod copies;
pub mod damage;
pub mod disk;
pub mod fio;
pub mod loss;
pub mod manual;
pub mod net;
pub mod pki;
pub mod prober;
pub mod process;
pub mod serve;
pub mod stalls;
pub mod stamp;
pub mod tools;
pub mod watch;
pub mod writers;

use std::time::{Duration, Instant};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Asks again and again until there is an answer. Panics, with the last reason, when it takes too long.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= until => panic!("{what}: not within {timeout:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// As [`wait_for`], for a plain condition.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, timeout, || if condition() { Ok(()) } else { Err("still not so".into()) });
}

/// A line of the test's report, seen with `--nocapture` and when the test fails.
pub fn report(line: &str) {
    println!("    {line}");
}
