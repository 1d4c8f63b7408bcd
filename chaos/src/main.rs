//! `ashlar-chaos`: attacks Ashlar and judges what guests saw.

use anyhow::{Result, bail};
use ashlar_chaos::sim::{Options, Report, run};
use clap::{Parser, Subcommand};
use std::time::Instant;

#[derive(Parser)]
#[command(name = "ashlar-chaos", about = "The adversary: simulation and fault injection for Ashlar")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the shipping engines under virtual time and faults, one run per seed.
    Sim {
        /// Number of seeds to run.
        #[arg(long, default_value_t = 200, conflicts_with = "seed")]
        seeds: u64,
        /// First seed.
        #[arg(long, default_value_t = 1, conflicts_with = "seed")]
        start: u64,
        /// Run exactly this seed.
        #[arg(long)]
        seed: Option<u64>,
        /// Repair nothing that a scrub finds: the runs must fail.
        #[arg(long)]
        no_repair: bool,
        /// Print every event (with --seed).
        #[arg(long, requires = "seed")]
        trace: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Sim { seed: Some(seed), trace, no_repair, .. } => one(seed, trace, no_repair),
        Command::Sim { seeds, start, no_repair, .. } => many(start, seeds, no_repair),
    }
}

fn options_of(seed: u64, no_repair: bool) -> Options {
    let mut options = Options::from_seed(seed);
    if no_repair {
        options.settings.repairs_max = 0;
    }
    options
}

fn one(seed: u64, trace: bool, no_repair: bool) -> Result<()> {
    let options = Options { trace, ..options_of(seed, no_repair) };
    println!("{options:?}");
    let report = run(options);
    println!("{report:?}");
    match report.violation {
        Some(violation) => bail!("seed {seed}: {violation}"),
        None => Ok(()),
    }
}

fn many(start: u64, seeds: u64, no_repair: bool) -> Result<()> {
    let began = Instant::now();
    let mut failed = Vec::new();
    let mut sum = Report {
        violation: None,
        virtual_us: 0,
        steps: 0,
        acknowledged: 0,
        trace_hash: 0,
        epochs: 0,
        ejections: 0,
        joins: 0,
        faults: 0,
        latent: 0,
        repaired: 0,
        beyond_tolerance: false,
    };
    let mut beyond = 0;
    for seed in start..start + seeds {
        let report = run(options_of(seed, no_repair));
        if let Some(violation) = &report.violation {
            println!("seed {seed}: {violation}\n  replay: ashlar-chaos sim --seed {seed} --trace");
            failed.push(seed);
        }
        sum.virtual_us += report.virtual_us;
        sum.steps += report.steps;
        sum.acknowledged += report.acknowledged;
        sum.epochs += report.epochs;
        sum.ejections += report.ejections;
        sum.joins += report.joins;
        sum.faults += report.faults;
        sum.latent += report.latent;
        sum.repaired += report.repaired;
        beyond += u64::from(report.beyond_tolerance);
    }
    println!(
        "{seeds} seeds, {} failed: {:.2} simulated hours in {:.1} s, {} events, {} requests acknowledged, {} epochs, {} \
         ejections, {} joins, {} faults, {} latent errors, {} repairs, {beyond} beyond tolerance",
        failed.len(),
        sum.virtual_us as f64 / 3.6e9,
        began.elapsed().as_secs_f64(),
        sum.steps,
        sum.acknowledged,
        sum.epochs,
        sum.ejections,
        sum.joins,
        sum.faults,
        sum.latent,
        sum.repaired
    );
    if beyond * 20 > seeds + 20
        || sum.acknowledged < seeds * 50
        || (seeds >= 50 && (sum.joins == 0 || sum.ejections == 0))
    {
        bail!("the runs did too little to mean anything");
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} seeds violated a property: {failed:?}", failed.len()) }
}
