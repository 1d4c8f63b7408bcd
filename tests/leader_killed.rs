//! The metadata service is not in the path of I/O: its leader dies, all of it dies, and guests do not notice.

mod support;

use std::time::{Duration, Instant};
use support::cluster::Cluster;
use support::manual::ManualCluster;
use support::prober::Prober;
use support::{MIB, api, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const ELECTION_MAX: Duration = Duration::from_secs(3);

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_new_leader_answers_and_guests_do_not_notice() {
    let cluster = Cluster::start("leader", &["--size", "256MiB", "--device-size", "512MiB"]);
    let leader = cluster.leader();
    let survivors: Vec<_> = cluster.nodes().into_iter().filter(|node| node.name != leader).collect();
    let target = &survivors[0];
    let prober = Prober::start(&cluster.uri_at(&target.name), 0);
    prober.wait_writes(100, PATIENCE);

    cluster.kill_at_once(&[&leader]);
    let killed = Instant::now();
    // Each survivor is asked in short calls, so that no call outlives the moment in which the new leader answers.
    let ask = |address: &str| {
        let answer = wait_for("a new leader", Duration::from_secs(20), || {
            let status = api::get_within(address, "/v1/cluster", Duration::from_millis(250))?;
            let name = status["metadata"]["leader"].as_str().unwrap_or_default().to_owned();
            let is_new = status["stale"] == false && !name.is_empty() && name != leader;
            if is_new { Ok(name) } else { Err(status.to_string()) }
        });
        (answer, killed.elapsed())
    };
    let ask = &ask;
    let answered: Vec<(String, Duration)> = std::thread::scope(|scope| {
        let asked: Vec<_> = survivors.iter().map(|node| scope.spawn(move || ask(&node.api))).collect();
        asked.into_iter().map(|thread| thread.join().expect("a poller")).collect()
    });
    for (node, (new, took)) in survivors.iter().zip(&answered) {
        report(&format!("{leader} led; {} names {new} after {:.2} s", node.name, took.as_secs_f64()));
        assert!(*took < ELECTION_MAX, "{} answers after {took:?}", node.name);
    }
    // The new leader also takes commands.
    let created = cluster.cli(&target.name, &["volume", "create", "after", "--size", "64MiB", "--replicas", "2"]);
    created.expect_code(0);
    report(&format!("a command was committed {:.2} s after the kill", killed.elapsed().as_secs_f64()));
    prober.wait_writes(200, PATIENCE);
    let probes = prober.finish();
    report(&format!("prober at {}: {probes}", target.name));
    assert!(probes.longest < Duration::from_secs(1), "{probes}");
    cluster.start_again(Some(&leader));
}

/// A leader that stands still is deposed. When it goes on it believes for a moment that it leads: what it tells as fresh has
/// what was decided meanwhile.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_leader_that_stood_still_tells_nothing_old() {
    let all = "\"meta\", \"store\", \"target\"";
    let cluster = ManualCluster::start("pause", &[("n1", all), ("n2", all), ("n3", all)]);
    cluster.found_and_join();
    for round in 0..3 {
        let leader = wait_for("a leader", PATIENCE, || leader_by(&cluster, "n1"));
        let other = ["n1", "n2", "n3"].into_iter().find(|name| *name != leader).expect("three nodes");
        cluster.signal(&leader, libc::SIGSTOP);
        let stopped = Instant::now();
        let value = (11_000 + round).to_string();
        cluster.cli(other, &["cluster", "set", "down_after_ms", &value]).expect_code(0);
        report(&format!("a command was committed {:.2} s after {leader} stood still", stopped.elapsed().as_secs_f64()));
        cluster.signal(&leader, libc::SIGCONT);
        let told = wait_for("it answers with a quorum's word", PATIENCE, || {
            let settings = api::get(&cluster.node(&leader).api, "/v1/settings")?;
            if settings["stale"] == false { Ok(settings) } else { Err("stale".to_owned()) }
        });
        let items = told["items"].as_array().expect("a list");
        let item = items.iter().find(|item| item["key"] == "down_after_ms").expect("it is there");
        assert_eq!(item["value"].to_string(), value, "{leader} told something old");
    }
}

fn leader_by(cluster: &ManualCluster, node: &str) -> Result<String, String> {
    let status = api::get(&cluster.node(node).api, "/v1/cluster")?;
    let whole = status["stale"] == false && status["metadata"]["voters"].as_array().is_some_and(|all| all.len() == 3);
    let leader = status["metadata"]["leader"].as_str().filter(|_| whole);
    leader.map(str::to_owned).ok_or_else(|| status.to_string())
}

/// Meta nodes of their own, so that their death takes no replica with it.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn attached_volumes_go_on_without_any_metadata() {
    let (meta, data) = ("\"meta\"", "\"store\", \"target\"");
    let roles = [("m1", meta), ("m2", meta), ("m3", meta), ("d1", data), ("d2", data), ("d3", data)];
    let mut cluster = ManualCluster::start("meta", &roles);
    cluster.found_and_join();
    for node in ["d1", "d2", "d3"] {
        cluster.add_device(node, 512 * MIB, &[]);
    }
    cluster.cli("d1", &["volume", "create", "vol", "--size", "256MiB"]).expect_code(0);
    let prober = Prober::start(&cluster.uri("vol", "d1"), 0);
    prober.wait_writes(100, PATIENCE);

    cluster.kill_at_once(&["m1", "m2", "m3"]);
    let killed = Instant::now();
    // Longer than every timeout of the control plane (a silent node is down after 10 s).
    prober.wait_writes(3000, PATIENCE);
    report(&format!("{:.1} s without metadata", killed.elapsed().as_secs_f64()));
    // A data node says honestly that it cannot ask anybody.
    let shown = cluster.cli("d1", &["volume", "show", "vol"]);
    assert!(shown.code != Some(0) && shown.code.is_some(), "{}", shown.text());

    cluster.start_again(&["m1", "m2", "m3"]);
    wait_for("the metadata service is back", PATIENCE, || {
        let volume = api::get(&cluster.node("d1").api, "/v1/volumes/vol")?;
        if volume["health"] == "healthy" { Ok(()) } else { Err(volume.to_string()) }
    });
    report(&format!("healthy again {:.1} s after the kill", killed.elapsed().as_secs_f64()));
    prober.wait_writes(100, PATIENCE);
    let probes = prober.finish();
    report(&format!("prober through all of it: {probes}"));
    assert!(probes.longest < Duration::from_secs(1), "{probes}");
}
