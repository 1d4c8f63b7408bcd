//! Calls between nodes: Raft, session renewals, forwarded commands, views and status reports.

use super::Api;
use super::problem::Problem;
use crate::agent::handover::{RELEASE_TIMEOUT, Release, Released};
use crate::agent::leader::Renewal;
use crate::agent::metadata::VIEW_WAIT;
use crate::agent::transport::TARGET_HEADER;
use crate::agent::view::ClusterView;
use crate::client::FORWARDED_HEADER;
use crate::shard::control::{ShardCommand, ShardStatus};
use ashlar_raft::codec::{self, Kind};
use ashlar_raft::{Command, MetaHandle, RpcKind};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State as Shared};
use axum::http::HeaderMap;
use serde::Deserialize;
use std::sync::Arc;

fn member(api: &Api) -> Result<&MetaHandle, Problem> {
    api.node()?.metadata.local().ok_or_else(|| {
        Problem::unavailable("not_a_member", "this node is no member of the metadata service", "ask a meta node")
    })
}

/// A member whose service has ended knows nothing that others should go by.
fn running_member(api: &Api) -> Result<&MetaHandle, Problem> {
    let handle = member(api)?;
    if handle.has_stopped() {
        let detail = "the metadata service has ended on this node";
        return Err(Problem::unavailable("stopped", detail, "ask another meta node, and look at this one's log"));
    }
    Ok(handle)
}

pub(super) async fn raft(
    Shared(api): Shared<Arc<Api>>,
    kind: RpcKind,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Vec<u8>, Problem> {
    let handle = member(&api)?;
    let target = headers.get(TARGET_HEADER).and_then(|value| value.to_str().ok());
    if target.is_some_and(|target| target != handle.node().to_string()) {
        let detail = format!("this is node {}, not node {}", handle.node(), target.unwrap_or("?"));
        return Err(Problem::conflict(
            "wrong_node",
            "the call is for another node",
            detail,
            "correct the node's address",
        ));
    }
    Ok(handle.serve_rpc(kind, &body).await?)
}

pub(super) async fn session(
    Shared(api): Shared<Arc<Api>>,
    headers: HeaderMap,
    Json(renewal): Json<Renewal>,
) -> Result<(), Problem> {
    let leader = api.node()?.leader.as_ref().ok_or_else(|| {
        Problem::unavailable("not_a_member", "this node is no member of the metadata service", "ask a meta node")
    })?;
    let forwarded = headers.contains_key(FORWARDED_HEADER);
    leader.renew(renewal, forwarded).await.map_err(|why| Problem::unavailable("not_leader", why, "ask again"))
}

/// A command of a node that is no member. The answer is an encoded result, refusals included.
pub(super) async fn propose(Shared(api): Shared<Arc<Api>>, body: Bytes) -> Result<Vec<u8>, Problem> {
    let handle = running_member(&api)?;
    let command: Command = codec::decode(Kind::Command, &body)
        .map_err(|error| Problem::invalid(error.to_string(), "run the same version on all nodes"))?;
    let result = handle.propose_anywhere(command).await;
    codec::encode(Kind::Outcome, &result).map_err(|error| Problem::invalid(error.to_string(), "report this"))
}

#[derive(Deserialize)]
pub(super) struct ViewQuery {
    #[serde(default)]
    after: u64,
}

/// The metadata as agents see it, as soon as it is newer than `after`; after a while as it is.
pub(super) async fn view(
    Shared(api): Shared<Arc<Api>>,
    Query(query): Query<ViewQuery>,
) -> Result<Json<ClusterView>, Problem> {
    let node = api.node()?;
    running_member(&api)?;
    let mut views = node.views.clone();
    let newer = views.wait_for(|view| view.cluster.is_some() && view.version > query.after);
    drop(tokio::time::timeout(VIEW_WAIT, newer).await);
    let view = node.view();
    if view.cluster.is_none() {
        return Err(Problem::unavailable("unavailable", "the metadata is not known here yet", "ask another node"));
    }
    Ok(Json(ClusterView::clone(&view)))
}

pub(super) async fn status(Shared(api): Shared<Arc<Api>>) -> Result<Json<ShardStatus>, Problem> {
    let status = api.node()?.shard_status().await;
    status.map(Json).map_err(|why| Problem::unavailable("data_plane", why, "look at the daemon's log"))
}

/// Another node wants a volume that is attached here: finish, close cleanly and let go. A later writer is not meant.
pub(super) async fn release(
    Shared(api): Shared<Arc<Api>>,
    Json(question): Json<Release>,
) -> Result<Json<Released>, Problem> {
    let node = api.node()?;
    let view = node.view();
    let known = view.volumes.iter().find(|row| row.spec.id == question.volume);
    if known.is_some_and(|row| row.epoch > question.epoch) {
        let detail = "the volume has a later writer than the asking node knows";
        return Err(Problem::conflict("epoch_changed", "nothing was changed", detail, "look again"));
    }
    let Release { volume, epoch, maintenance_only } = question;
    let release = |done| ShardCommand::Release { volume, epoch, maintenance_only, done };
    let closed = node.ask_shard(RELEASE_TIMEOUT, release).await;
    let clean = closed.map_err(|why| Problem::unavailable("detach_pending", why, "take it over"))?;
    tracing::info!(%volume, clean, "another node asked for a volume");
    Ok(Json(Released { clean }))
}
