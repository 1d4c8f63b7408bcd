//! Bits flip in device files, and no guest reads: the background scrub finds the damage, the volume's writer repairs it in
//! place, and both are counted, logged and shown.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME};
use support::damage::{assert_repaired, flip, places};
use support::stamp::{BLOCK_BYTES, run_of};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const WRITER: u64 = 6;
const BLOCKS: u64 = 32 * MIB / BLOCK_BYTES as u64;
const RUN_BLOCKS: u64 = 256;
const FAST: &str = "scrub_bytes_per_s = \"64MiB\"\nscrub_pause = \"1s\"";

/// Writes every block once, and lets the volume go.
fn write_all(cluster: &Cluster) {
    let mut client = cluster.open_at("n1");
    for first in (0..BLOCKS).step_by(RUN_BLOCKS as usize) {
        client.write(first * BLOCK_BYTES as u64, &run_of(first, RUN_BLOCKS, WRITER, 1)).expect("a write");
    }
    client.flush().expect("a flush");
    client.disconnect().expect("an orderly goodbye");
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
}

/// A count of the attached volume.
fn count(cluster: &Cluster, key: &str) -> u64 {
    let counters = &cluster.show_volume("n1")["counters"];
    counters[key].as_u64().unwrap_or_else(|| panic!("{key} in {counters}"))
}

/// Waits until this many blocks were repaired in all.
fn expect_repairs(cluster: &Cluster, repairs: u64) {
    let began = Instant::now();
    wait_for("all damage is repaired", PATIENCE, || match count(cluster, "repaired_blocks") {
        repaired if repaired >= repairs => Ok(()),
        repaired => Err(format!("{repaired} of {repairs} repaired")),
    });
    let (damaged, repaired) = (count(cluster, "damaged_blocks"), count(cluster, "repaired_blocks"));
    report(&format!("{damaged} damaged and {repaired} repaired after {:.1} s", began.elapsed().as_secs_f64()));
    assert_eq!((damaged, repaired), (repairs, repairs));
    assert_eq!(count(cluster, "reads"), 0, "a guest has read");
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn the_scrub_finds_damage_and_it_is_repaired_in_place() {
    let cluster = Cluster::start("scrub", &["--size", "64MiB", "--device-size", "384MiB"]);
    write_all(&cluster);
    cluster.dev(["stop"]).expect_code(0);
    cluster.configure(FAST);

    let device = |node: &str| -> PathBuf { cluster.node(node).devices[0].clone() };
    let (two, three) = (places(&device("n2"), WRITER), places(&device("n3"), WRITER));
    assert_eq!((two.len() as u64, three.len() as u64), (BLOCKS, BLOCKS), "every replica holds every block");
    // Alone, neighbours, the ends of a chunk, and a whole run: more than are repaired at a time.
    let on_two: Vec<u64> = [0, 7, 8, 1023, 1024, 4095, 8191].into_iter().chain(2000..2032).collect();
    flip(&device("n2"), &two, &on_two);
    cluster.start_again(None);
    cluster.cli("n1", &["volume", "attach", VOLUME]).expect_code(0);
    expect_repairs(&cluster, on_two.len() as u64);
    assert_repaired(&device("n2"), WRITER, &two, &on_two);

    // Under a running daemon, one block on two of three replicas.
    let one = places(&device("n1"), WRITER);
    let (on_one, on_three) = ([5, 3000], [5, 6000]);
    flip(&device("n1"), &one, &on_one);
    flip(&device("n3"), &three, &on_three);
    expect_repairs(&cluster, on_two.len() as u64 + 4);
    assert_repaired(&device("n1"), WRITER, &one, &on_one);
    assert_repaired(&device("n3"), WRITER, &three, &on_three);

    expect_shown(&cluster, on_two.len() as u64);
    let log = cluster.log("n1");
    for block in [0, 5, 2000, 6000] {
        assert!(log.contains(&format!("block {block} is damaged on device")), "block {block}: no word of damage");
        assert!(log.contains(&format!("block {block} was repaired on device")), "block {block}: no word of repair");
    }
    assert!(cluster.log("n2").contains("the scrub met a damaged block"), "the device's own node says nothing");
    cluster.assert_alive("n1");
}

/// Passes end, find nothing more, and metrics and command line say so.
fn expect_shown(cluster: &Cluster, on_two: u64) {
    let metric = |name: &str| cluster.metric("n2", &format!("ashlar_device_{name}")) as u64;
    let (passes, found) = (metric("scrub_passes_total"), metric("scrub_damaged_blocks_total"));
    wait_for("two more passes", PATIENCE, || match metric("scrub_passes_total") {
        now if now >= passes + 2 => Ok(()),
        now => Err(format!("{now} passes, {passes} before")),
    });
    assert_eq!(metric("scrub_damaged_blocks_total"), found, "damage is left");
    assert!(found >= on_two, "{found} of {on_two} found by the scrub");
    assert_eq!(metric("repaired_blocks_total"), on_two);
    assert!(metric("scrubbed_bytes_total") >= 2 * 32 * MIB, "{} bytes read", metric("scrubbed_bytes_total"));
    let devices = cluster.get("n2", "/v1/devices").expect("the devices");
    let own = devices["items"].as_array().expect("items").iter().find(|item| item["node"] == "n2").cloned();
    let own = own.unwrap_or_else(|| panic!("no device of n2 in {devices}"));
    let shown = cluster.cli("n2", &["device", "show", own["id"].as_str().expect("its id")]);
    shown.expect_code(0);
    let repaired = format!("damaged blocks found, {on_two} repaired");
    shown.expect_text(&["each is followed by a flush", "may be torn", "last pass ended", &repaired]);
    report(shown.stdout.lines().find(|line| line.starts_with("scrub")).unwrap_or("-"));
}
