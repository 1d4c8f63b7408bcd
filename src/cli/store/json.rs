//! What was found on a device, as JSON: exact numbers for programs, and the source of the text for people.

use ashlar_model::units::{BLOCK_BYTES, GRANULE_BYTES};
use ashlar_store::disk::Superblock;
use ashlar_store::offline::{
    CheckReport, Finding, LaneSurvey, LogSurvey, SuperblockCopy, SuperblockState, Survey, Tail, Usage, Verdict,
    VolumeSurvey,
};
use serde_json::{Value, json};

/// What is on a device.
pub fn survey(survey: &Survey) -> Value {
    let mut value = json!({
        "path": survey.path.display().to_string(),
        "size_bytes": survey.size_bytes,
        "block_device": survey.block_device,
        "clean": survey.is_clean(),
        "superblocks": survey.superblocks.iter().enumerate().map(|(i, copy)| {
            superblock_copy(copy, survey.in_force == Some(i))
        }).collect::<Vec<_>>(),
        "findings": findings(&survey.findings),
        "log": survey.log.as_ref().map(log),
        "tables": survey.tables.iter().map(|copy| {
            json!({ "offset": copy.offset, "fault": copy.fault })
        }).collect::<Vec<_>>(),
    });
    if let Some(sb) = survey.superblock() {
        merge(&mut value, superblock(sb));
        if let Some(found) = &survey.usage {
            merge(&mut value, usage(sb, found));
        }
    }
    value
}

/// What a check found.
pub fn report(report: &CheckReport) -> Value {
    let sb = report.survey.superblock();
    let stats = &report.stats;
    let damaged = report.damaged.iter().map(|range| {
        json!({
            "volume": range.volume.to_string(),
            "first_block": range.start,
            "blocks": range.blocks,
            "offset_bytes": range.start * BLOCK_BYTES as u64,
            "size_bytes": range.blocks * BLOCK_BYTES as u64,
        })
    });
    json!({
        "path": report.survey.path.display().to_string(),
        "device": sb.map(|sb| sb.device.to_string()),
        "cluster": sb.map(|sb| sb.cluster.to_string()),
        "verdict": match report.verdict() {
            Verdict::Clean => "clean",
            Verdict::Damaged => "damaged",
            Verdict::Unusable => "unusable",
        },
        "unusable": report.unusable,
        "damaged": damaged.collect::<Vec<_>>(),
        "damaged_blocks": report.damaged.blocks(),
        "findings": findings(&report.findings),
        "verified_bytes": report.verified_bytes,
        "used_bytes": stats.used_bytes,
        "total_bytes": stats.total_bytes,
        "used_slots": stats.used_slots,
        "damaged_chunks": stats.damaged_chunks,
        "leaked_granules": stats.leaked_granules,
        "dropped_writes": stats.dropped_writes,
        "replayed_groups": report.survey.log.as_ref().map(|log| log.groups),
        "unwritten_bytes": report.overlay_bytes,
    })
}

fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

fn superblock_copy(copy: &SuperblockCopy, in_force: bool) -> Value {
    let sequence = match &copy.state {
        SuperblockState::Valid(sb) => Some(sb.sequence),
        _ => None,
    };
    json!({
        "name": copy.name.to_string(),
        "offset": copy.offset,
        "sequence": sequence,
        "in_force": in_force,
        "fault": copy.fault(),
    })
}

fn superblock(sb: &Superblock) -> Value {
    let layout = &sb.layout;
    let areas = [
        ("log", layout.log),
        ("tables", layout.tables),
        ("slots", layout.slots),
        ("data", layout.data),
        ("spares", layout.spares),
    ];
    json!({
        "device": sb.device.to_string(),
        "cluster": sb.cluster.to_string(),
        "format_version": sb.version(),
        "formatted_bytes": layout.size_bytes,
        "generation": sb.generation,
        "sequence": sb.sequence,
        "power_loss_protected": sb.power_loss_protected,
        "flushes": sb.flushes,
        "atomic_declared": sb.atomic_declared,
        "atomic": sb.atomic,
        "scrub_slot": sb.scrub_slot,
        "areas": areas.map(|(name, area)| json!({ "name": name, "offset": area.offset, "size_bytes": area.bytes })),
        "log_bytes": layout.log.bytes,
        "total_slots": layout.slot_count,
        "total_granules": layout.granule_count,
    })
}

fn log(log: &LogSurvey) -> Value {
    let (tail, completed) = match &log.tail {
        Tail::Whole => ("whole", log.completed),
        Tail::Torn => ("torn", log.completed),
        Tail::Lost { completed } => ("lost", *completed),
        Tail::Unreadable(_) => ("unreadable", log.completed),
    };
    json!({
        "head_offset": log.head,
        "head_lsn": log.head_lsn,
        "last_lsn": log.last_lsn,
        "completed_lsn": completed,
        "groups": log.groups,
        "used_bytes": log.used_bytes,
        "end_offset": log.end,
        "records": log.records,
        "payload_bytes": log.payload_blocks * BLOCK_BYTES as u64,
        "tail": tail,
    })
}

fn usage(sb: &Superblock, usage: &Usage) -> Value {
    json!({
        "used_slots": usage.slots_used,
        "used_granules": usage.granules_used,
        "used_bytes": usage.granules_used * GRANULE_BYTES as u64,
        "total_bytes": u64::from(sb.layout.granule_count) * GRANULE_BYTES as u64,
        "free_run_bytes": usage.free_run * GRANULE_BYTES as u64,
        "volumes": usage.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}

fn volume(volume: &VolumeSurvey) -> Value {
    json!({
        "id": volume.volume.to_string(),
        "promise": volume.promise,
        "lanes": volume.lanes.iter().map(lane).collect::<Vec<_>>(),
        "chunks": volume.chunks,
        "slots": volume.slots,
        "granules": volume.granules,
        "data_bytes": volume.blocks * BLOCK_BYTES as u64,
        "unknown_blocks": volume.unknown_blocks,
    })
}

fn lane(lane: &LaneSurvey) -> Value {
    let state = &lane.state;
    json!({
        "lane": lane.lane,
        "current": state.current,
        "config": state.config,
        "prefix": state.prefix,
        "settled": state.settled,
        "join": state.join,
        "listed_writes": state.list.len(),
        "suspect_ranges": state.suspect.len(),
    })
}

fn findings(findings: &[Finding]) -> Vec<Value> {
    let one = |finding: &Finding| {
        json!({
            "damage": finding.damage,
            "part": finding.part.to_string(),
            "offset": finding.offset,
            "text": finding.text,
        })
    };
    findings.iter().map(one).collect()
}
