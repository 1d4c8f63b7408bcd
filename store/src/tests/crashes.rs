//! The store survives crashes at random points.
//!
//! `ASHLAR_STORE_SEED=n` replays one run; `ASHLAR_STORE_RUNS=n` makes more of them.

use crate::testing::workload::CrashRun;
use std::env::var;

const CRASHES: u64 = 50;
const RUNS: u64 = 20;

/// Runs the seeds of one half, so that two tests share the machine.
fn crash_all(half: u64) {
    let number = |name| var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runs = number("ASHLAR_STORE_RUNS").unwrap_or(RUNS);
    let seeds: Vec<u64> = match number("ASHLAR_STORE_SEED") {
        Some(seed) => vec![seed],
        None => (0..runs).map(|run| run * 2 + half).collect(),
    };
    let mut sums = [0; 6];
    for seed in seeds {
        let mut run = CrashRun::new(seed);
        run.run(CRASHES);
        let figures = [run.crashes, run.open_crashes, run.writes, run.full, run.dropped, run.checkpoints];
        sums.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
    }
    let [crashes, opens, writes, full, dropped, checkpoints] = sums;
    println!(
        "{crashes} crashes, {opens} more while opening; {writes} writes acknowledged, {full} refused as full, \
         {dropped} torn ones dropped, {checkpoints} checkpoints"
    );
}

#[test]
fn crashes_lose_nothing_acknowledged_even() {
    crash_all(0);
}

#[test]
fn crashes_lose_nothing_acknowledged_odd() {
    crash_all(1);
}
