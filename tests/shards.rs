//! Several shards in each daemon: volumes and devices spread over them, nodes that die, and other numbers of shards after a
//! restart.

mod support;

use std::time::Duration;
use support::cluster::{Cluster, VOLUME};
use support::fio::{Verify, expect_clean};
use support::stamp::BLOCK_BYTES;
use support::writers::{Crew, Writer, check_all};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;
const VOLUMES: [&str; 3] = [VOLUME, "second", "third"];
/// Written by each of the writers, which have a connection each.
const RANGE: u64 = 8 * MIB;
const WRITERS: u64 = 3;

fn writers(volume: u64) -> Vec<Writer> {
    let blocks = RANGE / BLOCK;
    let writer = |number| Writer::new(volume * WRITERS + number, number * blocks, blocks);
    (0..WRITERS).map(|number| writer(number).paced(Duration::from_millis(1))).collect()
}

/// A field of each shard of a node, as its report says.
fn of_shards(cluster: &Cluster, node: &str, field: &str) -> Vec<u64> {
    let report = cluster.get(node, "/internal/status").expect("a report");
    let shards = report["shards"].as_array().expect("shards").iter();
    shards.map(|shard| shard[field].as_u64().expect("a number")).collect()
}

/// How many shards a node has from its next start on.
fn set_shards(cluster: &Cluster, node: &str, shards: u16) {
    let path = cluster.node(node).dir.join("node.toml");
    let text = std::fs::read_to_string(&path).expect("a node's configuration");
    let others = text.lines().filter(|line| !line.starts_with("shards = ")).map(|line| format!("{line}\n"));
    let text = format!("shards = {shards}\n{}", others.collect::<String>());
    std::fs::write(&path, text).expect("a node's configuration");
}

fn wait_all_healthy(cluster: &Cluster) {
    for name in VOLUMES {
        wait_for(&format!("{name} is healthy"), PATIENCE, || {
            let volume = cluster.get("n1", &format!("/v1/volumes/{name}"))?;
            if volume["health"] == "healthy" { Ok(()) } else { Err(volume["reason"].to_string()) }
        });
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn volumes_on_several_shards_outlive_nodes_and_changes_of_their_number() {
    let size = ["--size", "128MiB", "--device-size", "512MiB"];
    let cluster = Cluster::start("shards", &[&["--shards", "2", "--devices", "2"][..], &size].concat());
    for name in &VOLUMES[1..] {
        cluster.cli("n1", &["volume", "create", name, "--size", "128MiB"]).expect_code(0);
    }
    for node in ["n1", "n2", "n3"] {
        assert_eq!(of_shards(&cluster, node, "devices"), [1, 1], "{node}");
    }
    let devices = cluster.get("n1", "/v1/devices").expect("devices");
    let on_last = devices["items"].as_array().expect("a list").iter().filter(|device| device["shard"] == 1).count();
    assert_eq!(on_last, 3, "one of each node: {devices}");
    cluster.cli("n1", &["node", "show", "n2"]).expect_code(0).expect_text(&["shards    2"]);

    // Two volumes at one node, each on a shard of its own, and one elsewhere.
    let mut crews = Vec::new();
    for (number, (name, node)) in (0..).zip(VOLUMES.into_iter().zip(["n1", "n1", "n2"])) {
        crews.push(Crew::start(&cluster.uri_of(name, node), writers(number), 8));
    }
    crews.iter().for_each(|crew| crew.wait_progress(300, PATIENCE));
    assert_eq!(of_shards(&cluster, "n1", "volumes"), [1, 1]);
    assert_eq!(of_shards(&cluster, "n1", "nbd_connections"), [WRITERS, WRITERS]);

    cluster.kill("n3");
    crews.iter().for_each(|crew| crew.wait_progress(1000, PATIENCE));
    set_shards(&cluster, "n3", 3);
    cluster.start_again(Some("n3"));
    wait_all_healthy(&cluster);
    assert_eq!(of_shards(&cluster, "n3", "devices"), [1, 1, 0]);
    crews.iter().for_each(|crew| crew.wait_progress(300, PATIENCE));

    let mut all = Vec::new();
    for crew in crews {
        let (writers, runs) = crew.finish();
        assert!(runs.iter().all(|run| run.cut.is_none()), "a guest was cut off: {runs:?}");
        all.push(writers);
    }
    cluster.dev(["stop"]).expect_code(0);
    for node in ["n1", "n2", "n3"] {
        assert!(cluster.log(node).contains("volumes are detached, devices are closed"), "{node} did not stop cleanly");
    }
    set_shards(&cluster, "n1", 1);
    set_shards(&cluster, "n2", 4);
    set_shards(&cluster, "n3", 2);
    cluster.start_again(None);
    assert_eq!(of_shards(&cluster, "n1", "devices"), [2]);
    for ((name, node), writers) in VOLUMES.into_iter().zip(["n3", "n2", "n1"]).zip(&mut all) {
        check_all(writers, &cluster.uri_of(name, node));
    }
    wait_all_healthy(&cluster);
    cluster.cli("n1", &["volume", "detach", VOLUMES[2]]).expect_code(0);
    cluster.kill("n1");
    for ((name, node), writers) in VOLUMES.into_iter().zip(["n3", "n2", "n3"]).zip(&mut all) {
        check_all(writers, &cluster.uri_of(name, node));
    }
    report("three volumes read back after a kill, a clean stop and new numbers of shards");
}

/// A foreign client with several connections, to a volume whose lanes are on both shards of each node.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn several_connections_of_a_foreign_client_verify_what_they_wrote() {
    let size = ["--size", "256MiB", "--device-size", "512MiB"];
    let cluster = Cluster::start("connections", &[&["--shards", "2", "--devices", "2"][..], &size].concat());
    let load = Verify { uri: cluster.uri_at("n1"), offset: 0, size: 32 * MIB, depth: 16, jobs: 4, backlog: 0 };
    let mut fio = load.start();
    wait_for("guests on shard 1", PATIENCE, || match &of_shards(&cluster, "n1", "nbd_connections")[..] {
        [0, 4] => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    assert!(fio.is_running(), "the load ended before the node was killed");
    cluster.kill("n2");
    let done = expect_clean(&fio.finish(Duration::from_secs(180)));
    report(&format!("fio over four connections, one node killed: {done}"));
    cluster.start_again(Some("n2"));
    cluster.wait_health("n1", "healthy", PATIENCE);
    assert_eq!(of_shards(&cluster, "n2", "devices"), [1, 1], "each shard of n2 has a device again");
}
