//! Real NBD clients against the session in the blocking server: libnbd's tools, qemu's tools and
//! fio, over a Unix socket. Needs the Debian packages `libnbd-bin`, `python3-libnbd`, `qemu-utils`
//! and `fio`; without them the tests fail and say so.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use support::{ELSEWHERE, ELSEWHERE_MESSAGE, Server, export};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 16 * MIB;

/// Runs a tool for at most a minute. Returns whether it succeeded, and all it printed.
fn try_run(directory: &Path, tool: &str, arguments: &[&str]) -> (bool, String) {
    let installed = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", tool]).output().expect("a shell");
    assert!(
        installed.status.success(),
        "{tool} is not installed: apt-get install libnbd-bin python3-libnbd qemu-utils fio"
    );
    let output = Command::new("timeout")
        .args(["60", tool])
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("failed to run {tool}: {error}"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

fn run(directory: &Path, tool: &str, arguments: &[&str]) -> String {
    let (success, text) = try_run(directory, tool, arguments);
    assert!(success, "{tool} {arguments:?} failed:\n{text}");
    text
}

fn start() -> Server {
    Server::start(vec![export("disk", DISK_BYTES), export("other", MIB)])
}

/// Bytes that repeat nowhere nearby.
fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
}

fn has(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn nbdinfo_describes_and_lists() {
    let server = start();
    let directory = server.directory.path();
    let text = run(directory, "nbdinfo", &["--json", &server.uri("disk")]);
    has(&text, &["\"protocol\": \"newstyle-fixed\"", "\"structured\": true", "\"export-size\": 16777216"]);
    has(&text, &["\"base:allocation\"", "\"description\": \"disk in memory\""]);
    has(&text, &["\"can_multi_conn\": true", "\"can_fua\": true", "\"can_flush\": true", "\"can_trim\": true"]);
    has(&text, &["\"can_zero\": true", "\"can_fast_zero\": true", "\"can_df\": true", "\"can_cache\": true"]);
    has(&text, &["\"block_size_minimum\": 512", "\"block_size_preferred\": 4096", "\"block_size_maximum\": 33554432"]);

    let text = run(directory, "nbdinfo", &["--list", &server.uri("")]);
    has(&text, &["export=\"disk\"", "export=\"other\"", "description: other in memory"]);

    // qemu shows a refusal's message; libnbd only its kind.
    let (success, text) = try_run(directory, "qemu-img", &["info", &server.uri(ELSEWHERE)]);
    assert!(!success);
    has(&text, &[ELSEWHERE_MESSAGE]);
    let (success, text) = try_run(directory, "nbdinfo", &[&server.uri("none")]);
    assert!(!success);
    has(&text, &["No such file or directory for export: none"]);
    server.assert_no_faults();
}

#[test]
fn nbdcopy_in_and_out() {
    let server = start();
    let directory = server.directory.path();
    let mut data = pattern(DISK_BYTES);
    data[4 << 20..6 << 20].fill(0);
    std::fs::write(directory.join("in.img"), &data).unwrap();
    run(directory, "nbdcopy", &["--flush", "in.img", &server.uri("disk")]);
    assert!(server.devices.0[0].contents() == data);
    assert!(server.devices.0[0].flushes.load(Ordering::Relaxed) > 0);
    run(directory, "nbdcopy", &[&server.uri("disk"), "out.img"]);
    assert!(std::fs::read(directory.join("out.img")).unwrap() == data);
    run(directory, "nbdcopy", &["--synchronous", "--no-extents", &server.uri("disk"), "sync.img"]);
    assert!(std::fs::read(directory.join("sync.img")).unwrap() == data);

    // What nbdcopy found to be zero was never allocated.
    let text = run(directory, "nbdinfo", &["--map", &server.uri("disk")]);
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected =
        [["0", "4194304", "0", "data"], ["4194304", "2097152", "3", "hole,zero"], ["6291456", "10485760", "0", "data"]];
    assert_eq!(words, expected);
    server.assert_no_faults();
}

#[test]
fn qemu_io_reads_and_writes() {
    let server = start();
    let directory = server.directory.path();
    let commands = [
        "write -P 0xa1 0 64k",
        "write -f -P 0xa2 64k 64k",
        "write -z 128k 64k",
        "write -z -u 192k 64k",
        "write -P 0xa3 511k 3k",
        "flush",
        "aio_write -P 0xa4 1M 2M",
        "aio_write -P 0xa5 3M 2M",
        "aio_flush",
        "read -P 0xa1 0 64k",
        "read -P 0xa2 64k 64k",
        "read -P 0 128k 128k",
        "read -P 0xa3 511k 3k",
        "read -P 0xa4 1M 2M",
        "read -P 0xa5 3M 2M",
        "discard 0 64k",
        "read 0 16M",
        "map",
    ];
    let uri = server.uri("disk");
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&uri);
    let text = run(directory, "qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
    has(&text, &["discard 65536/65536", "read 16777216/16777216"]);
    server.assert_no_faults();
}

#[test]
fn qemu_img_converts() {
    let server = start();
    let directory = server.directory.path();
    let mut data = pattern(DISK_BYTES);
    data[MIB as usize..8 << 20].fill(0);
    std::fs::write(directory.join("in.raw"), &data).unwrap();
    let uri = server.uri("disk");
    run(directory, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "in.raw", &uri]);
    assert!(server.devices.0[0].contents() == data);
    run(directory, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, "out.qcow2"]);
    let text = run(directory, "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", "out.qcow2", "in.raw"]);
    has(&text, &["Images are identical"]);
    has(&run(directory, "qemu-img", &["info", &uri]), &["16 MiB"]);
    server.assert_no_faults();
}

#[test]
fn fio_verifies() {
    let server = start();
    let uri = format!("--uri={}", server.uri("disk"));
    let common = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=0"];
    let more = ["--size=16m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64"];
    let text = run(server.directory.path(), "fio", &[common, more].concat());
    has(&text, &["err= 0"]);
    assert!(server.devices.0[0].flushes.load(Ordering::Relaxed) > 0);
    server.assert_no_faults();
}

/// Illegal requests from libnbd with its own checks off: each must get its error number, and the
/// connection must stay in step.
const ABUSE: &str = r#"
import errno, nbd, sys
socket, elsewhere = sys.argv[1:3]
SIZE = 16 << 20

h = nbd.NBD()
h.set_opt_mode(True)
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_MASK)
h.connect_unix(socket)
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["disk", "other"], names
contexts = []
h.add_meta_context("base:allocation")
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
for name in ["none", elsewhere, "x" * 4096]:
    h.set_export_name(name)
    try:
        h.opt_go()
        raise SystemExit(f"{name[:20]} was opened")
    except nbd.Error as error:
        expected = errno.ENOTSUP if name == elsewhere else errno.ENOENT
        assert error.errnum == expected, error.string
h.set_export_name("disk")
h.opt_info()
h.opt_go()
h.set_strict_mode(0)

def refused(expected, what, call):
    try:
        call()
        raise SystemExit(f"{what} was accepted")
    except nbd.Error as error:
        assert error.errnum == expected, f"{what}: {error.errno} {error.string}"
    h.pwrite(b"\x5a" * 512, 1024)
    assert h.pread(512, 1024) == bytearray(b"\x5a" * 512), what

nothing = lambda *_: 0
block = b"\x11" * 512
refused(errno.EINVAL, "read after the end", lambda: h.pread(512, SIZE))
refused(errno.EINVAL, "read over the end", lambda: h.pread(1024, SIZE - 512))
refused(errno.ENOSPC, "write after the end", lambda: h.pwrite(block, SIZE))
refused(errno.ENOSPC, "write far after the end", lambda: h.pwrite(block, 1 << 62))
refused(errno.ENOSPC, "zero after the end", lambda: h.zero(512, SIZE))
refused(errno.EINVAL, "trim after the end", lambda: h.trim(512, SIZE))
refused(errno.EINVAL, "cache after the end", lambda: h.cache(512, SIZE))
refused(errno.EINVAL, "status after the end", lambda: h.block_status(512, SIZE, nothing))
refused(errno.EINVAL, "unaligned read", lambda: h.pread(512, 1))
refused(errno.EINVAL, "unaligned write", lambda: h.pwrite(block, 100))
refused(errno.EINVAL, "short write", lambda: h.pwrite(b"x", 0))
refused(errno.EINVAL, "empty write", lambda: h.pwrite(b"", 0))
refused(errno.EINVAL, "empty trim", lambda: h.trim(0, 0))
refused(errno.EINVAL, "empty zero", lambda: h.zero(0, 0))
refused(errno.EINVAL, "write with REQ_ONE", lambda: h.pwrite(block, 0, nbd.CMD_FLAG_REQ_ONE))
refused(errno.EINVAL, "read with NO_HOLE", lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE))
refused(errno.EINVAL, "write with an unknown flag", lambda: h.pwrite(block, 0, 1 << 9))
refused(errno.EINVAL, "trim with DF", lambda: h.trim(512, 0, nbd.CMD_FLAG_DF))
refused(errno.ENOSPC, "write of 40 MiB over the end", lambda: h.pwrite(bytes(40 << 20), 0))
refused(errno.ENOTSUP, "fast zero", lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))
assert len(h.pread(512, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_DF)) == 512
h.flush(nbd.CMD_FLAG_FUA)
entries = []
h.block_status(SIZE, 0, lambda context, offset, found, error: entries.extend(found), nbd.CMD_FLAG_REQ_ONE)
assert entries == [4096, 0], entries
h.shutdown()
print("all refused")
"#;

#[test]
fn libnbd_with_its_checks_off_is_refused_politely() {
    let server = start();
    let socket = server.socket();
    let arguments = ["-c", ABUSE, socket.to_str().unwrap(), ELSEWHERE];
    let (success, text) = try_run(server.directory.path(), "/usr/bin/python3", &arguments);
    assert!(!text.contains("No module named 'nbd'"), "python3-libnbd is not installed: apt-get install python3-libnbd");
    assert!(success, "{text}");
    has(&text, &["all refused"]);
    server.assert_no_faults();
}
