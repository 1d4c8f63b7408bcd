//! The reference: fio with io_uring and O_DIRECT on a region of the same target that the store does not use.

use crate::tools::Running;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where fio works.
#[derive(Clone, Debug)]
pub struct Region {
    /// File or device.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// Writes are O_DSYNC, as the store flushes its commits.
    pub dsync: bool,
}

/// What one slice of fio came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct RawSlice {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Median latency from submission.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Processor time of fio per operation.
    pub cpu_us: f64,
}

/// What fio does.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// fio's `--rw`.
    pub rw: &'static str,
    /// Bytes of an operation.
    pub block_bytes: u64,
    /// Operations in flight.
    pub depth: usize,
}

/// Writes the whole region once: holes and unwritten extents measure something else.
///
/// # Errors
/// fio failed.
pub fn prewrite(path: &Path, bytes: u64) -> Result<()> {
    let region = Region { path: path.to_owned(), offset: 0, bytes, dsync: false };
    let job = Job { rw: "write", block_bytes: 1 << 20, depth: 8 };
    fio(&region, job, &["--end_fsync=1".into()], Duration::from_secs(120 + bytes / (20 << 20)))?;
    Ok(())
}

/// One slice.
///
/// # Errors
/// fio failed.
pub fn measure(region: &Region, job: Job, time: Duration, warm_up: Duration) -> Result<RawSlice> {
    let mut extra = vec!["--time_based".into(), format!("--runtime={}ms", time.as_millis())];
    extra.push(format!("--ramp_time={}ms", warm_up.as_millis()));
    let writes = job.rw.contains("write");
    if region.dsync && writes {
        extra.push("--sync=dsync".into());
    }
    let result = fio(region, job, &extra, time + warm_up + Duration::from_secs(60))?;
    let side = &result[if writes { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let percentile = |key: &str| number(&side["lat_ns"]["percentile"][key]) / 1e3;
    let iops = number(&side["iops"]);
    ensure!(iops > 0.0, "fio did nothing: {side}");
    let busy = (number(&result["usr_cpu"]) + number(&result["sys_cpu"])) / 100.0;
    Ok(RawSlice {
        iops,
        bytes_per_second: number(&side["bw_bytes"]),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        cpu_us: busy / iops * 1e6,
    })
}

fn fio(region: &Region, job: Job, extra: &[String], timeout: Duration) -> Result<Value> {
    let mut command = Command::new("fio");
    command.args(["--name=raw", "--ioengine=io_uring", "--direct=1", "--thread", "--randrepeat=0", "--norandommap"]);
    command.args(["--group_reporting", "--output-format=json", "--lat_percentiles=1", "--clat_percentiles=0"]);
    command.args(["--refill_buffers=0", "--allow_file_create=0", "--fallocate=none"]);
    command.arg(format!("--filename={}", region.path.display()));
    command.args([format!("--offset={}", region.offset), format!("--size={}", region.bytes)]);
    command.args([format!("--rw={}", job.rw), format!("--bs={}", job.block_bytes), format!("--iodepth={}", job.depth)]);
    command.args(extra);
    let finished = Running::start(command).finish(timeout);
    ensure!(finished.code == Some(0), "fio: {}", finished.text());
    let start = finished.stdout.find('{').with_context(|| format!("fio printed no JSON: {}", finished.text()))?;
    let result: Value = serde_json::from_str(&finished.stdout[start..]).context("fio's JSON")?;
    let result = result["jobs"][0].clone();
    ensure!(result["error"] == 0, "fio: {}", finished.text());
    Ok(result)
}
