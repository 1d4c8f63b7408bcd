//! `ashlar store`: look at a device that no daemon uses, without one.
//!
//! Exit codes: 0 clean, 1 damage was found, 2 the device could not be looked at.

mod json;
mod text;

use super::client::CliError;
use super::output::{OutputArgs, OutputFormat, show};
use ashlar_store::offline::{self, CheckReport, OfflineError, Progress, Survey, Verdict};
use clap::Subcommand;
use std::io::IsTerminal;
use std::path::PathBuf;

const EXIT_DAMAGED: u8 = 1;
const EXIT_NOT_LOOKED_AT: u8 = 2;

/// Arguments of `ashlar store`.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// What is on a device: layout, usage, log, volumes (metadata only; the device is not changed)
    #[command(after_help = EXIT_CODES)]
    Inspect(Target),
    /// Read and verify everything on a device (it is not changed)
    #[command(after_help = EXIT_CODES)]
    Check(Target),
}

const EXIT_CODES: &str = "Exit codes: 0 clean, 1 damage found, 2 not looked at (in use, not an Ashlar device, I/O)";

#[derive(Debug, clap::Args)]
struct Target {
    /// Block device or file that no daemon uses
    device: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs it.
///
/// # Errors
/// The device is damaged, or could not be looked at.
pub fn run(args: StoreArgs) -> Result<(), CliError> {
    match args.command {
        StoreCommand::Inspect(Target { device, output }) => {
            let survey = offline::inspect(&device).map_err(refused)?;
            let value = json::survey(&survey);
            show(OutputArgs { output, watch: false }, || Ok(value.clone()), text::survey)?;
            judge_survey(&survey)
        }
        StoreCommand::Check(Target { device, output }) => {
            let report = offline::check(&device, &mut meter());
            clear_meter();
            let report = report.map_err(refused)?;
            let value = json::report(&report);
            show(OutputArgs { output, watch: false }, || Ok(value.clone()), text::report)?;
            judge_report(&report)
        }
    }
}

fn refused(error: OfflineError) -> CliError {
    CliError::new(EXIT_NOT_LOOKED_AT, "the device was not looked at", error.to_string(), error.hint())
}

fn judge_survey(survey: &Survey) -> Result<(), CliError> {
    if survey.is_clean() {
        return Ok(());
    }
    let count = survey.findings.iter().filter(|finding| finding.damage).count();
    let hint = format!("run `ashlar store check {}`: it reads everything and says what to do", survey.path.display());
    Err(CliError::new(EXIT_DAMAGED, "the device is damaged", format!("{count} faults of its metadata"), hint))
}

fn judge_report(report: &CheckReport) -> Result<(), CliError> {
    let (blocks, ranges) = (report.damaged.blocks(), report.damaged.iter().count());
    let faults = report.findings.iter().filter(|finding| finding.damage).count();
    let why = format!("{blocks} blocks in {ranges} ranges, and {faults} other faults");
    match (report.verdict(), &report.unusable) {
        (Verdict::Clean, _) => Ok(()),
        (Verdict::Damaged, _) => {
            let hint = "start the daemon: blocks are repaired from other replicas, pages by the next checkpoint; \
                        if it happens again, replace the device";
            Err(CliError::new(EXIT_DAMAGED, "the device is damaged", why, hint))
        }
        (Verdict::Unusable, reason) => {
            let reason = reason.clone().unwrap_or(why);
            let hint = "replace the device: add another one, its replicas come from the other nodes; \
                        `ashlar device add --force` formats this one anew";
            Err(CliError::new(EXIT_DAMAGED, "a daemon cannot use the device", reason, hint))
        }
    }
}

/// Shows on a terminal how far a check is.
fn meter() -> impl FnMut(Progress) {
    let shown = std::io::stderr().is_terminal();
    let mut last = None;
    move |Progress { verified_bytes, used_bytes }| {
        let percent = verified_bytes * 100 / used_bytes.max(1);
        if shown && last.replace(percent) != Some(percent) {
            eprint!("\rverified {percent} %");
        }
    }
}

fn clear_meter() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use ashlar_model::{ClusterId, DeviceId};
    use ashlar_store::{BlockingDevice, FormatOptions};
    use clap::Parser;
    use std::path::Path;

    const SIZE: u64 = 8 << 20;

    fn formatted(folder: &Path) -> PathBuf {
        let path = folder.join("device");
        let device = BlockingDevice::create(&path, SIZE).unwrap();
        let options = FormatOptions {
            cluster: ClusterId::from_u128(1),
            device: DeviceId::from_u128(2),
            size_bytes: SIZE,
            power_loss_protected: false,
            atomic_declared: false,
            log_bytes: Some(1 << 20),
            table_bytes: Some(64 << 10),
        };
        device.format(&options).unwrap();
        path
    }

    /// Runs a command line; gives its exit code and what it says.
    fn exit(command: &str, path: &Path) -> (u8, String) {
        let line = format!("ashlar store {command}");
        let arguments = line.split(' ').map(Into::into).chain([path.as_os_str().to_owned()]);
        match Cli::parse_from(arguments).command {
            Command::Store(args) => {
                run(args).map_or_else(|error| (error.exit, error.to_string()), |()| (0, String::new()))
            }
            other => panic!("{other:?}"),
        }
    }

    fn flip(path: &Path, offset: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[offset] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn exit_codes_say_clean_damaged_or_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = formatted(folder.path());
        for line in ["inspect", "inspect -o json", "inspect -o wide", "check", "check -o json", "check -o yaml"] {
            assert_eq!(exit(line, &path), (0, String::new()), "{line}");
        }
        flip(&path, 100);
        for line in ["inspect", "check"] {
            let (code, text) = exit(line, &path);
            assert!(code == 1 && text.contains("the device is damaged"), "{line}: {text}");
        }
        flip(&path, (64 << 10) + 100);
        let (code, text) = exit("check", &path);
        assert!(code == 1 && text.contains("both superblocks are damaged") && text.contains("replace"), "{text}");
        assert_eq!(exit("inspect", &path).0, 1);
        std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
        for line in ["inspect", "check"] {
            assert_eq!(exit(line, &path).0, 2, "{line}");
            assert_eq!(exit(line, &folder.path().join("none")).0, 2, "{line}");
        }
    }

    #[test]
    fn a_device_of_a_daemon_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = formatted(folder.path());
        let _daemon = BlockingDevice::open(&path).unwrap();
        for line in ["inspect", "check"] {
            let (code, text) = exit(line, &path);
            assert_eq!(code, 2);
            assert!(text.contains("a daemon uses this device") && text.contains("`ashlar device show`"), "{text}");
        }
    }
}
