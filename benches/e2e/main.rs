//! The end-to-end benchmark: fio's NBD engine against real daemons, as `cargo bench --bench e2e [-- OPTIONS]`.
//!
//! All replicas share one disk, and client and servers share the processors: compare only within one run, and trust
//! CPU per operation most. Rows of the raw device are measured in the same run with the same method; `x raw` is the
//! ratio of operations per second to them. Below each table are the bars of its mode; *by the peer* is the figure scaled by
//! what qemu-storage-daemon, if it is installed, gives in this run against what it gave on the machine where bars were set.
//!
//! ```text
//! --runtime SECONDS   of each cell (default 15)
//! --work LIST         of rw1,rr1,rw32,rr32,sw8,sr8 (default all): random write and read of 4 KiB at queue depth 1 and
//!                     32, sequential write and read of 1 MiB at depth 8
//! --size SIZE         of the volume in GiB (default 4), prefilled
//! --mode LIST         of protected (three replicas on devices declared power-loss protected, and their 4 KiB writes
//!                     atomic), flushed, one (one node and replica, protected); default all
//! --device KIND       of each node: file (default), or loop: a loop device over that file, as root
//! --shards COUNT      of each daemon, which then has as many devices (default 1); not with --stalls
//! --stalls REPEATS    instead of all that: how long guests stall when one of three nodes is lost, each kind of loss as
//!                     often as said; needs root, iproute2 and nftables
//! --tail              instead: latency of a guest at half of the rate of rw32, healthy and beside a slow replica
//! --scale LIST        instead: cost of so many attached volumes, for instance 1,10,100,1000
//! --callers COUNT     of --scale: attaches under way at a time (default 16)
//! --quick             two seconds a cell, one GiB: does it work at all
//! ```
//!
//! The binary is `ASHLAR_BIN`, or the one that cargo built for this bench.

mod bars;
mod bed;
mod load;
mod machine;
mod options;
mod peer;
mod scale;
mod slow;
mod stalls;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod tail;

use bed::{Bed, Drive, DriveKind, Mode, Space};
use load::{Cell, Target};
use machine::Disk;
use options::{Options, What};
use peer::Peer;
use std::path::Path;
use support::{GIB, tools};

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
    println!("binary {}", tools::ashlar_binary().display());
    match &options.what {
        What::Battery => battery(options),
        What::Stalls { repeats } => {
            for mode in options.modes.iter().filter(|mode| **mode != Mode::One) {
                stalls::run(*repeats, mode.is_protected());
            }
        }
        What::Tail => {
            for mode in options.modes.iter().filter(|mode| **mode != Mode::One) {
                tail::run(*mode, options);
            }
        }
        What::Scale { counts, callers } => {
            for mode in options.modes.iter().filter(|mode| **mode != Mode::One) {
                scale::run(counts, *callers, *mode, options);
            }
        }
    }
    println!("\nload average at the end {}", machine::load_average());
}

fn battery(options: &Options) {
    let folder = std::env::temp_dir();
    let disk = Disk::under(&folder);
    println!("{} s a cell, volume of {} GiB", options.runtime_seconds, options.size_gib);
    println!("disk {} under {}, load average {}", disk.name(), folder.display(), machine::load_average());
    let raw = measure_raw(options, &folder, &disk);
    let peer = measure_peer(options, &folder, &disk, &raw);
    for mode in &options.modes {
        measure_cluster(options, *mode, &disk, &raw, &peer);
    }
}

/// The same loads on a peer, which tells how fast the machine is; empty if it is not installed.
fn measure_peer(options: &Options, folder: &Path, disk: &Disk, raw: &[Cell]) -> Vec<Cell> {
    let size_bytes = options.size_gib * GIB;
    let Some(peer) = Peer::start(folder, options.drive, size_bytes) else { return Vec::new() };
    let target = peer.target();
    load::prefill(&target, size_bytes);
    let measure = |work| load::measure(&target, work, size_bytes, options.runtime_seconds, Some(&peer), disk);
    let cells: Vec<Cell> = options.work.iter().copied().map(measure).collect();
    println!("\nqemu-storage-daemon on a {}\n{}", options.drive.name(), table::render(&cells, raw, 1));
    cells
}

/// The same loads on a file or loop device alone: what it gives, with O_DIRECT, and with O_DSYNC for writes.
fn measure_raw(options: &Options, folder: &Path, disk: &Disk) -> Vec<Cell> {
    let folder = tempfile::Builder::new().prefix("ashlar-raw-").tempdir_in(folder).expect("a temporary directory");
    let size_bytes = options.size_gib * GIB;
    let drive = Drive::create(options.drive, &folder.path().join("raw.img"), Space::Whole, size_bytes);
    let mut rows = Vec::new();
    for dsync in [false, true] {
        let target = Target::File { path: drive.path().to_owned(), dsync };
        if !dsync {
            load::prefill(&target, size_bytes);
        }
        let work = options.work.iter().filter(|workload| !dsync || workload.writes());
        let cells: Vec<Cell> = work
            .map(|workload| load::measure(&target, *workload, size_bytes, options.runtime_seconds, None, disk))
            .collect();
        let sync = if dsync { ", O_DSYNC" } else { "" };
        let title = format!("raw {}, io_uring, O_DIRECT{sync}", options.drive.name());
        println!("\n{title}\n{}", table::render(&cells, &rows, 1));
        if !dsync {
            rows = cells;
        }
    }
    rows
}

fn measure_cluster(options: &Options, mode: Mode, disk: &Disk, raw: &[Cell], peer: &[Cell]) {
    let size_bytes = options.size_gib * GIB;
    let bed = Bed::with_volume("bench", mode, options.drive, options.size_gib, options.shards);
    let target = Target::Nbd { uri: bed.uri() };
    load::prefill(&target, size_bytes);
    let seconds = options.runtime_seconds;
    let measure = |work| load::measure(&target, work, size_bytes, seconds, Some(&bed), disk);
    let cells: Vec<Cell> = options.work.iter().copied().map(measure).collect();
    let drive = if options.drive == DriveKind::Loop { ", on loop devices" } else { "" };
    let shards =
        if options.shards > 1 { format!(", {} shards and devices a node", options.shards) } else { String::new() };
    println!("\nashlar, {}{drive}{shards}\n{}", mode.title(), table::render(&cells, raw, mode.replicas()));
    print!("{}", bars::render(&cells, mode, peer));
    let memory: Vec<String> =
        bed.pids().iter().map(|pid| format!("{} MiB", machine::resident_kib(*pid) / 1024)).collect();
    println!("memory of the daemons: {}", memory.join(", "));
    bed.expect_healthy();
}
