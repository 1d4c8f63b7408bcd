//! The cluster as a whole.

use super::problem::Problem;
use super::{Api, volume_view::node_name};
use ashlar_model::ClusterId;
use ashlar_raft::State;
use ashlar_raft::codec::{HEADER_BYTES, SNAPSHOT_BYTES_MAX};
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{DeviceState, NodeState};
use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Where a backup is read.
pub const BACKUP_PATH: &str = "/v1/cluster/backup";
/// Largest backup.
pub const BACKUP_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + HEADER_BYTES;

/// All metadata as one record
///
/// As a quorum vouches for it: a backup is never stale.
#[utoipa::path(
    get, path = "/v1/cluster/backup", operation_id = "backup_cluster", tag = "cluster",
    responses((status = 200, description = "The record", body = Vec<u8>, content_type = "application/octet-stream")),
)]
pub(super) async fn backup(Shared(api): Shared<Arc<Api>>) -> Result<Response, Problem> {
    let handle = api.node()?.metadata.local().ok_or_else(Problem::no_cluster)?;
    let record = handle.backup().await?;
    tracing::info!(bytes = record.len(), "the metadata was read for a backup");
    Ok(([("content-type", "application/octet-stream")], record).into_response())
}

/// The cluster in one page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[schema(as = Cluster)]
pub struct ClusterStatus {
    /// Its identity.
    #[schema(value_type = String, format = "uuid")]
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// `healthy`, `degraded` or `unavailable`.
    #[schema(value_type = String)]
    pub health: &'static str,
    /// No quorum vouched for it: it may be old.
    pub stale: bool,
    /// The metadata service, as the node sees it that answers.
    pub metadata: MetadataStatus,
    /// Nodes by state: `up`, `suspect`, `down`, `out`, `draining`, `removed`.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub nodes: BTreeMap<&'static str, u64>,
    /// Devices that are in use.
    pub devices: DeviceCounts,
    /// Volumes: `total`, `healthy`, `degraded`, `unavailable`, `attached`.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub volumes: BTreeMap<&'static str, u64>,
}

/// The metadata service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct MetadataStatus {
    /// Name of the node that leads, if one is known.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
    /// Last index applied.
    pub applied_index: u64,
    /// Names of the nodes that vote.
    pub voters: Vec<String>,
    /// Names of the nodes that only follow.
    pub learners: Vec<String>,
    /// Commands that changed the metadata so far.
    pub version: u64,
}

/// All devices together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct DeviceCounts {
    /// Devices.
    pub total: usize,
    /// Of these, failed ones.
    pub failed: usize,
    /// Bytes that they offer.
    pub capacity_bytes: u64,
    /// Bytes that are promised to volumes.
    pub committed_bytes: u64,
}

/// Health, metadata service, nodes, devices, volumes
#[utoipa::path(
    get, path = "/v1/cluster", operation_id = "get_cluster", tag = "cluster",
    responses((status = 200, description = "The cluster", body = ClusterStatus)),
)]
pub(super) async fn status(Shared(api): Shared<Arc<Api>>) -> Result<Json<ClusterStatus>, Problem> {
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
    let metadata = MetadataStatus {
        leader: metrics.leader.map(|id| node_name(&state, id)),
        term: metrics.term,
        applied_index: metrics.applied_index,
        voters: metrics.membership.voters.iter().map(|id| node_name(&state, *id)).collect(),
        learners: metrics.membership.learners.iter().map(|id| node_name(&state, *id)).collect(),
        version: state.version(),
    };
    let (id, name) = (cluster.id, cluster.name.clone());
    let devices = device_counts(&state);
    Ok(Json(ClusterStatus { id, name, health, stale, metadata, nodes, devices, volumes }))
}

fn node_counts(state: &State) -> BTreeMap<&'static str, u64> {
    let mut counts =
        BTreeMap::from([("up", 0), ("suspect", 0), ("down", 0), ("out", 0), ("draining", 0), ("removed", 0)]);
    for node in state.nodes() {
        let word = match node.state() {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Draining => "draining",
            NodeState::Removed => "removed",
            NodeState::Out => "out",
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

fn device_counts(state: &State) -> DeviceCounts {
    let used = || state.devices().filter(|device| device.state != DeviceState::Out);
    DeviceCounts {
        total: used().count(),
        failed: used().filter(|device| device.state == DeviceState::Failed).count(),
        capacity_bytes: used().map(|device| device.capacity_bytes).sum(),
        committed_bytes: used().map(|device| device.committed_bytes).sum(),
    }
}
