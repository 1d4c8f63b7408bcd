//! Operations: list, show, cancel.

use super::operation_view::{self, Operation, OperationKind, OperationState, with_pace};
use super::page::{Page, PageQuery};
use super::problem::Problem;
use super::watch::{self, Kind, WatchLine, WatchQuery};
use super::{Api, beside, drain, drain_view, reports};
use ashlar_model::DeviceId;
use ashlar_raft::state::entities::Volume;
use ashlar_raft::{Command, State};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// Running operations are looked at twice, this far apart: that gives their pace.
const PACE_PAUSE: Duration = Duration::from_millis(500);

/// An operation, as one member of the metadata service tells it.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct OperationDetail {
    /// The operation.
    #[serde(flatten)]
    pub operation: Work,
    /// No quorum vouched for it: it may be old.
    pub stale: bool,
}

/// Work on a volume, or something that is being emptied.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Work {
    /// Work on one volume.
    Volume(Operation),
    /// A node or device that is being emptied.
    Emptying(drain_view::Emptying),
}

impl Work {
    /// Its name.
    pub fn id(&self) -> &str {
        match self {
            Self::Volume(operation) => &operation.id,
            Self::Emptying(emptying) => &emptying.id,
        }
    }
}

/// An operation was taken back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Cancelled {
    /// The operation.
    pub cancelled: String,
    /// Name of the volume, of a replacement.
    pub volume: Option<String>,
    /// The device that keeps its place, of a replacement.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub stays: Option<DeviceId>,
    /// Changes of lanes that were taken back, of something that was being emptied.
    pub taken_back: Option<u64>,
}

/// All operations that run or wait
#[utoipa::path(
    get, path = "/v1/operations", operation_id = "list_operations", tag = "operations", params(PageQuery),
    responses((
        status = 200, description = "The operations, by name",
        content((Page<Work> = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn list(Shared(api): Shared<Arc<Api>>, Query(query): Query<PageQuery>) -> Result<Response, Problem> {
    if query.is_watch()? {
        return watch::stream(&api, Kind::Operations, None).await;
    }
    let asked = query.of("operations")?;
    let (state, stale) = api.read_state().await?;
    let mut work: Vec<Work> = look_twice(&api, &state, |_| true).await?.into_iter().map(Work::Volume).collect();
    work.extend(beside(move || drain_view::emptyings(&state)).await?.into_iter().map(Work::Emptying));
    work.sort_by(|one, other| one.id().cmp(other.id()));
    let (items, next) = asked.cut(work.into_iter(), |work: &Work| work.id().to_owned());
    Ok(Json(Page { items, next, stale }).into_response())
}

/// One operation
///
/// One that is over is told as done, for as long as its volume and its device are there.
#[utoipa::path(
    get, path = "/v1/operations/{id}", operation_id = "get_operation", tag = "operations",
    params(("id" = String, Path, description = "Its name"), WatchQuery),
    responses((
        status = 200, description = "The operation",
        content((OperationDetail = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn show(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, Problem> {
    let (state, stale) = api.read_state().await?;
    let (known, name) = (state.clone(), id.clone());
    let emptying = beside(move || drain_view::find(&known, &name)).await?;
    if query.watch {
        let runs = emptying.is_some()
            || state.volumes().any(|volume| {
                let all = || operation_view::operations_of(&state, volume, &Default::default());
                operation_view::has_work(&state, volume) && all().iter().any(|operation| operation.id == id)
            });
        if !runs && operation_view::finished(&state, &id).is_none() {
            return Err(Problem::not_found("operation", &id));
        }
        return watch::stream(&api, Kind::Operations, Some(id)).await;
    }
    let operation = match emptying {
        Some(emptying) => Work::Emptying(emptying),
        None => {
            let running = look_twice(&api, &state, |operation| operation.id == id).await?;
            let found = running.into_iter().next().or_else(|| operation_view::finished(&state, &id));
            Work::Volume(found.ok_or_else(|| Problem::not_found("operation", &id))?)
        }
    };
    Ok(Json(OperationDetail { operation, stale }).into_response())
}

/// Take back a replacement whose new device is not in sync yet, or the emptying of a node or device
#[utoipa::path(
    post, path = "/v1/operations/{id}/cancel", operation_id = "cancel_operation", tag = "operations",
    params(("id" = String, Path, description = "Its name")),
    responses((status = 200, description = "It is taken back", body = Cancelled)),
)]
pub(super) async fn cancel(Shared(api): Shared<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Cancelled>, Problem> {
    let node = api.node()?;
    let (state, _) = api.read_state().await?;
    if let Some(taken_back) = drain::cancel(&api, &state, &id).await {
        return Ok(Json(Cancelled { cancelled: id, volume: None, stays: None, taken_back: Some(taken_back?) }));
    }
    let found = look(&api, &state).await.into_iter().find(|operation| operation.id == id);
    let operation = found.ok_or_else(|| Problem::not_found("operation", &id))?;
    let leaving = operation.leaving.filter(|_| operation.kind == OperationKind::Replace);
    let (Some(leaving), Some(volume)) = (leaving, state.volume_by_name(&operation.volume)) else {
        return Err(Problem::conflict(
            "not_cancellable",
            "nothing was changed",
            "a member that comes back in cannot be told to stay away",
            "replace its device with `ashlar device replace`",
        ));
    };
    for joining in operation.joining {
        node.metadata.propose(Command::CancelReplacement { volume: volume.id, leaving, joining }).await?;
    }
    tracing::info!(id, "operation cancelled");
    let (volume, stays) = (Some(operation.volume), Some(leaving));
    Ok(Json(Cancelled { cancelled: id, volume, stays, taken_back: None }))
}

/// All operations as they are now.
async fn look(api: &Api, state: &State) -> Vec<Operation> {
    let busy: Vec<&Volume> = state.volumes().filter(|volume| operation_view::has_work(state, volume)).collect();
    let holders = busy.iter().filter_map(|volume| volume.attachment.map(|held| held.node)).collect();
    let reports = reports::gather(api, state, holders).await;
    busy.iter().flat_map(|volume| operation_view::operations_of(state, volume, &reports)).collect()
}

/// Those that match, with their pace.
async fn look_twice(api: &Api, state: &State, wanted: impl Fn(&Operation) -> bool) -> Result<Vec<Operation>, Problem> {
    let matching = |operations: Vec<Operation>| operations.into_iter().filter(&wanted).collect::<Vec<_>>();
    let before = matching(look(api, state).await);
    if !before.iter().any(|operation| operation.state == OperationState::Running) {
        return Ok(before);
    }
    let began = Instant::now();
    tokio::time::sleep(PACE_PAUSE).await;
    let (state, _) = api.read_state().await?;
    let now = matching(look(api, &state).await);
    let seconds = began.elapsed().as_secs_f64();
    let earlier = |id: &str| before.iter().find(|operation| operation.id == id);
    Ok(now.into_iter().map(|operation| with_pace(operation.clone(), earlier(&operation.id), seconds)).collect())
}
