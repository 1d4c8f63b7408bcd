//! The metadata at the sizes it must hold: memory, snapshot, creates, the loss of a rack; and how likely it is that three
//! devices that fail at once take data with them.
//!
//! `cargo bench -p ashlar-raft --bench scale [-- --volumes N] [--loss-only] [--plot FILE]`
//!
//! Prints figures beside their bars and marks those that miss; it judges nothing else.

mod cluster;
mod loss;
mod memory;
mod metadata;
mod plot;

use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// What to measure.
struct Options {
    volumes: u64,
    is_loss_only: bool,
    plot: Option<PathBuf>,
    /// Cargo runs it as a bench, and not to see whether it starts.
    is_bench: bool,
}

const USAGE: &str = "cargo bench -p ashlar-raft --bench scale [-- --volumes N] [--loss-only] [--plot FILE]";

fn options() -> Result<Options, String> {
    let mut options = Options { volumes: 100_000, is_loss_only: false, plot: None, is_bench: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--volumes" => options.volumes = value()?.parse().map_err(|e| format!("read --volumes: {e}"))?,
            "--plot" => options.plot = Some(value()?.into()),
            "--loss-only" => options.is_loss_only = true,
            "--bench" => options.is_bench = true, // cargo's own
            _ => return Err(format!("'{word}' is no option\n{USAGE}")),
        }
    }
    Ok(options)
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(2);
        }
    };
    if !options.is_bench {
        println!("nothing was measured: {USAGE}");
        return;
    }
    if !options.is_loss_only {
        metadata::run(options.volumes);
    }
    let rows = loss::run();
    if let Some(path) = &options.plot {
        match std::fs::write(path, plot::svg(&rows)) {
            Ok(()) => println!("plot written to {}", path.display()),
            Err(why) => {
                eprintln!("write {}: {why}", path.display());
                std::process::exit(1);
            }
        }
    }
}
