//! A block is damaged on every device that answers when the volume opens, and the device that is away has it: the volume
//! waits for that one, and guests that came meanwhile notice a pause and nothing else.

mod support;

use std::thread;
use std::time::Duration;
use support::cluster::open;
use support::damage::{flip, places};
use support::loss::Loss;
use support::manual::ManualCluster;
use support::net::in_own_network;
use support::stalls::start_cluster;
use support::stamp::{BLOCK_BYTES, Content, Stamp, run_of};
use support::{GIB, MIB, report, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const VOLUME: &str = "late";
const WRITER: u64 = 7;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// The block that is damaged, and one that guests write while the volume waits.
const DAMAGED: u64 = 40;
const WRITTEN: u64 = 90;
/// Writes after it: they prove to a store that it was complete.
const LATER: std::ops::Range<u64> = 50..70;

fn device(cluster: &ManualCluster, node: &str) -> std::path::PathBuf {
    cluster.dir().join(node).join("device0.img")
}

/// n3 has the block and is not heard, so that it is not settled; then everybody dies, and it is damaged on n1 and n2.
fn damage_everywhere_but_on_n3(cluster: &mut ManualCluster) {
    cluster.cli("n1", &["volume", "create", VOLUME, "--size", &MIB.to_string()]).expect_code(0);
    let mut client = open(&cluster.uri(VOLUME, "n1"));
    let mut write = |block: u64| client.write(block * BLOCK, &run_of(block, 1, WRITER, 1)).expect("a write");
    (0..8).for_each(&mut write);
    Loss::Mute.strike(cluster, "n3");
    write(DAMAGED);
    LATER.for_each(&mut write);
    cluster.kill_at_once(&["n1", "n2", "n3"]);
    Loss::Mute.undo(cluster, "n3");
    for node in ["n1", "n2", "n3"] {
        let device = device(cluster, node);
        let places = places(&device, WRITER);
        assert!(places.contains_key(&DAMAGED), "{node} has the block");
        if node != "n3" {
            flip(&device, &places, &[DAMAGED]);
        }
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn guests_wait_for_the_member_that_has_the_block() {
    in_own_network(|| {
        let mut cluster = start_cluster("late", GIB, &[]);
        damage_everywhere_but_on_n3(&mut cluster);
        cluster.start_again(&["n1", "n2"]);
        let uri = cluster.uri(VOLUME, "n1");
        let mut reader = wait_for("n1 serves guests", PATIENCE, || {
            support::cluster::try_open(&uri).map_err(|error| error.to_string())
        });
        let mut writer = open(&uri);
        let reading = thread::spawn(move || (reader.read(DAMAGED * BLOCK, BLOCK as u32), reader));
        let writing = thread::spawn(move || (writer.write(WRITTEN * BLOCK, &run_of(WRITTEN, 1, WRITER, 2)), writer));
        let reason = wait_for("the volume waits for n3", PATIENCE, || {
            let reason = cluster.volume("n1", VOLUME)?["reason"].to_string();
            if reason.contains("is damaged on every device that answered; waits 300 s") {
                Ok(reason)
            } else {
                Err(reason)
            }
        });
        report(&reason);
        assert!(!reading.is_finished() && !writing.is_finished(), "nobody was answered");

        cluster.start_again(&["n3"]);
        let (read, mut reader) = reading.join().expect("the reader");
        let read = read.expect("a read");
        assert_eq!(Stamp::read(&read), Content::Whole(Stamp { block: DAMAGED, writer: WRITER, sequence: 1 }));
        let (written, writer) = writing.join().expect("the writer");
        written.expect("a write");
        writer.disconnect().expect("an orderly goodbye");
        let read = reader.read(WRITTEN * BLOCK, BLOCK as u32).expect("a read on the same connection");
        assert_eq!(Stamp::read(&read), Content::Whole(Stamp { block: WRITTEN, writer: WRITER, sequence: 2 }));
        reader.disconnect().expect("an orderly goodbye");

        let log = std::fs::read_to_string(cluster.dir().join("n1").join("log")).expect("a log");
        assert!(log.contains("its successor opens the volume with device"), "the writer gave way");
        let volume = cluster.wait_healthy("n1", VOLUME, PATIENCE);
        assert_eq!(volume["counters"]["lost_blocks"], 0, "{volume}");
        cluster.cli("n1", &["volume", "detach", VOLUME]).expect_code(0);
        support::copies::assert_equal(&cluster, VOLUME, &["n1", "n2", "n3"], MIB);
    });
}
