//! One store engine against the raw device, as fio would see both: `cargo bench --bench store [-- OPTIONS]`.
//!
//! A closed loop drives the engine with the daemon's reactor; raw is fio with io_uring and O_DIRECT on another region
//! of the same target in the same run. Slices alternate (raw, store, raw, store...), and `x raw` is the median of the
//! pairs' ratios: a noisy neighbour hits both. `min..max` tells how noisy it was.
//!
//! * `CPU us`: inside engine calls; of the whole thread (with the reactor's system calls, the volume's checksums of
//!   what is written, and the measuring); of fio. All per operation.
//! * `B/B`: bytes to the device per byte accepted, a checkpoint's included; in brackets as the kernel counts them.
//! * `dev/op`: device operations per operation.
//! * A slice ends when the last operation is answered; a checkpoint that is running then ends outside of the rate, but
//!   inside of CPU and bytes.
//!
//! The bars are those of the store's design. `--help` tells the options; `--quick` is for seeing whether it works.

mod bars;
mod cells;
mod cleanup;
mod driver;
mod histogram;
mod load;
#[allow(dead_code, reason = "the end-to-end bench uses the rest")]
#[path = "../e2e/machine.rs"]
mod machine;
mod options;
mod raw;
mod report;
mod target;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../../tests/support/tools.rs"]
mod tools;
mod volume;

use anyhow::{Context, Result};
use clap::Parser;
use options::Options;
use serde_json::json;

fn main() {
    let options = Options::parse();
    // `cargo test --benches` calls without `--bench`: nothing to test here.
    if !options.bench {
        return;
    }
    if let Err(error) = options.check() {
        eprintln!("store bench: {error}");
        std::process::exit(2);
    }
    if let Err(error) = run(&options) {
        cleanup::undo_all();
        eprintln!("store bench: {error:#}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<()> {
    cleanup::watch(options.limit())?;
    let mut results = Vec::new();
    for plan in target::plans(options) {
        let Some(target) = plan.make(options)? else { continue };
        let machine = report::machine_line(&target.folder);
        println!(
            "\n{} {}, {:?} a slice, {} rounds",
            target.kind,
            target.path.display(),
            options.slice(),
            options.rounds()
        );
        println!("{machine}");
        let measured = cells::measure(options, &target)?;
        print!("{}", report::render(&measured));
        println!("load average at the end {}", machine::load_average());
        let mut result = report::json(&measured);
        result["machine"] = json!(machine);
        result["size_bytes"] = json!(options.size_bytes());
        results.push(result);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&json!({ "targets": results }))?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}
