//! The figures to reach (`STORE.md`), beside what was measured.

use crate::cells::{Cell, Measured};

/// One figure with its bar.
pub struct Bar {
    pub figure: &'static str,
    /// What is demanded.
    pub bar: String,
    pub measured: f64,
    pub unit: &'static str,
    pub met: bool,
}

fn at_most(figure: &'static str, limit: f64, measured: f64, unit: &'static str) -> Bar {
    Bar { figure, bar: format!("<= {limit}{unit}"), measured, unit, met: measured <= limit }
}

fn at_least(figure: &'static str, limit: f64, measured: f64) -> Bar {
    Bar { figure, bar: format!(">= {limit} x"), measured, unit: " x", met: measured >= limit }
}

fn throughput(cell: &Cell) -> f64 {
    cell.ratios(|store, raw| store.operations as f64 / store.seconds / raw.iops).0
}

fn engine_us(cell: &Cell) -> f64 {
    cell.per_operation(|slice| slice.counters.engine_ns) / 1e3
}

/// All bars whose cells were measured.
pub fn of(measured: &Measured) -> Vec<Bar> {
    let mut bars = Vec::new();
    let find = |name: &str| measured.cells.iter().find(|cell| cell.kind.name == name);
    if let Some(cell) = find("rw1") {
        let latency = cell.ratios(|store, raw| store.latencies.percentile_us(0.5) / raw.p50_us).0;
        bars.push(at_most("overwrite 4 KiB QD1: median latency over raw", 1.3, latency, " x"));
        // With one operation in flight the rate tells the mean.
        bars.push(at_most("overwrite 4 KiB QD1: mean latency over raw", 1.3, 1.0 / throughput(cell), " x"));
    }
    for (name, figure, limit) in [
        ("rw32", "overwrite 4 KiB QD32: IOPS against raw", 0.85),
        ("rr32", "read 4 KiB QD32, verified: IOPS against raw", 0.95),
        ("sw", "sequential write 1 MiB against raw", 0.95),
        ("sr", "sequential read 1 MiB against raw", 0.95),
    ] {
        bars.extend(find(name).map(|cell| at_least(figure, limit, throughput(cell))));
    }
    for (name, figure, limit) in [
        ("rw32", "overwrite 4 KiB QD32: bytes per byte (beside the old content, or in place: 1.15)", 2.1),
        ("fresh", "first write 4 KiB QD32: bytes per byte", 1.15),
    ] {
        let bytes = find(name).and_then(Cell::amplification);
        bars.extend(bytes.map(|(bytes, _)| at_most(figure, limit, bytes, "")));
    }
    for (name, figure) in [
        ("rw1", "overwrite 4 KiB QD1: CPU in the engine"),
        ("rw32", "overwrite 4 KiB QD32: CPU in the engine"),
        ("rr32", "read 4 KiB QD32: CPU in the engine"),
        ("fresh", "first write 4 KiB QD32: CPU in the engine"),
    ] {
        bars.extend(find(name).map(|cell| at_most(figure, 3.0, engine_us(cell), " us")));
    }
    let slowest = measured.reopens.iter().map(|reopen| reopen.seconds).max_by(f64::total_cmp);
    bars.extend(slowest.map(|seconds| at_most("open after a kill with a full log, slowest", 2.0, seconds, " s")));
    bars
}
