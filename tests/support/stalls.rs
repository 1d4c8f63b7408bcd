//! One node of three is lost under load and comes back: how long was the longest stall of a write and of a read?

use super::copies;
use super::fio::{Load, Verify, expect_clean_until_interrupted};
use super::loss::Loss;
use super::manual::ManualCluster;
use super::prober::{Prober, Probes};
use super::stamp::{BLOCK_BYTES, run_of};
use super::{MIB, cluster};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;
/// What the reading prober reads, written by this writer.
const READ_BYTES: u64 = 32 * MIB;
const READ_WRITER: u64 = 78;
/// Probes before the loss, and until the node is given back: five milliseconds or a stall each.
const PROBES_BEFORE: u64 = 300;
/// Long enough for a silent link to be given up, and for a hung member to be ejected.
const PROBES_WITHOUT: u64 = 500;
/// How long the load goes on beside a node that is back and not yet in sync.
const LOAD_BESIDE_REJOIN: Duration = Duration::from_secs(4);

/// Nodes with a copy each.
pub const STORES: [&str; 3] = ["n1", "n2", "n3"];
/// The node that is lost.
pub const VICTIM: &str = "n3";
/// A target without a copy.
pub const BARE_TARGET: &str = "t1";

/// Longest times of a probe under load, in the three parts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Longest {
    /// Before the loss: what the machine itself does.
    pub before: Duration,
    /// From the loss until the node is given back.
    pub lost: Duration,
    /// From then until the volume is healthy, or the load ends.
    pub back: Duration,
}

/// What guests felt.
#[derive(Clone, Copy, Debug)]
pub struct Felt {
    pub writes: Longest,
    pub reads: Longest,
    pub load: Load,
    /// When all was well again under load, from the loss; `None`: the load had to end first.
    pub healthy: Option<Duration>,
}

/// Three nodes with a device each, and a target without one, each in a network namespace of its own.
#[track_caller]
pub fn start_cluster(test: &str, device_bytes: u64, device_options: &[&str]) -> ManualCluster {
    let all = "\"store\", \"target\", \"meta\"";
    let roles = [("n1", all), ("n2", all), ("n3", all), (BARE_TARGET, "\"target\"")];
    let cluster = ManualCluster::start_apart(test, &roles);
    cluster.found_and_join();
    for node in STORES {
        cluster.add_device(node, device_bytes, device_options);
    }
    cluster
}

/// Loses a node under fio with queue depth 32 and probers at a target, gives it back, and demands that nobody saw an
/// error or wrong data and that all copies are equal in the end.
#[track_caller]
pub fn lose_under_load(cluster: &mut ManualCluster, target: &str, loss: Loss, load_bytes: u64) -> Felt {
    let size = load_bytes + READ_BYTES + MIB;
    let volume = "stalls";
    let created = cluster.cli("n1", &["volume", "create", volume, "--size", &size.to_string()]);
    created.expect_code(0);
    let uri = cluster.uri(volume, target);
    let read_blocks = load_bytes / BLOCK..(load_bytes + READ_BYTES) / BLOCK;
    let mut client = cluster::open(&uri);
    for first in read_blocks.clone().step_by(256) {
        client.write(first * BLOCK, &run_of(first, 256, READ_WRITER, 1)).expect("a write");
    }
    client.disconnect().expect("an orderly goodbye");

    let load = Verify { uri: uri.clone(), offset: 0, size: load_bytes, depth: 32, jobs: 1, backlog: 1024 };
    let writing = Prober::start(&uri, read_blocks.end);
    let reading = Prober::start_reading(&uri, read_blocks, READ_WRITER);
    let mut fio = load.start();
    let started = Instant::now();
    writing.wait_writes(PROBES_BEFORE, PATIENCE);
    assert!(fio.is_running(), "the load ended before the loss");
    let lost = Instant::now();
    loss.strike(cluster, VICTIM);
    writing.wait_writes(PROBES_WITHOUT, PATIENCE);
    let back = Instant::now();
    loss.undo(cluster, VICTIM);
    while back.elapsed() < LOAD_BESIDE_REJOIN && !is_healthy(cluster, target, volume) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let healthy = is_healthy(cluster, target, volume).then(|| lost.elapsed());
    let end = Instant::now();
    assert!(fio.is_running(), "the load ended before all was well again");
    fio.interrupt();
    let load = expect_clean_until_interrupted(&fio.finish(PATIENCE * 3), &load);
    let longest = |probes: Probes| Longest {
        before: probes.longest_within(started..lost),
        lost: probes.longest_within(lost..back),
        back: probes.longest_within(back..end),
    };
    let (writes, reads) = (longest(writing.finish()), longest(reading.finish()));
    let felt = Felt { writes, reads, load, healthy };

    cluster.wait_healthy(target, volume, PATIENCE);
    cluster.cli(target, &["volume", "detach", volume]).expect_code(0);
    copies::assert_equal(cluster, volume, &STORES, size);
    cluster.cli("n1", &["volume", "delete", volume, "--yes"]).expect_code(0);
    felt
}

fn is_healthy(cluster: &ManualCluster, node: &str, volume: &str) -> bool {
    cluster.volume(node, volume).is_ok_and(|shown| shown["health"] == "healthy")
}

impl Longest {
    /// The longer of each.
    pub fn max(self, other: Self) -> Self {
        let Self { before, lost, back } = other;
        Self { before: self.before.max(before), lost: self.lost.max(lost), back: self.back.max(back) }
    }
}

impl std::fmt::Display for Longest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [before, lost, back] = [self.before, self.lost, self.back].map(|time| time.as_secs_f64() * 1e3);
        write!(formatter, "{before:.1}/{lost:.1}/{back:.1} ms")
    }
}

impl std::fmt::Display for Felt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Felt { writes, reads, load, healthy } = self;
        let healthy =
            healthy.map_or("not before the load ended".into(), |time| format!("after {:.1} s", time.as_secs_f64()));
        write!(formatter, "longest before/lost/back: writes {writes}, reads {reads}; fio: {load}; healthy {healthy}")
    }
}
