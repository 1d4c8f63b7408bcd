//! What a volume's policies promise: who must have a write, and when writes wait instead of running on too few copies.

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::cluster::{Cluster, open};
use support::{report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes one block in the background; the answer says how long it took.
fn write_later(uri: &str, offset: u64, byte: u8) -> mpsc::Receiver<Duration> {
    let (uri, (done, answer)) = (uri.to_owned(), mpsc::sync_channel(1));
    std::thread::spawn(move || {
        let mut client = open(&uri);
        let began = Instant::now();
        client.write(offset, &[byte; 4096]).expect("a write waits, it does not fail");
        let _ = done.send(began.elapsed());
        drop(client.disconnect());
    });
    answer
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn writes_wait_below_the_minimum_and_quorum_all_goes_on_with_those_in_sync() {
    let cluster = Cluster::start("policies", &["--size", "64MiB", "--device-size", "512MiB"]);
    let create = |name: &str, policy: &[&str]| {
        let words = ["volume", "create", name, "--size", "64MiB", "--lanes", "2"];
        cluster.cli("n1", &[&words, policy].concat()).expect_code(0);
    };
    create("strict", &["--min-in-sync", "3"]);
    create("all", &["--quorum", "all"]);
    cluster
        .cli("n1", &["volume", "create", "x", "--size", "64MiB", "--replicas", "2", "--min-in-sync", "3"])
        .expect_code(2);
    cluster.cli("n1", &["volume", "show", "strict"]).expect_code(0).expect_text(&["at least 3 in sync"]);
    let (strict, all) = (cluster.uri_of("strict", "n1"), cluster.uri_of("all", "n1"));
    let (mut on_strict, mut on_all) = (open(&strict), open(&all));
    on_strict.write(0, &[1; 4096]).expect("a write");
    on_all.write(0, &[1; 4096]).expect("a write");

    cluster.kill("n3");
    // All in sync must have it: this write waits until n3 does not count any more.
    let took = write_later(&all, 4096, 2).recv_timeout(PATIENCE).expect("quorum all goes on without the dead member");
    report(&format!("quorum all: the first write after the kill took {:.1} s", took.as_secs_f64()));
    let volume = wait_for("the minimum stops writes", PATIENCE, || {
        let volume = cluster.get("n1", "/v1/volumes/strict")?;
        if volume["health"] == "suspended" { Ok(volume) } else { Err(volume["reason"].to_string()) }
    });
    let reason = volume["reason"].as_str().expect("a reason");
    assert!(reason.contains("minimum"), "{reason}");
    report(&format!("minimum of 3: {reason}"));
    let waits = write_later(&strict, 4096, 3);
    assert!(waits.recv_timeout(Duration::from_secs(3)).is_err(), "it must wait");
    assert_eq!(on_strict.read(0, 4096).expect("reads go on"), [1; 4096]);

    cluster.start_again(Some("n3"));
    let took = waits.recv_timeout(PATIENCE).expect("it is done when the third is back in sync");
    report(&format!("minimum of 3: the write waited {:.1} s", took.as_secs_f64()));
    assert_eq!(on_strict.read(4096, 4096).expect("a read"), [3; 4096]);
    assert_eq!(on_all.read(4096, 4096).expect("a read"), [2; 4096]);
    on_all.disconnect().expect("an orderly goodbye");
    on_strict.disconnect().expect("an orderly goodbye");
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn the_overcommit_bounds_what_volumes_are_promised_and_an_operator_sets_it() {
    let cluster = Cluster::start("settings", &["--size", "64MiB", "--device-size", "512MiB"]);
    let set = |value: &str| cluster.cli("n2", &["cluster", "set", "overcommit_percent", value]);
    let create = || cluster.cli("n1", &["volume", "create", "large", "--size", "1GiB"]);
    set("50").expect_code(0);
    create().expect_code(4);
    let settings = cluster.get("n3", "/v1/settings").expect("the list");
    let is_set = |item: &serde_json::Value| item["key"] == "overcommit_percent" && item["value"] == 50;
    assert!(settings["items"].as_array().is_some_and(|items| items.iter().any(is_set)), "{settings}");
    // What is not allowed, or not there, changes nothing.
    set("49").expect_code(2).expect_text(&["between 50 and 100000"]);
    cluster.cli("n1", &["cluster", "set", "no_such_setting", "1"]).expect_code(3);
    cluster.cli("n1", &["cluster", "get", "overcommit_percent"]).expect_code(0).expect_text(&["50", "400"]);
    set("400").expect_code(0);
    create().expect_code(0);
}
