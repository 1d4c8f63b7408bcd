//! The node that serves the guest dies, hangs or is cut off under load, and another takes the volume: its first guest is
//! served within seconds, every acknowledged write is there, and when the old node is back it completes nothing more:
//! neither an answer to its guests nor a write to any copy.

mod support;

use std::time::{Duration, Instant};
use support::loss::Loss;
use support::manual::ManualCluster;
use support::net::in_own_network;
use support::stalls::{STORES, start_cluster};
use support::stamp::{BLOCK_BYTES, Content, Stamp};
use support::writers::{Crew, Writer, check_all};
use support::{GIB, MIB, cluster, copies, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_IO_MAX: Duration = Duration::from_secs(5);
/// How long the new guest works before the old node is given back, and beside it.
const WRITES_ALONE: u64 = 1000;
const WRITES_BESIDE: u64 = 1000;
const VOLUME: &str = "vol";
const VOLUME_BYTES: u64 = 64 * MIB;
const BLOCK: u64 = BLOCK_BYTES as u64;
const WRITERS: u64 = 4;
const DEPTH: usize = 16;
/// Small, so that blocks are written again and again.
const BLOCKS_OF_A_WRITER: u64 = 2 * MIB / BLOCK;
/// Nobody else writes it.
const FIRST_IO_BLOCK: u64 = VOLUME_BYTES / BLOCK - 1;

/// Writers of the guests before (`first_id` 0) and after (4) the takeover; their blocks are apart.
fn writers(first_id: u64) -> Vec<Writer> {
    (first_id..first_id + WRITERS).map(|id| Writer::new(id, id * BLOCKS_OF_A_WRITER, BLOCKS_OF_A_WRITER)).collect()
}

/// A guest's first write and read at a node.
fn first_io(uri: &str) -> Result<(), String> {
    let stamp = Stamp { block: FIRST_IO_BLOCK, writer: 99, sequence: 1 };
    let mut client = cluster::try_open(uri).map_err(|error| error.to_string())?;
    client.write(FIRST_IO_BLOCK * BLOCK, &stamp.bytes()).map_err(|error| error.to_string())?;
    let data = client.read(FIRST_IO_BLOCK * BLOCK, BLOCK_BYTES as u32).map_err(|error| error.to_string())?;
    assert_eq!(Stamp::read(&data), Content::Whole(stamp), "the first read after a takeover");
    Ok(())
}

/// What the old writers' blocks hold.
#[track_caller]
fn old_bytes(uri: &str) -> Vec<u8> {
    let mut client = cluster::open(uri);
    let bytes = client.read(0, (WRITERS * BLOCKS_OF_A_WRITER * BLOCK) as u32).expect("a read");
    client.disconnect().expect("an orderly goodbye");
    bytes
}

/// Loses the target `old` under load and takes the volume over at `new`. Returns the time from the loss to the end of
/// the first I/O.
#[track_caller]
fn take_over(nodes: &mut ManualCluster, loss: Loss, old: &str, new: &str) -> Duration {
    // A node that was away in the last round counts again once it has said that it lives.
    support::wait_for("the volume is created", PATIENCE, || {
        let created = nodes.cli(old, &["volume", "create", VOLUME, "--size", &VOLUME_BYTES.to_string()]);
        if created.code == Some(0) { Ok(()) } else { Err(created.text()) }
    });
    let (old_uri, new_uri) = (nodes.uri(VOLUME, old), nodes.uri(VOLUME, new));
    let crew = Crew::start(&old_uri, writers(0), DEPTH);
    crew.wait_progress(2000, PATIENCE);
    let lost = Instant::now();
    loss.strike(nodes, old);

    let command = ["volume", "attach", VOLUME, "--node", new, "--takeover"];
    let taken = wait_for("the takeover", PATIENCE, || match nodes.cli(new, &command) {
        done if done.code == Some(0) => Ok(lost.elapsed()),
        // 5: unavailable, to be repeated; the metadata service may just be electing.
        failed => Err(failed.text()),
    });
    wait_for("the first I/O", PATIENCE, || first_io(&new_uri));
    let first_io = Instant::now();
    report(&format!(
        "{} of {old}: taken over by {new} after {:.2} s, first I/O done after {:.2} s",
        loss.name(),
        taken.as_secs_f64(),
        (first_io - lost).as_secs_f64()
    ));
    let new_crew = Crew::start(&new_uri, writers(WRITERS), DEPTH);
    new_crew.wait_progress(WRITES_ALONE, PATIENCE);
    let before = old_bytes(&new_uri);

    loss.undo(nodes, old);
    let (mut old_writers, runs) = crew.wait_cut();
    let back = Instant::now();
    new_crew.wait_progress(WRITES_BESIDE, PATIENCE);
    for run in &runs {
        // What had its quorum before the loss may be told late: that is true. What was asked later must come to nothing.
        let (sent, answered) = run.last_success.expect("it was at work before");
        assert!(sent < first_io, "done by {old} although asked {:?} after the takeover", sent - first_io);
        if answered > first_io {
            report(&format!(
                "{old} told late of what was done: {:.2} s after the first I/O",
                (answered - first_io).as_secs_f64()
            ));
        }
    }
    let ends: Vec<&str> = runs.iter().filter_map(|run| run.cut.as_deref()).collect();
    let acknowledged: u64 = runs.iter().map(|run| run.acknowledged).sum();
    report(&format!("{acknowledged} writes acknowledged by {old}; its guests ended with: {ends:?}"));
    let (mut new_writers, _) = new_crew.finish();
    nodes.wait_healthy(new, VOLUME, PATIENCE);
    report(&format!("healthy {:.1} s after the old guests had gone", back.elapsed().as_secs_f64()));
    assert!(old_bytes(&new_uri) == before, "what the old node's guests wrote changed after the takeover");
    check_all(&mut old_writers, &new_uri);
    check_all(&mut new_writers, &new_uri);

    nodes.cli(new, &["volume", "detach", VOLUME]).expect_code(0);
    copies::assert_equal(nodes, VOLUME, &STORES, VOLUME_BYTES);
    nodes.cli(new, &["volume", "delete", VOLUME, "--yes"]).expect_code(0);
    first_io - lost
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn another_node_serves_and_the_old_one_completes_nothing() {
    in_own_network(|| {
        let mut nodes = start_cluster("writer", GIB, &[]);
        // n1 founded the cluster, so at first it leads the metadata service as well: the harder case.
        for (loss, old, new) in
            [(Loss::Killed, "n1", "n2"), (Loss::Stopped, "n2", "n3"), (Loss::Cut, "n3", "n1"), (Loss::Mute, "n1", "n2")]
        {
            let took = take_over(&mut nodes, loss, old, new);
            assert!(took < FIRST_IO_MAX, "{}: first I/O after {took:?}", loss.name());
        }
    });
}
