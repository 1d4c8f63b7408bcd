//! One cell of the table: a fio load on a target, with what the servers and the disk did meanwhile.

use crate::bed::{Cost, Servers};
use crate::machine::Disk;
use crate::support::tools::{Finished, Running};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Pause before a cell, in which the last one's write-back ends.
const SETTLE: Duration = Duration::from_secs(1);

/// What fio does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    Rw1,
    Rr1,
    Rw32,
    Rr32,
    Sw8,
    Sr8,
}

impl Workload {
    pub const ALL: [Self; 6] = [Self::Rw1, Self::Rr1, Self::Rw32, Self::Rr32, Self::Sw8, Self::Sr8];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rw1 => "rw1",
            Self::Rr1 => "rr1",
            Self::Rw32 => "rw32",
            Self::Rr32 => "rr32",
            Self::Sw8 => "sw8",
            Self::Sr8 => "sr8",
        }
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|workload| workload.name() == text);
        found.ok_or_else(|| format!("no workload '{text}'"))
    }

    pub fn writes(self) -> bool {
        matches!(self, Self::Rw1 | Self::Rw32 | Self::Sw8)
    }

    fn arguments(self) -> [&'static str; 3] {
        match self {
            Self::Rw1 => ["--rw=randwrite", "--bs=4k", "--iodepth=1"],
            Self::Rr1 => ["--rw=randread", "--bs=4k", "--iodepth=1"],
            Self::Rw32 => ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
            Self::Rr32 => ["--rw=randread", "--bs=4k", "--iodepth=32"],
            Self::Sw8 => ["--rw=write", "--bs=1M", "--iodepth=8"],
            Self::Sr8 => ["--rw=read", "--bs=1M", "--iodepth=8"],
        }
    }
}

/// What is measured.
pub enum Target {
    Nbd { uri: String },
    File { path: PathBuf, dsync: bool },
}

impl Target {
    fn arguments(&self) -> Vec<String> {
        match self {
            Self::Nbd { uri } => vec!["--ioengine=nbd".into(), format!("--uri={uri}")],
            Self::File { path, dsync } => {
                let mut arguments = vec!["--ioengine=io_uring".into(), "--direct=1".into()];
                arguments.push(format!("--filename={}", path.display()));
                arguments.extend(dsync.then(|| "--sync=dsync".into()));
                arguments
            }
        }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Cell {
    pub workload: Workload,
    pub iops: f64,
    pub megabytes_per_second: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// What the servers used per operation, if there are any.
    pub servers: Option<Cost>,
    /// Bytes written to the disk per byte written by the client; `None` for reads.
    pub disk_bytes_per_byte: Option<f64>,
}

/// Writes everything once: reading or overwriting holes measures something else.
pub fn prefill(target: &Target, size_bytes: u64) {
    let extra = ["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"];
    fio(target, size_bytes, &extra.map(String::from), Duration::from_secs(600));
}

/// Measures one cell. `servers`: who serves it.
pub fn measure(
    target: &Target,
    workload: Workload,
    size_bytes: u64,
    seconds: u32,
    servers: Option<&dyn Servers>,
    disk: &Disk,
) -> Cell {
    std::thread::sleep(SETTLE);
    let mut extra: Vec<String> = workload.arguments().map(String::from).to_vec();
    extra.extend(["--time_based".into(), format!("--runtime={seconds}")]);
    let (disk_before, used_before) = (disk.written_bytes(), servers.map(Servers::used));
    let job = fio(target, size_bytes, &extra, Duration::from_secs(u64::from(seconds) + 120));
    let (used_after, disk_after) = (servers.map(Servers::used), disk.written_bytes());
    let side = &job[if workload.writes() { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let percentile = |key: &str| number(&side["clat_ns"]["percentile"][key]) / 1e3;
    let operations = number(&side["total_ios"]).max(1.0);
    Cell {
        workload,
        iops: number(&side["iops"]),
        megabytes_per_second: number(&side["bw_bytes"]) / 1e6,
        mean_us: number(&side["lat_ns"]["mean"]) / 1e3,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        servers: used_after.zip(used_before).map(|(after, before)| after.per_operation(&before, operations)),
        disk_bytes_per_byte: workload
            .writes()
            .then(|| (disk_after - disk_before) as f64 / number(&side["io_bytes"]).max(1.0)),
    }
}

/// Runs one job of fio on the target, and gives what it says of it.
pub fn fio(target: &Target, size_bytes: u64, extra: &[String], timeout: Duration) -> Value {
    let mut command = Command::new("fio");
    command.args(["--name=battery", "--randrepeat=0", "--norandommap", "--group_reporting", "--output-format=json"]);
    command.arg(format!("--size={size_bytes}")).args(target.arguments()).args(extra);
    let finished: Finished = Running::start(command).finish(timeout);
    finished.expect_code(0);
    let start = finished.stdout.find('{').unwrap_or_else(|| panic!("fio printed no JSON: {}", finished.text()));
    let result: Value = serde_json::from_str(&finished.stdout[start..]).expect("fio's JSON");
    let job = result["jobs"][0].clone();
    assert_eq!(job["error"], 0, "{}", finished.text());
    job
}
