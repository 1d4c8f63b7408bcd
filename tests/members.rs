//! Members that come and go while something else is wrong: put out by hand under load; copied to by a node that dies in the
//! middle of it, on a volume that nobody has attached and on one whose guests died with that node.

mod support;

use serde_json::Value;
use std::time::{Duration, Instant};
use support::cluster::open;
use support::manual::ManualCluster;
use support::prober::Prober;
use support::stamp::{BLOCK_BYTES, run_of};
use support::writers::{Crew, Writer, check_all};
use support::{MIB, api, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS_OF_A_WRITER: u64 = 16 * MIB / BLOCK;
const VOLUME: &str = "vol";
const LANES: usize = 4;
/// What a new member has to get: enough that it takes a moment.
const FILLED_BLOCKS: u64 = 320 * MIB / BLOCK;
const RUN_BLOCKS: u64 = 256;
const FILLER: u64 = 77;

/// Nodes with everything; a volume on the devices of the first three, and a device on each of the others.
fn cluster(test: &str, nodes: &[&str]) -> ManualCluster {
    const ALL: &str = "\"store\", \"target\", \"meta\"";
    let roles = nodes.iter().map(|node| (*node, ALL)).collect::<Vec<_>>();
    let cluster = ManualCluster::start(test, &roles);
    cluster.found_and_join();
    // Members move when the test says so.
    cluster.cli("n1", &["cluster", "set", "balance_percent", "0"]).expect_code(0);
    for node in &nodes[..3] {
        cluster.add_device(node, 768 * MIB, &["--power-loss-protected"]);
    }
    let lanes = LANES.to_string();
    cluster.cli("n1", &["volume", "create", VOLUME, "--size", "384MiB", "--lanes", &lanes]).expect_code(0);
    for node in &nodes[3..] {
        cluster.add_device(node, 768 * MIB, &["--power-loss-protected"]);
    }
    cluster
}

fn fill(cluster: &ManualCluster, node: &str) -> ashlar_nbd::client::Client<ashlar_nbd::client::Socket> {
    let mut client = open(&cluster.uri(VOLUME, node));
    for first in (0..FILLED_BLOCKS).step_by(RUN_BLOCKS as usize) {
        client.write(first * BLOCK, &run_of(first, RUN_BLOCKS, FILLER, 1)).expect("a write");
    }
    client
}

/// A target reads from its own device: this is that node's copy.
#[track_caller]
fn check_filled(cluster: &ManualCluster, node: &str) {
    let mut client = open(&cluster.uri(VOLUME, node));
    for first in (0..FILLED_BLOCKS).step_by(RUN_BLOCKS as usize) {
        let data = client.read(first * BLOCK, (RUN_BLOCKS * BLOCK) as u32).expect("a read");
        assert!(data == run_of(first, RUN_BLOCKS, FILLER, 1), "wrong data at block {first}, read at {node}");
    }
    client.disconnect().expect("an orderly goodbye");
}

/// The identity of a node's device.
#[track_caller]
fn device_of(cluster: &ManualCluster, node: &str) -> String {
    let devices = api::get(&cluster.node("n2").api, "/v1/devices").expect("devices");
    let found = devices["items"].as_array().expect("items").iter().find(|device| device["node"] == node);
    found.unwrap_or_else(|| panic!("no device of {node}: {devices}"))["id"].as_str().expect("an id").to_owned()
}

/// Lanes that count a device.
fn lanes_in_sync(volume: &Value, device: &str) -> usize {
    let counts = |lane: &&Value| lane["in_sync"].as_array().expect("a set").iter().any(|member| member == device);
    volume["lanes"].as_array().expect("lanes").iter().filter(counts).count()
}

/// Lanes that want a device.
fn lanes_with(volume: &Value, device: &str) -> usize {
    let names = |member: &Value| member["device"] == device;
    let lanes = volume["lanes"].as_array().expect("lanes").iter();
    lanes.filter(|lane| lane["members"].as_array().expect("members").iter().any(names)).count()
}

#[track_caller]
fn wait_volume(cluster: &ManualCluster, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, PATIENCE, || {
        let volume = cluster.volume("n2", VOLUME)?;
        if is_so(&volume) {
            return Ok(volume);
        }
        let of = |field: &str| volume[field].clone();
        Err(format!("{}: {} {} {}", of("health"), of("reason"), of("caretaker"), of("operations")))
    })
}

/// Every lane has the one device and none has the other, and nothing is left to do.
fn is_swapped(volume: &Value, old: &str, new: &str) -> bool {
    let swapped = lanes_with(volume, old) == 0 && lanes_with(volume, new) == LANES;
    volume["health"] == "healthy" && swapped && volume["operations"] == Value::Array(vec![])
}

#[track_caller]
fn wait_detached(cluster: &ManualCluster) -> Value {
    let idle = |volume: &Value| volume["attached"].is_null() && volume["caretaker"].is_null();
    wait_volume(cluster, "nobody has the volume", idle)
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_member_is_ejected_by_hand_under_load_and_comes_back() {
    let cluster = cluster("eject", &["n1", "n2", "n3"]);
    let device = device_of(&cluster, "n3");
    let eject = || cluster.cli("n2", &["volume", "eject", VOLUME, &device[..13]]);
    eject().expect_code(4).expect_text(&["not attached", "ashlar volume attach"]);

    let uri = cluster.uri(VOLUME, "n1");
    let prober = Prober::start(&uri, 200 * MIB / BLOCK);
    let writer = |id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER).paced(Duration::from_millis(2));
    let crew = Crew::start(&uri, (0..2).map(writer).collect(), 8);
    crew.wait_progress(300, PATIENCE);
    eject().expect_code(0).expect_text(&["ejecting", &device]);
    let ejected = Instant::now();
    let lanes = LANES as u64;
    let volume = wait_volume(&cluster, "it has left every lane and is back in all", |volume| {
        let count = |name: &str| volume["counters"][name].as_u64().unwrap_or(0);
        count("ejections") >= lanes && count("joins") >= lanes && lanes_in_sync(volume, &device) == LANES
    });
    report(&format!("back {:.1} s after the ejection: {}", ejected.elapsed().as_secs_f64(), volume["counters"]));
    assert_eq!(volume["health"], "healthy", "{volume}");
    crew.wait_progress(300, PATIENCE);
    let probes = prober.finish();
    report(&format!("prober through all of it: {probes}"));
    assert!(probes.longest < Duration::from_secs(1), "{probes}");
    let (mut writers, _) = crew.finish();
    // What it came back with is complete.
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
    cluster.cli("n3", &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri(VOLUME, "n3"));
}

/// Kills a node that copies, while it does: the device that it copies to stands still meanwhile.
fn kill_in_the_middle(cluster: &mut ManualCluster, node: &str, new: &str) {
    wait_volume(cluster, "copying has begun", |volume| {
        volume["operations"]
            .as_array()
            .is_some_and(|work| work.iter().any(|one| one["copied_bytes"].as_u64() > Some(0)))
    });
    cluster.signal("n4", libc::SIGSTOP);
    cluster.kill_at_once(&[node]);
    cluster.signal("n4", libc::SIGCONT);
    let volume = wait_for("the metadata answers", PATIENCE, || cluster.volume("n2", VOLUME));
    let done = lanes_in_sync(&volume, new);
    assert!(done < LANES, "it was not killed in the middle: {volume}");
    report(&format!("{node} killed with {done} of {LANES} lanes done"));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_caretaker_is_killed_while_it_copies_and_another_one_ends_it() {
    let mut cluster = cluster("caretaker-killed", &["n1", "n2", "n3", "n4"]);
    let (old, new) = (device_of(&cluster, "n3"), device_of(&cluster, "n4"));
    fill(&cluster, "n1").disconnect().expect("an orderly goodbye");
    wait_detached(&cluster);
    cluster.cli("n2", &["device", "replace", &old, &new, "--yes"]).expect_code(0);
    let volume = wait_volume(&cluster, "somebody cares", |volume| !volume["caretaker"].is_null());
    let caretaker = volume["caretaker"].as_str().expect("a name").to_owned();
    assert_eq!(caretaker, "n1", "the lowest with a member");
    kill_in_the_middle(&mut cluster, &caretaker, &new);

    let killed = Instant::now();
    wait_volume(&cluster, "it is copied elsewhere", |volume| lanes_in_sync(volume, &new) == LANES);
    report(&format!("copied by another one {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    // The old one stays until there are as many others as are wanted.
    cluster.start_again(&[&caretaker]);
    wait_volume(&cluster, "the one has taken the place of the other", |volume| is_swapped(volume, &old, &new));
    let closed = wait_detached(&cluster);
    assert!(closed["lanes"].as_array().expect("lanes").iter().all(|lane| !lane["clean"].is_null()), "{closed}");
    for node in ["n4", &caretaker] {
        cluster.cli(node, &["volume", "attach", VOLUME]).expect_code(0);
        check_filled(&cluster, node);
        cluster.cli(node, &["volume", "detach", VOLUME]).expect_code(0);
    }
    wait_for("the old device is empty", PATIENCE, || {
        let device = api::get(&cluster.node("n2").api, &format!("/v1/devices/{old}"))?;
        let empty = device["lane_count"] == 0 && device["used_bytes"] == 0;
        if empty { Ok(()) } else { Err(device.to_string()) }
    });
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_replacement_ends_without_the_guests_that_died_with_their_node() {
    let mut cluster = cluster("holder-killed", &["n1", "n2", "n3", "n4"]);
    let (old, new) = (device_of(&cluster, "n3"), device_of(&cluster, "n4"));
    let _guest = fill(&cluster, "n1");
    cluster.cli("n2", &["device", "replace", &old, &new, "--yes"]).expect_code(0);
    kill_in_the_middle(&mut cluster, "n1", &new);
    // While the node is down nobody takes the volume from it, and what to do is said everywhere.
    let advice = "ashlar volume attach vol --node NODE";
    wait_volume(&cluster, "it is said what to do", |volume| {
        let says = |value: &Value| value.as_str().is_some_and(|text| text.contains("n1") && text.contains(advice));
        says(&volume["reason"])
            && volume["operations"].as_array().is_some_and(|work| work.iter().any(|one| says(&one["reason"])))
    });
    cluster.cli("n2", &["device", "replace", &old, &new, "--volume", VOLUME, "--yes"]).expect_code(0);
    assert_eq!(cluster.volume("n2", VOLUME).expect("the volume")["attached"]["node"], "n1");
    // Its daemon is back, its guests are not: a caretaker goes on.
    cluster.start_again(&["n1"]);
    let back = Instant::now();
    wait_volume(&cluster, "the one has taken the place of the other", |volume| is_swapped(volume, &old, &new));
    report(&format!("replaced {:.1} s after the start of n1", back.elapsed().as_secs_f64()));
    wait_detached(&cluster);
    cluster.cli("n4", &["volume", "attach", VOLUME]).expect_code(0);
    check_filled(&cluster, "n4");
}
