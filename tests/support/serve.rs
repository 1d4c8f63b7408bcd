//! `ashlar nbd serve` for one test: a file, a socket, and a process that ends with it.

use super::tools::ashlar_binary;
use super::wait_for;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server of one file.
pub struct Serve {
    dir: tempfile::TempDir,
    child: Child,
}

impl Serve {
    /// Serves a new file of this size, with these further arguments.
    #[track_caller]
    pub fn start(bytes: u64, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = std::fs::File::create(dir.path().join("disk")).expect("a file");
        file.set_len(bytes).expect("its size");
        let mut command = Command::new(ashlar_binary());
        command.args(["nbd", "serve", "disk", "--socket", "sock"]).args(arguments).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(dir.path().join("log")).expect("a log"));
        let serve = Self { child: command.spawn().expect("the binary under test"), dir };
        wait_for("the server listens", Duration::from_secs(10), || {
            UnixStream::connect(serve.socket()).map_err(|error| format!("{error}: {}", serve.log()))
        });
        serve
    }

    /// The directory of the file `disk`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Its export for clients.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill only sends a signal; the child has not been waited for, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server said\n{}", self.log());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
