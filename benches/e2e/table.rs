//! Cells as a table for people.

use crate::load::Cell;
use std::fmt::Write;

/// Cells with the ratio to the same workload in `raw`. Bytes on the disk are told per replica.
pub fn render(cells: &[Cell], raw: &[Cell], replicas: u64) -> String {
    let mut text = String::from(
        "work      IOPS     MB/s   mean us    p50 us    p99 us  p99.9 us  srv CPU us/op  enters/op  switches/op  \
         disk B/B/replica   x raw\n",
    );
    for cell in cells {
        let Cell { workload, iops, megabytes_per_second, mean_us, p50_us, p99_us, p999_us, .. } = cell;
        let _ = write!(
            text,
            "{:<5} {iops:>8.0} {megabytes_per_second:>8.1} {mean_us:>9.1} {p50_us:>9.1} {p99_us:>9.1} {p999_us:>9.1}",
            workload.name()
        );
        let or_dash = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let server = or_dash(cell.servers.map(|cost| cost.cpu_us), 1);
        let enters = or_dash(cell.servers.and_then(|cost| cost.enters), 2);
        let switches = or_dash(cell.servers.map(|cost| cost.switches), 2);
        let disk = or_dash(cell.disk_bytes_per_byte.map(|bytes| bytes / replicas as f64), 2);
        let base = raw.iter().find(|other| other.workload == *workload);
        let ratio = or_dash(base.map(|base| iops / base.iops.max(1.0)), 3);
        let _ = writeln!(text, " {server:>14} {enters:>10} {switches:>12} {disk:>17} {ratio:>7}");
    }
    text
}
