//! What is measured: daemons with a device for each of their shards, and a volume on them; and what they have used so far.

use crate::machine;
use crate::support::manual::ManualCluster;
use crate::support::{GIB, MIB, api, tools};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

const VOLUME: &str = "vol";
const ROLES: &str = "\"store\", \"target\", \"meta\"";

/// How many replicas there are, and what their devices are declared to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Three replicas; power-loss protected, 4 KiB writes atomic.
    Protected,
    /// Three replicas, every commit flushed.
    Flushed,
    /// One node with one replica; power-loss protected, 4 KiB writes atomic.
    One,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Protected, Self::Flushed, Self::One];

    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "protected" => Ok(Self::Protected),
            "flushed" => Ok(Self::Flushed),
            "one" => Ok(Self::One),
            _ => Err(format!("no mode '{text}'")),
        }
    }

    pub fn replicas(self) -> u64 {
        if self == Self::One { 1 } else { 3 }
    }

    pub fn is_protected(self) -> bool {
        self != Self::Flushed
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Protected => "3 replicas, power-loss protected and atomic: no flush",
            Self::Flushed => "3 replicas, every commit is flushed",
            Self::One => "1 node, 1 replica, power-loss protected and atomic: no flush",
        }
    }
}

/// What lies below a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriveKind {
    File,
    Loop,
}

impl DriveKind {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "file" => Ok(Self::File),
            "loop" => Ok(Self::Loop),
            _ => Err(format!("no device '{text}'")),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Loop => "loop device",
        }
    }
}

/// Whether a drive's file has its space from the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    Whole,
    Sparse,
}

/// A file, or a loop device over one.
pub struct Drive {
    path: PathBuf,
    /// The loop device goes with its last descriptor, however this process ends.
    _held: Option<File>,
}

impl Drive {
    /// Makes the file, which must not exist.
    pub fn create(kind: DriveKind, path: &Path, space: Space, bytes: u64) -> Self {
        let file = File::create_new(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.set_len(bytes).expect("a length");
        if space == Space::Whole {
            let length = libc::off_t::try_from(bytes).expect("a length");
            // SAFETY: the descriptor is open for writing, and fallocate touches no memory of ours.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
            assert_eq!(result, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
        }
        match kind {
            DriveKind::File => Self { path: path.to_owned(), _held: None },
            DriveKind::Loop => Self::looped(path),
        }
    }

    fn looped(file: &Path) -> Self {
        let file = file.display().to_string();
        let arguments = ["--find", "--show", "--direct-io=on", "--sector-size", "4096", &file];
        let name = tools::must("losetup", &arguments).trim().to_owned();
        let held = File::open(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        // While it is open, this makes the kernel detach it with the last close.
        tools::must("losetup", &["--detach", &name]);
        Self { path: name.into(), _held: Some(held) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What each daemon has: as many devices as shards.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub kind: DriveKind,
    pub space: Space,
    /// Of all its devices together.
    pub device_bytes: u64,
    pub shards: u16,
}

/// Daemons with their devices. They end before their devices go.
pub struct Bed {
    pub cluster: ManualCluster,
    _drives: Vec<Drive>,
}

impl Bed {
    /// As many nodes as the mode has replicas, `n1` and on.
    pub fn start(name: &str, mode: Mode, machine: Machine) -> Self {
        let Machine { kind, space, device_bytes, shards } = machine;
        let names: Vec<String> = (1..=mode.replicas()).map(|number| format!("n{number}")).collect();
        let roles: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), ROLES)).collect();
        // A binary from before there were several takes no such line.
        let lines = if shards > 1 { format!("shards = {shards}") } else { String::new() };
        let cluster = ManualCluster::start_with(name, &roles, &lines);
        cluster.found_and_join();
        let options: &[&str] = if mode.is_protected() { &["--power-loss-protected", "--atomic-writes"] } else { &[] };
        // In order, so that device and shard have the same number.
        let devices = names.iter().flat_map(|node| (0..shards).map(move |device| (node, device)));
        let drives = devices.map(|(node, device)| {
            let path = cluster.dir().join(node).join(format!("device{device}.img"));
            let drive = Drive::create(kind, &path, space, device_bytes / u64::from(shards));
            cluster.add_device_at(node, drive.path(), options);
            drive
        });
        let drives = drives.collect();
        Self { cluster, _drives: drives }
    }

    /// The same with one volume, and devices that have room for it.
    pub fn with_volume(name: &str, mode: Mode, kind: DriveKind, size_gib: u64, shards: u16) -> Self {
        let device_bytes = size_gib * (GIB + GIB / 4) + 256 * MIB * u64::from(shards);
        let bed = Self::start(name, mode, Machine { kind, space: Space::Whole, device_bytes, shards });
        let (size, replicas) = (format!("{size_gib}GiB"), mode.replicas().to_string());
        let created = bed.cluster.cli("n1", &["volume", "create", VOLUME, "--size", &size, "--replicas", &replicas]);
        created.expect_code(0);
        bed
    }

    /// The volume's URI at `n1`.
    pub fn uri(&self) -> String {
        self.cluster.uri(VOLUME, "n1")
    }

    pub fn pids(&self) -> Vec<i32> {
        self.cluster.nodes.iter().map(|node| self.cluster.pid(&node.name)).collect()
    }

    /// Calls of io_uring_enter by the data planes since they began.
    pub fn enters(&self) -> f64 {
        let enters = self.cluster.nodes.iter().map(|node| api::metric(&node.api, "ashlar_io_uring_enters_total"));
        enters.map(|enters| enters.expect("a daemon's metrics")).sum()
    }

    pub fn expect_healthy(&self) {
        let healthy = self.cluster.wait_healthy("n1", VOLUME, Duration::from_secs(5));
        assert_eq!(healthy["health"], "healthy", "a benchmark of a degraded volume says nothing");
    }
}

impl Servers for Bed {
    fn used(&self) -> Used {
        let pids = self.pids();
        Used {
            cpu_seconds: machine::cpu_seconds(&pids),
            switches: machine::context_switches(&pids),
            enters: Some(self.enters()),
        }
    }
}

/// Who serves a target.
pub trait Servers {
    /// What they have used since they began.
    fn used(&self) -> Used;
}

/// What servers have used so far, all together.
#[derive(Clone, Debug)]
pub struct Used {
    pub cpu_seconds: f64,
    /// Of each thread that lives.
    pub switches: BTreeMap<PathBuf, u64>,
    pub enters: Option<f64>,
}

/// What servers used for one operation.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub cpu_us: f64,
    /// Times that a thread gave up its processor, or lost it.
    pub switches: f64,
    /// Calls of io_uring_enter by the data plane: all of its system calls but a few. Of Ashlar only.
    pub enters: Option<f64>,
}

impl Used {
    /// What was used since, per operation.
    pub fn per_operation(&self, before: &Self, operations: f64) -> Cost {
        let since =
            |(thread, now): (&PathBuf, &u64)| now.saturating_sub(before.switches.get(thread).map_or(0, |then| *then));
        Cost {
            cpu_us: (self.cpu_seconds - before.cpu_seconds) * 1e6 / operations,
            switches: self.switches.iter().map(since).sum::<u64>() as f64 / operations,
            enters: self.enters.zip(before.enters).map(|(after, before)| (after - before) / operations),
        }
    }
}
