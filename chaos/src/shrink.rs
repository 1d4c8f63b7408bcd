//! Makes a failing run smaller: fewer classes of faults, fewer faults, fewer writers and blocks, less time.
//!
//! It only ever tries lines that a person could type, so what it ends with is what is printed. It must never know why a
//! run fails: any failure counts.

use crate::replay::{Keep, Line};
use crate::sim::{Class, draw};
use std::time::{Duration, Instant};

/// Tries lines until none of its steps helps, or time is up. `fails` runs a line.
pub fn shrink(line: &Line, time: Duration, fails: impl Fn(&Line) -> bool) -> Line {
    let until = Instant::now() + time;
    let tried = |candidate: &Line| Instant::now() < until && fails(candidate);
    let seed = line.seed.expect("one seed is shrunk");
    let mut best = line.clone();
    for class in Class::ALL {
        let drawn = draw(&best.options(seed)).iter().any(|fault| fault.class == class);
        let mut candidate = best.clone();
        candidate.without.push(class);
        if drawn && tried(&candidate) {
            best = candidate;
        }
    }
    let numbers: Vec<usize> = draw(&best.options(seed)).iter().map(|fault| fault.number).collect();
    let with = |keep: &[usize]| Line { keep: Some(Keep(keep.to_vec())), without: line.without.clone(), ..best.clone() };
    if tried(&with(&numbers)) {
        let keep = fewest(numbers, |keep| tried(&with(keep)));
        best = with(&keep);
    }
    for writers in 1..best.options(seed).writers_max {
        let candidate = Line { writers: Some(writers), ..best.clone() };
        if tried(&candidate) {
            best = candidate;
            break;
        }
    }
    for blocks in 2..best.options(seed).blocks {
        let candidate = Line { blocks: Some(blocks), ..best.clone() };
        if tried(&candidate) {
            best = candidate;
            break;
        }
    }
    shorter(best, seed, tried)
}

/// Halves the time during which faults happen, as long as it fails.
fn shorter(mut best: Line, seed: u64, fails: impl Fn(&Line) -> bool) -> Line {
    let mut step_ms = best.options(seed).faulty_us / 2000;
    while step_ms > 50 {
        let faulty_ms = best.options(seed).faulty_us / 1000;
        let candidate = Line { faulty_ms: Some(faulty_ms.saturating_sub(step_ms)), ..best.clone() };
        if faulty_ms > step_ms && fails(&candidate) {
            best = candidate;
        } else {
            step_ms /= 2;
        }
    }
    best
}

/// Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (IEEE TSE 28(2), 2002): a list of which
/// no single part can be left out any more.
fn fewest<T: Clone>(mut items: Vec<T>, fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    if fails(&[]) {
        return Vec::new();
    }
    let mut parts = 2;
    while items.len() >= 2 {
        let size = items.len().div_ceil(parts);
        let chunks: Vec<Vec<T>> = items.chunks(size).map(<[T]>::to_vec).collect();
        let without = |i: usize| -> Vec<T> {
            let others = chunks.iter().enumerate().filter(|(j, _)| *j != i);
            others.flat_map(|(_, chunk)| chunk.iter().cloned()).collect()
        };
        if let Some(i) = (0..chunks.len()).find(|i| fails(&without(*i))) {
            items = without(i);
            parts = (parts - 1).max(2);
        } else if size == 1 {
            break;
        } else {
            parts = (parts * 2).min(items.len());
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_left() {
        let needs = |wanted: &'static [u32]| move |items: &[u32]| wanted.iter().all(|item| items.contains(item));
        assert_eq!(fewest((0..100).collect(), needs(&[17, 63])), [17, 63]);
        assert_eq!(fewest((0..100).collect(), needs(&[99])), [99]);
        assert_eq!(fewest((0..100).collect(), needs(&[])), [0; 0]);
        assert_eq!(fewest(vec![1, 2, 3], needs(&[1, 2, 3])), [1, 2, 3]);
    }

    #[test]
    fn a_line_shrinks_to_the_faults_that_matter() {
        let line = Line { seed: Some(11), ..Line::default() };
        let faults = draw(&line.options(11));
        let (one, other) = (faults[2], faults[faults.len() - 2]);
        let fails = |line: &Line| {
            let left = draw(&line.options(11));
            left.contains(&one) && left.contains(&other)
        };
        let small = shrink(&line, Duration::from_secs(60), fails);
        assert_eq!(small.keep, Some(Keep(vec![one.number, other.number])), "{small}");
        assert!(small.options(11).faulty_us < other.at_us + 200_000);
        assert!(fails(&small));
    }
}
