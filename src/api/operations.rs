//! Operations: list, show, cancel.

use super::operation_view::{self, Operation, OperationKind, OperationState, with_pace};
use super::problem::Problem;
use super::{Api, drain, drain_view, reports};
use ashlar_raft::state::entities::Volume;
use ashlar_raft::{Command, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Running operations are looked at twice, this far apart: that gives their pace.
const PACE_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn list(Shared(api): Shared<Arc<Api>>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let mut items: Vec<Value> = drain_view::emptyings(&state).iter().map(|one| json!(one)).collect();
    items.extend(look_twice(&api, &state, |_| true).await?.iter().map(|one| json!(one)));
    Ok(Json(json!({ "items": items, "stale": stale })))
}

pub(super) async fn show(Shared(api): Shared<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let emptying = drain_view::emptyings(&state).into_iter().find(|one| one.id == id);
    let mut view = match emptying.or_else(|| drain_view::finished(&state, &id)) {
        Some(emptying) => json!(emptying),
        None => {
            let running = look_twice(&api, &state, |operation| operation.id == id).await?;
            let found = running.into_iter().next().or_else(|| operation_view::finished(&state, &id));
            json!(found.ok_or_else(|| Problem::not_found("operation", &id))?)
        }
    };
    view["stale"] = stale.into();
    Ok(Json(view))
}

pub(super) async fn cancel(Shared(api): Shared<Arc<Api>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let node = api.node()?;
    let (state, _) = api.read_state().await?;
    if let Some(answer) = drain::cancel(&api, &state, &id).await {
        return answer;
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
    Ok(Json(json!({ "cancelled": id, "volume": operation.volume, "stays": leaving })))
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
