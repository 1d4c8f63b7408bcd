//! A member of a volume is lost and replaced: on an attached volume under load, and on one that nobody has attached.

mod support;

use serde_json::Value;
use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME};
use support::prober::Prober;
use support::stamp::BLOCK_BYTES;
use support::writers::{Crew, Writer, check_all};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;
const BLOCKS_OF_A_WRITER: u64 = 16 * MIB / BLOCK;

/// Four nodes with a device each, and a volume on three of them.
fn cluster(test: &str) -> Cluster {
    Cluster::start(test, &["--nodes", "4", "--replicas", "3", "--size", "256MiB", "--device-size", "768MiB"])
}

fn writers() -> Vec<Writer> {
    let writer = |id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER).paced(Duration::from_millis(2));
    (0..2).map(writer).collect()
}

/// The identity of a node's device.
#[track_caller]
fn device_of(cluster: &Cluster, asked: &str, node: &str) -> String {
    let devices = cluster.get(asked, "/v1/devices").expect("devices");
    let found = devices["items"].as_array().expect("items").iter().find(|device| device["node"] == node);
    found.unwrap_or_else(|| panic!("no device of {node}: {devices}"))["id"].as_str().expect("an id").to_owned()
}

/// Lanes of the volume that a device is a member of, in any state.
fn lanes_with(volume: &Value, device: &str) -> usize {
    let names = |member: &Value| member["device"] == device;
    let lanes = volume["lanes"].as_array().expect("lanes").iter();
    lanes.filter(|lane| lane["members"].as_array().expect("members").iter().any(names)).count()
}

/// (nodes with replicas of every lane, the one without any).
#[track_caller]
fn members_and_spare(cluster: &Cluster) -> (Vec<String>, String) {
    let volume = cluster.show_volume("n1");
    let all = volume["lanes"].as_array().expect("lanes").len();
    let names: Vec<String> = (1..=4).map(|number| format!("n{number}")).collect();
    let lanes = |node: &String| lanes_with(&volume, &device_of(cluster, "n1", node));
    let spare = names.iter().min_by_key(|node| lanes(node)).expect("four nodes").clone();
    let mut members: Vec<String> = names.into_iter().filter(|node| *node != spare).collect();
    // One that every lane has comes last, so that replacing it touches all of them.
    members.sort_by_key(|node| lanes(node));
    assert!(lanes(members.last().expect("three")) > 0 && all > 0);
    (members, spare)
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_lost_member_is_replaced_under_load() {
    let cluster = cluster("replace-attached");
    let (members, spare) = members_and_spare(&cluster);
    let (host, lost) = (members[0].as_str(), members[2].as_str());
    let (old, new) = (device_of(&cluster, host, lost), device_of(&cluster, host, &spare));
    let uri = cluster.uri_at(host);
    let prober = Prober::start(&uri, 200 * MIB / BLOCK);
    let crew = Crew::start(&uri, writers(), 8);
    crew.wait_progress(300, PATIENCE);
    let lanes = lanes_with(&cluster.show_volume(host), &old);

    // Nobody answers a question here: it is refused, and nothing is changed.
    let refused = cluster.cli(host, &["device", "replace", &old, &new]);
    refused.expect_code(6).expect_text(&["nothing was changed", VOLUME]);
    assert_eq!(lanes_with(&cluster.show_volume(host), &old), lanes);

    cluster.kill(lost);
    let killed = Instant::now();
    crew.wait_progress(100, PATIENCE);
    cluster.cli(host, &["device", "replace", &old[..13], &new[..13], "--yes"]).expect_code(0);
    // Repeated, it is no mistake.
    cluster.cli(host, &["device", "replace", &old, &new, "--volume", VOLUME, "--yes"]).expect_code(0);
    let volume = wait_for("the spare takes the place", PATIENCE, || {
        let volume = cluster.get(host, &format!("/v1/volumes/{VOLUME}"))?;
        let done = volume["health"] == "healthy" && lanes_with(&volume, &old) == 0;
        if done { Ok(volume) } else { Err(format!("{}: {}", volume["health"], volume["reason"])) }
    });
    report(&format!("{lanes} lanes replaced {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    assert!(lanes_with(&volume, &new) >= lanes, "{volume}");
    crew.wait_progress(300, PATIENCE);
    let probes = prober.finish();
    report(&format!("prober through all of it: {probes}"));
    let (mut writers, _) = crew.finish();

    // The spare's own copy has everything.
    cluster.cli(host, &["volume", "detach", VOLUME]).expect_code(0);
    cluster.cli(&spare, &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri_at(&spare));
    // The lost one returns, frees what it had, and may be a member again.
    cluster.start_again(Some(lost));
    wait_for("the old device is empty", PATIENCE, || {
        let device = cluster.get(&spare, &format!("/v1/devices/{old}"))?;
        let empty = device["lane_count"] == 0 && device["used_bytes"] == 0;
        if empty { Ok(()) } else { Err(device.to_string()) }
    });
    wait_for("it may come back", PATIENCE, || {
        let back = cluster.cli(host, &["device", "replace", &new, &old, "--yes"]);
        if back.code == Some(0) { Ok(()) } else { Err(back.text()) }
    });
    wait_for("it is back", PATIENCE, || {
        let volume = cluster.get(host, &format!("/v1/volumes/{VOLUME}"))?;
        let done = volume["health"] == "healthy" && lanes_with(&volume, &new) == 0;
        if done { Ok(()) } else { Err(format!("{}: {}", volume["health"], volume["reason"])) }
    });
    cluster.cli(&spare, &["volume", "detach", VOLUME]).expect_code(0);
    cluster.cli(lost, &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri_at(lost));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_lost_member_of_a_detached_volume_is_replaced() {
    let cluster = cluster("replace-detached");
    let (members, spare) = members_and_spare(&cluster);
    let (host, lost) = (members[0].as_str(), members[2].as_str());
    let (old, new) = (device_of(&cluster, host, lost), device_of(&cluster, host, &spare));
    let crew = Crew::start(&cluster.uri_at(host), writers(), 8);
    crew.wait_progress(300, PATIENCE);
    let (mut writers, _) = crew.finish();
    cluster.wait_detached(host);

    cluster.kill(lost);
    cluster.cli(host, &["device", "replace", &old, &new, "--yes"]).expect_code(0);
    let asked = Instant::now();
    let volume = wait_for("the spare takes the place", PATIENCE, || {
        let volume = cluster.get(host, &format!("/v1/volumes/{VOLUME}"))?;
        assert!(volume["attached"].is_null(), "nobody uses it: {volume}");
        let done = volume["health"] == "healthy" && lanes_with(&volume, &old) == 0 && volume["caretaker"].is_null();
        if done { Ok(volume) } else { Err(format!("{}: {}", volume["health"], volume["reason"])) }
    });
    report(&format!("replaced and closed {:.1} s after the command", asked.elapsed().as_secs_f64()));
    assert!(volume["lanes"].as_array().expect("lanes").iter().all(|lane| !lane["clean"].is_null()), "{volume}");
    cluster.cli(&spare, &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri_at(&spare));
}
