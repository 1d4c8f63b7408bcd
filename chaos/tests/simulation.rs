//! The simulator itself: the same seed is the same run, and runs are not vacuous.

use ashlar_chaos::sim::{Options, run};

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 14, 15] {
        let options = || Options { faulty_us: 3_000_000, ..Options::from_seed(seed) };
        assert_eq!(run(options()), run(options()), "seed {seed}");
    }
}

#[test]
fn runs_do_something_and_nothing_is_violated() {
    let (mut acknowledged, mut faults, mut joins) = (0, 0, 0);
    for seed in 100..110 {
        let report = run(Options { faulty_us: 5_000_000, ..Options::from_seed(seed) });
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
        let mut options = Options::from_seed(seed);
        options.settings.repairs_max = 0;
        let report = run(options);
        if report.latent > 0 {
            with_errors += 1;
            let violation = report.violation.expect("latent errors are left");
            assert!(violation.contains("damage is left"), "seed {seed}: {violation}");
        }
    }
    assert!(with_errors > 10, "{with_errors} of 40 runs had latent errors");
}
