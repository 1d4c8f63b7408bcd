//! A loop device for tests: a file that the kernel serves as a block device. Needs root and `losetup`.
//!
//! It must never know what is on it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when it is dropped, also by a panic.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Why there can be none here: not root, or no loop devices. `None`: there can be one.
    pub fn unavailable() -> Option<&'static str> {
        // SAFETY: it takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Some("this needs root");
        }
        (!Path::new("/dev/loop-control").exists()).then_some("this needs loop devices: there is no /dev/loop-control")
    }

    /// Makes an image of `size_bytes`, zeroes, and a loop device on it. The image stays until somebody removes it.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn new(image: &Path, size_bytes: u64) -> Result<Self, String> {
        let file = std::fs::File::create(image).and_then(|file| file.set_len(size_bytes));
        file.map_err(|error| format!("make {}: {error}", image.display()))?;
        let path = losetup(&["--find".as_ref(), "--show".as_ref(), image])?;
        Ok(Self { path: PathBuf::from(path.trim()) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // No panic here: there may be one under way.
        if let Err(error) = losetup(&["--detach".as_ref(), &self.path]) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}

fn losetup(arguments: &[&Path]) -> Result<String, String> {
    let output = Command::new("losetup").args(arguments).output().map_err(|error| format!("run losetup: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("losetup {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
