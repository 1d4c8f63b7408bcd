//! A volume grows under its guests: those who are there keep what they saw, those who come see all of it, and what is written
//! behind the old end is replicated and repaired like everything else.

mod support;

use std::time::Duration;
use support::MIB;
use support::cluster::{Cluster, VOLUME};
use support::stamp::{BLOCK_BYTES, run_of};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = BLOCK_BYTES as u64;
const BEFORE: u64 = 96 * MIB;
const AFTER: u64 = 320 * MIB;
const RUN_BLOCKS: u64 = 64;
const WRITER: u64 = 5;

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_volume_grows_under_its_guests() {
    let cluster = Cluster::start("grow", &["--size", "96MiB", "--device-size", "768MiB"]);
    let mut early = cluster.open_at("n1");
    early.write(0, &run_of(0, RUN_BLOCKS, WRITER, 1)).expect("a write");

    let grown = cluster.cli("n2", &["volume", "resize", VOLUME, "--size", "320MiB"]);
    grown.expect_code(0).expect_text(&["vol has 320 MiB"]);
    cluster.cli("n3", &["volume", "resize", VOLUME, "--size", "320MiB"]).expect_code(0);
    cluster.cli("n1", &["volume", "resize", VOLUME, "--size", "96MiB"]).expect_text(&["it can only grow"]);
    let too_much = cluster.cli("n1", &["volume", "resize", VOLUME, "--size", "64GiB"]);
    too_much.expect_code(4).expect_text(&["would be promised", "overcommit_percent"]);

    // Who was there goes on with what there was.
    assert_eq!(early.export().size_bytes, BEFORE);
    early.write(BEFORE - RUN_BLOCKS * BLOCK, &run_of(1, RUN_BLOCKS, WRITER, 2)).expect("a write at the old end");
    let mut late = cluster.open_at("n1");
    assert_eq!(late.export().size_bytes, AFTER);
    cluster.kill("n3");
    let behind = BEFORE / BLOCK;
    for first in (behind..AFTER / BLOCK).step_by(RUN_BLOCKS as usize) {
        late.write(first * BLOCK, &run_of(first, RUN_BLOCKS, WRITER, 3)).expect("a write behind the old end");
    }
    assert_eq!(early.read(0, (RUN_BLOCKS * BLOCK) as u32).expect("a read"), run_of(0, RUN_BLOCKS, WRITER, 1));
    early.disconnect().expect("an orderly goodbye");
    late.disconnect().expect("an orderly goodbye");

    // The third copy gets all of it: a target reads from its own device.
    cluster.start_again(Some("n3"));
    cluster.wait_health("n1", "healthy", PATIENCE);
    cluster.wait_detached("n1");
    let mut other = cluster.open_at("n3");
    assert_eq!(other.export().size_bytes, AFTER);
    for first in (behind..AFTER / BLOCK).step_by(RUN_BLOCKS as usize) {
        let data = other.read(first * BLOCK, (RUN_BLOCKS * BLOCK) as u32).expect("a read");
        assert!(data == run_of(first, RUN_BLOCKS, WRITER, 3), "wrong data at block {first}");
    }
    other.disconnect().expect("an orderly goodbye");
}
