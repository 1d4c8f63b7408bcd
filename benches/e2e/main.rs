//! The end-to-end benchmark: fio's NBD engine against `ashlar dev`, as `cargo bench --bench e2e [-- OPTIONS]`.
//!
//! All replicas share one disk, and client and servers share the processors: compare only within one run, and trust
//! CPU per operation most. Rows of the raw file are measured in the same run with the same method; `x raw` is the
//! ratio of operations per second to them.
//!
//! ```text
//! --runtime SECONDS   of each cell (default 15)
//! --work LIST         of rw1,rr1,rw32,rr32,sw8,sr8 (default all): random write and read of 4 KiB at queue depth 1 and
//!                     32, sequential write and read of 1 MiB at depth 8
//! --size SIZE         of the volume in GiB (default 4), prefilled
//! --mode MODE         protected (devices declared power-loss protected, and their 4 KiB writes atomic), flushed, or
//!                     both (default)
//! --stalls REPEATS    instead of all that: how long guests stall when one of three nodes is lost, each kind of loss as
//!                     often as said; needs root, iproute2 and nftables
//! --quick             two seconds a cell, one GiB: does it work at all
//! ```
//!
//! The binary is `ASHLAR_BIN`, or the one that cargo built for this bench.

mod load;
mod machine;
mod stalls;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use load::{Cell, Target, Workload};
use machine::Disk;
use std::path::Path;
use support::cluster::Cluster;
use support::{GIB, tools};

struct Options {
    runtime_seconds: u32,
    work: Vec<Workload>,
    size_gib: u64,
    protected: bool,
    flushed: bool,
    stalls: Option<u32>,
}

impl Options {
    fn parse(words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            runtime_seconds: 15,
            work: Workload::ALL.to_vec(),
            size_gib: 4,
            protected: true,
            flushed: true,
            stalls: None,
        };
        let mut is_bench = false;
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => is_bench = true,
                "--quick" => (options.runtime_seconds, options.size_gib) = (2, 1),
                "--stalls" => options.stalls = Some(number(&value()?)?),
                "--runtime" => options.runtime_seconds = number(&value()?)?,
                "--size" => options.size_gib = number(value()?.trim_end_matches("GiB"))?,
                "--work" => options.work = value()?.split(',').map(Workload::parse).collect::<Result<_, _>>()?,
                "--mode" => {
                    let mode = value()?;
                    (options.protected, options.flushed) = match mode.as_str() {
                        "protected" => (true, false),
                        "flushed" => (false, true),
                        "both" => (true, true),
                        _ => return Err(format!("no mode '{mode}'")),
                    };
                }
                _ => return Err(format!("no option '{word}'")),
            }
        }
        // `cargo test --benches` calls without `--bench`: nothing to test here.
        Ok(is_bench.then_some(options))
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}

fn main() {
    match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => run(&options),
        Ok(None) => {}
        Err(error) => {
            eprintln!("{error}; see the head of benches/e2e/main.rs");
            std::process::exit(2);
        }
    }
}

fn run(options: &Options) {
    let folder = std::env::temp_dir();
    let disk = Disk::under(&folder);
    if let Some(repeats) = options.stalls {
        println!("binary {}", tools::ashlar_binary().display());
        for (wanted, protected) in [(options.protected, true), (options.flushed, false)] {
            if wanted {
                stalls::run(repeats, protected);
            }
        }
        return;
    }
    println!("binary {}, {} s a cell", tools::ashlar_binary().display(), options.runtime_seconds);
    println!("disk {} under {}, load average {}", disk.name(), folder.display(), machine::load_average());
    let raw = measure_raw(options, &folder, &disk);
    for (wanted, protected) in [(options.protected, true), (options.flushed, false)] {
        if wanted {
            measure_cluster(options, protected, &disk, &raw);
        }
    }
    println!("\nload average at the end {}", machine::load_average());
}

/// The same loads on a preallocated file: what the disk itself gives, with O_DIRECT and with O_DSYNC for writes.
fn measure_raw(options: &Options, folder: &Path, disk: &Disk) -> Vec<Cell> {
    let folder = tempfile::Builder::new().prefix("ashlar-raw-").tempdir_in(folder).expect("a temporary directory");
    let path = folder.path().join("raw.img");
    let size_bytes = options.size_gib * GIB;
    let mut rows = Vec::new();
    for dsync in [false, true] {
        let target = Target::File { path: path.clone(), dsync };
        if !dsync {
            load::prefill(&target, size_bytes);
        }
        let work = options.work.iter().filter(|workload| !dsync || workload.writes());
        let cells: Vec<Cell> = work
            .map(|workload| load::measure(&target, *workload, size_bytes, options.runtime_seconds, &[], disk))
            .collect();
        let title = if dsync { "raw file, io_uring, O_DIRECT, O_DSYNC" } else { "raw file, io_uring, O_DIRECT" };
        println!("\n{title}\n{}", table::render(&cells, &rows, 1));
        if !dsync {
            rows = cells;
        }
    }
    rows
}

fn measure_cluster(options: &Options, protected: bool, disk: &Disk, raw: &[Cell]) {
    const REPLICAS: u64 = 3;
    let size_bytes = options.size_gib * GIB;
    let (size, device) = (format!("{}GiB", options.size_gib), format!("{}MiB", options.size_gib * 1280 + 256));
    let protected_text = protected.to_string();
    let drives = ["--power-loss-protected", &protected_text, "--atomic-writes", &protected_text];
    let cluster = Cluster::start("bench", &[&["--size", &size, "--device-size", &device], &drives[..]].concat());
    let target = Target::Nbd { uri: cluster.uri_at("n1") };
    load::prefill(&target, size_bytes);
    let pids: Vec<i32> = cluster.nodes().iter().filter_map(|node| node.pid).collect();
    let measure =
        |workload: &Workload| load::measure(&target, *workload, size_bytes, options.runtime_seconds, &pids, disk);
    let cells: Vec<Cell> = options.work.iter().map(measure).collect();
    let how = if protected { "power-loss protected and atomic: no flush" } else { "every commit is flushed" };
    println!("\nashlar, {REPLICAS} replicas, {how}\n{}", table::render(&cells, raw, REPLICAS));
    let memory: Vec<String> = pids.iter().map(|pid| format!("{} MiB", machine::resident_mib(*pid))).collect();
    println!("memory of the daemons: {}", memory.join(", "));
    assert_eq!(cluster.show_volume("n1")["health"], "healthy", "a benchmark of a degraded volume says nothing");
}
