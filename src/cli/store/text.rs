//! What was found on a device, for people. The last line of a check is for scripts as well.

use crate::cli::output::{Column, bytes, table, text};
use serde_json::{Value, json};
use std::fmt::Write;

/// Rows of a list that are shown where not all are asked for.
const ROWS_MAX: usize = 100;

/// What is on a device.
pub fn survey(value: &Value, wide: bool) -> String {
    let mut out = String::new();
    let kind = if value["block_device"] == true { "block device" } else { "file" };
    row(&mut out, "path", format!("{} ({kind}, {})", text(&value["path"]), bytes(&value["size_bytes"])));
    if !value["device"].is_null() {
        identity(&mut out, value);
    }
    section(&mut out, table(list(value, "superblocks"), &SUPERBLOCKS, wide));
    section(&mut out, table(list(value, "areas"), &AREAS, wide));
    out.push('\n');
    if !value["log"].is_null() {
        log(&mut out, value);
    }
    for (copy, place) in list(value, "tables").iter().enumerate() {
        let state = if place["fault"].is_null() { "good".into() } else { text(&place["fault"]) };
        row(&mut out, &format!("table {}", copy + 1), format!("{state}, at {}", place["offset"]));
    }
    if !value["used_slots"].is_null() {
        let checkpoint = format!("of checkpoint {}: what the log adds comes on top", value["sequence"]);
        row(&mut out, "usage", checkpoint);
        row(&mut out, "slots", format!("{} of {}", value["used_slots"], value["total_slots"]));
        let (used, total) = (bytes(&value["used_bytes"]), bytes(&value["total_bytes"]));
        let granules = format!("{} of {}", value["used_granules"], value["total_granules"]);
        let free = bytes(&value["free_run_bytes"]);
        row(&mut out, "granules", format!("{granules} ({used} of {total}), at most {free} free in a row"));
        rows(&mut out, list(value, "volumes"), &VOLUMES, wide);
        if wide {
            rows(&mut out, &lanes(value), &LANES, wide);
        }
    }
    rows(&mut out, list(value, "findings"), &FINDINGS, wide);
    let clean = if value["clean"] == true { "clean" } else { "damaged" };
    let _ = writeln!(out, "\ninspect: {clean} device={}", text(&value["device"]));
    out
}

/// What a check found.
pub fn report(value: &Value, wide: bool) -> String {
    let mut out = String::new();
    row(&mut out, "path", text(&value["path"]));
    row(&mut out, "device", text(&value["device"]));
    row(&mut out, "cluster", text(&value["cluster"]));
    row(&mut out, "log", format!("{} groups replayed", text(&value["replayed_groups"])));
    let (used, total) = (bytes(&value["used_bytes"]), bytes(&value["total_bytes"]));
    row(&mut out, "usage", format!("{used} of {total}, in {} slots", value["used_slots"]));
    row(&mut out, "verified", format!("{} of data", bytes(&value["verified_bytes"])));
    if !value["unusable"].is_null() {
        row(&mut out, "unusable", text(&value["unusable"]));
    }
    let damaged = list(value, "damaged");
    rows(&mut out, damaged, &DAMAGED, wide);
    rows(&mut out, list(value, "findings"), &FINDINGS, wide);
    let faults = |damage: bool| list(value, "findings").iter().filter(|one| one["damage"] == damage).count();
    let _ = writeln!(
        out,
        "\ncheck: {} device={} damaged_ranges={} damaged_blocks={} faults={} notes={} verified_bytes={}",
        text(&value["verdict"]),
        text(&value["device"]),
        damaged.len(),
        value["damaged_blocks"],
        faults(true),
        faults(false),
        value["verified_bytes"],
    );
    out
}

fn identity(out: &mut String, value: &Value) {
    row(out, "device", text(&value["device"]));
    row(out, "cluster", text(&value["cluster"]));
    row(out, "format", format!("version {}, generation {}", value["format_version"], value["generation"]));
    let declared = |flag: &str| if value[flag] == true { "declared" } else { "not declared" };
    let decided = |flag: &str| if value[flag] == true { "yes" } else { "no" };
    row(out, "flushes", format!("{} (power-loss protection {})", decided("flushes"), declared("power_loss_protected")));
    row(out, "atomic", format!("{} (atomic 4 KiB writes {})", decided("atomic"), declared("atomic_declared")));
}

fn log(out: &mut String, value: &Value) {
    let log = &value["log"];
    let (used, size) = (bytes(&log["used_bytes"]), bytes(&value["log_bytes"]));
    row(out, "log", format!("{used} of {size}, from {} to {}", log["head_offset"], log["end_offset"]));
    let (head, last, done) = (&log["head_lsn"], &log["last_lsn"], &log["completed_lsn"]);
    match log["groups"].as_u64() {
        Some(0) => row(out, "groups", format!("none; the next is {head}")),
        _ => row(out, "groups", format!("{}, {head} to {last}; complete up to {done} for certain", log["groups"])),
    }
    let kinds = log["records"].as_object().into_iter().flatten().map(|(kind, count)| format!("{count} {kind}"));
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    let kinds = if kinds.is_empty() { "none".into() } else { kinds };
    row(out, "records", format!("{kinds}; {} of data", bytes(&log["payload_bytes"])));
    row(out, "tail", text(&log["tail"]));
}

/// A table of what may be very long, or empty.
fn rows(out: &mut String, items: &[Value], columns: &[Column], wide: bool) {
    if items.is_empty() {
        return;
    }
    let shown = if wide { items.len() } else { items.len().min(ROWS_MAX) };
    section(out, table(&items[..shown], columns, wide));
    if shown < items.len() {
        let _ = writeln!(out, "... and {} more: -o wide and -o json show all", items.len() - shown);
    }
}

fn section(out: &mut String, table: String) {
    out.push('\n');
    out.push_str(&table);
}

fn row(out: &mut String, title: &str, cell: String) {
    let _ = writeln!(out, "{title:<9} {cell}");
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// The lanes of all volumes, each with its volume.
fn lanes(value: &Value) -> Vec<Value> {
    let of = |volume: &Value| {
        let id = volume["id"].clone();
        list(volume, "lanes").iter().map(move |lane| json!({ "volume": id, "lane": lane })).collect::<Vec<_>>()
    };
    list(value, "volumes").iter().flat_map(of).collect()
}

const SUPERBLOCKS: [Column; 4] = [
    Column::new("SUPERBLOCK", |v| text(&v["name"])),
    Column::new("OFFSET", |v| text(&v["offset"])),
    Column::new("SEQUENCE", |v| text(&v["sequence"])),
    Column::new("STATE", |v| match (&v["fault"], &v["in_force"]) {
        (Value::Null, Value::Bool(true)) => "in force".into(),
        (Value::Null, _) => "good".into(),
        (fault, _) => text(fault),
    }),
];

const AREAS: [Column; 4] = [
    Column::new("AREA", |v| text(&v["name"])),
    Column::new("OFFSET", |v| text(&v["offset"])),
    Column::new("BYTES", |v| text(&v["size_bytes"])),
    Column::new("SIZE", |v| bytes(&v["size_bytes"])),
];

const VOLUMES: [Column; 8] = [
    Column::new("VOLUME", |v| text(&v["id"])),
    Column::new("PROMISE", |v| text(&v["promise"])),
    Column::new("LANES", |v| list(v, "lanes").len().to_string()),
    Column::new("CHUNKS", |v| text(&v["chunks"])),
    Column::new("SLOTS", |v| text(&v["slots"])),
    Column::new("GRANULES", |v| text(&v["granules"])),
    Column::new("DATA", |v| bytes(&v["data_bytes"])),
    Column::new("UNKNOWN", |v| text(&v["unknown_blocks"])),
];

const LANES: [Column; 9] = [
    Column::new("VOLUME", |v| text(&v["volume"])),
    Column::new("LANE", |v| text(&v["lane"]["lane"])),
    Column::new("EPOCH", |v| text(&v["lane"]["current"])),
    Column::new("CONFIG", |v| text(&v["lane"]["config"])),
    Column::new("PREFIX", |v| text(&v["lane"]["prefix"])),
    Column::new("SETTLED", |v| text(&v["lane"]["settled"])),
    Column::new("LISTED", |v| text(&v["lane"]["listed_writes"])),
    Column::new("SUSPECT", |v| text(&v["lane"]["suspect_ranges"])),
    Column::new("JOIN", |v| text(&v["lane"]["join"])),
];

const DAMAGED: [Column; 5] = [
    Column::new("DAMAGED VOLUME", |v| text(&v["volume"])),
    Column::new("FIRST BLOCK", |v| text(&v["first_block"])),
    Column::new("BLOCKS", |v| text(&v["blocks"])),
    Column::new("OFFSET", |v| text(&v["offset_bytes"])),
    Column::new("SIZE", |v| bytes(&v["size_bytes"])),
];

const FINDINGS: [Column; 4] = [
    Column::new("FINDING", |v| if v["damage"] == true { "damage".into() } else { "note".into() }),
    Column::new("PART", |v| text(&v["part"])),
    Column::new("OFFSET", |v| text(&v["offset"])),
    Column::new("WHAT", |v| text(&v["text"])),
];
