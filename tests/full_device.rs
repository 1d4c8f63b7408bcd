//! Volumes are thin and promise more than the devices hold. When a device is full, writes to new places wait and the
//! volume says why; reads, overwrites and trims go on; space that is given back lets the writes through. No error ever.

mod support;

use ashlar_nbd::client::Answer;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::cluster::{self, Cluster, VOLUME};
use support::stamp::{BLOCK_BYTES, run_of};
use support::{MIB, api, report, tools, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCKS_OF_A_RUN: u64 = MIB / BLOCK_BYTES as u64;
const DEPTH: usize = 4;
const WRITER: u64 = 9;
/// No answer for this long, and the volume says that it waits: that is what "full" looks like.
const QUIET: Duration = Duration::from_secs(2);

/// Writes MiB after MiB until the limit; counts what was acknowledged.
struct Filler {
    acknowledged: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Filler {
    fn start(uri: &str) -> Self {
        let mut client = cluster::open(uri);
        client.stream().set_timeout(None).expect("no timeout: a full volume answers late");
        let (acknowledged, limit) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let (counted, bound) = (acknowledged.clone(), limit.clone());
        let thread = std::thread::spawn(move || {
            let (mut sent, mut flights) = (0, VecDeque::new());
            loop {
                while flights.len() < DEPTH && sent < bound.load(Ordering::SeqCst) {
                    let data = run_of(sent * BLOCKS_OF_A_RUN, BLOCKS_OF_A_RUN, WRITER, 1);
                    let cookie = client.send_write(sent * MIB, &data, false).map_err(|error| error.to_string())?;
                    flights.push_back(cookie);
                    sent += 1;
                }
                let Some(cookie) = flights.pop_front() else { break };
                match client.wait(cookie) {
                    Ok(Answer::Done) => counted.fetch_add(1, Ordering::SeqCst),
                    other => return Err(format!("a write ended with {other:?}")),
                };
            }
            drop(client.disconnect());
            Ok(sent)
        });
        Self { acknowledged, limit, thread }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until nothing is answered any more. Returns how many MiB were.
    #[track_caller]
    fn wait_quiet(&self) -> u64 {
        let (mut last, mut since) = (0, Instant::now());
        wait_for("writes wait", PATIENCE, || {
            assert!(!self.thread.is_finished(), "the filler ended; nothing may fail");
            let now = self.acknowledged();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if now > 0 && since.elapsed() > QUIET { Ok(now) } else { Err(format!("{now} MiB and going on")) }
        })
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn writes_wait_for_space_and_nothing_fails() {
    let cluster = Cluster::start("full", &["--size", "512MiB", "--device-size", "384MiB"]);
    let uri = cluster.uri_at("n1");
    let filler = Filler::start(&uri);
    let full_at = filler.wait_quiet();
    let volume = cluster.wait_health("n1", "suspended", PATIENCE);
    let reason = volume["reason"].as_str().unwrap_or_default();
    report(&format!("full after {full_at} MiB on devices of 384 MiB: {reason}"));
    assert!(reason.contains("full"), "{reason}");
    for node in cluster.nodes() {
        assert_eq!(api::call(&node.api, "/readyz", PATIENCE).expect("an answer").status, 200, "{}", node.name);
    }

    // What is there can be read and overwritten.
    let mut client = cluster.open_at("n1");
    for mib in [0, full_at / 2, full_at - 1] {
        let data = client.read(mib * MIB, MIB as u32).expect("a read of a full volume");
        assert!(data == run_of(mib * BLOCKS_OF_A_RUN, BLOCKS_OF_A_RUN, WRITER, 1), "MiB {mib}");
    }
    client.write(0, &run_of(0, 16, WRITER, 2)).expect("an overwrite in a full volume");

    // Space comes back, and the writes go through.
    let trimmed = 16..80;
    filler.limit.store(full_at + DEPTH as u64 + 24, Ordering::SeqCst);
    client.trim(trimmed.start * MIB, (trimmed.end - trimmed.start) * MIB).expect("a trim in a full volume");
    let freed = Instant::now();
    wait_for("the writes go on", PATIENCE, || {
        if filler.acknowledged() > full_at { Ok(()) } else { Err(cluster.show_volume("n1")["reason"].to_string()) }
    });
    report(&format!("writes go on {:.2} s after a trim of 64 MiB", freed.elapsed().as_secs_f64()));
    wait_for("the filler is done", PATIENCE, || {
        if filler.thread.is_finished() { Ok(()) } else { Err(format!("{} MiB", filler.acknowledged())) }
    });
    let written = filler.thread.join().expect("the filler's thread").expect("no write fails");
    cluster.wait_health("n1", "healthy", PATIENCE);

    for mib in 0..written {
        let data = client.read(mib * MIB, MIB as u32).expect("a read");
        let first = mib * BLOCKS_OF_A_RUN;
        let mut expected = run_of(first, BLOCKS_OF_A_RUN, WRITER, 1);
        if mib == 0 {
            expected[..16 * BLOCK_BYTES].copy_from_slice(&run_of(0, 16, WRITER, 2));
        } else if trimmed.contains(&mib) {
            expected.fill(0);
        }
        assert!(data == expected, "MiB {mib} of {written}");
    }
    client.disconnect().expect("an orderly goodbye");

    // Deleting gives everything back.
    cluster.wait_detached("n1");
    cluster.cli("n1", &["volume", "delete", VOLUME, "--yes"]).expect_code(0);
    wait_for("the devices are empty", PATIENCE, || {
        let nodes = cluster.nodes();
        let used: f64 = nodes.iter().filter_map(|node| api::metric(&node.api, "ashlar_device_used_bytes")).sum();
        if used == 0.0 { Ok(()) } else { Err(format!("{used} bytes in use")) }
    });
}

/// What the command line accepts as the smallest device, the cluster accepts as well.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn the_smallest_device_is_usable() {
    let cluster = Cluster::start("small", &["--size", "64MiB", "--device-size", "256MiB"]);
    cluster.assert_alive("n1");
    let other = cluster.dir().join("other").display().to_string();
    let smaller = ["dev", "--detach", "--device-size", "255MiB", "--dir", &other];
    tools::ashlar("", &smaller).expect_code(2).expect_text(&["256 MiB"]);
}
