//! Nodes: list, show, and the registration of a node that joins.

use super::Api;
use super::problem::Problem;
use ashlar_raft::command::NodeSpec;
use ashlar_raft::outs::Outs;
use ashlar_raft::state::entities::{Admin, Liveness, Node};
use ashlar_raft::{Command, Response, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// What a joining node is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registered {
    /// Its number.
    pub node_id: u64,
    /// The cluster.
    pub cluster_id: String,
    /// API addresses of the members of the metadata service.
    pub members: Vec<String>,
}

pub(super) async fn list(Shared(api): Shared<Arc<Api>>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let leader = api.node()?.metadata.local().and_then(|handle| handle.leader()).map(|(id, _)| id);
    let shown = state.nodes().filter(|node| node.admin != Admin::Removed);
    let items: Vec<Value> = shown.map(|node| node_view(&state, node, leader == Some(node.id))).collect();
    Ok(Json(json!({ "items": items, "stale": stale })))
}

pub(super) async fn show(Shared(api): Shared<Arc<Api>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let (state, _) = api.read_state().await?;
    let leader = api.node()?.metadata.local().and_then(|handle| handle.leader()).map(|(id, _)| id);
    let node = find_node(&state, &name)?;
    let mut view = node_view(&state, node, leader == Some(node.id));
    let devices = state.devices().filter(|device| device.node == node.id).map(|device| device.id);
    view["devices"] = json!(devices.collect::<Vec<_>>());
    view["attached_volumes"] = json!(state.attached_to(node.id).map(|volume| &volume.name).collect::<Vec<_>>());
    Ok(Json(view))
}

/// A node by its name or number.
pub(super) fn find_node<'a>(state: &'a State, name: &str) -> Result<&'a Node, Problem> {
    let by_number = || name.parse().ok().and_then(|id| state.node(ashlar_model::NodeId(id)));
    state.node_by_name(name).or_else(by_number).ok_or_else(|| Problem::not_found("node", name))
}

fn node_view(state: &State, node: &Node, leads: bool) -> Value {
    let mut roles = Vec::new();
    for (has, role) in [(node.roles.store, "store"), (node.roles.target, "target"), (node.roles.meta, "meta")] {
        if has {
            roles.push(role);
        }
    }
    json!({
        "id": node.id,
        "name": node.name,
        "state": node.state(),
        "roles": roles,
        "leads_metadata": leads,
        "api_address": node.api_address,
        "data_address": node.data_address,
        "shards": node.shards,
        "labels": node.labels,
        "session": node.session,
        "lane_count": state.devices().filter(|device| device.node == node.id).map(|device| device.lane_count).sum::<u32>(),
        "not_out_because": not_out_because(state, node),
        "device_count": state.devices().filter(|device| device.node == node.id).count(),
    })
}

/// What keeps a node that is down from being given up, apart from time.
fn not_out_because(state: &State, node: &Node) -> Option<String> {
    let is_down = node.liveness == Liveness::Down && node.roles.store && node.admin != Admin::Removed;
    is_down.then(|| Outs::of(state).brake(node)).flatten().map(|brake| brake.to_string())
}

/// Registers a node. The leader takes it into the metadata service by itself if it has that role.
pub(super) async fn register(
    Shared(api): Shared<Arc<Api>>,
    Json(spec): Json<NodeSpec>,
) -> Result<Json<Registered>, Problem> {
    let node = api.node()?;
    let name = spec.name.clone();
    let response = node.metadata.propose(Command::AddNode { id: None, node: spec }).await?;
    let Response::Node(id) = response else {
        return Err(Problem::unavailable("unavailable", format!("unexpected answer: {response:?}"), "repeat"));
    };
    tracing::info!(node = id.0, name, "node registered");
    let mut members = node.view().meta_addresses();
    if members.is_empty() {
        members.push(api.config.api_address.to_string());
    }
    Ok(Json(Registered { node_id: id.0, cluster_id: node.cluster.to_string(), members }))
}
