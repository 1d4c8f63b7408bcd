//! The fuzz step: every target of every fuzz package for a while, on stable Rust.
//!
//! Without a sanitizer libFuzzer needs no nightly compiler; what it looks for here are panics, overflows, endless loops
//! and memory without a bound. Targets run side by side, at most one per core: each has a whole core for all of its
//! time. A find fails the step; it becomes an ordinary test when its file is moved to the seeds of its package.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::cargo;

const VERSION: &str = "0.13.2";

/// The packages, from the workspace's folder.
const PACKAGES: &[&str] = &["nbd/fuzz", "store/fuzz"];

/// Memory of one target. The device of the largest one has 7 MiB.
const MEMORY_MB: u32 = 1024;

/// One input that takes longer hangs.
const INPUT_SECONDS: u32 = 20;

/// Lines of a failed target's output that are shown.
const TAIL_LINES: usize = 40;

/// Builds the targets and runs each for `seconds`; returns how many inputs each has tried.
pub fn run(root: &Path, seconds: u64, folder: &Path) -> Result<String> {
    need_compiler()?;
    install_if_missing(root)?;
    let host = host(root)?;
    PACKAGES.iter().try_for_each(|package| build(root, package, &host, folder))?;
    let programs = folder.join(host).join("release");
    let all = targets(root)?;
    let runs = side_by_side(&all, |target| Run { root, folder, programs: &programs, target, seconds }.run());
    let counts: Vec<String> = runs.into_iter().collect::<Result<_>>()?;
    Ok(format!("inputs in {seconds} s: {}", counts.join(", ")))
}

fn build(root: &Path, package: &str, host: &str, folder: &Path) -> Result<()> {
    let manifest = format!("{package}/Cargo.toml");
    quiet(root, &["fmt", "--check", "--manifest-path", &manifest])?;
    // cargo-fuzz knows no --locked: a stale Cargo.lock is found here.
    quiet(root, &["metadata", "--locked", "--format-version=1", "--manifest-path", &manifest])?;
    let target_folder = folder.to_str().context("the target folder's name is not text")?;
    let build = ["fuzz", "build", "--fuzz-dir", package, "--sanitizer", "none", "--target", host];
    let status = cargo(root).args(build).args(["--target-dir", target_folder]).status().context("run cargo fuzz")?;
    if !status.success() {
        bail!("the fuzz targets of {package} do not build: {status}");
    }
    Ok(())
}

/// libFuzzer is C++.
fn need_compiler() -> Result<()> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let probe = Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        bail!("{compiler:?}, a C++ compiler, is missing: libFuzzer needs one (Debian: apt-get install g++)");
    }
    Ok(())
}

fn install_if_missing(root: &Path) -> Result<()> {
    let probe = cargo(root).args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let arguments = ["install", "--locked", "cargo-fuzz", "--version", VERSION];
    println!("cargo-fuzz is missing: cargo {} (a minute)", arguments.join(" "));
    let status = cargo(root).args(arguments).status().context("run cargo install")?;
    if !status.success() {
        bail!("cargo-fuzz could not be installed");
    }
    Ok(())
}

/// Runs cargo; only its errors are shown.
fn quiet(root: &Path, arguments: &[&str]) -> Result<()> {
    let status = cargo(root).args(arguments).stdout(Stdio::null()).status().context("run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

/// The compiler's own target.
fn host(root: &Path) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").current_dir(root).output().context("run rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// A target: its name is its program's, and no other package has one of that name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    package: &'static str,
    name: String,
}

impl Target {
    /// Inputs that it begins with.
    fn seeds(&self, root: &Path) -> PathBuf {
        root.join(self.package).join("seeds").join(&self.name)
    }
}

/// The targets of all packages: one file each.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut all = Vec::new();
    for package in PACKAGES {
        let folder = root.join(package).join("fuzz_targets");
        let entries = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let path = entry.context("list the fuzz targets")?.path();
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
            all.extend(name.map(|name| Target { package, name }));
        }
    }
    all.sort();
    Ok(all)
}

/// Carries out `work` on each item, on as many threads as there are cores; gives the results in order.
fn side_by_side<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let lanes = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let left = Mutex::new(items.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                loop {
                    let next = left.lock().expect("no thread panics with it").next();
                    let Some((index, item)) = next else { return };
                    let result = work(item);
                    done.lock().expect("no thread panics with it").push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics with it");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// One target's time.
struct Run<'a> {
    root: &'a Path,
    folder: &'a Path,
    programs: &'a Path,
    target: &'a Target,
    seconds: u64,
}

impl Run<'_> {
    /// Runs the target; says how many inputs it has tried.
    fn run(&self) -> Result<String> {
        let name = self.target.name.as_str();
        let (corpus, finds) = (self.subfolder("corpus")?, self.subfolder("artifacts")?);
        let log = self.folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let status = Command::new(self.programs.join(name))
            .arg(corpus)
            .arg(self.target.seeds(self.root))
            .arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MB}"))
            .arg(format!("-artifact_prefix={}/", finds.display()))
            .arg("-print_final_stats=1")
            .current_dir(self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .status()
            .with_context(|| format!("run fuzz target {name}"))?;
        let text = std::fs::read(&log).with_context(|| format!("read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        match executed(&text) {
            Some(count) if status.success() => Ok(format!("{name} {count}")),
            _ => {
                let place = format!("{}/seeds/{name}/", self.target.package);
                println!("== fuzz target {name}:\n{}\n", tail(&text));
                bail!("fuzz target {name}: {status}; its input is in {}, move it to {place}", finds.display())
            }
        }
    }

    fn subfolder(&self, kind: &str) -> Result<PathBuf> {
        let folder = self.folder.join(kind).join(&self.target.name);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}

/// The number of inputs in libFuzzer's last words.
fn executed(text: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    number.trim().parse().ok()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_found() {
        let text = "Done 7 runs in 1 second(s)\nstat::number_of_executed_units: 1234\nstat::new_units_added: 5\n";
        assert_eq!(executed(text), Some(1234));
        assert_eq!(executed("==1== ERROR: libFuzzer: deadly signal\n"), None);
    }

    #[test]
    fn results_come_in_order_whoever_is_first() {
        let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let results = side_by_side(&names, |name| {
            thread::sleep(std::time::Duration::from_millis(20 - name.parse::<u64>().unwrap()));
            name.clone()
        });
        assert_eq!(results, names);
    }

    #[test]
    fn every_target_is_declared_and_has_seeds() {
        let root = crate::root();
        let all = targets(&root).unwrap();
        for package in PACKAGES {
            assert!(all.iter().any(|target| target.package == *package), "{package} has no target");
        }
        for (at, target) in all.iter().enumerate() {
            let manifest = std::fs::read_to_string(root.join(target.package).join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{target:?}");
            assert!(target.seeds(&root).is_dir(), "{target:?}");
            assert!(all[..at].iter().all(|other| other.name != target.name), "{target:?} is there twice");
        }
    }
}
