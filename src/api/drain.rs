//! Emptying nodes and devices, taking that back, and removing what is empty.

use super::devices::find_device;
use super::drain_view::{EmptyingKind, Subject, emptying, subject_of_device, subjects};
use super::nodes::find as find_node;
use super::problem::Problem;
use super::{Api, beside};
use ashlar_model::DeviceId;
use ashlar_raft::placement::{Budget, Move, MovePlan, Waiting, moves_within, must_vacate};
use ashlar_raft::state::entities::{Admin, DeviceState};
use ashlar_raft::{Command, MetaError, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::ToSchema;

/// Lanes without a place that are told at most.
const BLOCKED_MAX: usize = 100;

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Begin although some lanes have no other place now: they stay until there is one.
    #[serde(default)]
    force: bool,
}

/// What begins, or would.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Draining {
    /// Name of the operation.
    pub id: String,
    /// Name of the node.
    pub node: String,
    /// The device, if it is one alone.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub device: Option<DeviceId>,
    /// Lanes that it holds.
    pub lanes: u64,
    /// Bytes to copy at most, of lanes that have another place.
    pub bytes_max: u64,
    /// Lanes that have no other place now, the first hundred.
    pub blocked: Vec<Blocked>,
    /// Names of volumes that stay attached there until their guests let go.
    pub attached_volumes: Vec<String>,
    /// It has begun; false: it was only asked for.
    pub done: bool,
}

/// A lane that has no other place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Blocked {
    /// Name of the volume.
    pub volume: String,
    /// Number of the lane.
    pub lane: u16,
    /// The member that should go.
    #[schema(value_type = String, format = "uuid")]
    pub leaving: DeviceId,
    /// What is in the way.
    pub why: String,
}

impl Blocked {
    /// With the volume's name.
    pub fn of(state: &State, waiting: &Waiting) -> Self {
        let volume = state.volume(waiting.volume).map_or_else(|| "?".to_owned(), |volume| volume.name.clone());
        let Waiting { lane, leaving, why, .. } = waiting.clone();
        Self { volume, lane, leaving, why }
    }
}

/// It is in normal use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Resumed {
    /// Changes of lanes under way that were taken back.
    pub taken_back: u64,
}

/// It is removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Removed {
    /// Name of the node, or identity of the device.
    pub removed: String,
}

/// Empty a node
///
/// Its lanes move to others, and it gets no new ones.
#[utoipa::path(
    post, path = "/v1/nodes/{name}/drain", operation_id = "drain_node", tag = "nodes", request_body = DrainBody,
    params(("name" = String, Path, description = "Name or number")),
    responses((status = 200, description = "It has begun, or would", body = Draining)),
)]
pub(super) async fn drain_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<Json<Draining>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    let devices = state.devices().filter(|device| device.node == node.id).map(|device| device.id).collect();
    let subject = Subject { kind: EmptyingKind::Drain, node: node.name.clone(), devices, device: None };
    begin(&api, state.clone(), subject, Command::SetNodeAdmin { id: node.id, admin: Admin::Draining }, &body).await
}

/// Empty a device
///
/// Its lanes move to others, and it gets no new ones.
#[utoipa::path(
    post, path = "/v1/devices/{id}/retire", operation_id = "retire_device", tag = "devices", request_body = DrainBody,
    params(("id" = String, Path, description = "Identity, or its beginning")),
    responses((status = 200, description = "It has begun, or would", body = Draining)),
)]
pub(super) async fn retire_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<Json<Draining>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    if device.state == DeviceState::Failed {
        return Err(Problem::conflict(
            "device_failed",
            "nothing was changed",
            format!("device {} has failed: its lanes are rebuilt elsewhere already", device.id),
            "look at `ashlar operation list`",
        ));
    }
    let subject = subject_of_device(&state, device, EmptyingKind::Retire);
    let command = Command::SetDeviceState { id: device.id, state: DeviceState::Draining };
    begin(&api, state.clone(), subject, command, &body).await
}

/// The state as a quorum has it: what is decided must not be decided on old knowledge.
async fn fresh_state(api: &Api) -> Result<Arc<State>, Problem> {
    match api.read_state().await? {
        (state, false) => Ok(state),
        (_, true) => Err(MetaError::Unavailable("no leader with a quorum answers".into()).into()),
    }
}

async fn begin(
    api: &Api,
    state: Arc<State>,
    subject: Subject,
    command: Command,
    body: &DrainBody,
) -> Result<Json<Draining>, Problem> {
    let begun = command.clone();
    let answer = beside(move || tried(&state, &subject, &begun)).await??;
    if body.dry_run {
        return Ok(Json(answer));
    }
    if let Some(first) = answer.blocked.first().filter(|_| !body.force) {
        return Err(Problem::conflict(
            "nowhere_to_go",
            "nothing was changed",
            format!("lane {} of volume {}: {}", first.lane, first.volume, first.why),
            "add a node or a device, or begin with --force: what has no place stays until there is one",
        ));
    }
    api.node()?.metadata.propose(command).await?;
    tracing::info!(id = answer.id, "emptying begins");
    Ok(Json(Draining { done: true, ..answer }))
}

/// What the command would come to.
fn tried(state: &State, subject: &Subject, command: &Command) -> Result<Draining, Problem> {
    let mut trial = state.clone();
    trial.apply(command).map_err(Problem::from)?;
    let plan = moves_within(&trial, Budget::UNLIMITED, |_| true);
    let waiting = plan.waiting.iter().filter(|one| subject.devices.contains(&one.leaving));
    let attached = state.volumes().filter(|volume| {
        let holder = volume.attachment.and_then(|held| state.node(held.node));
        subject.device.is_none() && holder.is_some_and(|node| node.name == subject.node)
    });
    Ok(Draining {
        id: subject.id(),
        node: subject.node.clone(),
        device: subject.device,
        lanes: emptying(&trial, subject, &plan).lanes_left,
        bytes_max: bytes_of(&plan, &subject.devices),
        blocked: waiting.take(BLOCKED_MAX).map(|one| Blocked::of(state, one)).collect(),
        attached_volumes: attached.map(|volume| volume.name.clone()).collect(),
        done: false,
    })
}

fn bytes_of(plan: &MovePlan, devices: &BTreeSet<DeviceId>) -> u64 {
    plan.moves.iter().filter(|one: &&Move| devices.contains(&one.leaving)).map(|one| one.bytes_max).sum()
}

/// Take the emptying of a node back
#[utoipa::path(
    post, path = "/v1/nodes/{name}/resume", operation_id = "resume_node", tag = "nodes",
    params(("name" = String, Path, description = "Name or number")),
    responses((status = 200, description = "It is in normal use", body = Resumed)),
)]
pub(super) async fn resume_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Resumed>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    let command = Command::SetNodeAdmin { id: node.id, admin: Admin::Active };
    let devices = state.devices().filter(|device| device.node == node.id).map(|device| device.id).collect();
    take_back(&api, &state, command, &devices).await.map(|taken_back| Json(Resumed { taken_back }))
}

/// Take the emptying of a device back
#[utoipa::path(
    post, path = "/v1/devices/{id}/resume", operation_id = "resume_device", tag = "devices",
    params(("id" = String, Path, description = "Identity, or its beginning")),
    responses((status = 200, description = "It is in normal use", body = Resumed)),
)]
pub(super) async fn resume_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Resumed>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    if !matches!(device.state, DeviceState::Draining | DeviceState::In) {
        let detail = format!("device {} is {:?}", device.id, device.state).to_lowercase();
        let hint = "only a device that is being emptied can be taken back; replace one that has failed";
        return Err(Problem::conflict("not_draining", "nothing was changed", detail, hint));
    }
    let command = Command::SetDeviceState { id: device.id, state: DeviceState::In };
    let taken_back = take_back(&api, &state, command, &[device.id].into()).await?;
    Ok(Json(Resumed { taken_back }))
}

/// Ends the emptying of what `id` names, for `ashlar operation cancel`.
pub(super) async fn cancel(api: &Api, state: &State, id: &str) -> Option<Result<u64, Problem>> {
    let subject = subjects(state).into_iter().find(|subject| subject.id() == id)?;
    let command = match (subject.kind, subject.device) {
        (EmptyingKind::Rebuild, _) => {
            let detail = "what is lost has to be made anew";
            let hint = "start the node or replace the device: what comes back is used again";
            return Some(Err(Problem::conflict("not_cancellable", "nothing was changed", detail, hint)));
        }
        (_, Some(device)) => Command::SetDeviceState { id: device, state: DeviceState::In },
        (_, None) => Command::SetNodeAdmin { id: state.node_by_name(&subject.node)?.id, admin: Admin::Active },
    };
    Some(take_back(api, state, command, &subject.devices).await)
}

/// In normal use again. Changes under way whose new device is not in sync yet are taken back.
async fn take_back(api: &Api, state: &State, command: Command, devices: &BTreeSet<DeviceId>) -> Result<u64, Problem> {
    let metadata = &api.node()?.metadata;
    metadata.propose(command).await?;
    // What has to go for another reason, and changes of a device that was not being emptied, go on.
    let now = fresh_state(api).await?;
    let stays = |device: &&DeviceId| must_vacate(state, **device) && !must_vacate(&now, **device);
    let devices: BTreeSet<DeviceId> = devices.iter().filter(stays).copied().collect();
    let mut taken_back = BTreeSet::new();
    for volume in now.volumes() {
        let changes = volume.lanes.iter().filter_map(|lane| lane.replacement.as_deref());
        taken_back.extend(
            changes
                .filter(|change| devices.contains(&change.leaving))
                .map(|change| (volume.id, change.leaving, change.joining)),
        );
    }
    let mut count = 0;
    for (volume, leaving, joining) in taken_back {
        // Those that are in sync by now have moved, and stay where they are.
        count += u64::from(metadata.propose(Command::CancelReplacement { volume, leaving, joining }).await.is_ok());
    }
    Ok(count)
}

/// Remove an empty node for good
#[utoipa::path(
    delete, path = "/v1/nodes/{name}", operation_id = "remove_node", tag = "nodes",
    params(("name" = String, Path, description = "Name or number")),
    responses((status = 200, description = "It is removed", body = Removed)),
)]
pub(super) async fn remove_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Removed>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    if node.id == api.node()?.id {
        let hint = "ask another node";
        return Err(Problem::conflict("own_node", "nothing was changed", "a node does not remove itself", hint));
    }
    api.node()?.metadata.propose(Command::SetNodeAdmin { id: node.id, admin: Admin::Removed }).await?;
    tracing::info!(node = node.name, "node removed");
    Ok(Json(Removed { removed: node.name.clone() }))
}

/// Remove an empty device for good
#[utoipa::path(
    delete, path = "/v1/devices/{id}", operation_id = "remove_device", tag = "devices",
    params(("id" = String, Path, description = "Identity, or its beginning")),
    responses((status = 200, description = "It is removed", body = Removed)),
)]
pub(super) async fn remove_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Removed>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    api.node()?.metadata.propose(Command::SetDeviceState { id: device.id, state: DeviceState::Out }).await?;
    tracing::info!(device = %device.id, "device removed");
    Ok(Json(Removed { removed: device.id.to_string() }))
}
