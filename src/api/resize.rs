//! Growing a volume: guests that open it from then on see the new size.

use super::Api;
use super::problem::Problem;
use super::volume_view::{VolumeView, node_name, volume_view};
use super::volumes::{VIEW_TIMEOUT, exact_size, find};
use ashlar_raft::settings::OVERCOMMIT_PERCENT;
use ashlar_raft::state::entities::Volume;
use ashlar_raft::{Command, MetaError, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResizeBody {
    /// Exact size; or `size`.
    size_bytes: Option<u64>,
    /// Size as people write it.
    size: Option<String>,
    /// Also if more is promised than the cluster allows.
    #[serde(default)]
    force: bool,
}

/// Make a volume larger
///
/// Guests that open it from then on see the new size.
#[utoipa::path(
    post, path = "/v1/volumes/{name}/resize", operation_id = "resize_volume", tag = "volumes",
    request_body = ResizeBody, params(("name" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "The volume as it is now", body = VolumeView)),
)]
pub(super) async fn resize(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Json(body): Json<ResizeBody>,
) -> Result<Json<VolumeView>, Problem> {
    let size_bytes = exact_size(body.size_bytes, body.size.as_deref())?;
    let node = api.node()?;
    let (state, stale) = api.read_state().await?;
    if stale {
        return Err(MetaError::Unavailable("no leader with a quorum answers".into()).into());
    }
    let volume = find(&state, &name)?;
    let command = Command::ResizeVolume { volume: volume.id, size_bytes };
    let mut trial = State::clone(&state);
    trial.apply(&command).map_err(Problem::from)?;
    if !body.force {
        check_room(&trial, volume)?;
    }
    node.metadata.propose(command).await?;
    tracing::info!(volume = volume.name, size_bytes, "volume grows");
    let (state, _) = api.read_state().await?;
    node.wait_pushed(state.version(), VIEW_TIMEOUT).await;
    Ok(Json(volume_view(&state, find(&state, &name)?, &Default::default(), true)))
}

/// `after`: the state as it will be.
fn check_room(after: &State, volume: &Volume) -> Result<(), Problem> {
    let percent = after.setting(&OVERCOMMIT_PERCENT);
    for device in volume.lanes.iter().flat_map(|lane| after.devices_of(lane)).filter_map(|device| after.device(device))
    {
        let promised_max = u128::from(device.capacity_bytes) * u128::from(percent) / 100;
        if u128::from(device.committed_bytes) > promised_max {
            return Err(Problem::conflict(
                "no_room",
                "the volume keeps its size",
                format!(
                    "{} bytes would be promised on device {} of node {}, which has {}; the cluster allows {percent} %",
                    device.committed_bytes,
                    device.id,
                    node_name(after, device.node),
                    device.capacity_bytes
                ),
                "add devices, move lanes away with `ashlar device retire`, raise overcommit_percent, or add --force",
            ));
        }
    }
    Ok(())
}
