//! What the machine counts: processor time and context switches of processes, bytes written to a disk, memory.
//!
//! It must never know what is being measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SECTOR_BYTES: u64 = 512;

/// The disk below a folder.
pub struct Disk {
    /// Its folder in sysfs.
    sysfs: PathBuf,
}

impl Disk {
    /// Finds the whole disk that a folder's file system lies on.
    pub fn under(folder: &Path) -> Self {
        use std::os::linux::fs::MetadataExt;
        let device = std::fs::metadata(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).st_dev();
        let link = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        let found = std::fs::canonicalize(&link).unwrap_or_else(|error| {
            panic!("{} lies on no block device ({link}: {error}); set TMPDIR to a folder that does", folder.display())
        });
        let is_partition = found.join("partition").exists();
        let sysfs = if is_partition { found.parent().expect("a partition's disk").to_owned() } else { found };
        Self { sysfs }
    }

    /// Its name, such as `vda`.
    pub fn name(&self) -> String {
        self.sysfs.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Bytes written since the machine started, by everybody, after everything dirty has been written.
    pub fn written_bytes(&self) -> u64 {
        // SAFETY: sync takes nothing and touches no memory of ours.
        unsafe { libc::sync() };
        let text = std::fs::read_to_string(self.sysfs.join("stat")).expect("a disk's statistics");
        let sectors = text.split_ascii_whitespace().nth(6).and_then(|field| field.parse::<u64>().ok());
        sectors.expect("sectors written") * SECTOR_BYTES
    }
}

/// User and system time of processes and their ended children, in seconds.
pub fn cpu_seconds(pids: &[i32]) -> f64 {
    // SAFETY: sysconf only reads a constant of the system.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let ticks: u64 = pids.iter().map(|pid| cpu_ticks(*pid)).sum();
    ticks as f64 / ticks_per_second
}

/// Fields 14 to 17 of `/proc/PID/stat`, counted after the command name, which may hold anything.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|_| panic!("server {pid} is gone"));
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// The same of one process alone, in steps of a nanosecond instead of the clock's 10 ms.
pub fn run_seconds(pid: i32) -> f64 {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both write only what they are given, which lives longer than the calls.
    let failed =
        unsafe { libc::clock_getcpuclockid(pid, &mut clock) != 0 || libc::clock_gettime(clock, &mut time) != 0 };
    assert!(!failed, "server {pid} is gone");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Context switches so far, wanted or not, of each thread that processes have now. What a thread did that has ended
/// since is not known.
pub fn context_switches(pids: &[i32]) -> BTreeMap<PathBuf, u64> {
    let threads = pids.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let statuses = threads.flatten().map(|thread| thread.path().join("status"));
    let switches = |status: &Path| {
        let keys = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        keys.into_iter().map(|key| status_number(status, key)).sum::<u64>()
    };
    statuses.map(|status| (status.clone(), switches(&status))).collect()
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    status_number(Path::new(&format!("/proc/{pid}/status")), "VmRSS:")
}

/// A number of a process or thread; zero if it has ended meanwhile.
fn status_number(status: &Path, key: &str) -> u64 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Load averages of the machine: whether it was quiet.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
