//! Who comes in by the NBD doors: limits, sizes, maps, with real clients.

mod support;

use ashlar_nbd::client::ClientError;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::cluster::{Cluster, open, try_open};
use support::serve::Serve;
use support::tools::must;
use support::{GIB, MIB, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// One node with a volume, started again with these lines in its configuration.
fn configured(test: &str, size: &str, lines: &str) -> Cluster {
    let arguments = ["--nodes", "1", "--replicas", "1", "--size", size, "--device-size", "2GiB"];
    let cluster = Cluster::start(test, &arguments);
    cluster.dev(["stop"]).expect_code(0);
    cluster.configure(lines);
    cluster.start_again(None);
    cluster
}

fn connections(cluster: &Cluster) -> f64 {
    cluster.metric("n1", "ashlar_nbd_connections")
}

/// True if the server closes without a greeting.
fn is_turned_away(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.read(&mut [0; 18]).expect("a greeting or the end") == 0
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_daemon_keeps_its_limits() {
    let lines =
        "nbd = { connections_max = 5, export_connections_max = 2, handshakes_max = 3, handshake_timeout = \"2s\" }";
    let cluster = configured("limits", "64MiB", lines);
    let socket = cluster.node("n1").nbd_socket.expect("n1 is a target");
    let connect = || UnixStream::connect(&socket).expect("a connection");

    let silent: Vec<UnixStream> = (0..3).map(|_| connect()).collect();
    assert!(silent.iter().all(|stream| !is_turned_away(stream)));
    assert!(is_turned_away(&connect()), "three are in their handshake");
    for mut stream in &silent {
        assert_eq!(stream.read(&mut [0; 18]).expect("the end"), 0, "it said nothing for two seconds");
    }
    wait_until("their end is known", PATIENCE, || connections(&cluster) == 0.0);

    let mut first = open(&cluster.uri_at("n1"));
    let second = open(&cluster.uri_at("n1"));
    match try_open(&cluster.uri_at("n1")) {
        Err(ClientError::Refused { message, .. }) => assert!(message.contains("export_connections_max"), "{message}"),
        other => panic!("a third connection was not refused: {:?}", other.map(|client| client.export().clone())),
    }
    // One that is gone makes room at once.
    drop(second);
    let second = open(&cluster.uri_at("n1"));
    let silent: Vec<UnixStream> = (0..3).map(|_| connect()).collect();
    assert!(silent.iter().all(|stream| !is_turned_away(stream)));
    assert!(is_turned_away(&connect()), "five are connected");
    first.write(0, &[7; 4096]).expect("those who are in go on");
    let log = cluster.log("n1");
    for words in ["nbd.handshakes_max", "nbd.handshake_timeout"] {
        assert!(log.contains(words), "{words} is not in the log");
    }
    drop((first, second, silent));
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_large_map_is_one_answer() {
    let cluster = configured("map", "1GiB", "");
    let mut client = open(&cluster.uri_at("n1"));
    let holes = client.block_status(0, GIB).expect("a map");
    assert_eq!(holes.iter().map(|extent| (extent.length_bytes, extent.hole)).collect::<Vec<_>>(), [(GIB, true)]);
    for mib in (0..1024).step_by(100) {
        client.write(mib * MIB + 8192, &[7; 4096]).expect("a write");
    }
    let found = client.block_status(0, GIB).expect("a map");
    assert_eq!(found.len(), 23, "{found:?}");
    assert_eq!(found.iter().map(|extent| extent.length_bytes).sum::<u64>(), GIB);
    let holes: Vec<bool> = found.iter().map(|extent| extent.hole).collect();
    assert!(holes.iter().enumerate().all(|(at, hole)| *hole == (at % 2 == 0)), "{found:?}");
    client.disconnect().expect("an orderly goodbye");
    let map = must("nbdinfo", &["--map", &cluster.uri_at("n1")]);
    assert_eq!(map.lines().count(), 23, "{map}");
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_served_file_has_its_present_size() {
    let serve = Serve::start(MIB, &[]);
    let size = || must("nbdinfo", &["--size", &serve.uri("")]).trim().to_owned();
    assert_eq!(size(), MIB.to_string());
    let mut before = open(&serve.uri(""));
    let disk = std::fs::OpenOptions::new().write(true).open(serve.dir().join("disk")).expect("the file");
    disk.set_len(3 * MIB).expect("another size");
    assert_eq!(size(), (3 * MIB).to_string());
    assert!(before.write(2 * MIB, &[1; 512]).is_err(), "it was told of 1 MiB");
    let mut after = open(&serve.uri(""));
    after.write(2 * MIB, &[1; 512]).expect("a write behind the former end");
    after.disconnect().expect("an orderly goodbye");
    wait_for("the log is quiet", PATIENCE, || if serve.log().contains("panicked") { Err(serve.log()) } else { Ok(()) });
}

/// What python3-libnbd says of a read-only export when it tries all the same.
const WRITES_ANYWAY: &str = "
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
try:
    h.pwrite(b'x' * 512, 0)
    raise SystemExit('it was written')
except nbd.Error as error:
    assert error.errno == 'EPERM', error
h.shutdown()
";

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn exports_are_for_whom_the_configuration_says() {
    let port = support::manual::free_ports(1)[0];
    let lines = format!(
        "nbd_address = \"127.0.0.1:{port}\"\nnbd = {{ exports = [{{ name = \"vol\", read_only = true }}, \
         {{ name = \"near\", allow = [\"unix\"] }}, {{ name = \"far\", allow = [\"127.0.0.0/8\"] }}, \
         {{ name = \"*\", allow = [\"192.0.2.0/24\"] }}] }}"
    );
    let cluster = configured("policy", "64MiB", &lines);
    for name in ["near", "far", "nobody"] {
        cluster.cli("n1", &["volume", "create", name, "--size", "64MiB", "--replicas", "1"]).expect_code(0);
    }
    let tcp = |name: &str| format!("nbd://127.0.0.1:{port}/{name}");
    let unix = |name: &str| cluster.uri_of(name, "n1");

    must("/usr/bin/python3", &["-c", WRITES_ANYWAY, &unix("vol")]);
    let info = must("nbdinfo", &[&tcp("vol")]);
    assert!(info.contains("is_read_only: true"), "{info}");
    for (uri, admitted) in [
        (unix("near"), true),
        (tcp("near"), false),
        (unix("far"), false),
        (tcp("far"), true),
        (unix("nobody"), false),
        (tcp("nobody"), false),
    ] {
        match try_open(&uri) {
            Ok(mut client) => {
                assert!(admitted, "{uri} was opened");
                client.write(0, &[7; 4096]).expect("a write");
                client.disconnect().expect("an orderly goodbye");
            }
            Err(ClientError::Refused { message, .. }) => {
                assert!(!admitted, "{uri}: {message}");
                assert!(message.contains("nbd.exports"), "{message}");
            }
            Err(error) => panic!("{uri}: {error}"),
        }
    }
    let listed = |uri: &str| {
        let text = must("nbdinfo", &["--list", uri]);
        let names = ["vol", "near", "far", "nobody"];
        names.into_iter().filter(|name| text.contains(&format!("export=\"{name}\""))).collect::<Vec<_>>()
    };
    assert_eq!(listed(&unix("")), ["vol", "near"]);
    assert_eq!(listed(&tcp("")), ["vol", "far"]);
    assert!(cluster.log("n1").contains("an NBD client from 127.0.0.1 may not open export 'near'"));
}

/// A client that dribbles bytes of its handshake does not hold its place for ever.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_dribbling_client_of_a_served_file_is_sent_away() {
    let serve = Serve::start(MIB, &["--connections-max", "1"]);
    wait_for("the only place is free", PATIENCE, || {
        try_open(&serve.uri("")).map(drop).map_err(|error| error.to_string())
    });
    let mut stream = wait_for("the only place is free again", PATIENCE, || {
        let mut stream = UnixStream::connect(serve.socket()).map_err(|error| error.to_string())?;
        stream.read_exact(&mut [0; 18]).map(|()| stream).map_err(|error| error.to_string())
    });
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let began = std::time::Instant::now();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x10\0").expect("an option of 4 KiB");
    // A byte for each time that nothing is heard.
    while let Err(error) = stream.read(&mut [0; 1]) {
        assert!(began.elapsed() < PATIENCE, "it is still there: {error}");
        if stream.write_all(&[0]).is_err() {
            break;
        }
    }
    assert!(began.elapsed() > Duration::from_secs(8), "it had ten seconds");
    wait_for("the reason", PATIENCE, || {
        let log = serve.log();
        if log.contains("its client opened no export within 10 s") { Ok(()) } else { Err(log) }
    });
    open(&serve.uri("")).disconnect().expect("an orderly goodbye");
}
