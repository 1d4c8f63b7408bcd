//! A node is away longer than its peers wait for it: it is ejected and guests go on; when it returns it is given what it
//! missed and no more, counts again, and holds the same bytes as the others.

mod support;

use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME};
use support::prober::Prober;
use support::stamp::{BLOCK_BYTES, run_of};
use support::writers::{Crew, Writer, check_all};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;
/// Written before, never touched again: a rejoin must not copy it.
const OLD_FIRST: u64 = 64 * MIB / BLOCK;
const OLD_BLOCKS: u64 = 192 * MIB / BLOCK;
const OLD_WRITER: u64 = 77;
const RUN_BLOCKS: u64 = 256;
const WRITERS: u64 = 2;
const BLOCKS_OF_A_WRITER: u64 = 8 * MIB / BLOCK;

fn write_old(cluster: &Cluster) {
    let mut client = cluster.open_at("n1");
    for first in (OLD_FIRST..OLD_FIRST + OLD_BLOCKS).step_by(RUN_BLOCKS as usize) {
        client.write(first * BLOCK, &run_of(first, RUN_BLOCKS, OLD_WRITER, 1)).expect("a write");
    }
    client.disconnect().expect("an orderly goodbye");
}

#[track_caller]
fn check_old(cluster: &Cluster, node: &str) {
    let mut client = cluster.open_at(node);
    for first in (OLD_FIRST..OLD_FIRST + OLD_BLOCKS).step_by(RUN_BLOCKS as usize) {
        let data = client.read(first * BLOCK, (RUN_BLOCKS * BLOCK) as u32).expect("a read");
        assert!(data == run_of(first, RUN_BLOCKS, OLD_WRITER, 1), "wrong data at block {first}, read at {node}");
    }
    client.disconnect().expect("an orderly goodbye");
}

/// How many lanes no longer count a node.
fn lanes_without(cluster: &Cluster, node: &str) -> usize {
    let volume = cluster.show_volume("n1");
    let lanes = volume["lanes"].as_array().expect("lanes");
    let away = |member: &serde_json::Value| member["node"] == node && member["state"] == "stale";
    lanes.iter().filter(|lane| lane["members"].as_array().expect("members").iter().any(away)).count()
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_long_absence_costs_only_what_was_missed() {
    let cluster = Cluster::start("rejoin", &["--size", "384MiB", "--device-size", "768MiB"]);
    write_old(&cluster);
    let uri = cluster.uri_at("n1");
    let prober = Prober::start(&uri, 300 * MIB / BLOCK);
    let writer = |id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER).paced(Duration::from_millis(2));
    let crew = Crew::start(&uri, (0..WRITERS).map(writer).collect(), 8);
    crew.wait_progress(500, PATIENCE);

    cluster.kill("n3");
    let killed = Instant::now();
    let written_before = crew.progress();
    let lane_count = cluster.show_volume("n1")["lane_count"].as_u64().expect("lane_count") as usize;
    wait_for("n3 is ejected from every lane", PATIENCE, || match lanes_without(&cluster, "n3") {
        all if all == lane_count => Ok(()),
        some => Err(format!("{some} of {lane_count} lanes")),
    });
    report(&format!("ejected from all {lane_count} lanes {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    let volume = cluster.show_volume("n1");
    assert_eq!(volume["health"], "degraded", "{volume}");
    assert!(volume["reason"].as_str().is_some_and(|reason| reason.contains("n3")), "{}", volume["reason"]);
    // On without it, also longer than the ten seconds after which the cluster calls it down.
    crew.wait_progress(1000, PATIENCE);
    wait_for("the cluster calls n3 down", PATIENCE, || {
        let nodes = cluster.get("n1", "/v1/nodes/n3")?;
        if nodes["state"] == "down" { Ok(()) } else { Err(nodes.to_string()) }
    });
    let missed = crew.progress() - written_before;
    report(&format!("{missed} writes in the {:.1} s without n3", killed.elapsed().as_secs_f64()));

    let started = Instant::now();
    cluster.start_again(Some("n3"));
    let volume = cluster.wait_health("n1", "healthy", PATIENCE);
    let copied = volume["counters"]["join_bytes"].as_u64().expect("join_bytes");
    report(&format!("{} MiB copied, healthy {:.1} s after its start", copied / MIB, started.elapsed().as_secs_f64()));
    assert!(volume["counters"]["joins"].as_u64() >= Some(lane_count as u64), "{}", volume["counters"]);
    assert!(volume["counters"]["ejections"].as_u64() >= Some(lane_count as u64), "{}", volume["counters"]);
    // Everything that was written since is at most the writers' ranges; versions are kept per 64 KiB below settled.
    assert!(copied > 0, "nothing was copied");
    assert!(copied < 4 * WRITERS * BLOCKS_OF_A_WRITER * BLOCK, "{copied} bytes were copied: the old data as well");
    crew.wait_progress(500, PATIENCE);
    let probes = prober.finish();
    report(&format!("prober through all of it: {probes}"));
    assert!(probes.longest < Duration::from_secs(1), "{probes}");
    let (mut writers, _) = crew.finish();

    // A target reads from its own device: each node in turn shows its own copy.
    cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
    for node in ["n3", "n2", "n1"] {
        cluster.cli(node, &["volume", "attach", VOLUME]).expect_code(0);
        check_all(&mut writers, &cluster.uri_at(node));
        check_old(&cluster, node);
        let volume = cluster.show_volume(node);
        assert_eq!(volume["counters"]["damaged_blocks"], 0, "{volume}");
        assert_eq!(volume["health"], "healthy", "{volume}");
        cluster.cli(node, &["volume", "detach", VOLUME]).expect_code(0);
    }
    // And the copy that returned carries the volume when another is gone.
    cluster.kill("n2");
    cluster.cli("n3", &["volume", "attach", VOLUME]).expect_code(0);
    check_all(&mut writers, &cluster.uri_at("n3"));
    check_old(&cluster, "n3");
    cluster.start_again(Some("n2"));
    cluster.wait_health("n3", "healthy", PATIENCE);
}
