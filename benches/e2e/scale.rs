//! What many attached volumes cost: the table of `--scale`.

use crate::bed::{Bed, Machine, Mode, Space};
use crate::load::{self, Target};
use crate::machine;
use crate::options::Options;
use crate::support::api::{self, Answer};
use crate::support::prober::Prober;
use crate::support::{GIB, MIB};
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Size of each volume, of which only the first is written.
const VOLUME_BYTES: u64 = 64 * MIB;
/// The one that guests use, the first.
const GUESTS: &str = "v0";
/// What may be promised per byte of a device, by default. The devices are sparse: they take no such space.
const PROMISES_PER_BYTE: u64 = 4;
const HEADROOM_BYTES: u64 = GIB;
/// A create or an attach.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// For what follows from the attaches: clean marks, and pauses until volumes rest.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(20);
const RW1_SECONDS: u32 = 5;
/// The bars.
const OPEN_SECONDS_MAX: f64 = 10.0;
const OPEN_VOLUMES: u32 = 1000;
const KIB_PER_VOLUME_MAX: f64 = 256.0;
const IDLE_PERCENT_MAX: f64 = 1.0;

/// One row.
struct Row {
    volumes: u32,
    /// Of them, those that are new in this row.
    added: u32,
    create_ms: f64,
    open_seconds: f64,
    /// Longest write of a guest meanwhile; nothing if there was no volume yet.
    stall_ms: Option<f64>,
    /// Of each daemon, per added volume.
    resident_kib: Vec<f64>,
    idle_percent: Vec<f64>,
    idle_enters_per_s: f64,
    /// Mean and 99th percentile; nothing without a volume.
    rw1_us: Option<(f64, f64)>,
}

/// Attaches up to so many volumes to one node of three, step by step.
pub fn run(counts: &[u32], callers: u32, mode: Mode, options: &Options) {
    let most = counts.iter().copied().max().unwrap_or(1);
    let device_bytes = u64::from(most) * VOLUME_BYTES / PROMISES_PER_BYTE + HEADROOM_BYTES;
    let (kind, shards) = (options.drive, options.shards);
    let device_bytes = device_bytes * u64::from(shards);
    let bed = Bed::start("scale", mode, Machine { kind, space: Space::Sparse, device_bytes, shards });
    println!(
        "\nscale, {}, volumes of {} MiB, all attached to n1, {callers} at a time",
        mode.title(),
        VOLUME_BYTES / MIB
    );
    println!("load average {}", machine::load_average());
    println!(
        "volumes  create ms  open s  stall ms  memory of each daemon, KiB per added volume  idle CPU of each, % of a core  \
         idle enters/s  rw1 mean us  rw1 p99 us"
    );
    let mut rows: Vec<Row> = Vec::new();
    for count in [0].iter().chain(counts) {
        let made = rows.last().map_or(0, |row| row.volumes);
        let row = step(&bed, made, *count, callers);
        print(&row);
        rows.push(row);
    }
    verdicts(&rows);
}

/// Makes and attaches the volumes from `made` to `count`, and measures.
fn step(bed: &Bed, made: u32, count: u32, callers: u32) -> Row {
    let names: Vec<String> = (made..count).map(|number| format!("v{number}")).collect();
    let pids = bed.pids();
    let resident = || pids.iter().map(|pid| machine::resident_kib(*pid)).collect::<Vec<u64>>();
    let (resident_before, began) = (resident(), Instant::now());
    let api = bed.cluster.node("n1").api.clone();
    for name in &names {
        let body = json!({ "name": name, "size_bytes": VOLUME_BYTES, "replicas": bed.cluster.nodes.len() });
        expect_done(name, api::post(&api, "/v1/volumes", &body, CALL_TIMEOUT));
    }
    let create_ms = began.elapsed().as_secs_f64() * 1e3 / names.len().max(1) as f64;
    let guest = (made > 0).then(|| Prober::start(&bed.cluster.uri(GUESTS, "n1"), 0));
    let open_seconds = attach_all(&api, &names, callers);
    let stall_ms = guest.map(|guest| guest.finish().longest.as_secs_f64() * 1e3);
    std::thread::sleep(SETTLE);
    let began = Instant::now();
    let cpu = || pids.iter().map(|pid| machine::run_seconds(*pid)).collect::<Vec<f64>>();
    let (cpu_before, enters_before) = (cpu(), bed.enters());
    std::thread::sleep(IDLE);
    let (cpu_after, enters_after) = (cpu(), bed.enters());
    let idle_seconds = began.elapsed().as_secs_f64();
    let added = f64::from(count.saturating_sub(made).max(1));
    let more =
        resident().into_iter().zip(resident_before).map(|(now, before)| now.saturating_sub(before) as f64 / added);
    Row {
        volumes: count,
        added: count.saturating_sub(made),
        create_ms,
        open_seconds,
        stall_ms,
        resident_kib: more.collect(),
        idle_percent: cpu_after.iter().zip(&cpu_before).map(|(a, b)| (a - b) / idle_seconds * 100.0).collect(),
        idle_enters_per_s: (enters_after - enters_before) / idle_seconds,
        rw1_us: (count > 0).then(|| rw1(bed)),
    }
}

/// Attaches volumes, some at a time, and says how long it takes until all can be used.
fn attach_all(api: &str, names: &[String], callers: u32) -> f64 {
    let next = AtomicU32::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let (path, body) = (format!("/v1/volumes/{name}/attach"), json!({ "node": "n1" }));
                    expect_done(name, api::post(api, &path, &body, CALL_TIMEOUT));
                }
            });
        }
    });
    // An attach is answered when the epoch is granted; a volume is open when its members follow it.
    super::support::wait_for("all volumes are open", CALL_TIMEOUT, || {
        let health = api::call(api, "/metrics", CALL_TIMEOUT)?.body;
        let well = |line: &str| line.starts_with("ashlar_volume_health{") && line.ends_with(" 0");
        let open = health.lines().filter(|line| well(line)).count();
        let all = health.lines().filter(|line| line.starts_with("ashlar_volume_health{")).count();
        if open == all { Ok(()) } else { Err(format!("{open} of {all} are well")) }
    });
    began.elapsed().as_secs_f64()
}

#[track_caller]
fn expect_done(name: &str, answer: Result<Answer, String>) {
    let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(answer.status, 200, "{name}: {}", answer.body);
}

/// Mean and 99th percentile of a guest's writes at queue depth 1, beside all the others that are idle.
fn rw1(bed: &Bed) -> (f64, f64) {
    let target = Target::Nbd { uri: bed.cluster.uri(GUESTS, "n1") };
    load::prefill(&target, VOLUME_BYTES);
    let mut arguments = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--time_based"].map(String::from).to_vec();
    arguments.push(format!("--runtime={RW1_SECONDS}"));
    let job = load::fio(&target, VOLUME_BYTES, &arguments, CALL_TIMEOUT);
    let mean = job["write"]["lat_ns"]["mean"].as_f64().expect("fio's mean") / 1e3;
    let p99 = job["write"]["clat_ns"]["percentile"]["99.000000"].as_f64().expect("fio's percentile") / 1e3;
    (mean, p99)
}

fn print(row: &Row) {
    let list = |values: &[f64], digits: usize| {
        values.iter().map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" / ")
    };
    let (memory, idle) = (list(&row.resident_kib, 0), list(&row.idle_percent, 2));
    let stall = row.stall_ms.map_or("-".into(), |ms| format!("{ms:.0}"));
    let (mean, p99) = row.rw1_us.map_or(("-".into(), "-".into()), |(m, p)| (format!("{m:.0}"), format!("{p:.0}")));
    let Row { volumes, create_ms, open_seconds, idle_enters_per_s, .. } = row;
    println!(
        "{volumes:>7} {create_ms:>10.1} {open_seconds:>7.2} {stall:>9} {memory:>45} {idle:>30} {idle_enters_per_s:>14.0} \
         {mean:>12} {p99:>11}"
    );
}

fn verdicts(rows: &[Row]) {
    let Some(last) = rows.last().filter(|last| last.added > 0) else { return };
    let open = last.open_seconds / f64::from(last.added) * f64::from(OPEN_VOLUMES);
    let memory = last.resident_kib.iter().copied().fold(0.0, f64::max);
    let idle: f64 = last.idle_percent.iter().sum();
    let bars = [
        (format!("s to open {OPEN_VOLUMES} volumes, at the rate of the last row"), open, OPEN_SECONDS_MAX),
        ("KiB per volume, of the daemon with most".to_owned(), memory, KIB_PER_VOLUME_MAX),
        ("% of a core for the idle cluster".to_owned(), idle, IDLE_PERCENT_MAX),
    ];
    for (what, value, bar) in bars {
        let verdict = if value < bar { "met" } else { "MISSED" };
        println!("{what}: {value:.2}, wanted < {bar}  {verdict}");
    }
    let mut means = rows.iter().filter_map(|row| row.rw1_us.map(|(mean, _)| (row.volumes, mean)));
    if let (Some((few, alone)), Some((many, beside))) = (means.next(), means.next_back()) {
        println!("rw1 beside {many} volumes against beside {few}: x {:.2}", beside / alone);
    }
}
