//! The release build, made while other steps build: each has minutes of work for a single processor.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A build under way, with all that it started in a process group of its own.
pub struct Ahead {
    child: Child,
    log: PathBuf,
}

impl Ahead {
    /// Starts this program again with `ci release`. What it says goes to a file below `target`.
    pub fn start(root: &Path, target: &Path) -> Result<Self> {
        std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
        let log = target.join("release-ahead.log");
        let out = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.current_dir(root).args(["ci", "release"]).process_group(0);
        command.stdin(Stdio::null()).stderr(out.try_clone().context("share a file")?).stdout(out);
        let child = command.spawn().context("start the release build")?;
        Ok(Self { child, log })
    }

    /// Waits for its end; a failure comes with what it said.
    pub fn finish(mut self) -> Result<String> {
        let status = self.child.wait().context("wait for the release build")?;
        if !status.success() {
            print!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
            bail!("{status}");
        }
        Ok("waited for: it was built beside the steps from clippy on".into())
    }
}

/// If another step fails, nothing goes on behind its back.
impl Drop for Ahead {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = format!("-{}", self.child.id());
            drop(Command::new("kill").args(["-TERM", "--", &group]).status());
            drop(self.child.wait());
        }
    }
}
