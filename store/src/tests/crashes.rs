//! The store survives crashes at random points, and would not without its rules.
//!
//! `ASHLAR_STORE_SEED=n` replays one run; `ASHLAR_STORE_RUNS=n` makes more of them.

use crate::engine::Mutation;
use crate::testing::workload::Coverage;
use crate::testing::workload::campaign::{Failure, run_seed, seeds_until_caught};
use std::env::var;

/// Runs of an ordinary test.
const RUNS: u64 = 40;
/// Crash points of a campaign.
const CAMPAIGN_CRASHES: u64 = 100_000;
/// Seeds after which a broken rule must have been noticed.
const CAUGHT_WITHIN: u64 = 400;

fn number(name: &str) -> Option<u64> {
    var(name).ok().and_then(|text| text.parse::<u64>().ok())
}

fn run(seed: u64, all: &mut Coverage) {
    match run_seed(seed, None) {
        Ok(coverage) => all.add(&coverage),
        Err(Failure { reason, .. }) => panic!(
            "seed {seed}: {reason}\nreplay: ASHLAR_STORE_SEED={seed} cargo test -p ashlar-store --lib crashes_lose_nothing"
        ),
    }
}

#[test]
fn crashes_lose_nothing_acknowledged() {
    let mut all = Coverage::default();
    if let Some(seed) = number("ASHLAR_STORE_SEED") {
        run(seed, &mut all);
        return println!("{all:?}");
    }
    for seed in 0..number("ASHLAR_STORE_RUNS").unwrap_or(RUNS) {
        run(seed, &mut all);
    }
    println!("{all:?}");
    assert!(all.missing().is_empty(), "never seen: {:?}", all.missing());
}

/// Every second seed of the campaign, until half of its crash points are done.
fn campaign(half: u64) {
    let mut all = Coverage::default();
    let mut seed = 1_000_000 + half;
    let wanted = number("ASHLAR_STORE_CRASHES").unwrap_or(CAMPAIGN_CRASHES);
    while all.crashes + all.open_crashes < wanted / 2 {
        run(seed, &mut all);
        seed += 2;
    }
    println!("{} crash points, {} of them while opening: {all:?}", all.crashes + all.open_crashes, all.open_crashes);
    assert!(all.missing().is_empty(), "never seen: {:?}", all.missing());
}

#[test]
#[ignore = "minutes: cargo xtask ci crash"]
fn campaign_of_crashes_even() {
    campaign(0);
}

#[test]
#[ignore = "minutes: cargo xtask ci crash"]
fn campaign_of_crashes_odd() {
    campaign(1);
}

#[test]
#[ignore = "minutes, and prints the table of docs/protocols/store.md: cargo xtask ci crash"]
fn every_broken_rule_is_noticed() {
    let mut missed = Vec::new();
    let within = number("ASHLAR_STORE_RUNS").unwrap_or(CAUGHT_WITHIN);
    let only = var("ASHLAR_STORE_MUTATION").ok();
    for mutation in Mutation::ALL {
        let name = format!("{mutation:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let (seeds, failure) = seeds_until_caught(0, within, mutation);
        let reason = failure.as_ref().map_or("not noticed", |failure| failure.reason.lines().next().unwrap_or(""));
        let short: String = reason.chars().take(90).collect();
        println!("| {name} | {seeds} | {short} |");
        if failure.is_none() {
            missed.push(mutation);
        }
    }
    assert!(missed.is_empty(), "not noticed within {within} seeds: {missed:?}");
}
