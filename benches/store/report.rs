//! What was measured, for people and as JSON.

use crate::bars::{self, Bar};
use crate::cells::{Cell, Measured, Reopen, mean};
use crate::load::Slice;
use crate::machine;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Kernel, cores, file system and load: without them figures mean nothing.
pub fn machine_line(folder: &Path) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "kernel {}, {cores} cores, {} under {}, load average {}",
        kernel.trim(),
        file_system(folder),
        folder.display(),
        machine::load_average()
    )
}

/// Type and source of the mount that a folder lies on.
fn file_system(folder: &Path) -> String {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let under = fields.filter(|fields| fields.len() > 2 && folder.starts_with(fields[1]));
    let best = under.max_by_key(|fields| fields[1].len());
    best.map_or("unknown file system".into(), |fields| format!("{} on {}", fields[2], fields[0]))
}

/// All of one target.
pub fn render(measured: &Measured) -> String {
    let how = if measured.flushes { "every commit flushed, raw writes O_DSYNC" } else { "no flushes" };
    let mut text = format!("\n{} {} ({how}, log {} MiB)\n", measured.kind, measured.path, measured.log_bytes >> 20);
    let fill = &measured.fill;
    let rate = fill.bytes as f64 / fill.seconds / 1e6;
    let _ = writeln!(text, "fill: {rate:.0} MB/s, {} checkpoints", fill.checkpoints);
    let _ = writeln!(
        text,
        "{:<30} {:>9} {:>9} {:>5} {:>11} {:>13} {:>13} {:>20} {:>11} {:>7} {:>6}",
        "cell (raw | store)",
        "raw",
        "store",
        "x raw",
        "min..max",
        "p50 us",
        "p99 us",
        "CPU us: eng thr raw",
        "B/B (dev)",
        "dev/op",
        "ckpts"
    );
    measured.cells.iter().for_each(|cell| render_cell(cell, &mut text));
    measured.reopens.iter().for_each(|reopen| render_reopen(reopen, &mut text));
    text.push('\n');
    for Bar { figure, bar, measured, unit, met } in bars::of(measured) {
        let verdict = if met { "met" } else { "MISSED" };
        let _ = writeln!(text, "{figure:<54} {bar:>10}  {measured:>7.2}{unit:<3} {verdict}");
    }
    text
}

fn render_cell(cell: &Cell, text: &mut String) {
    let (store, raw) = cell.rates();
    let (scale, unit) = if cell.kind.blocks == 1 { (1.0, "/s") } else { (1.048_576, "MB") };
    let (ratio, least, most) = cell.ratios(|store, raw| store.operations as f64 / store.seconds / raw.iops);
    let latencies = cell.latencies();
    let raw_of = |of: fn(&crate::raw::RawSlice) -> f64| mean(cell.raw.iter().map(of));
    let pair = |raw: f64, store: f64| format!("{raw:.0} | {store:.0}");
    let engine = cell.per_operation(|slice| slice.counters.engine_ns) / 1e3;
    let thread = cell.per_operation(|slice| slice.thread_ns) / 1e3;
    let bytes = cell.amplification().map_or("-".into(), |(bytes, device)| {
        let device = device.map_or(String::new(), |device| format!(" ({device:.2})"));
        format!("{bytes:.2}{device}")
    });
    let _ = writeln!(
        text,
        "{:<30} {:>7.0}{unit} {:>7.0}{unit} {ratio:>5.2} {:>11} {:>13} {:>13} {:>20} {bytes:>11} {:>7.2} {:>6}",
        cell.kind.title,
        raw * scale,
        store * scale,
        format!("{least:.2}..{most:.2}"),
        pair(raw_of(|raw| raw.p50_us), latencies.percentile_us(0.5)),
        pair(raw_of(|raw| raw.p99_us), latencies.percentile_us(0.99)),
        format!("{engine:.1} {thread:.1} {:.1}", raw_of(|raw| raw.cpu_us)),
        cell.per_operation(device_operations),
        cell.sum(|slice| slice.checkpoints),
    );
}

fn device_operations(slice: &Slice) -> u64 {
    slice.counters.reads + slice.counters.writes + slice.counters.flushes
}

fn render_reopen(reopen: &Reopen, text: &mut String) {
    let mib = |bytes: u64| bytes >> 20;
    let _ = writeln!(
        text,
        "open after a kill: {:.3} s, log {} of {} MiB, {} MiB read, {} MiB written, engine CPU {:.0} ms, {} dropped",
        reopen.seconds,
        mib(reopen.log_used_bytes),
        mib(reopen.log_bytes),
        mib(reopen.read_bytes),
        mib(reopen.written_bytes),
        reopen.engine_ns as f64 / 1e6,
        reopen.dropped_writes
    );
}

/// All of one target, as JSON.
pub fn json(measured: &Measured) -> Value {
    let bar = |bar: &Bar| json!({"figure": bar.figure, "bar": bar.bar, "measured": bar.measured, "met": bar.met});
    json!({
        "kind": measured.kind,
        "path": measured.path,
        "flushes": measured.flushes,
        "log_bytes": measured.log_bytes,
        "fill": json_slice(&measured.fill),
        "clock_cost_ns": measured.clock_cost_ns,
        "cells": measured.cells.iter().map(json_cell).collect::<Vec<_>>(),
        "reopens": measured.reopens.iter().map(json_reopen).collect::<Vec<_>>(),
        "bars": bars::of(measured).iter().map(bar).collect::<Vec<_>>(),
    })
}

fn json_cell(cell: &Cell) -> Value {
    let (store, raw) = cell.rates();
    let (ratio, least, most) = cell.ratios(|store, raw| store.operations as f64 / store.seconds / raw.iops);
    let amplification = cell.amplification();
    let raw_slice = |raw: &crate::raw::RawSlice| {
        json!({
            "iops": raw.iops, "bytes_per_second": raw.bytes_per_second, "p50_us": raw.p50_us, "p99_us": raw.p99_us,
            "cpu_us": raw.cpu_us,
        })
    };
    json!({
        "name": cell.kind.name,
        "title": cell.kind.title,
        "store_iops": store,
        "raw_iops": raw,
        "x_raw": ratio,
        "x_raw_min": least,
        "x_raw_max": most,
        "engine_us": cell.per_operation(|slice| slice.counters.engine_ns) / 1e3,
        "thread_us": cell.per_operation(|slice| slice.thread_ns) / 1e3,
        "process_us": cell.per_operation(|slice| slice.process_ns) / 1e3,
        "bytes_per_byte": amplification.map(|(bytes, _)| bytes),
        "device_bytes_per_byte": amplification.and_then(|(_, device)| device),
        "device_operations": cell.per_operation(device_operations),
        "raw": cell.raw.iter().map(raw_slice).collect::<Vec<_>>(),
        "store": cell.store.iter().map(json_slice).collect::<Vec<_>>(),
    })
}

fn json_slice(slice: &Slice) -> Value {
    json!({
        "operations": slice.operations,
        "bytes": slice.bytes,
        "seconds": slice.seconds,
        "p50_us": slice.latencies.percentile_us(0.5),
        "p99_us": slice.latencies.percentile_us(0.99),
        "engine_ns": slice.counters.engine_ns,
        "engine_batches": slice.counters.batches,
        "thread_ns": slice.thread_ns,
        "process_ns": slice.process_ns,
        "device_reads": slice.counters.reads,
        "device_writes": slice.counters.writes,
        "device_flushes": slice.counters.flushes,
        "device_read_bytes": slice.counters.read_bytes,
        "written_bytes": slice.written_bytes,
        "accepted_bytes": slice.accepted_bytes,
        "device_written_bytes": slice.device_bytes,
        "checkpoints": slice.checkpoints,
        "log_used_max": slice.counters.log_used_max,
        "drain_seconds": slice.drain_seconds,
    })
}

fn json_reopen(reopen: &Reopen) -> Value {
    json!({
        "seconds": reopen.seconds,
        "log_used_bytes": reopen.log_used_bytes,
        "log_bytes": reopen.log_bytes,
        "read_bytes": reopen.read_bytes,
        "written_bytes": reopen.written_bytes,
        "engine_ns": reopen.engine_ns,
        "dropped_writes": reopen.dropped_writes,
    })
}
