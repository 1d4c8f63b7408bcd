//! Runs programs with a deadline and keeps all they print: the `ashlar` binary and real NBD clients.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The binary under test: `ASHLAR_BIN`, or the one that cargo built with the tests.
pub fn ashlar_binary() -> PathBuf {
    std::env::var_os("ASHLAR_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ashlar")), PathBuf::from)
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal or the deadline ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// All that was printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Demands an exit code.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "after {:?}: {}", self.took, self.text());
        self
    }

    /// Demands words in what was printed.
    #[track_caller]
    pub fn expect_text(&self, wanted: &[&str]) -> &Self {
        let text = self.text();
        for word in wanted {
            assert!(text.contains(word), "{word:?} is not in:\n{text}");
        }
        self
    }
}

/// A program that runs.
pub struct Running {
    what: String,
    child: Child,
    started: Instant,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

impl Running {
    /// Starts a program.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{what}: {error}; are fio, libnbd-bin, qemu-utils and nbdkit installed?");
        });
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Self { what, child, started: Instant::now(), stdout, stderr }
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGINT: it is to end in order.
    pub fn interrupt(&self) {
        // SAFETY: kill only sends a signal; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
    }

    /// Waits for its end; after the deadline it is killed and has no exit code.
    pub fn finish(mut self, timeout: Duration) -> Finished {
        let until = self.started + timeout;
        let code = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.code(),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                _ => {
                    drop(self.child.kill());
                    drop(self.child.wait());
                    break None;
                }
            }
        };
        let took = self.started.elapsed();
        let mut stderr = self.stderr.join().unwrap_or_default();
        if code.is_none() {
            stderr.push_str(&format!("\n(killed after {took:?}: {})", self.what));
        }
        Finished { code, stdout: self.stdout.join().unwrap_or_default(), stderr, took }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program to its end.
#[track_caller]
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str], timeout: Duration) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    Running::start(command).finish(timeout)
}

/// Runs a program that must succeed within a minute, and returns all it printed.
#[track_caller]
pub fn must(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let name = program.as_ref().to_string_lossy().into_owned();
    let finished = run(program, arguments, Duration::from_secs(60));
    assert_eq!(finished.code, Some(0), "{name} {arguments:?} failed:\n{}", finished.text());
    finished.text()
}

/// Runs `ashlar` with the API of a node in its environment.
#[track_caller]
pub fn ashlar(endpoint: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(ashlar_binary());
    command.args(arguments).env("ASHLAR_ENDPOINT", endpoint).env_remove("ASHLAR_CONFIG");
    Running::start(command).finish(Duration::from_secs(60))
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let kept: Vec<&str> = text.lines().rev().take(lines).collect();
    kept.into_iter().rev().map(|line| format!("      {line}\n")).collect()
}
