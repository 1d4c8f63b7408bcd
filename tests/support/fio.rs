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
    /// Writes after which those are read and compared, so that reads and writes take turns until the load is interrupted;
    /// 0: everything is written once, and read in the end.
    pub backlog: u32,
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
        let Verify { uri, offset, size, depth, jobs, backlog } = self;
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--group_reporting"]);
        command.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--output-format=json"]);
        command.args([format!("--uri={uri}"), format!("--offset={offset}"), format!("--size={size}")]);
        command.args([format!("--iodepth={depth}"), format!("--numjobs={jobs}"), format!("--offset_increment={size}")]);
        if *backlog > 0 {
            command.arg(format!("--verify_backlog={backlog}")).args(["--time_based", "--runtime=600"]);
        }
        // fio leaves state files of verify jobs in its folder.
        command.current_dir(std::env::temp_dir()).arg("--verify_state_save=0");
        Running::start(command)
    }
}

/// Demands that a load ended without any error, and that every block was compared.
#[track_caller]
pub fn expect_clean(finished: &Finished) -> Load {
    finished.expect_code(0);
    let load = load_of(finished);
    assert!(load.writes > 0 && load.reads >= load.writes, "not everything was verified: {load:?}");
    load
}

/// Demands that a load was interrupted without any error before, and that all but its last writes were compared.
#[track_caller]
pub fn expect_clean_until_interrupted(finished: &Finished, load: &Verify) -> Load {
    let unverified_max = u64::from(2 * load.backlog + load.depth);
    let done = load_of(finished);
    assert!(done.reads > 0 && done.reads + unverified_max >= done.writes, "not everything was verified: {done:?}");
    done
}

#[track_caller]
fn load_of(finished: &Finished) -> Load {
    let start = finished.stdout.find('{').unwrap_or_else(|| panic!("fio printed no JSON: {}", finished.text()));
    let result: Value = serde_json::from_str(&finished.stdout[start..]).expect("fio's JSON");
    let jobs = result["jobs"].as_array().expect("jobs");
    assert!(jobs.iter().all(|job| job["error"] == 0), "{}", finished.text());
    let sum = |side: &str, key: &str| jobs.iter().map(|job| job[side][key].as_f64().unwrap_or(0.0)).sum::<f64>();
    let longest = jobs.iter().map(|job| job["write"]["lat_ns"]["max"].as_f64().unwrap_or(0.0)).fold(0.0, f64::max);
    Load {
        writes: sum("write", "total_ios") as u64,
        write_iops: sum("write", "iops"),
        longest_write_ms: longest / 1e6,
        reads: sum("read", "total_ios") as u64,
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Load { writes, write_iops, longest_write_ms, reads } = self;
        write!(formatter, "{writes} writes at {write_iops:.0}/s, longest {longest_write_ms:.1} ms, {reads} verified")
    }
}

/// A steady load at a fraction of what the volume can do: 16 outstanding requests of 4 KiB, 70 % reads, at random.
#[derive(Clone, Debug)]
pub struct Paced {
    pub uri: String,
    pub size: u64,
}

/// 99th percentiles in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles {
    pub read_p99_ms: f64,
    pub write_p99_ms: f64,
    /// Reads and writes in a second.
    pub iops: f64,
}

impl Paced {
    /// Starts it for so long.
    pub fn start(&self, seconds: u32) -> Running {
        let mut command = Command::new("fio");
        command.args(["--name=paced", "--ioengine=nbd", "--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=16"]);
        command.args(["--rate_iops=1400,600", "--time_based", "--norandommap", "--output-format=json"]);
        command.args([format!("--uri={}", self.uri), format!("--size={}", self.size), format!("--runtime={seconds}")]);
        Running::start(command)
    }

    /// What it felt; it may have been interrupted.
    #[track_caller]
    pub fn felt(finished: &Finished) -> Percentiles {
        let start = finished.stdout.find('{').unwrap_or_else(|| panic!("fio printed no JSON: {}", finished.text()));
        let result: Value = serde_json::from_str(&finished.stdout[start..]).expect("fio's JSON");
        let job = &result["jobs"][0];
        assert_eq!(job["error"], 0, "{}", finished.text());
        let p99 = |side: &str| job[side]["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or(0.0) / 1e6;
        let iops = |side: &str| job[side]["iops"].as_f64().unwrap_or(0.0);
        Percentiles { read_p99_ms: p99("read"), write_p99_ms: p99("write"), iops: iops("read") + iops("write") }
    }
}

impl Percentiles {
    /// The ratios to others.
    pub fn against(&self, other: &Self) -> String {
        let (reads, writes) = (self.read_p99_ms / other.read_p99_ms, self.write_p99_ms / other.write_p99_ms);
        format!("p99 x {reads:.2} for reads, x {writes:.2} for writes")
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Percentiles { read_p99_ms, write_p99_ms, iops } = self;
        write!(formatter, "{iops:.0} IOPS, p99 {read_p99_ms:.2} ms reads, {write_p99_ms:.2} ms writes")
    }
}
