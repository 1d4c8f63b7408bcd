//! Cells as a table for people.

use crate::load::Cell;
use std::fmt::Write;

/// Cells with the ratio to the same workload in `raw`. Bytes on the disk are told per replica.
pub fn render(cells: &[Cell], raw: &[Cell], replicas: u64) -> String {
    let mut text = String::from(
        "work      IOPS     MB/s   mean us    p50 us    p99 us  p99.9 us  srv CPU us/op  disk B/B/replica   x raw\n",
    );
    for cell in cells {
        let Cell { workload, iops, megabytes_per_second, mean_us, p50_us, p99_us, p999_us, .. } = cell;
        let _ = write!(
            text,
            "{:<5} {iops:>8.0} {megabytes_per_second:>8.1} {mean_us:>9.1} {p50_us:>9.1} {p99_us:>9.1} {p999_us:>9.1}",
            workload.name()
        );
        let server = if cell.server_us > 0.0 { format!("{:.1}", cell.server_us) } else { "-".into() };
        let disk = cell.disk_bytes_per_byte.map_or("-".into(), |bytes| format!("{:.2}", bytes / replicas as f64));
        let base = raw.iter().find(|other| other.workload == *workload);
        let ratio = base.map_or("-".into(), |base| format!("{:.3}", iops / base.iops.max(1.0)));
        let _ = writeln!(text, " {server:>14} {disk:>17} {ratio:>7}");
    }
    text
}
