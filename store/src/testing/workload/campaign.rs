//! Many runs, by seed: how many crashes, what they covered, which seed failed.
//!
//! It must never know what a run does.

use super::{Coverage, CrashRun};
use crate::engine::Mutation;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Power cuts that one run survives before it ends.
pub const CRASHES_PER_RUN: u64 = 50;

/// A run that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was wrong.
    pub reason: String,
}

/// Runs one seed to its end.
///
/// # Errors
/// What was wrong, as the check said it.
pub fn run_seed(seed: u64, mutation: Option<Mutation>) -> Result<Coverage, Failure> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut run = CrashRun::new(seed, mutation);
        run.run(CRASHES_PER_RUN);
        run.coverage
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let reason = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Failure { seed, reason: reason.unwrap_or_else(|| "it panicked without a word".into()) }
    })
}

/// Runs seeds, from `first` on, until one fails or there were `runs`: how many were run, and the failure if there is one.
pub fn seeds_until_caught(first: u64, runs: u64, mutation: Mutation) -> (u64, Option<Failure>) {
    for seed in first..first + runs {
        if let Err(failure) = run_seed(seed, Some(mutation)) {
            return (seed - first + 1, Some(failure));
        }
    }
    (runs, None)
}
