//! Many seeds: on all cores, with results that do not depend on how many there are.

use crate::child;
use crate::marks;
use crate::replay::Line;
use crate::sim::{Report, run};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One seed in so many is run twice, and must be the same run.
const TWICE_ONE_IN: u64 = 64;

/// When a batch ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so many seeds.
    pub seeds: u64,
    /// After so much virtual time, in microseconds.
    pub virtual_us: u64,
    /// After so much real time.
    pub time: Duration,
    /// With the first seed that fails.
    pub first: bool,
}

/// What a batch showed.
#[derive(Debug, Default)]
pub struct Sum {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that failed, and why.
    pub failed: BTreeMap<u64, String>,
    /// Runs beyond tolerance.
    pub beyond: u64,
    /// Sums over all runs.
    pub total: Report,
    /// Real time, in seconds.
    pub seconds: f64,
    /// Processor time, in seconds.
    pub busy_seconds: f64,
}

impl Sum {
    fn add(&mut self, seed: u64, report: Report, took: Duration) {
        self.seeds += 1;
        self.busy_seconds += took.as_secs_f64();
        self.beyond += u64::from(report.beyond_tolerance);
        self.total.virtual_us += report.virtual_us;
        self.total.steps += report.steps;
        self.total.acknowledged += report.acknowledged;
        self.total.epochs += report.epochs;
        self.total.ejections += report.ejections;
        self.total.joins += report.joins;
        self.total.faults += report.faults;
        self.total.latent += report.latent;
        self.total.repaired += report.repaired;
        for (mark, count) in report.marks {
            *self.total.marks.entry(mark).or_default() += count;
        }
        if let Some(why) = report.violation {
            self.failed.insert(seed, why);
        }
    }

    /// Simulated hours.
    pub fn hours(&self) -> f64 {
        self.total.virtual_us as f64 / 3.6e9
    }

    /// Why the batch means little, if it does.
    pub fn vacuous(&self) -> Option<String> {
        let Self { seeds, total, .. } = self;
        if self.beyond * 20 > seeds + 20 {
            return Some(format!("{} runs of {seeds} were beyond tolerance", self.beyond));
        }
        if total.acknowledged < seeds * 50 {
            return Some(format!("only {} requests were acknowledged", total.acknowledged));
        }
        let missing = marks::missing(*seeds, &total.marks);
        (!missing.is_empty()).then(|| format!("no run took these branches: {}", missing.join(", ")))
    }

    /// One line that sums up.
    pub fn line(&self) -> String {
        let total = &self.total;
        format!(
            "{} seeds, {} failed: {:.2} simulated hours in {:.1} s ({:.0} an hour of one core), {} events, {} requests \
             acknowledged, {} epochs, {} ejections, {} joins, {} faults, {} latent errors, {} repairs, {} beyond tolerance",
            self.seeds,
            self.failed.len(),
            self.hours(),
            self.seconds,
            self.hours() * 3600.0 / self.busy_seconds.max(1e-9),
            total.steps,
            total.acknowledged,
            total.epochs,
            total.ejections,
            total.joins,
            total.faults,
            total.latent,
            total.repaired,
            self.beyond
        )
    }
}

/// Runs one seed of a line, twice now and then.
pub fn run_seed(line: &Line, seed: u64) -> Report {
    child::running(Some(line.of(seed)));
    let mut report = run(line.options(seed));
    if seed.is_multiple_of(TWICE_ONE_IN) && report.violation.is_none() {
        let again = run(line.options(seed));
        if again.trace_hash != report.trace_hash {
            report.violation = Some("the same seed was another run the second time".into());
        }
    }
    child::running(None);
    report
}

/// Runs seeds from `start` on.
pub fn run_many(line: &Line, start: u64, limits: Limits, jobs: usize) -> Sum {
    let began = Instant::now();
    let next = AtomicU64::new(start);
    let sum = Mutex::new(Sum::default());
    let is_over = |seed: u64| {
        let sum = sum.lock().expect("no run panics while it holds the sum");
        seed >= start + limits.seeds
            || sum.total.virtual_us >= limits.virtual_us
            || began.elapsed() >= limits.time
            || (limits.first && !sum.failed.is_empty())
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if is_over(seed) {
                        return;
                    }
                    let run_began = Instant::now();
                    let report = run_seed(line, seed);
                    if let Some(why) = &report.violation {
                        println!("{} seed {seed}: {why}\n  replay: {}", child::VERDICT, line.of(seed));
                    }
                    sum.lock().expect("no run panics while it holds the sum").add(seed, report, run_began.elapsed());
                }
            });
        }
    });
    let mut sum = sum.into_inner().expect("all runs are over");
    sum.seconds = began.elapsed().as_secs_f64();
    sum
}
