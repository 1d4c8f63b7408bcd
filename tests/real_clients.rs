//! Real NBD clients against a real cluster: libnbd's tools, qemu's tools, nbdkit and fio. Needs the Debian packages
//! `fio libnbd-bin qemu-utils nbdkit`.

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;
use support::cluster::Cluster;
use support::fio::{Verify, expect_clean};
use support::stamp::{BLOCK_BYTES, next};
use support::tools::{must, run};
use support::{GIB, KIB, MIB, report};

const SLOW: Duration = Duration::from_secs(120);

/// A file of bytes that repeat nowhere, with a hole of zeroes in the middle.
fn random_file(path: &Path, bytes: u64) {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path).expect("a new file"));
    let (mut state, mut chunk) = (7, vec![0; MIB as usize]);
    for at in (0..bytes).step_by(chunk.len()) {
        if at >= bytes / 2 && at < bytes / 2 + bytes / 16 {
            chunk.fill(0);
        } else {
            chunk.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next(&mut state).to_le_bytes()));
        }
        file.write_all(&chunk).expect("space for a file");
    }
    file.flush().expect("space for a file");
}

fn assert_same(one: &Path, other: &Path) {
    let open = |path: &Path| std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut left, mut right) = (open(one), open(other));
    let length = left.metadata().expect("its length").len();
    assert_eq!(length, right.metadata().expect("its length").len(), "lengths differ");
    let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for at in (0..length).step_by(a.len()) {
        left.read_exact(&mut a).expect("a whole MiB");
        right.read_exact(&mut b).expect("a whole MiB");
        assert!(a == b, "different bytes in the MiB at {at}");
    }
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn tools_see_and_copy_the_volume() {
    let cluster = Cluster::start("tools", &["--size", "1GiB", "--device-size", "2GiB"]);
    let (uri, dir) = (cluster.uri_at("n1"), cluster.dir());
    nbdinfo(&cluster, &uri);

    let (input, output) = (dir.join("in.raw"), dir.join("out.raw"));
    random_file(&input, GIB);
    let (input_text, output_text) = (input.to_str().expect("UTF-8"), output.to_str().expect("UTF-8"));
    let copied = run("nbdcopy", &["--flush", input_text, &uri], SLOW);
    copied.expect_code(0);
    report(&format!("nbdcopy in: 1 GiB in {:.1} s", copied.took.as_secs_f64()));
    let copied = run("nbdcopy", &[&uri, output_text], SLOW);
    copied.expect_code(0);
    report(&format!("nbdcopy out: 1 GiB in {:.1} s", copied.took.as_secs_f64()));
    assert_same(&input, &output);
    std::fs::remove_file(&output).expect("the copy");

    // What was zeroes in the file takes no space in the volume.
    let map = must("nbdinfo", &["--map", &uri]);
    assert!(map.lines().any(|line| line.contains("hole")), "{map}");

    qemu_img(&uri, dir, input_text);
    nbdkit(&uri, dir, &input);
    std::fs::remove_file(&input).expect("the input");
    qemu_io(&uri);
    assert_eq!(cluster.show_volume("n1")["health"], "healthy");
}

fn nbdinfo(cluster: &Cluster, uri: &str) {
    let json = must("nbdinfo", &["--json", uri]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    assert_eq!(export["export-name"], "vol");
    assert_eq!(export["export-size"], GIB);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for promise in ["can_multi_conn", "can_flush", "can_fua", "can_trim", "can_zero", "can_df"] {
        assert_eq!(export[promise], true, "{promise}: {export}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4 * KIB);
    assert_eq!(export["block_size_maximum"], 32 * MIB);

    let socket = cluster.node("n1").nbd_socket.expect("n1 is a target");
    let list = must("nbdinfo", &["--list", &format!("nbd+unix:///?socket={}", socket.display())]);
    assert!(list.contains("export=\"vol\""), "{list}");

    // Never written: one hole.
    let map = must("nbdinfo", &["--map", uri]);
    let words: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words, [["0", "1073741824", "3", "hole,zero"]]);
}

fn qemu_img(uri: &str, dir: &Path, input: &str) {
    let copy = dir.join("copy.qcow2");
    let copy = copy.to_str().expect("UTF-8");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, copy], SLOW).expect_code(0);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", copy, input], SLOW)
        .expect_code(0)
        .expect_text(&["Images are identical"]);
    // Back in, over what is there.
    run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", copy, uri], SLOW).expect_code(0);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", uri, input], SLOW)
        .expect_code(0)
        .expect_text(&["Images are identical"]);
    std::fs::remove_file(copy).expect("the copy");
}

/// Reads the volume through nbdkit's nbd plugin, as a proxy would.
fn nbdkit(uri: &str, dir: &Path, input: &Path) {
    let through = dir.join("through.raw");
    let run_line = format!("nbdcopy \"$uri\" {}", through.display());
    run("nbdkit", &["--exit-with-parent", "-U", "-", "nbd", &format!("uri={uri}"), "--run", &run_line], SLOW)
        .expect_code(0);
    assert_same(input, &through);
    std::fs::remove_file(&through).expect("the copy");
}

fn qemu_io(uri: &str) {
    let commands = [
        "write -P 0xa1 0 64k",
        "write -f -P 0xa2 64k 64k",
        "write -z 128k 64k",
        "write -z -u 192k 64k",
        "write -P 0xa3 511k 3k",
        "write -P 0xa6 4095k 2k",
        "flush",
        "aio_write -P 0xa4 1M 2M",
        "aio_write -P 0xa5 5M 9M",
        "aio_flush",
        "read -P 0xa1 0 64k",
        "read -P 0xa2 64k 64k",
        "read -P 0 128k 128k",
        "read -P 0xa3 511k 3k",
        "read -P 0xa6 4095k 2k",
        "read -P 0xa4 1M 2M",
        "read -P 0xa5 5M 9M",
        "discard 5M 8M",
        "read -P 0 5M 8M",
        "read -P 0xa5 13M 1M",
        "read 0 32M",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    let text = must("qemu-io", &arguments);
    assert!(!text.contains("failed") && !text.contains("rror"), "{text}");
    assert!(text.contains("discard 8388608/8388608"), "{text}");
}

#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn fio_finds_every_block_as_it_wrote_it() {
    let cluster = Cluster::start("fio", &["--size", "640MiB", "--device-size", "1GiB"]);
    let uri = cluster.uri_at("n1");
    let load = |offset, size, depth, jobs| Verify { uri: uri.clone(), offset, size, depth, jobs, backlog: 0 };
    for (what, load) in [
        ("QD1", load(0, 32 * MIB, 1, 1)),
        ("QD32", load(32 * MIB, 256 * MIB, 32, 1)),
        ("QD32 again, overwriting", load(32 * MIB, 256 * MIB, 32, 1)),
        ("four jobs of QD8", load(300 * MIB, 64 * MIB, 8, 4)),
    ] {
        let done = expect_clean(&load.start().finish(SLOW));
        assert_eq!(done.writes, load.size * u64::from(load.jobs) / BLOCK_BYTES as u64, "{what}");
        report(&format!("fio {what}: {done}"));
    }
    assert_eq!(cluster.show_volume("n1")["health"], "healthy");
}
