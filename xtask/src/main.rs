//! Project tasks: `cargo xtask ci | fix | tidy`.
//!
//! Checking never edits, fixing is its own word, and a laptop and a CI machine run the same commands. Nothing here
//! knows a room from the inside: it runs cargo and reads text.

mod ci;
mod deny;
mod fuzz;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
cargo xtask ci [smoke|test|doc|deny|crash|fuzz|conformance|sim|e2e|all] [--seeds N] [--fuzz-seconds N]
    smoke  formatting, tidy, clippy with every warning an error
    test   unit, property, doc and integration tests that need no cluster
    doc    documentation with every broken link an error
    deny   licences, bans and sources of dependencies; advisories when their database is within reach
    crash  100 000 crash points of the store, and each of its rules broken once to see that this is noticed
    fuzz   N seconds of each fuzz target: bytes of a device, of a guest, of an NBD server (40 unless told; needs a C++ compiler)
    conformance  nbd-tester-client, libnbd's interop programs and qemu-iotests against `ashlar nbd serve` (as root: it installs)
    sim    N seeds of the whole protocol under simulated faults (release build)
    e2e    real daemons, real NBD clients (release build; needs fio, libnbd, qemu-utils, nbdkit)
    all    everything above, and the default
cargo xtask tidy    rooms and doors, banned calls, lengths, links
cargo xtask fix     format and apply clippy's own corrections: the only task that edits";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let root = root();
    match words {
        ["ci", options @ ..] => ci::run(&root, &ci::Options::parse(options)?),
        ["tidy"] => tidy::run(&root),
        ["fix"] => fix(&root),
        ["help" | "--help" | "-h"] | [] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown task `{}`\n{USAGE}", words.join(" ")),
    }
}

/// Rewrites what tools can rewrite by themselves.
fn fix(root: &Path) -> Result<()> {
    let clippy = ["clippy", "--fix", "--allow-dirty", "--allow-staged", "--workspace", "--all-targets"];
    for arguments in [&clippy[..], &["fmt", "--all"]] {
        println!("== cargo {}", arguments.join(" "));
        let status = cargo(root).args(arguments).status().context("run cargo")?;
        if !status.success() {
            bail!("cargo {} failed", arguments.join(" "));
        }
    }
    Ok(())
}

/// The workspace's folder: the one above this package's.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.parent().expect("xtask is a folder of the workspace").to_path_buf()
}

/// Cargo in the workspace's folder, with nothing on standard input: no step may ever wait for an answer.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).stdin(Stdio::null());
    command
}
