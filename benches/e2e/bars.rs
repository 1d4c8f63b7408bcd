//! What each mode is to reach, and whether it did.

use crate::bed::Mode;
use crate::load::{Cell, Workload};
use crate::peer::{self, Slowness};
use std::fmt::Write;

/// A figure of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Figure {
    /// At least so many operations in a second.
    Iops,
    /// At least so much.
    MegabytesPerSecond,
    /// At most this mean latency.
    MeanUs,
    /// At most so much processor time of the servers per operation.
    ServerUs,
    /// At most so many bytes to the disk per byte and replica.
    DiskBytes,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::MegabytesPerSecond => "MB/s",
            Self::MeanUs => "mean us",
            Self::ServerUs => "srv CPU us/op",
            Self::DiskBytes => "disk B/B/replica",
        }
    }

    fn is_floor(self) -> bool {
        matches!(self, Self::Iops | Self::MegabytesPerSecond)
    }

    /// What a value from here would be on the machine of the bars.
    fn there(self, value: f64, slowness: Slowness) -> f64 {
        match self {
            Self::Iops | Self::MegabytesPerSecond => value * slowness.time,
            Self::MeanUs => value / slowness.time,
            Self::ServerUs => value / slowness.cpu,
            Self::DiskBytes => value,
        }
    }

    fn of(self, cell: &Cell, replicas: u64) -> Option<f64> {
        match self {
            Self::Iops => Some(cell.iops),
            Self::MegabytesPerSecond => Some(cell.megabytes_per_second),
            Self::MeanUs => Some(cell.mean_us),
            Self::ServerUs => cell.servers.map(|cost| cost.cpu_us),
            Self::DiskBytes => cell.disk_bytes_per_byte.map(|bytes| bytes / replicas as f64),
        }
    }
}

fn bars(mode: Mode) -> &'static [(Workload, Figure, f64)] {
    match mode {
        Mode::Protected => &[
            (Workload::Rw1, Figure::MeanUs, 220.0),
            (Workload::Rr1, Figure::MeanUs, 85.0),
            (Workload::Rw32, Figure::Iops, 30_000.0),
            (Workload::Rw32, Figure::ServerUs, 28.0),
            (Workload::Rw32, Figure::DiskBytes, 1.2),
            (Workload::Rr32, Figure::Iops, 55_000.0),
            (Workload::Rr32, Figure::ServerUs, 6.0),
            (Workload::Sw8, Figure::MegabytesPerSecond, 650.0),
        ],
        Mode::Flushed => &[(Workload::Rw1, Figure::MeanUs, 400.0), (Workload::Rw32, Figure::Iops, 22_000.0)],
        Mode::One => &[(Workload::Rw32, Figure::Iops, 60_000.0)],
    }
}

/// A line for each bar of the cells that were measured, with what they would be on the machine of the bars by the peer's cells.
pub fn render(cells: &[Cell], mode: Mode, peer: &[Cell]) -> String {
    let mut lines = String::new();
    for (workload, figure, bar) in bars(mode) {
        let cell = cells.iter().find(|cell| cell.workload == *workload);
        let Some(value) = cell.and_then(|cell| figure.of(cell, mode.replicas())) else { continue };
        let sign = if figure.is_floor() { ">=" } else { "<=" };
        let verdict = |value: f64| {
            let is_met = if figure.is_floor() { value >= *bar } else { value <= *bar };
            if is_met { "met" } else { "MISSED" }
        };
        let (name, ratio) = (figure.name(), value / bar);
        let digits = if *bar < 10.0 { 2 } else { 0 };
        let there = peer::slowness(peer, *workload).map(|slowness| figure.there(value, slowness));
        let there = there.map_or(String::new(), |value| format!("{value:>12.digits$}  {}", verdict(value)));
        let line = format!(
            "{:<5} {name:<16} {sign} {bar:>9.digits$} {value:>10.digits$} {ratio:>7.2}  {:<6} {there}",
            workload.name(),
            verdict(value)
        );
        let _ = writeln!(lines, "{}", line.trim_end());
    }
    if lines.is_empty() {
        return lines;
    }
    format!("bar                           wanted   measured   ratio          by the peer\n{lines}")
}
