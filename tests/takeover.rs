//! A volume changes its node: handed over cleanly, taken from a dead node, and brought in sync while nobody has it.

mod support;

use std::time::{Duration, Instant};
use support::cluster::{Cluster, VOLUME, open, try_open};
use support::stamp::BLOCK_BYTES;
use support::writers::{Crew, Writer, check_all};
use support::{MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;

fn writers() -> Vec<Writer> {
    let blocks = 8 * MIB / BLOCK;
    (0..2).map(|id| Writer::new(id, id * blocks, blocks).paced(Duration::from_millis(1))).collect()
}

fn cluster(test: &str) -> Cluster {
    Cluster::start(test, &["--size", "256MiB", "--device-size", "512MiB"])
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_volume_is_taken_from_a_dead_node_at_once_and_handed_over_by_a_living_one() {
    let cluster = cluster("takeover");
    let crew = Crew::start(&cluster.uri_at("n1"), writers(), 8);
    crew.wait_progress(500, PATIENCE);
    // Not without being asked, and the holder is named.
    cluster.cli("n2", &["volume", "attach", VOLUME]).expect_code(4).expect_text(&["n1"]);

    cluster.kill("n1");
    let killed = Instant::now();
    let (mut writers, _) = crew.wait_cut();
    let taken = cluster.cli("n2", &["volume", "attach", VOLUME, "--takeover"]);
    taken.expect_code(0).expect_text(&["taken over from n1"]);
    let granted = killed.elapsed();
    let mut client = cluster.open_at("n2");
    client.read(0, 4096).expect("the first read");
    client.write(200 * MIB, &[7; 4096]).expect("the first write");
    report(&format!(
        "after SIGKILL of the holder: attached in {:.2} s, first read and write answered in {:.2} s",
        granted.as_secs_f64(),
        killed.elapsed().as_secs_f64()
    ));
    client.disconnect().expect("an orderly goodbye");
    check_all(&mut writers, &cluster.uri_at("n2"));

    // A living holder finishes what it has, marks the volume clean and lets go; its guests are cut off.
    let crew = Crew::start(&cluster.uri_at("n2"), writers, 8);
    crew.wait_progress(300, PATIENCE);
    let asked = Instant::now();
    let handed = cluster.cli("n3", &["volume", "attach", VOLUME, "--takeover"]);
    let (mut writers, _) = crew.wait_cut();
    let mut client = cluster.open_at("n3");
    client.read(0, 4096).expect("the first read");
    report(&format!("hand-over with first read in {:.2} s: {}", asked.elapsed().as_secs_f64(), handed.stdout.trim()));
    handed.expect_code(0).expect_text(&["from n2"]);
    client.disconnect().expect("an orderly goodbye");
    check_all(&mut writers, &cluster.uri_at("n3"));
    assert_eq!(cluster.show_volume("n3")["attached"]["node"], "n3");

    // A dead node's volume needs no special words to be let go.
    cluster.kill("n3");
    cluster.start_again(Some("n1"));
    wait_for("the dead node's volume is detached", PATIENCE, || {
        let detached = cluster.cli("n2", &["volume", "detach", VOLUME]);
        if detached.code == Some(0) { Ok(()) } else { Err(detached.text()) }
    });
    check_all(&mut writers, &cluster.uri_at("n1"));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_detached_volume_is_brought_in_sync_and_gives_way_to_guests() {
    let cluster = cluster("caretaker");
    let crew = Crew::start(&cluster.uri_at("n1"), writers(), 8);
    crew.wait_progress(300, PATIENCE);
    cluster.kill("n3");
    wait_for("n3 is ejected", PATIENCE, || {
        let volume = cluster.show_volume("n1");
        let out = |lane: &serde_json::Value| lane["in_sync"].as_array().is_some_and(|set| set.len() == 2);
        let all = volume["lanes"].as_array().expect("lanes").iter().all(out);
        if all { Ok(()) } else { Err(volume["reason"].to_string()) }
    });
    crew.wait_progress(300, PATIENCE);
    let (mut writers, _) = crew.finish();
    cluster.wait_detached("n1");

    cluster.start_again(Some("n3"));
    let started = Instant::now();
    let volume = wait_for("a caretaker begins", PATIENCE, || {
        let volume = cluster.get("n1", &format!("/v1/volumes/{VOLUME}"))?;
        if volume["caretaker"].is_string() { Ok(volume) } else { Err(volume["reason"].to_string()) }
    });
    report(&format!("{} cares {:.1} s after the start", volume["caretaker"], started.elapsed().as_secs_f64()));
    // A guest elsewhere comes first; afterwards the care goes on.
    let asked = Instant::now();
    let mut client = open(&cluster.uri_at("n2"));
    client.read(0, 4096).expect("the first read");
    report(&format!("a guest elsewhere read after {:.2} s", asked.elapsed().as_secs_f64()));
    assert_eq!(cluster.show_volume("n2")["attached"]["node"], "n2");
    assert!(try_open(&cluster.uri_at("n1")).is_err(), "n2 has it now");
    client.disconnect().expect("an orderly goodbye");
    let volume = wait_for("in sync, and let go", PATIENCE, || {
        let volume = cluster.get("n1", &format!("/v1/volumes/{VOLUME}"))?;
        let done = volume["health"] == "healthy" && volume["caretaker"].is_null() && volume["attached"].is_null();
        if done { Ok(volume) } else { Err(format!("{}: {}", volume["health"], volume["reason"])) }
    });
    report(&format!("healthy and detached {:.1} s after the start", started.elapsed().as_secs_f64()));
    assert!(volume["lanes"].as_array().expect("lanes").iter().all(|lane| !lane["clean"].is_null()), "{volume}");
    // The copy that was away carries the volume.
    cluster.kill("n1");
    check_all(&mut writers, &cluster.uri_at("n3"));
}
