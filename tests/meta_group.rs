//! The group of the metadata service: a voter that is lost is replaced while guests write; all metadata is lost and restored
//! from a backup; two of three meta nodes are lost for good and the third goes on.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::cluster::open;
use support::manual::ManualCluster;
use support::stamp::{BLOCK_BYTES, run_of};
use support::writers::{Crew, Writer, check_all};
use support::{MIB, api, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS_OF_A_WRITER: u64 = 16 * MIB / BLOCK;
const VOLUME: &str = "vol";
const RUN_BLOCKS: u64 = 32;
/// What is written at a time, and read back.
const FILLED_BLOCKS: u64 = 8 * MIB / BLOCK;

/// Nodes with everything, a device each, and a volume on three of them.
fn cluster(test: &str, nodes: &[&str]) -> ManualCluster {
    const ALL: &str = "\"store\", \"target\", \"meta\"";
    let roles = nodes.iter().map(|node| (*node, ALL)).collect::<Vec<_>>();
    let cluster = ManualCluster::start(test, &roles);
    cluster.found_and_join();
    for node in &nodes[..3] {
        cluster.add_device(node, 512 * MIB, &["--power-loss-protected"]);
    }
    cluster.cli("n1", &["volume", "create", VOLUME, "--size", "128MiB", "--lanes", "4"]).expect_code(0);
    wait_members(&cluster, "n1", &["n1", "n2", "n3"]);
    cluster
}

fn names(list: &Value) -> Vec<String> {
    let mut names: Vec<String> =
        list.as_array().expect("a list").iter().filter_map(Value::as_str).map(Into::into).collect();
    names.sort();
    names
}

/// Waits until these vote and the state is no old one, as a node tells it.
#[track_caller]
fn wait_members(cluster: &ManualCluster, node: &str, voters: &[&str]) {
    wait_for(&format!("{voters:?} vote"), PATIENCE, || {
        let status = api::get(&cluster.node(node).api, "/v1/cluster")?;
        let is_so = names(&status["metadata"]["voters"]) == voters && status["stale"] == false;
        if is_so { Ok(()) } else { Err(status["metadata"].to_string()) }
    });
}

fn meta_dir(cluster: &ManualCluster, node: &str) -> PathBuf {
    cluster.dir().join(node).join("meta")
}

/// The metadata of a node is lost. Its identity and its device are not.
fn lose_metadata(cluster: &ManualCluster, node: &str) {
    fs::remove_dir_all(meta_dir(cluster, node)).expect("the directory goes");
}

/// Writes the first part of the volume, in this generation, and lets it go.
fn fill(cluster: &ManualCluster, node: &str, generation: u64) {
    cluster.cli(node, &["volume", "attach", VOLUME]).expect_code(0);
    write(cluster, node, generation);
    cluster.cli(node, &["volume", "detach", VOLUME]).expect_code(0);
}

fn write(cluster: &ManualCluster, node: &str, generation: u64) {
    let mut client = open(&cluster.uri(VOLUME, node));
    for first in (0..FILLED_BLOCKS).step_by(RUN_BLOCKS as usize) {
        client.write(first * BLOCK, &run_of(first, RUN_BLOCKS, generation, 1)).expect("a write");
    }
    client.disconnect().expect("an orderly goodbye");
}

/// A target reads from its own device: this is that node's copy.
#[track_caller]
fn check_filled(cluster: &ManualCluster, node: &str, generation: u64) {
    cluster.cli(node, &["volume", "attach", VOLUME]).expect_code(0);
    let mut client = open(&cluster.uri(VOLUME, node));
    for first in (0..FILLED_BLOCKS).step_by(RUN_BLOCKS as usize) {
        let data = client.read(first * BLOCK, (RUN_BLOCKS * BLOCK) as u32).expect("a read");
        assert!(data == run_of(first, RUN_BLOCKS, generation, 1), "wrong data at block {first}, read at {node}");
    }
    client.disconnect().expect("an orderly goodbye");
    cluster.cli(node, &["volume", "detach", VOLUME]).expect_code(0);
}

/// Runs `ashlar cluster TASK` on a node's data directory.
#[track_caller]
fn offline(cluster: &ManualCluster, node: &str, arguments: &[&str]) -> support::tools::Finished {
    let config = cluster.dir().join(node).join("node.toml").display().to_string();
    cluster.cli(node, &[&["cluster"], arguments, &["--config", &config]].concat())
}

/// Every lane has been looked at, and every member is in sync.
#[track_caller]
fn wait_verified(cluster: &ManualCluster, node: &str) {
    let volume = cluster.wait_healthy(node, VOLUME, PATIENCE);
    let lanes = volume["lanes"].as_array().expect("lanes");
    assert!(lanes.iter().all(|lane| lane["unverified"] == false), "{volume}");
}

#[track_caller]
fn device_of(cluster: &ManualCluster, node: &str) -> String {
    let devices = api::get(&cluster.node("n1").api, "/v1/devices").expect("devices");
    let found = devices["items"].as_array().expect("items").iter().find(|device| device["node"] == node);
    found.unwrap_or_else(|| panic!("no device of {node}: {devices}"))["id"].as_str().expect("an id").to_owned()
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_voter_that_is_lost_is_replaced_while_guests_write() {
    let mut cluster = cluster("voter", &["n1", "n2", "n3", "n4"]);
    for (key, value) in [("suspect_after_ms", "1000"), ("down_after_ms", "2000"), ("voter_out_ms", "4000")] {
        cluster.cli("n1", &["cluster", "set", key, value]).expect_code(0);
    }
    let uri = cluster.uri(VOLUME, "n1");
    let writer = |id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER).paced(Duration::from_millis(2));
    let crew = Crew::start(&uri, (0..2).map(writer).collect(), 8);
    crew.wait_progress(200, PATIENCE);
    cluster.kill_at_once(&["n3"]);
    let killed = Instant::now();
    wait_members(&cluster, "n1", &["n1", "n2", "n4"]);
    report(&format!("n4 votes for n3 {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    crew.wait_progress(200, PATIENCE);
    // It comes back and follows; the second loss is as harmless as the first.
    cluster.start_again(&["n3"]);
    wait_for("n3 follows", PATIENCE, || {
        let status = api::get(&cluster.node("n1").api, "/v1/cluster")?;
        let follows = status["metadata"]["learners"] == json!(["n3"]) && status["nodes"]["up"] == 4;
        if follows { Ok(()) } else { Err(status.to_string()) }
    });
    cluster.wait_healthy("n1", VOLUME, PATIENCE);
    cluster.kill_at_once(&["n2"]);
    wait_members(&cluster, "n1", &["n1", "n3", "n4"]);
    crew.wait_progress(200, PATIENCE);
    let (mut writers, _) = crew.finish();
    cluster.cli("n4", &["cluster", "set", "scatter_width", "13"]).expect_code(0);
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
    cluster.cli("n3", &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri(VOLUME, "n3"));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn all_metadata_is_lost_and_a_backup_finds_the_volumes_with_their_data() {
    let mut cluster = cluster("restore", &["n1", "n2", "n3"]);
    fill(&cluster, "n1", 1);
    let file = cluster.dir().join("cluster.backup").display().to_string();
    cluster.cli("n2", &["cluster", "backup", &file]).expect_code(0).expect_text(&["1 volumes", "3 devices"]);
    // What the backup does not know: a member is put out, and writes are acknowledged without it.
    cluster.kill_at_once(&["n3"]);
    cluster.cli("n2", &["volume", "attach", VOLUME]).expect_code(0);
    wait_for("n3 is put out", PATIENCE, || {
        let volume = cluster.volume("n2", VOLUME)?;
        let in_sync = |lane: &Value| lane["in_sync"].as_array().map_or(0, Vec::len);
        let lanes = volume["lanes"].as_array().expect("lanes");
        if lanes.iter().all(|lane| in_sync(lane) == 2) { Ok(()) } else { Err(volume["lanes"].to_string()) }
    });
    write(&cluster, "n2", 2);
    cluster.cli("n1", &["volume", "create", "later", "--size", "64MiB", "--replicas", "2"]).expect_code(0);
    cluster.kill_at_once(&["n1", "n2"]);

    offline(&cluster, "n1", &["restore", &file, "--yes"]).expect_code(6).expect_text(&["--overwrite", "recover"]);
    for node in ["n1", "n2", "n3"] {
        lose_metadata(&cluster, node);
    }
    offline(&cluster, "n1", &["restore", &file]).expect_code(6).expect_text(&["1 volumes", "--yes"]);
    offline(&cluster, "n1", &["restore", &file, "--yes"]).expect_code(0).expect_text(&["only voter", "1 volumes"]);
    cluster.start_again(&["n1", "n2", "n3"]);
    let started = Instant::now();
    wait_members(&cluster, "n1", &["n1", "n2", "n3"]);
    wait_verified(&cluster, "n2");
    report(&format!("verified and whole {:.1} s after the start", started.elapsed().as_secs_f64()));
    // Also the copy of the node that the backup took for in sync.
    for node in ["n1", "n2", "n3"] {
        check_filled(&cluster, node, 2);
    }
    fill(&cluster, "n3", 3);
    check_filled(&cluster, "n1", 3);
    cluster.cli("n1", &["volume", "show", "later"]).expect_code(3);
    offline(&cluster, "n1", &["restore", &file, "--yes"]).expect_code(4).expect_text(&["stop"]);
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn two_of_three_meta_nodes_are_lost_for_good_and_the_third_goes_on() {
    let mut cluster = cluster("recover", &["n1", "n2", "n3"]);
    fill(&cluster, "n2", 1);
    let lost = device_of(&cluster, "n3");
    cluster.kill_at_once(&["n2", "n3"]);
    offline(&cluster, "n1", &["recover"]).expect_code(4).expect_text(&["stop the daemon"]);
    cluster.kill_at_once(&["n1"]);
    offline(&cluster, "n1", &["recover"]).expect_code(6).expect_text(&["other-voters-are-lost", "1 volumes"]);
    offline(&cluster, "n1", &["recover", "--yes-i-know-that-other-voters-are-lost"])
        .expect_code(0)
        .expect_text(&["only voter", "meta.before-"]);
    cluster.start_again(&["n1"]);
    wait_members(&cluster, "n1", &["n1"]);
    // n2's machine lives and its metadata is gone; n3 is lost with its device, which may hold what the others do not.
    lose_metadata(&cluster, "n2");
    cluster.start_again(&["n2"]);
    wait_for("it is said that a device is missing", PATIENCE, || {
        let volume = cluster.volume("n1", VOLUME)?;
        let down = api::get(&cluster.node("n1").api, "/v1/nodes/n3")?["state"] == "down";
        let waits = volume["health"] == "unavailable" || volume["health"] == "suspended";
        if down && waits { Ok(()) } else { Err(volume.to_string()) }
    });
    let disregard = || cluster.cli("n1", &["device", "disregard", &lost[..13], "--yes"]);
    disregard().expect_code(0).expect_text(&["4 lanes"]);
    disregard().expect_code(0).expect_text(&["nothing to do"]);
    check_filled(&cluster, "n1", 1);
    check_filled(&cluster, "n2", 1);
    fill(&cluster, "n1", 2);

    // Somebody starts n3 after all, with what it had: it is told that its group is over, and joins anew without it.
    cluster.start_again(&["n3"]);
    wait_for("n3 hears of it", PATIENCE, || {
        let log = fs::read_to_string(cluster.dir().join("n3").join("log")).map_err(|error| error.to_string())?;
        let told = log.contains("restored or recovered without this node") && log.contains("it joins anew");
        if told { Ok(()) } else { Err("it has said nothing".to_owned()) }
    });
    wait_members(&cluster, "n1", &["n1"]);
    cluster.kill_at_once(&["n3"]);
    lose_metadata(&cluster, "n3");
    cluster.start_again(&["n3"]);
    wait_members(&cluster, "n1", &["n1", "n2", "n3"]);
    wait_verified(&cluster, "n1");
    check_filled(&cluster, "n3", 2);
}
