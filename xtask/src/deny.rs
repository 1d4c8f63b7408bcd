//! The dependency step: `cargo deny`, with a plain word on whether security advisories were checked.
//!
//! Licences, bans and sources need nothing but the lock file and always run. Advisories need a database that lives on
//! GitHub; on a closed network the step says so instead of failing or keeping silent.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo;

const VERSION: &str = "0.20.2";

/// A network that neither answers nor refuses must not hold the whole run.
const FETCH_TIMEOUT: Duration = Duration::from_secs(90);

/// Runs the checks; returns what to say about advisories.
pub fn run(root: &Path) -> Result<String> {
    install_if_missing(root)?;
    check(root, &["--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])?;
    let remark = match fetch_advisories(root)? {
        true => "advisories checked, database fresh",
        false if has_advisories(root)? => "advisories checked against a local copy that could not be refreshed",
        false => {
            let remark = "advisories NOT checked: their database is out of reach and there is no local copy";
            println!("{remark}");
            return Ok(remark.into());
        }
    };
    check(root, &["--workspace", "--offline", "check", "advisories"])?;
    println!("{remark}");
    Ok(remark.into())
}

fn install_if_missing(root: &Path) -> Result<()> {
    let probe = cargo(root).args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let arguments = ["install", "--locked", "cargo-deny", "--version", VERSION, "--no-default-features"];
    println!("cargo-deny is missing: cargo {} (some minutes)", arguments.join(" "));
    let status = cargo(root).args(arguments).status().context("run cargo install")?;
    if !status.success() {
        bail!("cargo-deny could not be installed");
    }
    Ok(())
}

fn check(root: &Path, arguments: &[&str]) -> Result<()> {
    let status = cargo(root).arg("deny").args(arguments).status().context("run cargo deny")?;
    if !status.success() {
        bail!("cargo deny {} found something", arguments.join(" "));
    }
    Ok(())
}

/// Whether the database could be fetched or refreshed in time.
fn fetch_advisories(root: &Path) -> Result<bool> {
    let mut command = cargo(root);
    command.args(["deny", "fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("run cargo deny fetch")?;
    wait_at_most(&mut child, FETCH_TIMEOUT)
}

/// Whether a local copy answers, whatever the answer: without one, cargo-deny gives up before its verdict.
fn has_advisories(root: &Path) -> Result<bool> {
    let arguments = ["deny", "--workspace", "--offline", "check", "advisories"];
    let output = cargo(root).args(arguments).output().context("run cargo deny")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Ok(text.contains("advisories ok") || text.contains("advisories FAILED"))
}

fn wait_at_most(child: &mut Child, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait for cargo deny fetch")? {
            return Ok(status.success());
        }
        if started.elapsed() >= limit {
            child.kill().context("stop cargo deny fetch")?;
            child.wait().context("wait for cargo deny fetch")?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_hangs_is_stopped() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!wait_at_most(&mut child, Duration::from_millis(10)).unwrap());
    }

    #[test]
    fn a_process_that_ends_gives_its_own_answer() {
        for (program, expected) in [("true", true), ("false", false)] {
            let mut child = Command::new(program).spawn().unwrap();
            assert_eq!(wait_at_most(&mut child, Duration::from_secs(60)).unwrap(), expected);
        }
    }
}
