//! Replacing a device: which lanes want the new one in the old one's place, and what an operator should know before.

use super::Api;
use super::devices::find_device;
use super::operation_view::{OperationKind, operation_id, operations_of};
use super::problem::Problem;
use super::volume_view::{dead_holder, node_name};
use super::volumes::find;
use ashlar_model::{DeviceId, VolumeId};
use ashlar_raft::settings::OVERCOMMIT_PERCENT;
use ashlar_raft::state::entities::{Device, DeviceState, Lane, Liveness, Volume};
use ashlar_raft::{Command, MetaError, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// What takes the place of a device.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplaceBody {
    /// Identity of the device that takes the place, or its beginning.
    with: String,
    /// Name or identity of the only volume to move; all volumes of the device if absent.
    volume: Option<String>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What is replaced, or would be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Replacing {
    /// The device that goes.
    pub leaving: DeviceNote,
    /// The device that comes.
    pub joining: DeviceNote,
    /// The volumes whose lanes want the new one.
    pub volumes: Vec<VolumeNote>,
    /// Names of the operations that do it.
    pub operations: Vec<String>,
    /// What an operator should know before.
    pub warnings: Vec<String>,
    /// False for a dry run.
    pub done: bool,
}

/// A device, in short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct DeviceNote {
    /// Its identity.
    #[schema(value_type = String, format = "uuid")]
    pub id: DeviceId,
    /// Name of its node.
    pub node: String,
    /// Where it is on its node.
    pub path: String,
    /// `in`, `full`, `failed`, `draining` or `out`.
    #[schema(value_type = String)]
    pub state: DeviceState,
}

/// A volume, in short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct VolumeNote {
    /// Its identity.
    #[schema(value_type = String, format = "uuid")]
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Lanes that want the new device.
    pub lanes: usize,
    /// Bytes to copy at most.
    pub bytes_max: u64,
}

/// Put a device in the place of another
///
/// Every lane that has the old one gets the new one. Everything is checked before anything is changed: a refusal for
/// one volume leaves the others as they were.
#[utoipa::path(
    post, path = "/v1/devices/{id}/replace", operation_id = "replace_device", tag = "devices",
    request_body = ReplaceBody,
    params(("id" = String, Path, description = "Identity of the device that goes, or its beginning")),
    responses((status = 200, description = "It has begun", body = Replacing)),
)]
pub(super) async fn replace(
    Shared(api): Shared<Arc<Api>>,
    Path(leaving): Path<String>,
    Json(body): Json<ReplaceBody>,
) -> Result<Json<Replacing>, Problem> {
    let node = api.node()?;
    let (state, stale) = api.read_state().await?;
    if stale && !body.dry_run {
        return Err(MetaError::Unavailable("no leader with a quorum answers".into()).into());
    }
    let (leaving, joining) = (find_device(&state, &leaving)?, find_device(&state, &body.with)?);
    let volumes = match &body.volume {
        Some(name) => vec![find(&state, name)?],
        None => state.volumes().filter(|volume| lanes_wanting(&state, volume, leaving.id) > 0).collect(),
    };
    let command =
        |volume: &Volume| Command::ReplaceDevice { volume: volume.id, leaving: leaving.id, joining: joining.id };
    let mut trial = State::clone(&state);
    for volume in &volumes {
        trial.apply(&command(volume)).map_err(Problem::from)?;
    }
    let operation = |volume: &&Volume| operation_of(&trial, volume, leaving.id, joining.id);
    let answer = Replacing {
        leaving: device_note(&state, leaving),
        joining: device_note(&state, joining),
        volumes: volumes.iter().map(|volume| volume_note(&state, volume, leaving.id)).collect(),
        operations: volumes.iter().map(operation).collect(),
        warnings: warnings(&trial, &volumes, leaving, joining),
        done: !body.dry_run,
    };
    if !body.dry_run {
        for volume in &volumes {
            node.metadata.propose(command(volume)).await?;
            tracing::info!(volume = volume.name, leaving = %leaving.id, joining = %joining.id, "device replaced");
        }
    }
    Ok(Json(answer))
}

/// The name of the work that begins: a device that takes the place of one that was not in sync comes as a member that
/// rejoins, or goes on with the replacement in which the other one was to join.
fn operation_of(after: &State, volume: &Volume, leaving: DeviceId, joining: DeviceId) -> String {
    let operations = after.volume(volume.id).map(|volume| operations_of(after, volume, &Default::default()));
    let found = operations.into_iter().flatten().find(|operation| operation.joining.contains(&joining));
    found.map_or_else(|| operation_id(OperationKind::Replace, &volume.name, leaving), |operation| operation.id)
}

fn lanes_wanting(state: &State, volume: &Volume, device: DeviceId) -> usize {
    let wants = |lane: &&Lane| state.lane_view(lane).members.contains(&device);
    volume.lanes.iter().filter(wants).count()
}

fn device_note(state: &State, device: &Device) -> DeviceNote {
    let (node, path) = (node_name(state, device.node), device.name.clone());
    DeviceNote { id: device.id, node, path, state: device.state }
}

fn volume_note(state: &State, volume: &Volume, leaving: DeviceId) -> VolumeNote {
    let lanes = lanes_wanting(state, volume, leaving);
    VolumeNote { id: volume.id, name: volume.name.clone(), lanes, bytes_max: lanes as u64 * volume.lane_bytes() }
}

/// `after`: the state as it will be.
fn warnings(after: &State, volumes: &[&Volume], leaving: &Device, joining: &Device) -> Vec<String> {
    let mut warnings = Vec::new();
    if joining.state == DeviceState::Full {
        warnings.push(format!("device {} is full: copying waits for space there", joining.id));
    }
    let percent = after.setting(&OVERCOMMIT_PERCENT);
    let promised = after.device(joining.id).map_or(0, |device| device.committed_bytes);
    if u128::from(promised) > u128::from(joining.capacity_bytes) * u128::from(percent) / 100 {
        warnings.push(format!(
            "{promised} bytes will be promised on device {}, which has {}; the cluster allows {percent} %",
            joining.id, joining.capacity_bytes
        ));
    }
    if after.node(joining.node).is_none_or(|node| node.liveness != Liveness::Up) {
        warnings.push(format!("node {} is not up: copying begins when it is", node_name(after, joining.node)));
    }
    for volume in volumes {
        if let Some(dead) = dead_holder(after, volume) {
            warnings.push(format!("nothing of volume {} is copied for now: {dead}", volume.name));
        }
        let others = volume.class.as_ref().filter(|class| **class != joining.class);
        if let Some(class) = others {
            warnings.push(format!("volume {} wants devices of class {class}, not {}", volume.name, joining.class));
        }
        let only = |lane: &Lane| after.in_sync(lane) == [leaving.id];
        if after.volume(volume.id).is_some_and(|volume| volume.lanes.iter().any(only)) {
            warnings.push(format!(
                "the leaving device holds the only copy of some lane of volume {}; keep it running until the change is \
                 done",
                volume.name
            ));
        }
    }
    warnings
}
