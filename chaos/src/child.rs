//! Runs in a process of its own: a panic of an engine is a verdict there, and ends nothing else.

use crate::replay::Line;
use std::cell::RefCell;
use std::process::{Command, Stdio};

/// What a run prints before its verdict when it fails.
pub const VERDICT: &str = "VIOLATION";

thread_local! {
    static RUNNING: RefCell<Option<Line>> = const { RefCell::new(None) };
}

/// Names the run that this thread is in, for the case that it panics.
pub fn running(line: Option<Line>) {
    RUNNING.set(line);
}

/// A panic inside a run is a failure of that run: it is said with the line that replays it, and the process ends.
pub fn panics_are_verdicts() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("it panicked without a word");
        let place = panic.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        match RUNNING.take() {
            Some(line) => {
                let seed = line.seed.unwrap_or_default();
                println!("{VERDICT} panic of seed {seed}: {text}{place}\n  replay: {line}");
            }
            None => eprintln!("{text}{place}"),
        }
        std::process::exit(1);
    }));
}

/// Runs a command line of this program; what it found, if it failed.
///
/// # Errors
/// If the program cannot be started.
pub fn run(arguments: &[String]) -> std::io::Result<Option<String>> {
    let output =
        Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = text.lines().find_map(|line| line.strip_prefix(VERDICT));
    Ok(Some(verdict.map_or_else(|| format!("{}", output.status), |why| why.trim().to_owned())))
}

/// Runs one line; what it found, if it failed.
///
/// # Errors
/// If the program cannot be started.
pub fn run_line(line: &Line) -> std::io::Result<Option<String>> {
    let words = ["sim".to_owned()].into_iter().chain(line.arguments());
    run(&words.collect::<Vec<_>>())
}
