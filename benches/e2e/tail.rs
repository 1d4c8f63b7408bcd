//! Latency of a guest at half of what the volume can do, with all replicas well and with one that is slow: the tables of
//! `--tail`.

use crate::bed::{Bed, Mode};
use crate::load::{self, Target};
use crate::machine;
use crate::options::Options;
use crate::slow::{RUNNING, STOPPED, Slowed};
use crate::support::GIB;
use serde_json::Value;
use std::time::Duration;

/// The daemon that is slowed; the guest is at `n1`.
const VICTIM: &str = "n3";
/// Reads beside the writes, one for so many of them: enough to see their tail.
const WRITES_PER_READ: u32 = 9;
/// How long the volume is loaded to learn its rate.
const FULL_SECONDS: u32 = 5;
/// Between two runs, in which what is left of the last one ends.
const SETTLE: Duration = Duration::from_secs(2);
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);
/// The bar: the slow run's p99.9 against the healthy one's.
const RATIO_MAX: f64 = 2.0;

/// Latencies of one direction, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Felt {
    iops: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// Healthy, beside a slow replica, and healthy again.
pub fn run(mode: Mode, options: &Options) {
    let (size_gib, seconds) = (options.size_gib, options.runtime_seconds);
    let bed = Bed::with_volume("tail", mode, options.drive, size_gib, options.shards);
    let target = Target::Nbd { uri: bed.uri() };
    let size_bytes = size_gib * GIB;
    load::prefill(&target, size_bytes);
    let full = full_rate(&target, size_bytes);
    let rate = (full / 2.0) as u32;
    println!("\ntail, {}", mode.title());
    println!(
        "{full:.0} IOPS of random 4 KiB writes at depth 32; the guest at n1: {rate} writes and {} reads a second, \
         {seconds} s a run",
        rate / WRITES_PER_READ
    );
    println!("{VICTIM} slow: stopped {} ms, running {} ms, by turns", STOPPED.as_millis(), RUNNING.as_millis());
    println!("load average {}", machine::load_average());
    println!("                          IOPS    p50 us    p99 us  p99.9 us    max us");
    let healthy = paced(&target, size_bytes, rate, seconds);
    print("healthy", healthy);
    bed.expect_healthy();
    let ejections = || bed.cluster.nodes.iter().filter_map(ejections_at).sum::<f64>();
    let (ejected_before, slowed) = (ejections(), Slowed::begin(bed.cluster.pid(VICTIM)));
    let slow = paced(&target, size_bytes, rate, seconds);
    let share = slowed.end();
    print("one replica slow", slow);
    println!("{VICTIM} ran {:.1} % of the time; ejections {:.0}", share * 100.0, ejections() - ejected_before);
    let began = std::time::Instant::now();
    bed.cluster.wait_healthy("n1", "vol", HEALTHY_WITHIN);
    println!("the volume was whole {:.1} s later", began.elapsed().as_secs_f64());
    print("healthy again", paced(&target, size_bytes, rate, seconds));
    for (name, healthy, slow) in [("writes", healthy[0], slow[0]), ("reads", healthy[1], slow[1])] {
        let ratio = slow.p999 / healthy.p999.max(1.0);
        let verdict = if ratio < RATIO_MAX { "met" } else { "MISSED" };
        println!("{name}: p99.9 beside a slow replica x {ratio:.2}, wanted < {RATIO_MAX}  {verdict}");
    }
}

fn ejections_at(node: &crate::support::manual::ManualNode) -> Option<f64> {
    crate::support::api::metric(&node.api, "ashlar_volume_ejections_total")
}

fn full_rate(target: &Target, size_bytes: u64) -> f64 {
    let mut arguments = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based"].map(String::from).to_vec();
    arguments.push(format!("--runtime={FULL_SECONDS}"));
    let job = load::fio(target, size_bytes, &arguments, Duration::from_secs(60));
    job["write"]["iops"].as_f64().expect("fio's rate")
}

/// Latencies of writes and of reads at this rate of writes.
fn paced(target: &Target, size_bytes: u64, rate: u32, seconds: u32) -> [Felt; 2] {
    std::thread::sleep(SETTLE);
    let reads = (rate / WRITES_PER_READ).max(1);
    let mut arguments = ["--rw=randrw", "--bs=4k", "--iodepth=32", "--time_based"].map(String::from).to_vec();
    arguments.push(format!("--rwmixwrite={}", 100 * WRITES_PER_READ / (WRITES_PER_READ + 1)));
    arguments.push(format!("--rate_iops={reads},{rate}"));
    arguments.push(format!("--runtime={seconds}"));
    let job = load::fio(target, size_bytes, &arguments, Duration::from_secs(u64::from(seconds) + 120));
    [felt(&job["write"]), felt(&job["read"])]
}

fn felt(side: &Value) -> Felt {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let percentile = |key: &str| number(&side["clat_ns"]["percentile"][key]) / 1e3;
    Felt {
        iops: number(&side["iops"]),
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        p999: percentile("99.900000"),
        max: number(&side["clat_ns"]["max"]) / 1e3,
    }
}

fn print(name: &str, felt: [Felt; 2]) {
    for (side, felt) in ["writes", "reads"].into_iter().zip(felt) {
        let Felt { iops, p50, p99, p999, max } = felt;
        println!("{name:<16} {side:<6} {iops:>8.0} {p50:>9.0} {p99:>9.0} {p999:>9.0} {max:>9.0}");
    }
}
