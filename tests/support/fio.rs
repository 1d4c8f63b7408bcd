//! fio with its NBD engine, as a load that verifies what it wrote.

use super::tools::{Finished, Running};
use serde_json::Value;
use std::process::Command;

/// A verifying load of 4 KiB random writes.
#[derive(Clone, Debug)]
pub struct Verify {
    pub uri: String,
    /// Start of the range of the first job, in bytes.
    pub offset: u64,
    /// Bytes of each job's range.
    pub size: u64,
    pub depth: u32,
    pub jobs: u32,
}

/// What a load did.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Writes.
    pub writes: u64,
    /// Writes in a second, all jobs.
    pub write_iops: f64,
    /// Longest write, in milliseconds.
    pub longest_write_ms: f64,
    /// Blocks read back and compared.
    pub reads: u64,
}

impl Verify {
    /// Starts it.
    pub fn start(&self) -> Running {
        let Verify { uri, offset, size, depth, jobs } = self;
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--group_reporting"]);
        command.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=json"]);
        command.args([format!("--uri={uri}"), format!("--offset={offset}"), format!("--size={size}")]);
        command.args([format!("--iodepth={depth}"), format!("--numjobs={jobs}"), format!("--offset_increment={size}")]);
        // fio leaves state files of verify jobs in its folder.
        command.current_dir(std::env::temp_dir()).arg("--verify_state_save=0");
        Running::start(command)
    }
}

/// Demands that a load ended without any error, and that every block was compared.
#[track_caller]
pub fn expect_clean(finished: &Finished) -> Load {
    finished.expect_code(0);
    let start = finished.stdout.find('{').unwrap_or_else(|| panic!("fio printed no JSON: {}", finished.text()));
    let result: Value = serde_json::from_str(&finished.stdout[start..]).expect("fio's JSON");
    let jobs = result["jobs"].as_array().expect("jobs");
    assert!(jobs.iter().all(|job| job["error"] == 0), "{}", finished.text());
    let sum = |side: &str, key: &str| jobs.iter().map(|job| job[side][key].as_f64().unwrap_or(0.0)).sum::<f64>();
    let longest = jobs.iter().map(|job| job["write"]["lat_ns"]["max"].as_f64().unwrap_or(0.0)).fold(0.0, f64::max);
    let load = Load {
        writes: sum("write", "total_ios") as u64,
        write_iops: sum("write", "iops"),
        longest_write_ms: longest / 1e6,
        reads: sum("read", "total_ios") as u64,
    };
    assert!(load.writes > 0 && load.reads >= load.writes, "not everything was verified: {load:?}");
    load
}

impl std::fmt::Display for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Load { writes, write_iops, longest_write_ms, reads } = self;
        write!(formatter, "{writes} writes at {write_iops:.0}/s, longest {longest_write_ms:.1} ms, {reads} verified")
    }
}
