//! `ashlar-chaos`: attacks Ashlar and judges what guests saw.

use anyhow::{Result, bail};
use ashlar_chaos::batch::{self, Limits, Sum};
use ashlar_chaos::replay::Line;
use ashlar_chaos::shrink::shrink;
use ashlar_chaos::{campaign, child, directed, kept};
use ashlar_model::mutation::Mutation;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a failing run is made smaller.
const SHRINK_TIME: Duration = Duration::from_secs(120);
/// The same for each of the first failing seeds of a batch.
const SHRINK_TIME_IN_BATCH: Duration = Duration::from_secs(30);
/// Failing seeds of a batch that are made smaller.
const SHRUNK_MAX: usize = 2;

#[derive(Parser)]
#[command(name = "ashlar-chaos", about = "The adversary: simulation and fault injection for Ashlar")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the shipping engines under virtual time and faults, one run per seed.
    Sim(Sim),
    /// Run written scenarios over the same world.
    Directed {
        /// Only this one.
        name: Option<String>,
        /// Break this rule of the protocol: the scenario must fail.
        #[arg(long, value_parser = ashlar_chaos::replay::mutation_of)]
        mutation: Option<Mutation>,
        /// Print every event.
        #[arg(long)]
        trace: bool,
    },
    /// Break each rule of the protocol on purpose: the simulator must notice.
    Mutations {
        /// Seeds tried for each rule.
        #[arg(long, default_value_t = 2000)]
        seeds_max: u64,
        /// First the seed that is known to notice.
        #[arg(long)]
        known: bool,
        /// Only this rule.
        #[arg(long, value_parser = ashlar_chaos::replay::mutation_of)]
        only: Option<Mutation>,
        /// Processes at a time.
        #[arg(long, default_value_t = cores())]
        jobs: usize,
    },
}

#[derive(Args)]
struct Sim {
    #[command(flatten)]
    line: Line,
    /// Number of seeds to run.
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<u64>,
    /// First seed.
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    start: u64,
    /// End after so many simulated hours.
    #[arg(long, conflicts_with = "seed")]
    hours: Option<f64>,
    /// End after so many minutes.
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<f64>,
    /// Seeds that nobody has run before: the first one comes from the clock. Kept seeds are run as well.
    #[arg(long, conflicts_with_all = ["seed", "start"])]
    fresh: bool,
    /// End with the first seed that fails.
    #[arg(long, conflicts_with = "seed")]
    first: bool,
    /// Threads.
    #[arg(long, default_value_t = cores())]
    jobs: usize,
    /// Print every event (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Look for the smallest run that fails (with --seed).
    #[arg(long, requires = "seed")]
    shrink: bool,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    child::panics_are_verdicts();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Sim(sim) => match sim.line.seed {
            Some(_) if sim.shrink => shrunk(&sim.line, SHRINK_TIME).map(|_| ()),
            Some(seed) => one(&sim.line, seed, sim.trace),
            None => many(&sim),
        },
        Command::Directed { name, mutation, trace } => directed::command(name.as_deref(), mutation, trace),
        Command::Mutations { seeds_max, known, only, jobs } => campaign::command(seeds_max, known, only, jobs),
    }
}

fn one(line: &Line, seed: u64, trace: bool) -> Result<()> {
    let mut options = line.options(seed);
    options.trace = trace;
    println!("{options:?}");
    child::running(Some(line.clone()));
    let report = ashlar_chaos::sim::run(options);
    println!("{report:?}");
    match report.violation {
        Some(violation) => {
            println!("{} seed {seed}: {violation}", child::VERDICT);
            bail!("a property was violated")
        }
        None => Ok(()),
    }
}

/// Makes a failing line smaller and prints it.
fn shrunk(line: &Line, time: Duration) -> Result<Line> {
    if child::run_line(line)?.is_none() {
        bail!("{line} does not fail");
    }
    let small = shrink(line, time, |line| child::run_line(line).is_ok_and(|verdict| verdict.is_some()));
    let why = child::run_line(&small)?.unwrap_or_default();
    let seed = small.seed.expect("one seed is shrunk");
    let faults = ashlar_chaos::sim::draw(&small.options(seed));
    println!("smallest run: {small}\n  {} faults; {why}", faults.len());
    for fault in faults {
        println!("  {} us: {:?} for {} us", fault.at_us, fault.class, fault.lasts_us);
    }
    Ok(small)
}

fn many(sim: &Sim) -> Result<()> {
    let bounded = sim.hours.is_some() || sim.minutes.is_some();
    let limits = Limits {
        seeds: sim.seeds.unwrap_or(if bounded { u64::MAX / 2 } else { 200 }),
        virtual_us: sim.hours.map_or(u64::MAX, |hours| (hours * 3.6e9) as u64),
        time: sim.minutes.map_or(Duration::MAX, |minutes| Duration::from_secs_f64(minutes * 60.0)),
        first: sim.first,
    };
    let mut failed = Vec::new();
    let mut start = sim.start;
    if sim.fresh {
        start = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
        println!("fresh seeds from {start}");
        for seed in kept::seeds() {
            let report = batch::run_seed(&sim.line, seed);
            if let Some(why) = report.violation {
                println!("{} kept seed {seed}: {why}\n  replay: {}", child::VERDICT, sim.line.of(seed));
                failed.push(seed);
            }
        }
    }
    let sum = batch::run_many(&sim.line, start, limits, sim.jobs);
    failed.extend(sum.failed.keys());
    if sim.line.mutation.is_none() {
        for seed in failed.iter().take(SHRUNK_MAX) {
            shrunk(&sim.line.of(*seed), SHRINK_TIME_IN_BATCH)?;
        }
    }
    for (mark, count) in &sum.total.marks {
        println!("mark {count:>9}  {mark}");
    }
    println!("{}", sum.line());
    verdict(&failed, &sum)
}

fn verdict(failed: &[u64], sum: &Sum) -> Result<()> {
    if !failed.is_empty() {
        bail!("{} seeds violated a property: {failed:?}", failed.len());
    }
    match sum.vacuous() {
        Some(why) => bail!("the runs did too little to mean anything: {why}"),
        None => Ok(()),
    }
}
