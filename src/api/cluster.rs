//! The cluster as a whole.

use super::problem::Problem;
use super::{Api, volume_view::node_name};
use ashlar_raft::State;
use ashlar_raft::codec::{HEADER_BYTES, SNAPSHOT_BYTES_MAX};
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{DeviceState, NodeState};
use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a backup is read.
pub const BACKUP_PATH: &str = "/v1/cluster/backup";
/// Largest backup.
pub const BACKUP_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + HEADER_BYTES;

/// All metadata as one record, as a quorum vouches for it: a backup is never stale.
pub(super) async fn backup(Shared(api): Shared<Arc<Api>>) -> Result<Response, Problem> {
    let handle = api.node()?.metadata.local().ok_or_else(Problem::no_cluster)?;
    let record = handle.backup().await?;
    tracing::info!(bytes = record.len(), "the metadata was read for a backup");
    Ok(([("content-type", "application/octet-stream")], record).into_response())
}

pub(super) async fn status(Shared(api): Shared<Arc<Api>>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let handle = api.node()?.metadata.local().ok_or_else(Problem::no_cluster)?;
    let metrics = handle.metrics();
    let cluster = state.cluster().ok_or_else(Problem::no_cluster)?;
    let volumes = volume_counts(&state);
    let nodes = node_counts(&state);
    let health = if stale || volumes["unavailable"] > 0 {
        "unavailable"
    } else if volumes["degraded"] > 0
        || nodes.iter().any(|(word, count)| *word != "up" && *word != "removed" && *count > 0)
    {
        "degraded"
    } else {
        "healthy"
    };
    let voters: Vec<String> = metrics.membership.voters.iter().map(|id| node_name(&state, *id)).collect();
    Ok(Json(json!({
        "id": cluster.id,
        "name": cluster.name,
        "health": health,
        "stale": stale,
        "metadata": {
            "leader": metrics.leader.map(|id| node_name(&state, id)),
            "term": metrics.term,
            "applied_index": metrics.applied_index,
            "voters": voters,
            "learners": metrics.membership.learners.iter().map(|id| node_name(&state, *id)).collect::<Vec<_>>(),
            "version": state.version(),
        },
        "nodes": nodes,
        "devices": device_counts(&state),
        "volumes": volumes,
    })))
}

fn node_counts(state: &State) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::from([("up", 0), ("suspect", 0), ("down", 0), ("draining", 0), ("removed", 0)]);
    for node in state.nodes() {
        let word = match node.state() {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Draining => "draining",
            NodeState::Removed => "removed",
        };
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn volume_counts(state: &State) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::from([
        ("total", 0),
        ("healthy", 0),
        ("degraded", 0),
        ("unavailable", 0),
        ("attached", 0),
        ("unverified", 0),
    ]);
    for volume in state.volumes() {
        let word = match state.volume_health(volume) {
            VolumeHealth::Healthy => "healthy",
            VolumeHealth::Degraded => "degraded",
            VolumeHealth::Unavailable => "unavailable",
        };
        *counts.entry(word).or_default() += 1;
        *counts.entry("total").or_default() += 1;
        *counts.entry("attached").or_default() += u64::from(volume.attachment.is_some());
        *counts.entry("unverified").or_default() += u64::from(state.unverified_lanes(volume.id) > 0);
    }
    counts
}

fn device_counts(state: &State) -> Value {
    let used = || state.devices().filter(|device| device.state != DeviceState::Out);
    json!({
        "total": used().count(),
        "failed": used().filter(|device| device.state == DeviceState::Failed).count(),
        "capacity_bytes": used().map(|device| device.capacity_bytes).sum::<u64>(),
        "committed_bytes": used().map(|device| device.committed_bytes).sum::<u64>(),
    })
}
