//! A node is away while a quarter of a volume is overwritten at random; when it returns, only what changed moves, and
//! all copies are equal. How long that takes, and what guests feel of it, is printed.
//!
//! A store keeps versions per 64 KiB below its newest writes, so a scattered write of 4 KiB makes its granule look new;
//! digests tell the joiner's own blocks from those that it lacks.
//!
//! `ASHLAR_RESYNC_MIB` is the size of the volume. Small sizes are over before a guest feels anything; 4096 is the
//! measure.

mod support;

use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME};
use support::fio::Paced;
use support::tools::run;
use support::{MIB, copies, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(600);
const SIZE_MIB_DEFAULT: u64 = 256;
/// What is overwritten: this part of the volume, in writes of this many KiB.
const OVERWRITTEN_PART: u64 = 4;
const WRITE_KIB: [u64; 2] = [64, 4];
/// Writes of 1 MiB of the fill that were not settled yet when n3 went: 16 on their way, and as many between two settlings.
const UNSETTLED_BYTES_MAX: u64 = 32 * MIB;
/// At this size and above guests' latencies are measured as well.
const SIZE_MIB_MEASURED: u64 = 2048;
const BASELINE_SECONDS: u32 = 15;
const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn size_mib() -> u64 {
    let text = std::env::var("ASHLAR_RESYNC_MIB").ok();
    text.map_or(SIZE_MIB_DEFAULT, |text| text.parse().expect("ASHLAR_RESYNC_MIB is a number"))
}

/// fio to its end, on the volume at n1.
#[track_caller]
fn fio(cluster: &Cluster, arguments: &[&str]) {
    let uri = format!("--uri={}", cluster.uri_at("n1"));
    let common = ["--name=fill", "--ioengine=nbd", &uri, "--iodepth=16", "--end_fsync=1"];
    run("fio", &[&common[..], arguments].concat(), PATIENCE).expect_code(0);
}

fn join_bytes(cluster: &Cluster) -> u64 {
    let volume = cluster.get("n1", &format!("/v1/volumes/{VOLUME}")).expect("a volume");
    volume["counters"]["join_bytes"].as_u64().expect("join_bytes")
}

/// Stops n3 and overwrites without it. Returns how many bytes.
#[track_caller]
fn overwrite_without_n3(cluster: &Cluster, size_bytes: u64, write_kib: u64) -> u64 {
    // Held for as long as this takes: what counts the bytes must not begin anew.
    cluster.cli("n1", &["volume", "attach", VOLUME]).expect_code(0);
    cluster.dev(["stop", "n3"]).expect_code(0);
    let bytes = size_bytes / OVERWRITTEN_PART;
    let (size, amount) = (format!("--size={size_bytes}"), format!("--io_size={bytes}"));
    // fio's random map: no block is written twice.
    fio(cluster, &["--rw=randwrite", &format!("--bs={write_kib}k"), &size, &amount, "--randrepeat=0"]);
    wait_for("n3 is ejected from every lane", PATIENCE, || {
        let volume = cluster.get("n1", &format!("/v1/volumes/{VOLUME}"))?;
        let lanes = volume["lanes"].as_array().ok_or("no lanes")?;
        let all = lanes.iter().all(|lane| lane["in_sync"].as_array().is_some_and(|set| set.len() == 2));
        if all { Ok(()) } else { Err(volume["reason"].to_string()) }
    });
    bytes
}

/// Starts n3 and waits until it has everything. Returns the bytes that were copied, and the time from its first lane
/// joining to healthy.
#[track_caller]
fn bring_back(cluster: &Cluster) -> (u64, Duration) {
    let before = join_bytes(cluster);
    cluster.start_again(Some("n3"));
    wait_for("the resync begins", PATIENCE, || if join_bytes(cluster) > before { Ok(()) } else { Err("no".into()) });
    let began = Instant::now();
    cluster.wait_health("n1", "healthy", PATIENCE);
    (join_bytes(cluster) - before, began.elapsed())
}

/// What a resync moves is what changed.
#[track_caller]
fn judge(write_kib: u64, changed: u64, copied: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    report(&format!(
        "{write_kib} KiB writes, idle: {} MiB overwritten, {:.1} MiB copied ({:.3} of it) in {seconds:.1} s, {:.0} MiB/s",
        changed / MIB,
        copied as f64 / MIB as f64,
        copied as f64 / changed as f64,
        copied as f64 / MIB as f64 / seconds
    ));
    assert!(copied >= changed * 95 / 100, "{write_kib} KiB writes: too little was copied");
    assert!(copied <= changed + UNSETTLED_BYTES_MAX, "{write_kib} KiB writes: too much was copied");
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn only_what_changed_moves() {
    let size_bytes = size_mib() * MIB;
    let (size, device) = (format!("{}MiB", size_mib()), format!("{}MiB", size_mib() * 3 / 2 + 512));
    let cluster = Cluster::start("resync", &["--size", &size, "--device-size", &device]);
    fio(&cluster, &["--rw=write", "--bs=1M", &format!("--size={size_bytes}")]);

    for write_kib in WRITE_KIB {
        let changed = overwrite_without_n3(&cluster, size_bytes, write_kib);
        let (copied, took) = bring_back(&cluster);
        judge(write_kib, changed, copied, took);
        if write_kib == WRITE_KIB[0] {
            cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
            copies::assert_equal(&cluster, VOLUME, &NODES, size_bytes);
        }
    }
    if size_mib() >= SIZE_MIB_MEASURED {
        under_load(&cluster, size_bytes);
    }
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
    copies::assert_equal(&cluster, VOLUME, &NODES, size_bytes);
}

/// What guests feel of a resync: a steady load with a resync beside it, against the same load before.
fn under_load(cluster: &Cluster, size_bytes: u64) {
    cluster.cli("n1", &["volume", "attach", VOLUME]).expect_code(0);
    let load = Paced { uri: cluster.uri_at("n1"), size: size_bytes };
    let before = load.start(BASELINE_SECONDS).finish(PATIENCE);
    let before = Paced::felt(&before);
    let changed = overwrite_without_n3(cluster, size_bytes, WRITE_KIB[0]);
    let fio = load.start(PATIENCE.as_secs() as u32);
    // The writer learns what is usual for this load, after that of the fill.
    std::thread::sleep(Duration::from_secs(6));
    let (copied, took) = bring_back(cluster);
    fio.interrupt();
    let during = Paced::felt(&fio.finish(PATIENCE));
    // What the load itself wrote before n3 was back is copied as well.
    report(&format!(
        "under load: {} MiB overwritten, {} MiB copied in {:.1} s",
        changed / MIB,
        copied / MIB,
        took.as_secs_f64()
    ));
    report(&format!("guests before: {before}; beside the resync: {during}; {}", during.against(&before)));
}
