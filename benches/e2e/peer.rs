//! How fast this machine is today: a block server that everybody has, under the same loads in the same run.
//!
//! Bars were set on one machine on one day. What the peer gave there is recorded, so what it gives here says how much slower
//! this machine is: with that, a figure of ours is what it would be there, as far as one load can tell of another.

use crate::bed::{Drive, DriveKind, Servers, Space, Used};
use crate::load::{Cell, Target, Workload};
use crate::machine;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-storage-daemon";
const VOLUME: &str = "vol";
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What it gave on the machine of the bars: workload, operations per second, processor time per operation in microseconds.
/// It writes with O_DIRECT through io_uring, acknowledges before anything is durable and checks no content.
const RECORDED: [(Workload, f64, f64); 4] = [
    (Workload::Rw1, 7_815.0, 67.0),
    (Workload::Rr1, 9_358.0, 56.0),
    (Workload::Rw32, 28_500.0, 25.0),
    (Workload::Rr32, 41_400.0, 12.0),
];

/// qemu-storage-daemon, serving a file or loop device over NBD.
pub struct Peer {
    child: Child,
    socket: PathBuf,
    _drive: Drive,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Starts it on a device of its own below `folder`; `None` if it is not installed.
    pub fn start(folder: &Path, kind: DriveKind, size_bytes: u64) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("ashlar-peer-").tempdir_in(folder).expect("a temporary directory");
        let drive = Drive::create(kind, &folder.path().join("peer.img"), Space::Whole, size_bytes);
        let socket = folder.path().join("nbd.sock");
        let driver = match kind {
            DriveKind::File => "file",
            DriveKind::Loop => "host_device",
        };
        let medium = format!(
            "driver={driver},node-name=medium,filename={},aio=io_uring,cache.direct=on",
            drive.path().display()
        );
        let mut command = Command::new(PROGRAM);
        command.args(["--blockdev", &medium, "--blockdev", "driver=raw,node-name=raw,file=medium"]);
        command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
        command.args(["--export", &format!("type=nbd,id=export,node-name=raw,name={VOLUME},writable=on")]);
        // It is written when everything is set up.
        let ready = folder.path().join("pid");
        command.args(["--pidfile", &ready.display().to_string()]);
        let child = match command.stdin(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("{PROGRAM}: {error}"),
        };
        let mut peer = Self { child, socket, _drive: drive, _folder: folder };
        peer.wait_until(&ready);
        Some(peer)
    }

    fn wait_until(&mut self, ready: &Path) {
        let until = Instant::now() + READY_WITHIN;
        while !ready.exists() {
            let status = self.child.try_wait().expect("it is ours");
            assert!(status.is_none(), "{PROGRAM} ended: {status:?}");
            assert!(Instant::now() < until, "{PROGRAM} does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn target(&self) -> Target {
        Target::Nbd { uri: format!("nbd+unix:///{VOLUME}?socket={}", self.socket.display()) }
    }
}

impl Servers for Peer {
    fn used(&self) -> Used {
        let pid = self.child.id() as i32;
        Used { cpu_seconds: machine::run_seconds(pid), switches: machine::context_switches(&[pid]), enters: None }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How much longer things take here than on the machine of the bars.
#[derive(Clone, Copy, Debug)]
pub struct Slowness {
    /// Of operations.
    pub time: f64,
    /// Of processor time.
    pub cpu: f64,
}

/// The slowness under a workload, by the peer's cells; `None` if it was not measured under it, or nothing is recorded of that.
pub fn slowness(cells: &[Cell], workload: Workload) -> Option<Slowness> {
    let cell = cells.iter().find(|cell| cell.workload == workload)?;
    let (_, iops, cpu_us) = RECORDED.into_iter().find(|(recorded, ..)| *recorded == workload)?;
    Some(Slowness { time: iops / cell.iops, cpu: cell.servers?.cpu_us / cpu_us })
}
