//! What a client left in a connection that it has hung up never lands after what its successor wrote; what it sent before
//! a goodbye is done.

mod support;

use ashlar_nbd::client::{Client, Socket};
use ashlar_nbd::wire;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::cluster::{Cluster, open};
use support::process;
use support::report;
use support::serve::Serve;

const BLOCK: usize = 4096;
const OLD: u8 = 1;
const NEW: u8 = 2;
const ROUNDS: u8 = 5;

/// A server that can be held while a client fills its sockets.
struct Server<'a> {
    uri: String,
    /// SIGSTOP and SIGCONT.
    signal: &'a dyn Fn(i32),
}

/// With extended headers: what our own client agrees on.
fn request(command: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    let flags = if data.is_empty() { 0 } else { wire::COMMAND_FLAG_PAYLOAD_LEN };
    let mut bytes = header(flags, command, offset, data.len() as u64);
    bytes.extend(data);
    bytes
}

fn header(flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = wire::MAGIC_REQUEST_EXTENDED.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The socket of a client that has the export open.
fn opened(uri: &str) -> (Client<Socket>, UnixStream) {
    let client = open(uri);
    let Socket::Unix(stream) = client.stream() else { unreachable!("the URI names a unix socket") };
    let raw = stream.try_clone().expect("a second handle");
    (client, raw)
}

/// Sends as much as the socket takes while nobody reads at the other end.
fn fill(mut raw: &UnixStream, bytes: &[u8]) -> usize {
    raw.set_nonblocking(true).expect("a mode");
    let mut sent = 0;
    while sent < bytes.len() {
        match raw.write(&bytes[sent..]) {
            Ok(some) => sent += some,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("the server is gone: {error}"),
        }
    }
    raw.set_nonblocking(false).expect("a mode");
    sent
}

/// Reads until the server closes.
fn drain(mut raw: &UnixStream) {
    raw.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    match raw.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is not closed"),
    }
}

/// A client floods the server, half closes, and a second one writes the same block.
fn newer_data_stays(server: &Server<'_>, round: u8) {
    let (first, raw) = opened(&server.uri);
    let flood = request(wire::COMMAND_WRITE, 512, &[OLD + 2 * round; 512]).repeat(1000);
    (server.signal)(libc::SIGSTOP);
    let sent = fill(&raw, &flood);
    raw.shutdown(Shutdown::Write).expect("half of it closed");
    (server.signal)(libc::SIGCONT);
    assert!(sent > 128 * 540, "more than a session takes at once: {sent}");

    let mut second = open(&server.uri);
    second.write(0, &[NEW + 2 * round; BLOCK]).expect("a newer write");
    drain(&raw); // all of the first is over
    let found = second.read(0, BLOCK as u32).expect("a read");
    assert!(found == [NEW + 2 * round; BLOCK], "round {round}: a late write landed");
    second.disconnect().expect("an orderly goodbye");
    drop(first);
}

/// A client sends writes and a goodbye, and is gone without having read a reply.
fn all_before_a_goodbye_is_done(server: &Server<'_>) {
    let (first, raw) = opened(&server.uri);
    let mut bytes = Vec::new();
    for block in 0..24 {
        bytes.extend(request(wire::COMMAND_WRITE, block * BLOCK as u64, &[block as u8 + 100; BLOCK]));
    }
    bytes.extend(request(wire::COMMAND_DISC, 0, &[]));
    (server.signal)(libc::SIGSTOP);
    assert_eq!(fill(&raw, &bytes), bytes.len(), "the socket has room");
    drop((first, raw));
    (server.signal)(libc::SIGCONT);

    let mut second = open(&server.uri);
    for block in 0..24 {
        let found = second.read(block * BLOCK as u64, BLOCK as u32).expect("a read");
        assert!(found == [block as u8 + 100; BLOCK], "block {block} is not there");
    }
    second.disconnect().expect("an orderly goodbye");
}

/// The same for a request that the server carries out in several steps.
fn steps_before_a_goodbye_are_done(server: &Server<'_>) {
    const ZEROED: u64 = 16 << 20;
    let last = ZEROED - BLOCK as u64;
    let (mut first, raw) = opened(&server.uri);
    first.write(last, &[7; BLOCK]).expect("a write");
    let mut bytes = header(wire::COMMAND_FLAG_NO_HOLE, wire::COMMAND_WRITE_ZEROES, 0, ZEROED);
    bytes.extend(request(wire::COMMAND_DISC, 0, &[]));
    assert_eq!(fill(&raw, &bytes), bytes.len(), "the socket has room");
    drop((first, raw));

    let mut second = open(&server.uri);
    assert!(second.read(last, BLOCK as u32).expect("a read") == [0; BLOCK], "the last step is not done");
    second.disconnect().expect("an orderly goodbye");
}

/// A client announces the longest write and sends none of it.
fn a_write_that_stops_keeps_nobody_out(server: &Server<'_>) {
    let (first, raw) = opened(&server.uri);
    let bytes = header(wire::COMMAND_FLAG_PAYLOAD_LEN, wire::COMMAND_WRITE, 0, 64 << 20);
    assert_eq!(fill(&raw, &bytes), bytes.len(), "the socket has room");
    let (mut second, patience) = opened(&server.uri);
    patience.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    for round in 0..20 {
        second.write(0, &[round; BLOCK]).expect("a write beside one that stopped");
        assert!(second.read(0, BLOCK as u32).expect("a read beside it") == [round; BLOCK]);
    }
    second.disconnect().expect("an orderly goodbye");
    drop((first, raw));
}

/// A client with two connections floods one, hangs it up, and writes the same block on the other.
fn what_is_sent_again_beside_stays(server: &Server<'_>, round: u8) {
    let (first, raw) = opened(&server.uri);
    let mut beside = open(&server.uri);
    let flood = request(wire::COMMAND_WRITE, 512, &[OLD + 2 * round; 512]).repeat(1000);
    (server.signal)(libc::SIGSTOP);
    fill(&raw, &flood);
    raw.shutdown(Shutdown::Write).expect("half of it closed");
    (server.signal)(libc::SIGCONT);
    beside.write(0, &[NEW + 2 * round; BLOCK]).expect("a newer write");
    drain(&raw);
    let found = beside.read(0, BLOCK as u32).expect("a read");
    assert!(found == [NEW + 2 * round; BLOCK], "round {round}: a late write landed");
    beside.disconnect().expect("an orderly goodbye");
    drop(first);
}

fn all(server: &Server<'_>) {
    for round in 0..ROUNDS {
        newer_data_stays(server, round);
        what_is_sent_again_beside_stays(server, round + ROUNDS);
    }
    all_before_a_goodbye_is_done(server);
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn of_a_served_file() {
    let serve = Serve::start(1 << 20, &[]);
    all(&Server { uri: serve.uri(""), signal: &|signal| serve.signal(signal) });
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn of_a_volume() {
    let arguments = ["--nodes", "1", "--replicas", "1", "--size", "64MiB", "--device-size", "384MiB"];
    let cluster = Cluster::start("late", &arguments);
    let (pid, dir) = (cluster.node("n1").pid.expect("it runs"), cluster.dir().to_owned());
    let signal = |signal| assert!(process::signal(pid, &dir, signal), "the daemon is gone");
    let server = Server { uri: cluster.uri_at("n1"), signal: &signal };
    all(&server);
    steps_before_a_goodbye_are_done(&server);
    a_write_that_stops_keeps_nobody_out(&server);
    report("late requests: none landed");
}
