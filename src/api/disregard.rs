//! After a restore of the metadata: an operator says that nothing needs to wait for a device.

use super::Api;
use super::devices::find_device;
use super::problem::Problem;
use super::volume_view::node_name;
use super::volumes;
use crate::agent::handover;
use ashlar_model::{NodeId, VolumeId};
use ashlar_raft::command::LaneScope;
use ashlar_raft::{Command, MetaError, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

const VIEW_TIMEOUT: Duration = Duration::from_secs(2);
/// Also this node is asked over HTTP: node numbers begin at 1.
const NOBODY: NodeId = NodeId(0);

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DisregardBody {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Only for a lane of this volume, by name or identity; absent: for every lane of every volume.
    volume: Option<String>,
    /// Number of the lane; absent: every lane of the volume.
    lane: Option<u16>,
}

/// After a restore: say that nothing needs to wait for a device
#[utoipa::path(
    post, path = "/v1/devices/{id}/disregard", operation_id = "disregard_device", tag = "devices",
    request_body = DisregardBody, params(("id" = String, Path, description = "Identity, or its beginning")),
    responses((status = 200, description = "Lanes that wait no more, or would", body = Object)),
)]
pub(super) async fn disregard(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    Json(body): Json<DisregardBody>,
) -> Result<Json<Value>, Problem> {
    let node = api.node()?;
    let (state, stale) = api.read_state().await?;
    if stale && !body.dry_run {
        return Err(MetaError::Unavailable("no leader with a quorum answers".into()).into());
    }
    let device = find_device(&state, &id)?;
    let scope = scope_of(&state, &body)?;
    let (lanes, last) = state.unverified_on(device.id, scope);
    let answer = json!({
        "id": device.id, "node": node_name(&state, device.node), "lanes": lanes, "only_copies": last,
        "done": !body.dry_run,
    });
    let device = device.id;
    if !body.dry_run && lanes > 0 {
        let volumes = state.volumes_waiting_for(device).collect();
        node.metadata.propose(Command::Disregard { device, scope }).await?;
        tracing::warn!(%device, lanes, "an operator says that nothing needs to wait for the device");
        tokio::spawn(release_waiting(api.clone(), state.version(), volumes));
    }
    Ok(Json(answer))
}

fn scope_of(state: &State, body: &DisregardBody) -> Result<LaneScope, Problem> {
    let volume = body.volume.as_deref().map(|name| volumes::find(state, name)).transpose()?;
    if body.lane.is_some() && volume.is_none() {
        return Err(Problem::invalid("a lane without a volume", "name the volume as well"));
    }
    Ok(LaneScope { volume: volume.map(|volume| volume.id), lane: body.lane })
}

/// Writers that wait for the device let go: the next ones do not. Whoever cannot be asked has to be detached by hand.
async fn release_waiting(api: Arc<Api>, before: u64, volumes: BTreeSet<VolumeId>) {
    let Ok(node) = api.node() else { return };
    let mut views = node.views.clone();
    let known = views.wait_for(|view| view.version > before);
    drop(tokio::time::timeout(VIEW_TIMEOUT, known).await);
    let view = node.view();
    for row in view.volumes.iter().filter(|row| volumes.contains(&row.spec.id)) {
        handover::ask_holder(&api.client, &view, NOBODY, row, false).await;
    }
}
