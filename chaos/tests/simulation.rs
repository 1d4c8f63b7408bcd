//! The simulator itself: the same seed is the same run, and runs are not vacuous.

use ashlar_chaos::sim::{Class, Options, run};

fn short(seed: u64) -> Options {
    Options { faulty_us: 4_000_000, ..Options::from_seed(seed) }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in [3, 14, 15, 92, 65] {
        let once = run(short(seed));
        assert_eq!(once, run(short(seed)), "seed {seed}");
        assert!(hashes.insert(once.trace_hash), "seed {seed} is another seed's run");
    }
}

#[test]
fn a_fault_less_is_another_run() {
    let whole = short(14);
    let fewer = Options { without: [Class::Crash].into(), ..short(14) };
    assert_ne!(run(whole).trace_hash, run(fewer).trace_hash);
}

#[test]
fn runs_do_something_and_nothing_is_violated() {
    let (mut acknowledged, mut faults, mut joins) = (0, 0, 0);
    for seed in 100..112 {
        let report = run(short(seed));
        assert_eq!(report.violation, None, "replay: ashlar-chaos sim --seed {seed} --trace");
        acknowledged += report.acknowledged;
        faults += report.faults;
        joins += report.joins;
    }
    assert!(acknowledged > 500 && faults > 20 && joins > 0, "{acknowledged} requests, {faults} faults, {joins} joins");
}

/// The check of latent errors can fail: with nobody to repair them, they are left.
#[test]
fn without_repairs_latent_errors_are_left() {
    let mut with_errors = 0;
    for seed in 1..=40 {
        let mut options = short(seed);
        options.settings.repairs_max = 0;
        let report = run(options);
        // Where a block was written off, what is left of it is no failure.
        if report.latent > 0 && !report.beyond_tolerance {
            with_errors += 1;
            let violation = report.violation.expect("latent errors are left");
            assert!(violation.contains("damage is left"), "seed {seed}: {violation}");
        }
    }
    assert!(with_errors > 5, "{with_errors} of 40 runs had latent errors");
}
