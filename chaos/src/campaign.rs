//! Breaks each rule of the protocol on purpose, one at a time: the simulator must notice, or its silence proves nothing.

use crate::child;
use crate::directed;
use anyhow::{Result, bail};
use ashlar_model::mutation::Mutation;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const KNOWN: &str = include_str!("../mutations.txt");

/// In place of a seed: no run is known to notice, and looking for one takes too long for every day.
const UNNOTICED: &str = "-";

/// What noticed a broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Caught {
    /// Seeds that were needed, or the scenario.
    by: String,
    /// What was seen.
    seen: String,
}

/// The runs that are known to notice: by rule, a seed or the name of a scenario.
fn known() -> BTreeMap<Mutation, String> {
    let lines = KNOWN.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let words = lines.map(|line| line.split_once(char::is_whitespace).unwrap_or((line, "")));
    words.filter_map(|(name, by)| Some((Mutation::by_name(name)?, by.trim().to_owned()))).collect()
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|word| (*word).to_owned()).collect()
}

/// Looks for a run that notices.
fn look(mutation: Mutation, seeds_max: u64, first: Option<&String>) -> Result<Option<Caught>> {
    let name = format!("{mutation:?}");
    if let Some(seed) = first
        && seed.parse::<u64>().is_ok()
        && let Some(seen) = child::run(&words(&["sim", "--seed", seed, "--mutation", &name]))?
    {
        return Ok(Some(Caught { by: format!("seed {seed}"), seen }));
    }
    for scenario in directed::against(mutation) {
        if let Some(seen) = child::run(&words(&["directed", scenario, "--mutation", &name]))?
            && child::run(&words(&["directed", scenario]))?.is_none()
        {
            return Ok(Some(Caught { by: format!("directed {scenario}"), seen }));
        }
    }
    let mut start = 1;
    while start <= seeds_max {
        let (from, count) = (start.to_string(), (seeds_max - start + 1).to_string());
        let arguments = ["sim", "--mutation", &name, "--start", &from, "--seeds", &count, "--first", "--jobs", "1"];
        let Some(seen) = child::run(&words(&arguments))? else { return Ok(None) };
        let Some(seed) = seed_of(&seen) else { return Ok(None) };
        // With the rule in force the same run must be fine: otherwise it shows something else.
        if child::run(&words(&["sim", "--seed", &seed.to_string()]))?.is_none() {
            return Ok(Some(Caught { by: format!("{seed}"), seen }));
        }
        start = seed + 1;
    }
    Ok(None)
}

/// The seed that a verdict names.
fn seed_of(verdict: &str) -> Option<u64> {
    let (_, rest) = verdict.split_once("seed ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Runs the campaign and prints its table.
///
/// # Errors
/// If a broken rule was not noticed.
pub fn command(seeds_max: u64, use_known: bool, only: Option<Mutation>, jobs: usize) -> Result<()> {
    let began = Instant::now();
    let mutations: Vec<Mutation> = Mutation::ALL.into_iter().filter(|m| only.is_none_or(|only| only == *m)).collect();
    let known = if use_known { known() } else { BTreeMap::new() };
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(mutation) = mutations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let first = known.get(mutation);
                    let hopeless = first.is_some_and(|by| by == UNNOTICED);
                    let result = if hopeless { Ok(None) } else { look(*mutation, seeds_max, first) };
                    results.lock().expect("nobody panics with the results").insert(*mutation, result);
                }
            });
        }
    });
    let results = results.into_inner().expect("all are over");
    let mut missed = Vec::new();
    let mut untried = 0;
    println!("{:<22} {:<28} seen", "broken rule", "noticed by");
    for (mutation, result) in results {
        let name = format!("{mutation:?}");
        match result? {
            Some(caught) => {
                let seen: String = caught.seen.chars().take(150).collect();
                println!("{name:<22} {:<28} {seen}", caught.by);
            }
            None if known.get(&mutation).is_some_and(|by| by == UNNOTICED) => {
                println!("{name:<22} {:<28} not tried: no run is known to notice", "-");
                untried += 1;
            }
            None => {
                println!("{name:<22} {:<28} nothing, in {seeds_max} seeds", "-");
                missed.push(name);
            }
        }
    }
    println!(
        "{} rules: {} broken, {} of them not noticed; {untried} not tried; in {:.1} s",
        mutations.len(),
        mutations.len() - untried,
        missed.len(),
        began.elapsed().as_secs_f64()
    );
    if missed.is_empty() { Ok(()) } else { bail!("broken and not noticed: {}", missed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_its_seed() {
        assert_eq!(seed_of("seed 17: at 5 us: lost"), Some(17));
        assert_eq!(seed_of("panic of seed 9: overflow"), Some(9));
        assert_eq!(seed_of("exit status: 1"), None);
    }

    #[test]
    fn every_known_run_is_of_a_rule_that_exists() {
        let lines = KNOWN.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        assert_eq!(lines.count(), known().len());
    }
}
