//! Compares the copies of a volume. A target that has a copy on its own device reads from that, so each node in turn
//! shows its own.

use super::cluster::{self, Cluster};
use super::manual::ManualCluster;
use super::tools::Finished;
use super::{MIB, wait_for};
use serde_json::Value;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const PIECE_BYTES: u64 = MIB;

/// What both kinds of cluster can do.
pub trait Nodes {
    fn run(&self, node: &str, arguments: &[&str]) -> Finished;
    fn uri_of(&self, volume: &str, node: &str) -> String;
    fn volume(&self, node: &str, volume: &str) -> Result<Value, String>;
}

impl Nodes for Cluster {
    fn run(&self, node: &str, arguments: &[&str]) -> Finished {
        self.cli(node, arguments)
    }

    fn uri_of(&self, volume: &str, node: &str) -> String {
        self.uri_of(volume, node)
    }

    fn volume(&self, node: &str, volume: &str) -> Result<Value, String> {
        self.get(node, &format!("/v1/volumes/{volume}"))
    }
}

impl Nodes for ManualCluster {
    fn run(&self, node: &str, arguments: &[&str]) -> Finished {
        self.cli(node, arguments)
    }

    fn uri_of(&self, volume: &str, node: &str) -> String {
        self.uri(volume, node)
    }

    fn volume(&self, node: &str, volume: &str) -> Result<Value, String> {
        self.volume(node, volume)
    }
}

/// Demands that all nodes show the same bytes of a volume that nobody uses; it is detached afterwards.
#[track_caller]
pub fn assert_equal(cluster: &impl Nodes, volume: &str, nodes: &[&str], bytes: u64) {
    let mut first: Option<Vec<u64>> = None;
    for node in nodes {
        // Whoever has just brought a detached volume in sync needs a moment to let it go.
        wait_for(&format!("{node} has {volume}"), Duration::from_secs(30), || {
            let attached = cluster.run(node, &["volume", "attach", volume]);
            if attached.code == Some(0) { Ok(()) } else { Err(attached.text()) }
        });
        let pieces = digest(&cluster.uri_of(volume, node), bytes);
        let shown = cluster.volume(node, volume).expect("an attached volume");
        assert_eq!(shown["counters"]["damaged_blocks"], 0, "{node} read from another's copy: {shown}");
        cluster.run(node, &["volume", "detach", volume]).expect_code(0);
        let first = first.get_or_insert_with(|| pieces.clone());
        let other = first.iter().zip(&pieces).position(|(one, two)| one != two);
        assert_eq!(other, None, "{} and {node} differ in this MiB of {volume}", nodes[0]);
    }
}

/// A hash of each piece of a volume.
#[track_caller]
fn digest(uri: &str, bytes: u64) -> Vec<u64> {
    let mut client = cluster::open(uri);
    let pieces = (0..bytes).step_by(PIECE_BYTES as usize).map(|offset| {
        let data = client.read(offset, PIECE_BYTES.min(bytes - offset) as u32);
        xxh3_64(&data.unwrap_or_else(|error| panic!("read at byte {offset}: {error}")))
    });
    let pieces = pieces.collect();
    client.disconnect().expect("an orderly goodbye");
    pieces
}
