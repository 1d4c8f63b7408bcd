//! Bits flip in device files, offline and under a running daemon: guests read right data, the damage is counted, logged
//! and repaired in place, and the next read finds none.

mod support;

use std::time::Duration;
use support::cluster::{Cluster, VOLUME};
use support::damage::{assert_repaired, flip, places};
use support::stamp::{BLOCK_BYTES, Content, Stamp, run_of};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);
const WRITER: u64 = 5;
const BLOCKS: u64 = 32 * MIB / BLOCK_BYTES as u64;
const RUN_BLOCKS: u64 = 256;
/// Here guests' reads find the damage, and each is counted once: the scrub has a test of its own.
const NO_SCRUB: &str = "scrub_bytes_per_s = 0";

/// Reads everything at a node and demands that it is right.
#[track_caller]
fn read_all(cluster: &Cluster, node: &str) {
    let mut client = cluster.open_at(node);
    for first in (0..BLOCKS).step_by(RUN_BLOCKS as usize) {
        let data = client.read(first * BLOCK_BYTES as u64, (RUN_BLOCKS as usize * BLOCK_BYTES) as u32);
        let data = data.unwrap_or_else(|error| panic!("read at block {first}: {error}"));
        let contents = data.chunks_exact(BLOCK_BYTES).map(Stamp::read).zip(first..);
        let right = |block| Content::Whole(Stamp { block, writer: WRITER, sequence: 1 });
        let wrong: Vec<_> = contents.filter(|(content, block)| *content != right(*block)).collect();
        assert!(wrong.is_empty(), "wrong data, read at {node}: (what, block) {wrong:?}");
    }
    client.disconnect().expect("an orderly goodbye");
}

/// (damaged, repaired) as the attached volume counts.
fn counts(cluster: &Cluster, node: &str) -> (u64, u64) {
    let counters = &cluster.show_volume(node)["counters"];
    let count = |key: &str| counters[key].as_u64().unwrap_or_else(|| panic!("{key} in {counters}"));
    (count("damaged_blocks"), count("repaired_blocks"))
}

/// Reads at a node whose own device has damage, and follows the damage until it is gone.
fn expect_healing(cluster: &Cluster, node: &str, damaged: u64) {
    cluster.cli(node, &["volume", "attach", VOLUME]).expect_code(0);
    read_all(cluster, node);
    // A read that was late was answered by another member; the device may still be at it.
    let bad = wait_for("the device counts what was damaged", PATIENCE, || {
        let bad = cluster.metric(node, "ashlar_device_bad_blocks_total") as u64;
        if bad >= damaged { Ok(bad) } else { Err(bad.to_string()) }
    });
    let (seen, repaired) = wait_for("all damage is repaired", PATIENCE, || match counts(cluster, node) {
        (seen, repaired) if repaired >= damaged => Ok((seen, repaired)),
        other => Err(format!("(damaged, repaired) = {other:?}, {damaged} expected")),
    });
    report(&format!("{node}: {damaged} flipped, {seen} found damaged, {repaired} repaired, device counts {bad}"));
    assert_eq!((seen, repaired), (damaged, damaged));
    assert_eq!(bad, damaged);
    wait_for("the device counts its repairs", PATIENCE, || {
        let repaired = cluster.metric(node, "ashlar_device_repaired_blocks_total") as u64;
        if repaired == damaged { Ok(()) } else { Err(repaired.to_string()) }
    });
    let log = cluster.log(node);
    assert!(log.contains("is damaged on device"), "the log does not speak of the damage");
    assert!(log.contains("was repaired on device"), "the log does not speak of the repair");

    read_all(cluster, node);
    assert_eq!(counts(cluster, node), (damaged, damaged), "the second read found damage again");
    assert_eq!(cluster.metric(node, "ashlar_device_bad_blocks_total") as u64, damaged);
    assert_eq!(cluster.show_volume(node)["health"], "healthy");
}

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

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn damage_is_repaired_and_never_returned() {
    let cluster = Cluster::start("flip", &["--size", "64MiB", "--device-size", "384MiB"]);
    write_all(&cluster);
    cluster.dev(["stop"]).expect_code(0);
    cluster.configure(NO_SCRUB);

    let device = |node: &str| cluster.node(node).devices[0].clone();
    let (two, three) = (places(&device("n2"), WRITER), places(&device("n3"), WRITER));
    assert_eq!((two.len() as u64, three.len() as u64), (BLOCKS, BLOCKS), "every replica holds every block");
    // Alone, neighbours, the first and last of a chunk, and a whole run.
    let on_two: Vec<u64> = [0, 7, 8, 1023, 1024, 4095, 8191].into_iter().chain(2000..2032).collect();
    let on_three: Vec<u64> = [1, 9, 2047, 2048, 5000].into_iter().chain(6000..6016).collect();
    flip(&device("n2"), &two, &on_two);
    flip(&device("n3"), &three, &on_three);
    cluster.start_again(None);

    expect_healing(&cluster, "n2", on_two.len() as u64);
    cluster.cli("n2", &["volume", "detach", VOLUME]).expect_code(0);
    expect_healing(&cluster, "n3", on_three.len() as u64);
    cluster.cli("n3", &["volume", "detach", VOLUME]).expect_code(0);

    // Under a running daemon, on the target's own device.
    let one = places(&device("n1"), WRITER);
    let on_one: Vec<u64> = (0..8).map(|i| i * 1000 + 3).collect();
    flip(&device("n1"), &one, &on_one);
    expect_healing(&cluster, "n1", on_one.len() as u64);

    cluster.dev(["stop"]).expect_code(0);
    assert_repaired(&device("n1"), WRITER, &one, &on_one);
    assert_repaired(&device("n2"), WRITER, &two, &on_two);
    assert_repaired(&device("n3"), WRITER, &three, &on_three);
    cluster.start_again(None);
}

/// The volume was let go cleanly, so nobody recovers it; then every daemon died. No later record proves the last writes,
/// so the store may take them for torn; the replica must not pass as whole for that.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn damage_to_the_last_writes_is_no_torn_write() {
    let cluster = Cluster::start("last", &["--size", "64MiB", "--device-size", "384MiB"]);
    write_all(&cluster);
    cluster.kill_at_once(&["n1", "n2", "n3"]);
    cluster.configure(NO_SCRUB);
    let device = cluster.node("n2").devices[0].clone();
    let last = [BLOCKS - 1, BLOCKS - 33, BLOCKS - 65];
    flip(&device, &places(&device, WRITER), &last);
    cluster.start_again(None);
    cluster.cli("n2", &["volume", "attach", VOLUME]).expect_code(0);
    read_all(&cluster, "n2");
    let volume = cluster.wait_health("n2", "healthy", PATIENCE);
    let count = |key: &str| volume["counters"][key].as_u64().unwrap_or_else(|| panic!("{key} in {volume}"));
    let (lost, damaged, repaired) = (count("lost_data"), count("damaged_blocks"), count("repaired_blocks"));
    report(&format!("{lost} times data lost, {} joins, {damaged} damaged, {repaired} repaired", count("joins")));
    let log = cluster.log("n2");
    // Whatever the store takes it for, the kind of damage that the log tells is the kind that is counted.
    assert!(lost + damaged > 0, "nothing is counted");
    assert_eq!(lost > 0, log.contains("acknowledged writes are left"), "{lost} counted");
    assert_eq!(damaged > 0, log.contains("is damaged on device"), "{damaged} counted");
    assert!(count("joins") >= lost, "what was lost is not copied again");
    assert_eq!(cluster.metric("n2", "ashlar_volume_lost_data_total") as u64, lost);
    read_all(&cluster, "n2");
    let volume = cluster.show_volume("n2");
    assert_eq!(volume["health"], "healthy");
    assert_eq!(volume["counters"]["lost_data"], lost, "the second read found damage again");
}
