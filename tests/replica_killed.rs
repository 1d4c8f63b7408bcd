//! One node that is not the target dies by SIGKILL under load and comes back: no error, a short stall, and every copy
//! is whole again.

mod support;

use std::time::{Duration, Instant};
use support::MIB;
use support::cluster::Cluster;
use support::fio::{Verify, expect_clean};
use support::prober::Prober;
use support::report;
use support::stamp::BLOCK_BYTES;

const STALL_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
const LOAD_BYTES: u64 = 512 * MIB;

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn guests_do_not_notice() {
    let cluster = Cluster::start("replica", &["--size", "640MiB", "--device-size", "1GiB"]);
    let uri = cluster.uri_at("n1");
    let prober = Prober::start(&uri, 600 * MIB / BLOCK_BYTES as u64);
    let load = Verify { uri: uri.clone(), offset: 0, size: LOAD_BYTES, depth: 32, jobs: 1, backlog: 0 };
    let mut fio = load.start();
    prober.wait_writes(150, PATIENCE);

    assert!(fio.is_running(), "the load ended before the node was killed");
    cluster.kill("n3");
    let killed = Instant::now();
    prober.wait_writes(300, PATIENCE);
    assert!(fio.is_running(), "the load ended while the node was down: {:?}", killed.elapsed());
    let down = killed.elapsed();
    let took = cluster.start_again(Some("n3"));
    report(&format!("n3 was down for {:.1} s, ready {:.1} s after its start", down.as_secs_f64(), took.as_secs_f64()));

    cluster.wait_health("n1", "healthy", PATIENCE);
    report(&format!(
        "healthy {:.1} s after the kill, under load: {}",
        killed.elapsed().as_secs_f64(),
        fio.is_running()
    ));
    let done = expect_clean(&fio.finish(Duration::from_secs(180)));
    report(&format!("fio QD32: {done}"));
    let volume = cluster.wait_health("n1", "healthy", PATIENCE);
    for lane in volume["lanes"].as_array().expect("lanes") {
        assert_eq!(lane["in_sync"].as_array().map(Vec::len), Some(3), "{lane}");
    }
    let probes = prober.finish();
    report(&format!("prober beside fio: {probes}"));
    assert!(probes.longest < STALL_MAX, "{probes}");
    assert!(done.longest_write_ms < STALL_MAX.as_secs_f64() * 1e3, "{done}");
}

/// Without a load beside it: what the death of a replica itself costs.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn each_replica_in_turn_costs_a_quiet_guest_nothing() {
    let cluster = Cluster::start("turn", &["--size", "256MiB", "--device-size", "512MiB"]);
    let prober = Prober::start(&cluster.uri_at("n1"), 0);
    for node in ["n2", "n3"] {
        prober.wait_writes(50, PATIENCE);
        cluster.kill(node);
        prober.wait_writes(100, PATIENCE);
        cluster.start_again(Some(node));
        cluster.wait_health("n1", "healthy", PATIENCE);
    }
    let probes = prober.finish();
    report(&format!("quiet prober over two kills: {probes}"));
    assert!(probes.longest < STALL_MAX, "{probes}");
}
