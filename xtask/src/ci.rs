//! The steps of continuous integration: what they run, in which order, and how long each took.
//!
//! Builds are shared on purpose. Clippy and doc use the same checked dependencies; `test` and `e2e` use the same
//! dev-profile test binaries; `sim` and `e2e` use one release build. The end-to-end tests are therefore *not* compiled
//! with `--release`: that would build every dependency once more, because the release profile aborts on panic and test
//! harnesses unwind. They find the release binaries by the environment variables of `run_e2e`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{cargo, deny, fuzz, tidy};

/// How long the simulator runs fresh seeds in a full run, unless `--seeds` says how many.
const SIM_MINUTES: &str = "3";

/// Seeds tried for each rule of the protocol that is broken on purpose, when the known one does not notice any more.
const MUTATION_SEEDS_MAX: &str = "2000";

/// How long each fuzz target runs; longer by `--fuzz-seconds`. Six of them take two minutes on two cores.
const FUZZ_SECONDS_DEFAULT: u64 = 40;

/// Third-party suites against the NBD server.
const CONFORMANCE: &str = "tests/conformance/run";

/// What `cargo xtask ci` was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    mode: Mode,
    /// Seeds of the simulator; `None`: fresh ones for [`SIM_MINUTES`].
    seeds: Option<u64>,
    fuzz_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Smoke,
    Test,
    Doc,
    Deny,
    Crash,
    Fuzz,
    Conformance,
    Sim,
    E2e,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Format,
    Tidy,
    Clippy,
    Deny,
    Test,
    Doc,
    Crash,
    Fuzz,
    Release,
    Conformance,
    Sim,
    E2e,
}

impl Options {
    fn all() -> Self {
        Self { mode: Mode::All, seeds: None, fuzz_seconds: FUZZ_SECONDS_DEFAULT }
    }

    /// Reads `[mode] [--seeds N] [--fuzz-seconds N]`.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::all();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            options.mode = match word {
                "smoke" => Mode::Smoke,
                "test" => Mode::Test,
                "doc" => Mode::Doc,
                "deny" => Mode::Deny,
                "crash" => Mode::Crash,
                "fuzz" => Mode::Fuzz,
                "conformance" => Mode::Conformance,
                "sim" => Mode::Sim,
                "e2e" => Mode::E2e,
                "all" => Mode::All,
                "--seeds" => {
                    let number = words.next().context("--seeds needs a number")?;
                    options.seeds = Some(number.parse().with_context(|| format!("read --seeds {number}"))?);
                    options.mode
                }
                "--fuzz-seconds" => {
                    let number = words.next().context("--fuzz-seconds needs a number")?;
                    options.fuzz_seconds = number.parse().with_context(|| format!("read --fuzz-seconds {number}"))?;
                    options.mode
                }
                _ => bail!("unknown mode `{word}`\n{}", crate::USAGE),
            };
        }
        Ok(options)
    }
}

impl Mode {
    /// The cheap steps come first: a fault should show in seconds when it can.
    fn steps(self) -> &'static [Step] {
        match self {
            Self::Smoke => &[Step::Format, Step::Tidy, Step::Clippy],
            Self::Test => &[Step::Test],
            Self::Doc => &[Step::Doc],
            Self::Deny => &[Step::Deny],
            Self::Crash => &[Step::Crash],
            Self::Fuzz => &[Step::Fuzz],
            Self::Conformance => &[Step::Release, Step::Conformance],
            Self::Sim => &[Step::Release, Step::Sim],
            Self::E2e => &[Step::Release, Step::E2e],
            Self::All => &[
                Step::Format,
                Step::Tidy,
                Step::Clippy,
                Step::Deny,
                Step::Test,
                Step::Doc,
                Step::Crash,
                Step::Fuzz,
                Step::Release,
                Step::Conformance,
                Step::Sim,
                Step::E2e,
            ],
        }
    }
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Format => "fmt",
            Self::Tidy => "tidy",
            Self::Clippy => "clippy",
            Self::Deny => "deny",
            Self::Test => "test",
            Self::Doc => "doc",
            Self::Crash => "crash",
            Self::Fuzz => "fuzz",
            Self::Release => "release",
            Self::Conformance => "conformance",
            Self::Sim => "sim",
            Self::E2e => "e2e",
        }
    }

    /// Arguments for cargo, of the steps that are one cargo command.
    fn cargo_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Format => &["fmt", "--all", "--check"],
            Self::Clippy => &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            Self::Test => &["test", "--workspace", "--locked"],
            Self::Doc => &["doc", "--no-deps", "--workspace", "--document-private-items", "--locked"],
            // One package at a time: together they would share features, and the daemon has none of the simulator's.
            Self::Release => &["build", "--release", "--locked", "--package", "ashlar"],
            // `--lib`: drivers on real block devices, which need root.
            Self::E2e => &[
                "test",
                "--locked",
                "--package",
                "ashlar",
                "--package",
                "ashlar-store",
                "--lib",
                "--test",
                "*",
                "--",
                "--ignored",
                "--test-threads=1",
                "--skip",
                "tests::crashes",
            ],
            // The store's crash tests at length, and its rules broken one by one.
            Self::Crash => &[
                "test",
                "--locked",
                "--package",
                "ashlar-store",
                "--lib",
                "--",
                "--ignored",
                "--nocapture",
                "tests::crashes",
            ],
            Self::Tidy | Self::Deny | Self::Fuzz | Self::Conformance | Self::Sim => &[],
        }
    }

    /// What a person types to see only this step again.
    fn alone(self, options: &Options) -> String {
        let plain = format!("cargo {}", self.cargo_arguments().join(" ").replace('*', "'*'"));
        match self {
            Self::Format => format!("{plain}   (cargo xtask fix rewrites the files)"),
            Self::Tidy => "cargo xtask tidy".into(),
            Self::Deny => "cargo xtask ci deny".into(),
            Self::Doc => format!("RUSTDOCFLAGS='-D warnings' {plain}"),
            Self::Fuzz => format!("cargo xtask ci fuzz --fuzz-seconds {}", options.fuzz_seconds),
            Self::Sim => {
                let sim = sim_arguments(options).join(" ");
                format!("cargo run --release --package ashlar-chaos -- {sim}   (then: mutations --known)")
            }
            Self::Conformance => format!("{CONFORMANCE}   (needs a release build)"),
            Self::E2e => format!("cargo xtask ci e2e   (or, against a dev build: {plain})"),
            Self::Clippy | Self::Test | Self::Crash | Self::Release => plain,
        }
    }

    /// Runs the step; the text is a remark for the table.
    fn run(self, root: &Path, options: &Options) -> Result<String> {
        let mut command = cargo(root);
        command.args(self.cargo_arguments());
        match self {
            Self::Tidy => return tidy::run(root).map(|()| String::new()),
            Self::Deny => return deny::run(root),
            Self::Conformance => {
                let mut suites = Command::new(root.join(CONFORMANCE));
                suites.stdin(Stdio::null()).env("ASHLAR", release_folder(root).join("ashlar"));
                return succeed(&mut suites).map(|()| String::new());
            }
            Self::Fuzz => return fuzz::run(root, options.fuzz_seconds, &target_folder(root).join("fuzz")),
            Self::Sim => {
                let chaos = release_folder(root).join("ashlar-chaos");
                let run = |arguments: &[String]| {
                    let mut command = Command::new(&chaos);
                    command.current_dir(root).stdin(Stdio::null()).args(arguments);
                    succeed(&mut command)
                };
                run(&sim_arguments(options))?;
                let mutations = ["mutations", "--known", "--seeds-max", MUTATION_SEEDS_MAX];
                run(&mutations.map(str::to_owned))?;
                return Ok(options
                    .seeds
                    .map_or_else(|| format!("{SIM_MINUTES} min"), |seeds| format!("{seeds} seeds")));
            }
            Self::E2e => {
                command.env("ASHLAR_BIN", release_folder(root).join("ashlar"));
                command.env("ASHLAR_CHAOS_BIN", release_folder(root).join("ashlar-chaos"));
            }
            Self::Doc => {
                command.env("RUSTDOCFLAGS", "-D warnings");
            }
            Self::Format | Self::Clippy | Self::Test | Self::Crash | Self::Release => {}
        }
        // A machine that builds once and is thrown away gains nothing from incremental files.
        if std::env::var_os("CI").is_some() && std::env::var_os("CARGO_INCREMENTAL").is_none() {
            command.env("CARGO_INCREMENTAL", "0");
        }
        succeed(&mut command)?;
        if self == Self::E2e {
            succeed(&mut e2e_on_shards(root))?;
        }
        if self == Self::Release {
            let mut chaos = cargo(root);
            chaos.args(["build", "--release", "--locked", "--package", "ashlar-chaos"]);
            succeed(&mut chaos)?;
        }
        Ok(String::new())
    }
}

/// Some of the end-to-end tests once more, with volumes on another shard than the one where guests come in.
fn e2e_on_shards(root: &Path) -> Command {
    let mut command = cargo(root);
    command.args(["test", "--locked", "--package", "ashlar"]);
    for test in ["late_requests", "nbd_tls", "takeover"] {
        command.args(["--test", test]);
    }
    command.args(["--", "--ignored", "--test-threads=1"]).env("ASHLAR_TEST_SHARDS", "2");
    command.env("ASHLAR_BIN", release_folder(root).join("ashlar"));
    command
}

/// Runs a command to its end.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn sim_arguments(options: &Options) -> Vec<String> {
    match options.seeds {
        Some(seeds) => vec!["sim".to_owned(), "--seeds".to_owned(), seeds.to_string()],
        None => ["sim", "--fresh", "--minutes", SIM_MINUTES].map(str::to_owned).to_vec(),
    }
}

/// One line of the table at the end.
struct Outcome {
    step: Step,
    took: Duration,
    result: Result<String>,
}

/// Runs the steps of a mode, one after the other, up to the first that fails.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let started = Instant::now();
    let steps = options.mode.steps();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for &step in steps {
        println!("== {}: {}", step.name(), step.alone(options));
        let step_started = Instant::now();
        let result = step.run(root, options);
        let outcome = Outcome { step, took: step_started.elapsed(), result };
        let word = if outcome.result.is_ok() { "ok" } else { "FAILED" };
        println!("== {}: {word}, {}\n", step.name(), seconds(outcome.took));
        let failed = outcome.result.is_err();
        outcomes.push(outcome);
        if failed {
            break;
        }
    }
    print!("{}", table(steps, &outcomes, started.elapsed()));
    match outcomes.last() {
        Some(Outcome { step, result: Err(error), .. }) => {
            bail!("{} failed: {error:#}\nalone: {}", step.name(), step.alone(options))
        }
        _ => Ok(()),
    }
}

fn table(steps: &[Step], outcomes: &[Outcome], total: Duration) -> String {
    let mut text = String::from("step         result      time\n");
    for (index, step) in steps.iter().enumerate() {
        let (result, took, remark) = match outcomes.get(index) {
            Some(Outcome { took, result: Ok(remark), .. }) => ("ok", seconds(*took), remark.as_str()),
            Some(Outcome { took, .. }) => ("FAILED", seconds(*took), ""),
            None => ("not run", String::new(), ""),
        };
        let line = format!("{:<12} {result:<8} {took:>7}  {remark}", step.name());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(text, "{:<21} {:>7}", "total", seconds(total));
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn release_folder(root: &Path) -> PathBuf {
    target_folder(root).join("release")
}

fn target_folder(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target) // an absolute CARGO_TARGET_DIR replaces the root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_words_everything_runs() {
        assert_eq!(Options::parse(&[]).unwrap(), Options::all());
    }

    #[test]
    fn seeds_stand_before_or_after_the_mode() {
        let expected = Options { mode: Mode::Sim, seeds: Some(7), ..Options::all() };
        assert_eq!(Options::parse(&["sim", "--seeds", "7"]).unwrap(), expected);
        assert_eq!(Options::parse(&["--seeds", "7", "sim"]).unwrap(), expected);
        let expected = Options { mode: Mode::Fuzz, fuzz_seconds: 9, ..Options::all() };
        assert_eq!(Options::parse(&["fuzz", "--fuzz-seconds", "9"]).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [&["speed"][..], &["--seeds"], &["--seeds", "many"], &["fuzz", "--fuzz-seconds"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn all_contains_every_step_of_every_mode() {
        for mode in
            [Mode::Smoke, Mode::Test, Mode::Doc, Mode::Deny, Mode::Fuzz, Mode::Conformance, Mode::Sim, Mode::E2e]
        {
            for step in mode.steps() {
                assert!(Mode::All.steps().contains(step), "{step:?}");
            }
        }
    }

    #[test]
    fn table_shows_what_failed_and_what_was_not_reached() {
        let outcomes = [
            Outcome { step: Step::Format, took: Duration::from_millis(1500), result: Ok("a remark".into()) },
            Outcome { step: Step::Tidy, took: Duration::from_millis(20), result: Err(anyhow::anyhow!("no")) },
        ];
        let text = table(Mode::Smoke.steps(), &outcomes, Duration::from_secs(2));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "fmt          ok         1.5 s  a remark");
        assert_eq!(lines[2], "tidy         FAILED     0.0 s");
        assert_eq!(lines[3], "clippy       not run");
        assert_eq!(lines[4], "total                   2.0 s");
    }
}
