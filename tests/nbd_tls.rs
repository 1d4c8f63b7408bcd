//! TLS at the NBD doors, with the clients that people have: libnbd (GnuTLS) and qemu.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use support::cluster::{Cluster, open, try_open};
use support::serve::Serve;
use support::tools::{must, run};
use support::{MIB, pki, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// Certificates of a server and its clients, of a client without one, and of a stranger.
struct Pki {
    root: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["known", "nobody", "stranger"] {
            std::fs::create_dir(root.path().join(name)).expect("a folder");
        }
        let pki = Self { root };
        pki::write(&pki.known());
        std::fs::copy(pki.known().join("ca-cert.pem"), pki.nobody().join("ca-cert.pem")).expect("a file");
        pki::write_stranger(&pki.stranger(), &pki.known());
        pki
    }

    fn known(&self) -> std::path::PathBuf {
        self.root.path().join("known")
    }

    fn nobody(&self) -> std::path::PathBuf {
        self.root.path().join("nobody")
    }

    fn stranger(&self) -> std::path::PathBuf {
        self.root.path().join("stranger")
    }

    fn file(&self, name: &str) -> String {
        self.known().join(name).display().to_string()
    }
}

/// A client's URI for TLS.
fn over_tls(uri: &str, certificates: &Path) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!(
        "nbds{}{separator}tls-certificates={}",
        uri.strip_prefix("nbd").expect("an NBD URI"),
        certificates.display()
    )
}

fn file_of_random(path: &Path, bytes: usize) {
    let mut state = 7u64;
    let data: Vec<u8> = (0..bytes / 8).flat_map(|_| support::stamp::next(&mut state).to_le_bytes()).collect();
    std::fs::write(path, data).expect("space for a file");
}

fn fails(program: &str, arguments: &[&str]) -> String {
    let finished = run(program, arguments, PATIENCE);
    assert_ne!(finished.code, Some(0), "{program} {arguments:?} succeeded: {}", finished.text());
    assert!(finished.code.is_some(), "{program} {arguments:?} hangs: {}", finished.text());
    finished.text()
}

/// Copies in and out with both clients, and describes. `uri` without TLS.
fn clients_work(uri: &str, unix_socket: &Path, export: &str, pki: &Pki) {
    let uri = over_tls(uri, &pki.known());
    let dir = pki.root.path();
    let (input, output) = (dir.join("in.raw"), dir.join("out.raw"));
    file_of_random(&input, 16 * MIB as usize);
    let text = |path: &Path| path.display().to_string();
    let info = must("nbdinfo", &["--json", &uri]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_else(|error| panic!("{error}: {info}"));
    assert_eq!(info["TLS"], true, "{info}");
    assert_eq!(info["structured"], true, "{info}");
    must("nbdcopy", &["--flush", &text(&input), &uri]);
    must("nbdcopy", &[&uri, &text(&output)]);
    assert!(std::fs::read(&input).expect("a file") == std::fs::read(&output).expect("a copy"), "the copy differs");
    assert!(must("nbdinfo", &["--map", &uri]).lines().count() >= 1);

    let object = format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=yes,dir={}", pki.known().display());
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export={export},tls-creds=tls0,tls-hostname=localhost",
        unix_socket.display()
    );
    let compared = [
        "compare",
        "--object",
        &object,
        "--image-opts",
        &image,
        &format!("driver=raw,file.driver=file,file.filename={}", text(&input)),
    ];
    let said = must("qemu-img", &compared);
    assert!(said.contains("Images are identical"), "{said}");
    must(
        "qemu-io",
        &[
            "--object",
            &object,
            "--image-opts",
            &image,
            "-c",
            "write -P 0x5a 1M 2M",
            "-c",
            "read -P 0x5a 1M 2M",
            "-c",
            "flush",
        ],
    );
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_served_file() {
    let pki = Pki::new();
    let (cert, key, ca) = (pki.file("server-cert.pem"), pki.file("server-key.pem"), pki.file("ca-cert.pem"));
    let arguments = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca, "--name", "disk"];
    let serve = Serve::start(16 * MIB, &arguments);
    clients_work(&serve.uri("disk"), &serve.socket(), "disk", &pki);
    open(&serve.uri("disk")).read(0, 512).expect("it is not required");
    drop(serve);

    let serve = Serve::start(MIB, &[&arguments[..], &["--tls-required"]].concat());
    assert!(serve.log().contains("nbds+unix:///disk?"), "{}", serve.log());
    must("nbdinfo", &[&over_tls(&serve.uri("disk"), &pki.known())]);
    let refused = try_open(&serve.uri("disk")).expect_err("it is required").to_string();
    assert!(refused.contains("TLS"), "{refused}");
    fails("nbdinfo", &[&over_tls(&serve.uri("disk"), &pki.nobody())]);
    fails("nbdinfo", &[&over_tls(&serve.uri("disk"), &pki.stranger())]);
    wait_for("the reason in the log", PATIENCE, || {
        let log = serve.log();
        if log.contains("peer sent no certificates") && log.contains("a connection ended: invalid peer certificate") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let wrong = run(
        support::tools::ashlar_binary(),
        &["nbd", "serve", "/dev/null", "--tls-cert", &cert, "--tls-key", &pki.file("client-key.pem")],
        PATIENCE,
    );
    wrong.expect_code(2).expect_text(&["the key that it was made for"]);
}

/// A node that listens on TCP as well, with these lines under `nbd`.
fn node(test: &str, pki: &Pki, nbd: &str) -> (Cluster, u16) {
    let port = support::manual::free_ports(1)[0];
    let arguments = ["--nodes", "1", "--replicas", "1", "--size", "16MiB", "--device-size", "384MiB"];
    let cluster = Cluster::start(test, &arguments);
    cluster.dev(["stop"]).expect_code(0);
    cluster.configure(&format!(
        "nbd_address = \"127.0.0.1:{port}\"\nnbd.tls.certificate = \"{}\"\nnbd.tls.key = \"{}\"\nnbd.tls.client_ca = \"{}\"\n{nbd}\n",
        pki.file("server-cert.pem"),
        pki.file("server-key.pem"),
        pki.file("ca-cert.pem"),
    ));
    cluster.start_again(None);
    (cluster, port)
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_volume_for_those_who_want_it() {
    let pki = Pki::new();
    let exports = "nbd.exports = [{ name = \"secret\", tls = \"required\" }, { name = \"his\", allow = [\"cn:client1\"] }, \
                   { name = \"hers\", allow = [\"dns:other.example\"] }]";
    let (cluster, port) = node("tls", &pki, exports);
    for name in ["secret", "his", "hers"] {
        cluster.cli("n1", &["volume", "create", name, "--size", "16MiB", "--replicas", "1"]).expect_code(0);
    }
    let socket = cluster.node("n1").nbd_socket.expect("n1 is a target");
    clients_work(&format!("nbd://localhost:{port}/vol"), &socket, "vol", &pki);
    clients_work(&cluster.uri_of("secret", "n1"), &socket, "secret", &pki);

    let listed = |uri: &str| {
        let text = must("nbdinfo", &["--list", uri]);
        let names = ["vol", "secret", "his", "hers"];
        names.into_iter().filter(|name| text.contains(&format!("export=\"{name}\""))).collect::<Vec<_>>()
    };
    assert_eq!(listed(&cluster.uri_of("", "n1")), ["vol"]);
    assert_eq!(listed(&over_tls(&cluster.uri_of("", "n1"), &pki.known())), ["vol", "secret", "his"]);
    for name in ["secret", "his"] {
        let refused = try_open(&cluster.uri_of(name, "n1")).expect_err("not without TLS").to_string();
        assert!(refused.contains("start TLS first"), "{refused}");
        must("nbdinfo", &[&over_tls(&cluster.uri_of(name, "n1"), &pki.known())]);
    }
    fails("nbdinfo", &[&over_tls(&cluster.uri_of("hers", "n1"), &pki.known())]);
    fails("nbdinfo", &[&over_tls(&cluster.uri_of("vol", "n1"), &pki.nobody())]);
    fails("nbdinfo", &[&over_tls(&cluster.uri_of("vol", "n1"), &pki.stranger())]);
    let log = cluster.log("n1");
    for words in [
        "closing an NBD connection from this machine: TLS failed: peer sent no certificates",
        "invalid peer certificate",
        "an NBD client from this machine may not open export 'hers'",
    ] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    let mut client = open(&cluster.uri_at("n1"));
    client.write(0, &[3; 4096]).expect("a write without TLS");
    client.disconnect().expect("an orderly goodbye");
}

/// The greeting, and the answer to STARTTLS.
fn started(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.read_exact(&mut [0; 18]).expect("a greeting");
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0").expect("STARTTLS");
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[8..16], [0, 0, 0, 5, 0, 0, 0, 1], "not acknowledged");
    stream
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_volume_for_nobody_without_it() {
    let pki = Pki::new();
    let (cluster, port) = node("tlsonly", &pki, "nbd.tls.mode = \"required\"\nnbd.handshake_timeout = \"2s\"");
    let refused = try_open(&cluster.uri_at("n1")).expect_err("TLS is required").to_string();
    assert!(refused.contains("TLS"), "{refused}");
    clients_work(&cluster.uri_at("n1"), &cluster.node("n1").nbd_socket.expect("a target"), "vol", &pki);

    // No TLS where it was promised.
    let mut stream = started(port);
    stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").expect("an option in the clear");
    let mut said = Vec::new();
    drop(stream.read_to_end(&mut said)); // the end, or a reset
    assert!(said.first().is_none_or(|kind| *kind == 21), "not an alert: {said:?}");
    // Nothing at all: the handshake has one time for everything.
    assert_eq!(started(port).read(&mut [0; 1]).expect("the end"), 0);
    let log = cluster.log("n1");
    for words in ["closing an NBD connection from 127.0.0.1: TLS failed: ", "nbd.handshake_timeout"] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    must("nbdinfo", &[&over_tls(&cluster.uri_at("n1"), &pki.known())]);
}

/// A client by hand, with its certificate.
fn by_hand(pki: &Pki) -> rustls::ClientConnection {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let certificate = |name: &str| CertificateDer::from_pem_file(pki.file(name)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(pki.file("client-key.pem")).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("ca-cert.pem")).expect("an authority");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.expect("versions").with_root_certificates(roots);
    let config = config.with_client_auth_cert(vec![certificate("client-cert.pem")], key).expect("a pair");
    let server = "localhost".try_into().expect("a name");
    rustls::ClientConnection::new(std::sync::Arc::new(config), server).expect("a client")
}

/// A client that sends its first record together with the option, behind one that must be answered first.
fn in_one_breath(mut stream: impl Read + Write, pki: &Pki) {
    let mut client = by_hand(pki);
    let mut breath = b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\0\0IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    client.write_tls(&mut breath).expect("memory");
    stream.write_all(&breath).expect("options and a record");
    stream.read_exact(&mut [0; 18]).expect("a greeting");
    // The list ends with an acknowledgement; then comes the one that starts TLS.
    for option in [3u8, 5] {
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header).expect("a reply");
            assert_eq!(header[11], option, "a reply to something else");
            let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
            stream.read_exact(&mut vec![0; length as usize]).expect("its data");
            if header[15] == 1 {
                break;
            }
        }
    }
    let mut inside = rustls::Stream::new(&mut client, &mut stream);
    inside.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").expect("ABORT inside TLS");
    let mut reply = [0; 20];
    inside.read_exact(&mut reply).expect("a reply inside TLS");
    assert_eq!(reply[8..16], [0, 0, 0, 2, 0, 0, 0, 1], "not acknowledged");
    assert_eq!(inside.read(&mut [0; 1]).expect("the end of TLS, in order"), 0);
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn a_client_need_not_wait_for_the_acknowledgement() {
    let pki = Pki::new();
    let connect = |path: &Path| {
        let stream = std::os::unix::net::UnixStream::connect(path).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    };
    let (cert, key, ca) = (pki.file("server-cert.pem"), pki.file("server-key.pem"), pki.file("ca-cert.pem"));
    let serve = Serve::start(MIB, &["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca]);
    in_one_breath(connect(&serve.socket()), &pki);
    let (cluster, _) = node("breath", &pki, "");
    in_one_breath(connect(&cluster.node("n1").nbd_socket.expect("n1 is a target")), &pki);
}
