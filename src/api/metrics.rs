//! `/metrics`: Prometheus text about this node. Names `ashlar_*`, units in names.

use super::Api;
use crate::agent::Node;
use crate::observe::process;
use crate::observe::prometheus::{MetricKind, MetricsText};
use crate::shard::control::{DeviceStatus, ShardLoad, ShardStatus};
use crate::volume::Health;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use std::sync::{Arc, PoisonError};

pub(super) async fn metrics(Shared(api): Shared<Arc<Api>>) -> Response {
    let mut text = MetricsText::default();
    own_process(&mut text);
    requests(&mut text, &api);
    if let Some(node) = api.node.get() {
        raft(&mut text, node);
        match node.shard_status().await {
            Ok(status) => {
                text.single("ashlar_data_plane_up", MetricKind::Gauge, "The data plane answers", 1);
                shard(&mut text, &status);
                volumes(&mut text, &status);
                devices(&mut text, &status.devices);
            }
            Err(_) => text.single("ashlar_data_plane_up", MetricKind::Gauge, "The data plane answers", 0),
        }
    }
    ([("content-type", "text/plain; version=0.0.4")], text.finish()).into_response()
}

fn own_process(text: &mut MetricsText) {
    let used = process::read();
    text.family("ashlar_build_info", MetricKind::Gauge, "Version of the program");
    text.sample("ashlar_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.single("ashlar_process_cpu_seconds_total", MetricKind::Counter, "CPU time used", used.cpu_seconds);
    text.single("ashlar_process_resident_bytes", MetricKind::Gauge, "Resident memory", used.resident_bytes);
}

fn requests(text: &mut MetricsText, api: &Api) {
    let name = "ashlar_api_requests_total";
    text.family(name, MetricKind::Counter, "API requests by method and status");
    for ((method, status), count) in api.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        text.sample(name, &[("method", method), ("status", &status.to_string())], count);
    }
}

fn raft(text: &mut MetricsText, node: &Node) {
    let registered = u8::from(node.is_registered());
    text.single("ashlar_node_registered", MetricKind::Gauge, "The cluster knows this run of the daemon", registered);
    let Some(handle) = node.metadata.local() else { return };
    let metrics = handle.metrics();
    let leads = u8::from(metrics.role == "leader");
    let known = u8::from(metrics.leader.is_some());
    text.single("ashlar_raft_is_leader", MetricKind::Gauge, "This node leads the metadata service", leads);
    text.single("ashlar_raft_has_leader", MetricKind::Gauge, "A leader is known", known);
    text.single("ashlar_raft_term", MetricKind::Gauge, "Raft term", metrics.term);
    text.single("ashlar_raft_applied_index", MetricKind::Gauge, "Last applied log index", metrics.applied_index);
    text.single("ashlar_raft_last_log_index", MetricKind::Gauge, "Last log index", metrics.last_log_index);
    text.single("ashlar_raft_snapshot_index", MetricKind::Gauge, "Last index in a snapshot", metrics.snapshot_index);
}

fn shard(text: &mut MetricsText, status: &ShardStatus) {
    let peers = status.peers_connected.len();
    text.single("ashlar_peers_connected", MetricKind::Gauge, "Nodes with an established data link", peers);
    let (name, help) = ("ashlar_credit_waits_total", "Requests to other shards that waited for flow-control credits");
    text.family(name, MetricKind::Counter, help);
    for (class, waits) in
        [("foreground", status.credit_waits.foreground), ("background", status.credit_waits.background)]
    {
        text.sample(name, &[("class", class)], waits);
    }
    type Field = fn(&ShardLoad) -> u64;
    let families: [(&str, MetricKind, &str, Field); 5] = [
        ("ashlar_nbd_connections", MetricKind::Gauge, "Guest connections", |s| s.nbd_connections as u64),
        ("ashlar_guest_requests_total", MetricKind::Counter, "Guest requests answered", |s| s.requests),
        ("ashlar_io_uring_enters_total", MetricKind::Counter, "io_uring_enter calls", |s| s.enters),
        ("ashlar_shard_volumes", MetricKind::Gauge, "Volumes attached to the shard", |s| s.volumes as u64),
        ("ashlar_shard_devices", MetricKind::Gauge, "Devices that the shard serves", |s| s.devices as u64),
    ];
    for (name, kind, help, field) in families {
        text.family(name, kind, help);
        for shard in &status.shards {
            text.sample(name, &[("shard", &shard.number.to_string())], field(shard));
        }
    }
}

fn volumes(text: &mut MetricsText, status: &ShardStatus) {
    type Field = fn(&crate::shard::control::AttachedVolume) -> u64;
    let families: [(&str, MetricKind, &str, Field); 15] = [
        ("ashlar_volume_reads_total", MetricKind::Counter, "Client reads", |v| v.status.counters.reads),
        ("ashlar_volume_writes_total", MetricKind::Counter, "Client writes, trims and write-zeroes", |v| {
            v.status.counters.writes
        }),
        ("ashlar_volume_read_bytes_total", MetricKind::Counter, "Bytes read by clients", |v| {
            v.status.counters.read_bytes
        }),
        ("ashlar_volume_written_bytes_total", MetricKind::Counter, "Bytes written by clients", |v| {
            v.status.counters.written_bytes
        }),
        ("ashlar_volume_repaired_blocks_total", MetricKind::Counter, "Damaged blocks repaired", |v| {
            v.status.counters.repaired_blocks
        }),
        ("ashlar_volume_lost_data_total", MetricKind::Counter, "Members found without writes they acknowledged", |v| {
            v.status.counters.lost_data
        }),
        ("ashlar_volume_lost_blocks_total", MetricKind::Counter, "Blocks whose every copy was damaged", |v| {
            v.status.counters.lost_blocks
        }),
        ("ashlar_volume_ejections_total", MetricKind::Counter, "Members ejected", |v| v.status.counters.ejections),
        ("ashlar_volume_join_bytes_total", MetricKind::Counter, "Bytes copied to joiners", |v| {
            v.status.counters.join_bytes
        }),
        ("ashlar_volume_joins_total", MetricKind::Counter, "Members that came in sync", |v| v.status.counters.joins),
        ("ashlar_volume_joining_lanes", MetricKind::Gauge, "Lanes with a member that is joining", |v| {
            v.status.lanes.iter().filter(|lane| lane.join.is_some()).count() as u64
        }),
        ("ashlar_volume_maintenance", MetricKind::Gauge, "1: attached only to bring its members in sync", |v| {
            u64::from(v.maintenance)
        }),
        ("ashlar_volume_retained_bytes", MetricKind::Gauge, "Bytes in flight or kept for lagging members", |v| {
            v.status.lanes.iter().map(|lane| lane.retained_bytes).sum()
        }),
        ("ashlar_volume_in_flight", MetricKind::Gauge, "Writes given an index that not every member has", |v| {
            v.status.lanes.iter().map(|lane| lane.last.saturating_sub(lane.settled)).sum()
        }),
        ("ashlar_volume_health", MetricKind::Gauge, "0 healthy, 1 degraded, 2 suspended", |v| match v.status.health {
            Health::Healthy => 0,
            Health::Degraded => 1,
            Health::Suspended => 2,
        }),
    ];
    for (name, kind, help, field) in families {
        text.family(name, kind, help);
        for volume in &status.volumes {
            text.sample(name, &[("volume", &volume.name)], field(volume));
        }
    }
}

fn devices(text: &mut MetricsText, devices: &[DeviceStatus]) {
    type Field = fn(&DeviceStatus) -> u64;
    let families: [(&str, MetricKind, &str, Field); 11] = [
        ("ashlar_device_used_bytes", MetricKind::Gauge, "Data bytes in use", |d| d.used_bytes),
        ("ashlar_device_total_bytes", MetricKind::Gauge, "Data bytes that it can hold", |d| d.total_bytes),
        ("ashlar_device_written_bytes_total", MetricKind::Counter, "Bytes written to the medium", |d| d.written_bytes),
        ("ashlar_device_bad_blocks_total", MetricKind::Counter, "Blocks found damaged", |d| d.bad_blocks),
        ("ashlar_device_repaired_blocks_total", MetricKind::Counter, "Blocks repaired", |d| d.repaired_blocks),
        ("ashlar_device_failed", MetricKind::Gauge, "It no longer serves", |d| u64::from(d.failed.is_some())),
        ("ashlar_device_scrubbed_bytes_total", MetricKind::Counter, "Data bytes that the scrub verified", |d| {
            d.scrub.scrubbed_bytes
        }),
        ("ashlar_device_scrub_passes_total", MetricKind::Counter, "Times that the scrub reached the end", |d| {
            d.scrub.passes
        }),
        ("ashlar_device_scrub_damaged_blocks_total", MetricKind::Counter, "Damaged blocks that the scrub met", |d| {
            d.scrub.damaged_blocks
        }),
        ("ashlar_device_scrub_rate_bytes", MetricKind::Gauge, "Bytes per second that the scrub may read now", |d| {
            d.scrub.rate_bytes_per_s
        }),
        ("ashlar_device_scrub_state", MetricKind::Gauge, "0 off, 1 running, 2 yielding, 3 resting", |d| {
            d.scrub.pace as u64
        }),
    ];
    for (name, kind, help, field) in families {
        text.family(name, kind, help);
        for device in devices {
            let path = device.path.display().to_string();
            text.sample(name, &[("device", &device.id.to_string()), ("path", &path)], field(device));
        }
    }
}
