//! The command line.

use ashlar_model::units::{ByteSize, GIB, MIB};
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// One store engine against raw fio, on a file and on a loop device. Nothing that exists is written to without
/// `--yes-destroy`.
#[derive(Parser, Clone, Debug)]
#[command(name = "store")]
pub struct Options {
    /// Measure this file or block device only. A path that does not exist becomes a file, removed at the end.
    #[arg(long)]
    pub target: Option<PathBuf>,
    /// Everything on an existing --target may be destroyed.
    #[arg(long)]
    pub yes_destroy: bool,
    /// Bytes that the store gets. The target needs 13/8 of it: the raw cells have their own region behind.
    #[arg(long)]
    pub size: Option<ByteSize>,
    /// Seconds of one slice: each cell has as many raw and store slices as there are rounds.
    #[arg(long)]
    pub runtime: Option<f64>,
    /// Pairs of raw and store slices per cell.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Measure a loop device only; with --target, one on that file.
    #[arg(long = "loop")]
    pub loop_device: bool,
    /// Measure a file only.
    #[arg(long, conflicts_with = "loop_device")]
    pub file: bool,
    /// One second a slice, one round, one GiB: does it work at all.
    #[arg(long)]
    pub quick: bool,
    /// No flushes. Else a volatile cache is flushed for each commit, and raw writes are O_DSYNC.
    #[arg(long)]
    pub power_loss_protected: bool,
    /// Take aligned 4 KiB writes as atomic: overwrites of a busy device go to their place after their record.
    #[arg(long)]
    pub atomic: bool,
    /// Where temporary files go; default: the target directory of the build.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Cells to measure, of sw,sr,rr32,rw1,rw32,fresh,open; default all.
    #[arg(long, value_delimiter = ',')]
    pub work: Vec<String>,
    /// Acknowledged writes between two settles.
    #[arg(long, default_value_t = 64)]
    pub settle_every: u64,
    /// Write every figure to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// Bytes that the store gets.
    pub fn size_bytes(&self) -> u64 {
        let size = self.size.map_or(if self.quick { GIB } else { 4 * GIB }, |size| size.0);
        size / MIB * MIB
    }

    /// Bytes of the volume, filled once: five eighths leave room for fresh writes below the limit of 95 %.
    pub fn volume_bytes(&self) -> u64 {
        self.size_bytes() / 8 * 5 / (4 * MIB) * (4 * MIB)
    }

    /// Bytes of the region of first writes.
    pub fn fresh_bytes(&self) -> u64 {
        self.size_bytes() / 4 / (4 * MIB) * (4 * MIB)
    }

    /// Bytes that a target must have.
    pub fn target_bytes(&self) -> u64 {
        self.size_bytes() + self.volume_bytes()
    }

    /// Time of one slice.
    pub fn slice(&self) -> Duration {
        Duration::from_secs_f64(self.runtime.unwrap_or(if self.quick { 1.0 } else { 5.0 }))
    }

    /// Pairs of slices per cell.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    /// True if a cell is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.work.is_empty() || self.work.iter().any(|one| one == name)
    }

    /// Longer than this a run never takes on a disk that does 50 MB/s.
    pub fn limit(&self) -> Duration {
        let preparation = self.target_bytes() / (50 * MIB) + self.size_bytes() / (50 * MIB);
        let cells = 7.0 * f64::from(self.rounds()) * (2.0 * self.slice().as_secs_f64() + 20.0);
        2 * (Duration::from_secs(120 + preparation) + Duration::from_secs_f64(cells))
    }

    /// Says what makes no sense.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let known = crate::cells::NAMES;
        if let Some(name) = self.work.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("no cell '{name}'; there are {}", known.join(", ")));
        }
        if self.size_bytes() < 512 * MIB {
            return Err("--size must be at least 512MiB".into());
        }
        if !(0.1..=600.0).contains(&self.slice().as_secs_f64()) {
            return Err("--runtime must be between 0.1 and 600 seconds".into());
        }
        Ok(())
    }
}
