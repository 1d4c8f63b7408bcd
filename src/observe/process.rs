//! CPU time and memory of this process, read from /proc.

/// What the process has used.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProcessUse {
    /// User and system time in seconds.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
}

/// Reads the present use; zeroes where the system does not say.
pub fn read() -> ProcessUse {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // SAFETY: sysconf only reads a constant of the system.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    ProcessUse {
        cpu_seconds: cpu_ticks(&stat) as f64 / ticks.max(1) as f64,
        resident_bytes: resident_pages(&statm) * page.max(0) as u64,
    }
}

/// Fields 14 and 15 of `/proc/PID/stat`, counted after the command name, which may hold anything.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_ascii_whitespace().skip(11).map(|field| field.parse().unwrap_or(0));
    fields.next().unwrap_or(0u64) + fields.next().unwrap_or(0)
}

fn resident_pages(statm: &str) -> u64 {
    statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_read_as_documented() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 21 43 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), 64);
        assert_eq!(cpu_ticks(""), 0);
        assert_eq!(resident_pages("900 321 5"), 321);
        assert!(read().resident_bytes > 0);
    }
}
