//! A cluster of six nodes in three zones looks after itself: a lost node is rebuilt, a lost zone is waited for, a node is emptied
//! under load and removed, a device is retired, and new nodes get their share.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::manual::ManualCluster;
use support::prober::Prober;
use support::stamp::BLOCK_BYTES;
use support::writers::{Crew, Writer, check_all};
use support::{MIB, api, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS_OF_A_WRITER: u64 = 16 * MIB / BLOCK;
const VOLUME: &str = "vol";
const STORE: &str = "\"store\", \"meta\"";
const DEVICE_BYTES: u64 = 768 * MIB;

/// Two store nodes in each of three zones, and a target without devices. Nodes go out after three seconds.
fn cluster(test: &str, later: &[(&str, &str, &str)]) -> ManualCluster {
    let first = [
        ("n1", STORE, "a"),
        ("n2", STORE, "a"),
        ("n3", STORE, "b"),
        ("n4", STORE, "b"),
        ("n5", STORE, "c"),
        ("n6", STORE, "c"),
        ("t1", "\"target\"", "a"),
    ];
    let cluster = ManualCluster::start_in_zones(test, &[&first, later].concat());
    cluster.found_and_join();
    for (key, value) in [("suspect_after_ms", "1000"), ("down_after_ms", "2000"), ("down_out_ms", "3000")] {
        cluster.cli("n1", &["cluster", "set", key, value]).expect_code(0);
    }
    for node in ["n1", "n2", "n3", "n4", "n5", "n6"] {
        cluster.add_device(node, DEVICE_BYTES, &["--power-loss-protected"]);
    }
    let create = ["volume", "create", VOLUME, "--size", "384MiB", "--lanes", "6", "--spread", "zone"];
    cluster.cli("n1", &create).expect_code(0);
    cluster
}

fn crew(cluster: &ManualCluster) -> Crew {
    let writer = |id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER).paced(Duration::from_millis(2));
    Crew::start(&cluster.uri(VOLUME, "t1"), (0..2).map(writer).collect(), 8)
}

/// Asks a node that stays.
fn get(cluster: &ManualCluster, path: &str) -> Result<Value, String> {
    api::get(&cluster.node("n1").api, path)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value["items"].as_array().into_iter().flatten()
}

#[track_caller]
fn device_of(cluster: &ManualCluster, node: &str) -> String {
    let devices = get(cluster, "/v1/devices").expect("devices");
    let found = items(&devices).find(|device| device["node"] == node);
    found.unwrap_or_else(|| panic!("no device of {node}: {devices}"))["id"].as_str().expect("an id").to_owned()
}

/// Lanes on a node's devices.
fn lanes_of(cluster: &ManualCluster, node: &str) -> Result<u64, String> {
    Ok(get(cluster, &format!("/v1/nodes/{node}"))?["lane_count"].as_u64().unwrap_or(0))
}

/// Waits until the volume is whole, a node has no lanes and nothing is under way.
#[track_caller]
fn wait_without(cluster: &ManualCluster, node: &str) {
    wait_for(&format!("all copies are there without {node}"), PATIENCE, || {
        let volume = cluster.volume("n1", VOLUME)?;
        let idle = volume["operations"].as_array().is_none_or(Vec::is_empty);
        let (left, health) = (lanes_of(cluster, node)?, &volume["health"]);
        if left == 0 && idle && *health == "healthy" { Ok(()) } else { Err(format!("{left} lanes left, {volume}")) }
    });
    check_zones(cluster);
}

/// The three members of each lane are in three zones.
#[track_caller]
fn check_zones(cluster: &ManualCluster) {
    let nodes = get(cluster, "/v1/nodes").expect("nodes");
    let zone =
        |name: &Value| items(&nodes).find(|node| node["name"] == *name).map(|node| node["labels"]["zone"].to_string());
    let volume = cluster.volume("n1", VOLUME).expect("the volume");
    for lane in volume["lanes"].as_array().expect("lanes") {
        let zones: BTreeSet<_> =
            lane["members"].as_array().expect("members").iter().map(|member| zone(&member["node"])).collect();
        assert_eq!(zones.len(), 3, "{lane}");
    }
}

/// Devices of each lane, in order of their identities.
fn members(cluster: &ManualCluster) -> Vec<BTreeSet<String>> {
    let volume = cluster.volume("n1", VOLUME).expect("the volume");
    let device = |member: &Value| member["device"].to_string();
    let of_lane = |lane: &Value| lane["members"].as_array().expect("members").iter().map(device).collect();
    volume["lanes"].as_array().expect("lanes").iter().map(of_lane).collect()
}

#[track_caller]
fn wait_state(cluster: &ManualCluster, node: &str, state: &str) {
    wait_for(&format!("{node} is {state}"), PATIENCE, || {
        let shown = get(cluster, &format!("/v1/nodes/{node}"))?;
        if shown["state"] == state { Ok(()) } else { Err(shown.to_string()) }
    });
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_lost_node_is_rebuilt_and_a_lost_zone_is_waited_for() {
    let mut cluster = cluster("heal-lost", &[]);
    let prober = Prober::start(&cluster.uri(VOLUME, "t1"), 200 * MIB / BLOCK);
    let crew = crew(&cluster);
    crew.wait_progress(500, PATIENCE);

    cluster.kill_at_once(&["n4"]);
    let killed = Instant::now();
    wait_state(&cluster, "n4", "out");
    wait_without(&cluster, "n4");
    let rebuilt = killed.elapsed();
    crew.wait_progress(300, PATIENCE);
    let probes = prober.finish();
    report(&format!(
        "rebuilt by itself {:.1} s after the kill (out after 3 s); prober: {probes}",
        rebuilt.as_secs_f64()
    ));

    // It comes back empty-handed and gets its share again.
    cluster.start_again(&["n4"]);
    wait_state(&cluster, "n4", "up");
    wait_for("n4 has lanes again", PATIENCE, || match lanes_of(&cluster, "n4")? {
        0 => Err("none yet".into()),
        lanes => Ok(lanes),
    });
    cluster.wait_healthy("n1", VOLUME, PATIENCE);

    // Both nodes of a zone: that is no machine that broke. Nothing moves, whatever the time.
    let before = members(&cluster);
    cluster.kill_at_once(&["n5", "n6"]);
    for node in ["n5", "n6"] {
        wait_state(&cluster, node, "down");
    }
    let down = Instant::now();
    wait_for("twice the time after which nodes go out", PATIENCE, || match down.elapsed() > Duration::from_secs(6) {
        true => Ok(()),
        false => Err("not yet".into()),
    });
    let shown = get(&cluster, "/v1/nodes/n5").expect("n5");
    assert_eq!((&shown["state"], shown["not_out_because"].is_string()), (&"down".into(), true), "{shown}");
    assert_eq!(members(&cluster), before, "no rebuild storm");
    crew.wait_progress(300, PATIENCE);
    cluster.start_again(&["n5", "n6"]);
    cluster.wait_healthy("n1", VOLUME, PATIENCE);
    assert_eq!(members(&cluster), before);
    let (mut writers, _) = crew.finish();
    check_all(&mut writers, &cluster.uri(VOLUME, "t1"));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn nodes_are_emptied_and_new_ones_get_their_share() {
    let mut cluster = cluster("heal-drain", &[("n7", STORE, "b"), ("n8", STORE, "c")]);
    let prober = Prober::start(&cluster.uri(VOLUME, "t1"), 200 * MIB / BLOCK);
    let crew = crew(&cluster);
    crew.wait_progress(500, PATIENCE);

    // What would be done is said; nobody says yes here.
    let said = cluster.cli("n1", &["node", "drain", "n3", "--dry-run"]);
    said.expect_code(0).expect_text(&["node n3:", "lanes move elsewhere"]);
    cluster.cli("n1", &["node", "drain", "n3"]).expect_code(6).expect_text(&["nothing was changed"]);
    cluster.cli("n1", &["node", "remove", "n3", "--yes"]).expect_code(4).expect_text(&["drain it first"]);
    let began = Instant::now();
    let drained = cluster.cli("n1", &["node", "drain", "n3", "--yes"]);
    drained.expect_code(0).expect_text(&["begun: drain-n3", "0 lanes left, done"]);
    wait_without(&cluster, "n3");
    report(&format!("drained under load in {:.1} s", began.elapsed().as_secs_f64()));
    cluster.kill_at_once(&["n3"]);
    cluster.cli("n1", &["node", "remove", "n3", "--yes"]).expect_code(0);
    cluster.cli("n1", &["node", "show", "n3"]).expect_code(3);

    // The last node of the zone holds a member of each lane: there is no other place for them.
    let stuck = cluster.cli("n1", &["node", "drain", "n4", "--yes"]);
    stuck.expect_code(4).expect_text(&["no device can take it", "nothing was changed"]);

    // Growth by two nodes: lanes come by themselves, and then everything is at rest.
    for node in ["n7", "n8"] {
        cluster.add_device(node, DEVICE_BYTES, &["--power-loss-protected"]);
    }
    let grown = wait_for("the new nodes have their share", PATIENCE, || {
        // In this order: a lane counts where it goes from the beginning of its move, and that ends as an operation.
        let lanes = ["n4", "n5", "n6", "n7", "n8"].map(|node| lanes_of(&cluster, node).unwrap_or(0));
        let operations = get(&cluster, "/v1/operations")?;
        let settled = items(&operations).next().is_none() && lanes[3] >= 2 && lanes[4] >= 1;
        if settled { Ok(lanes) } else { Err(format!("{lanes:?} {operations}")) }
    });
    report(&format!("lanes of n4 to n8 after growth: {grown:?}"));
    check_zones(&cluster);

    // A device is retired, that is taken back, and it is retired again and removed.
    let device = device_of(&cluster, "n7");
    cluster.cli("n1", &["device", "retire", &device[..13], "--yes", "--detach"]).expect_code(0);
    cluster.cli("n1", &["operation", "cancel", &format!("retire-{}", &device[..8])]).expect_code(0);
    cluster.cli("n1", &["device", "show", &device]).expect_code(0).expect_text(&["state        in"]);
    cluster.cli("n1", &["device", "retire", &device[..13], "--yes"]).expect_code(0);
    wait_without(&cluster, "n7");
    cluster.cli("n1", &["device", "remove", &device[..13], "--yes"]).expect_code(0);

    report(&format!("prober through all of it: {}", prober.finish()));
    let (mut writers, _) = crew.finish();
    check_all(&mut writers, &cluster.uri(VOLUME, "t1"));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn copies_follow_a_volume_to_where_it_is_used() {
    const ALL: &str = "\"store\", \"target\", \"meta\"";
    let nodes = [("n1", ALL), ("n2", ALL), ("n3", ALL), ("n4", ALL), ("t1", "\"target\"")];
    let cluster = ManualCluster::start("heal-local", &nodes);
    cluster.found_and_join();
    for node in ["n1", "n2", "n3", "n4"] {
        cluster.add_device(node, DEVICE_BYTES, &["--power-loss-protected"]);
    }
    for (key, value) in [("locality_after_ms", "1000"), ("balance_percent", "0")] {
        cluster.cli("n1", &["cluster", "set", key, value]).expect_code(0);
    }
    let create = |locality, node| {
        let create = [
            "volume",
            "create",
            VOLUME,
            "--size",
            "256MiB",
            "--lanes",
            "4",
            "--locality",
            locality,
            "--attach-node",
            node,
        ];
        cluster.cli("n1", &create)
    };
    create("require", "t1").expect_code(4).expect_text(&["has no usable device"]);
    create("prefer", "n1").expect_code(0);
    assert_eq!(lanes_of(&cluster, "n1"), Ok(4), "one of each lane where it will be used");

    // Where it is used in fact. A target without devices changes nothing.
    let blocks = 64 * MIB / BLOCK;
    let crew =
        Crew::start(&cluster.uri(VOLUME, "n4"), vec![Writer::new(0, 0, blocks).paced(Duration::from_millis(2))], 4);
    crew.wait_progress(200, PATIENCE);
    wait_for("each lane has a copy on n4", PATIENCE, || {
        let volume = cluster.volume("n1", VOLUME)?;
        let idle = volume["operations"].as_array().is_none_or(Vec::is_empty);
        let (lanes, health) = (lanes_of(&cluster, "n4")?, &volume["health"]);
        if lanes == 4 && idle && *health == "healthy" { Ok(()) } else { Err(format!("{lanes} lanes, {volume}")) }
    });
    let (mut writers, _) = crew.finish();
    let before = members(&cluster);
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri(VOLUME, "t1"));
    assert_eq!(members(&cluster), before);
}
