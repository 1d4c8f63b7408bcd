//! Where the copies of a new volume go, as operators ask for it: on a node, in the zone of a target without devices,
//! apart from each other; and what is said when that cannot be.

mod support;

use support::cluster::Cluster;

/// Names of the nodes with a copy, lane by lane.
fn nodes_of(cluster: &Cluster, volume: &str) -> Vec<Vec<String>> {
    let shown = cluster.get("n1", &format!("/v1/volumes/{volume}")).expect("the volume");
    let names = |lane: &serde_json::Value| {
        let members = lane["members"].as_array().into_iter().flatten();
        members.filter_map(|member| member["node"].as_str().map(str::to_owned)).collect()
    };
    shown["lanes"].as_array().into_iter().flatten().map(names).collect()
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn copies_go_where_operators_want_them() {
    // n1 is a target without devices in the first zone, n3 a store there, n2 and n4 are stores in the second zone.
    let layout = ["--roles", "disaggregated", "--zones", "2", "--size", "64MiB", "--device-size", "512MiB"];
    let cluster = Cluster::start("locality", &layout);
    let create = |name: &str, options: &[&str]| {
        let words = [&["volume", "create", name, "--size", "64MiB", "--replicas", "2"], options].concat();
        cluster.cli("n2", &words)
    };
    create("near", &["--on", "n1"])
        .expect_code(0)
        .expect_text(&["note: 4 of 4 lanes have no copy on node n1: it has no usable device: it has no devices"]);
    let near = nodes_of(&cluster, "near");
    assert!(near.len() == 4 && near.iter().all(|lane| lane[0] == "n3" && lane[1] != "n3"), "{near:?}");

    create("local", &["--on", "n4", "--locality", "require"]).expect_code(0);
    let local = nodes_of(&cluster, "local");
    assert!(local.iter().all(|lane| lane[0] == "n4" && lane[1] == "n3"), "the other zone has n3 only: {local:?}");

    create("nowhere", &["--on", "n1", "--locality", "require"])
        .expect_code(4)
        .expect_text(&["locality 'require': node n1 has no usable device", "--on NODE"]);
    create("nobody", &["--locality", "require"]).expect_code(2).expect_text(&["needs the node"]);
    create("both", &["--on", "n2", "--locality", "none"]).expect_code(2).expect_text(&["asks for no copy"]);
    let three = ["volume", "create", "three", "--size", "64MiB", "--replicas", "3", "--spread"];
    cluster.cli("n2", &[&three[..], &["zone"]].concat()).expect_code(4).expect_text(&["need 3 zones", "there are 2"]);
    cluster
        .cli("n2", &[&three[..], &["zone:soft"]].concat())
        .expect_code(0)
        .expect_text(&["note: 3 replicas would need 3 zones, there are 2"]);
}
