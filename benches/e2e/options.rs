//! The command line: what is measured, and on what.

use crate::bed::{DriveKind, Mode};
use crate::load::Workload;

/// Attaches that are under way at a time, if nothing else is said.
const CALLERS: u32 = 16;

/// What is printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// The battery, as one table for each mode.
    Battery,
    /// How long guests stall when a node is lost, each kind of loss so often.
    Stalls { repeats: u32 },
    /// Latency beside a replica that is slow.
    Tail,
    /// What so many attached volumes cost.
    Scale { counts: Vec<u32>, callers: u32 },
}

pub struct Options {
    pub what: What,
    pub runtime_seconds: u32,
    pub work: Vec<Workload>,
    pub size_gib: u64,
    pub modes: Vec<Mode>,
    pub drive: DriveKind,
    pub shards: u16,
}

impl Options {
    /// Options; nothing if this is no call of `cargo bench`.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            what: What::Battery,
            runtime_seconds: 15,
            work: Workload::ALL.to_vec(),
            size_gib: 4,
            modes: Mode::ALL.to_vec(),
            drive: DriveKind::File,
            shards: 1,
        };
        let mut is_bench = false;
        let mut callers = CALLERS;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => is_bench = true,
                "--quick" => (options.runtime_seconds, options.size_gib) = (2, 1),
                "--stalls" => options.what = What::Stalls { repeats: number(&value()?)? },
                "--tail" => options.what = What::Tail,
                "--scale" => options.what = What::Scale { counts: list(&value()?, number)?, callers },
                "--callers" => callers = number(&value()?)?,
                "--runtime" => options.runtime_seconds = number(&value()?)?,
                "--size" => options.size_gib = number(value()?.trim_end_matches("GiB"))?,
                "--work" => options.work = list(&value()?, Workload::parse)?,
                "--mode" => options.modes = list(&value()?, Mode::parse)?,
                "--shards" => options.shards = number(&value()?)?,
                "--device" => options.drive = DriveKind::parse(&value()?)?,
                _ => return Err(format!("no option '{word}'")),
            }
        }
        if let What::Scale { callers: used, .. } = &mut options.what {
            *used = callers;
        }
        // `cargo test --benches` calls without `--bench`: nothing to test here.
        Ok(is_bench.then_some(options))
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(parse).collect()
}
