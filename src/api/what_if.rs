//! Questions to the planner: where a volume's members are and why nothing else is better, and what would happen if.

use super::devices::find_device;
use super::drain::Blocked;
use super::nodes::find as find_node;
use super::problem::Problem;
use super::volume_view::node_name;
use super::volumes::find;
use super::{Api, beside};
use ashlar_model::units::ByteSize;
use ashlar_model::{DeviceId, SessionId};
use ashlar_raft::command::NodeSpec;
use ashlar_raft::placement::{Budget, MovePlan, Reason, explain_volume, moves_within};
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{Admin, DeviceState, Labels, Liveness, Node, Roles};
use ashlar_raft::{Command, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Changes of one question.
const CHANGES_MAX: usize = 1000;
/// Lanes without a place that are told.
const BLOCKED_MAX: usize = 100;
/// Volumes that are named.
const NAMED_MAX: usize = 20;

#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Question {
    /// Nodes or devices that are lost for good.
    lose: Vec<String>,
    /// Nodes or devices that are emptied.
    drain: Vec<String>,
    /// Devices that are added.
    add: Vec<NewDevice>,
    /// Labels that change.
    label: Vec<NewLabel>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDevice {
    /// A node, which may be new.
    node: String,
    /// Capacity as people write it.
    size: String,
    #[serde(default = "default_class")]
    class: String,
}

fn default_class() -> String {
    "ssd".into()
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLabel {
    node: String,
    /// `region`, `zone` or `rack`.
    key: String,
    value: String,
}

/// Where a volume's copies are and why
///
/// Every device with the rule that takes it out of the choice, and what shall move.
#[utoipa::path(
    get, path = "/v1/volumes/{name}/placement", operation_id = "explain_placement", tag = "placement",
    params(("name" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "Candidates, rules, lanes and moves", body = Object)),
)]
pub(super) async fn explain(Shared(api): Shared<Arc<Api>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let (state, _) = api.read_state().await?;
    Ok(Json(beside(move || explained(&state, &name)).await??))
}

fn explained(state: &State, name: &str) -> Result<Value, Problem> {
    let volume = find(state, name)?;
    let plan = moves_within(state, Budget::UNLIMITED, |_| true);
    let of_volume = |id| id == volume.id;
    Ok(json!({
        "volume": volume.name,
        "spread": volume.spread,
        "class": volume.class,
        "lane_bytes": volume.lane_bytes(),
        "explanation": explain_volume(state, volume),
        "moves": plan.moves.iter().filter(|one| of_volume(one.volume)).collect::<Vec<_>>(),
        "waiting": plan.waiting.iter().filter(|one| of_volume(one.volume)).collect::<Vec<_>>(),
    }))
}

/// What would happen if
///
/// Nothing is changed. Lanes that lose several members are counted once.
#[utoipa::path(
    post, path = "/v1/placement/what-if", operation_id = "what_if", tag = "placement", request_body = Question,
    responses((status = 200, description = "What would move, have no place or not answer", body = Object)),
)]
pub(super) async fn what_if(
    Shared(api): Shared<Arc<Api>>,
    Json(question): Json<Question>,
) -> Result<Json<Value>, Problem> {
    let (state, _) = api.read_state().await?;
    let changes = question.lose.len() + question.drain.len() + question.add.len() + question.label.len();
    if changes > CHANGES_MAX {
        return Err(Problem::invalid(
            format!("{changes} changes are too many"),
            format!("ask for {CHANGES_MAX} at most"),
        ));
    }
    Ok(Json(beside(move || answer(&state, &question)).await??))
}

/// The answer to a question. The state is only copied.
fn answer(state: &State, question: &Question) -> Result<Value, Problem> {
    let mut after = state.clone();
    for command in commands(state, question)? {
        after.apply(&command).map_err(Problem::from)?;
    }
    let plan = moves_within(&after, Budget::UNLIMITED, |_| true);
    let health = |wanted: VolumeHealth| {
        let worse = after.volumes().filter(|volume| after.volume_health(volume) == wanted);
        worse.map(|volume| volume.name.clone()).collect::<Vec<_>>()
    };
    let named = |names: Vec<String>| json!({ "count": names.len(), "names": names[..names.len().min(NAMED_MAX)] });
    let blocked = plan.waiting.iter().take(BLOCKED_MAX).map(|one| Blocked::of(&after, one));
    Ok(json!({
        "moves": by_reason(&plan),
        "lanes": plan.moves.len(),
        "bytes_max": plan.moves.iter().map(|one| one.bytes_max).sum::<u64>(),
        "to": by_node(&after, &plan),
        "blocked_lanes": plan.waiting.len(),
        "blocked": blocked.collect::<Vec<_>>(),
        "unavailable": named(health(VolumeHealth::Unavailable)),
        "degraded": named(health(VolumeHealth::Degraded)),
    }))
}

fn by_reason(plan: &MovePlan) -> Value {
    let mut counts = BTreeMap::<Reason, (u64, u64)>::new();
    for one in &plan.moves {
        let (lanes, bytes) = counts.entry(one.reason).or_default();
        *lanes += 1;
        *bytes += one.bytes_max;
    }
    let row = |(reason, (lanes, bytes)): (&Reason, &(u64, u64))| json!({ "reason": reason, "lanes": lanes, "bytes_max": bytes });
    counts.iter().map(row).collect()
}

fn by_node(state: &State, plan: &MovePlan) -> Value {
    let mut counts = BTreeMap::<String, (u64, u64)>::new();
    for one in &plan.moves {
        let node = state.device(one.joining).map_or_else(|| "?".into(), |device| node_name(state, device.node));
        let (lanes, bytes) = counts.entry(node).or_default();
        *lanes += 1;
        *bytes += one.bytes_max;
    }
    counts.iter().map(|(node, (lanes, bytes))| json!({ "node": node, "lanes": lanes, "bytes_max": bytes })).collect()
}

fn commands(state: &State, question: &Question) -> Result<Vec<Command>, Problem> {
    let mut commands = Vec::new();
    // Labels first: a new node may be given some.
    let mut nodes = BTreeMap::new();
    for label in &question.label {
        relabel(state, label, &mut nodes)?;
    }
    let mut next = state.nodes().map(|node| node.id.0).max().unwrap_or(0);
    let mut ids = BTreeMap::new();
    for new in &question.add {
        if state.node_by_name(&new.node).is_none() && !ids.contains_key(&new.node) {
            next += 1;
            ids.insert(new.node.clone(), ashlar_model::NodeId(next));
            nodes.entry(new.node.clone()).or_insert_with(|| new_node(&new.node));
        }
    }
    for (name, spec) in nodes {
        commands.push(match (state.node_by_name(&name), ids.get(&name)) {
            (Some(node), _) => Command::UpdateNode { id: node.id, node: spec },
            (None, Some(id)) => Command::AddNode { id: Some(*id), node: spec },
            (None, None) => return Err(Problem::not_found("node", &name)),
        });
        if let Some(Node { id, session, liveness, .. }) = state.node_by_name(&name) {
            // A node that says who it is counts as alive: only its labels are meant here.
            commands.push(Command::SetNodeLiveness { id: *id, session: *session, liveness: *liveness });
        }
    }
    for (number, new) in question.add.iter().enumerate() {
        let known = state.node_by_name(&new.node).map(|node| node.id);
        let node =
            known.or_else(|| ids.get(&new.node).copied()).ok_or_else(|| Problem::not_found("node", &new.node))?;
        let capacity = new.size.parse::<ByteSize>().map_err(|why| Problem::invalid(why, "write it like 4TiB"))?;
        let id = DeviceId::from_u128(u128::MAX - number as u128);
        let (name, class, capacity_bytes) = (format!("new device {number}"), new.class.clone(), capacity.0);
        commands.push(Command::AddDevice { id, node, name, class, capacity_bytes, ordinal: 50_000 + number as u32 });
    }
    losses_and_drains(state, question, &mut commands)?;
    Ok(commands)
}

fn losses_and_drains(state: &State, question: &Question, commands: &mut Vec<Command>) -> Result<(), Problem> {
    for name in &question.lose {
        commands.push(match find_node(state, name) {
            Ok(node) => {
                let (id, session, liveness) = (node.id, node.session, Liveness::Out);
                Command::SetNodeLiveness { id, session, liveness }
            }
            Err(_) => Command::SetDeviceState { id: find_device(state, name)?.id, state: DeviceState::Failed },
        });
    }
    for name in &question.drain {
        commands.push(match find_node(state, name) {
            Ok(node) => Command::SetNodeAdmin { id: node.id, admin: Admin::Draining },
            Err(_) => Command::SetDeviceState { id: find_device(state, name)?.id, state: DeviceState::Draining },
        });
    }
    Ok(())
}

fn relabel(state: &State, label: &NewLabel, nodes: &mut BTreeMap<String, NodeSpec>) -> Result<(), Problem> {
    let known = || state.node_by_name(&label.node).map_or_else(|| new_node(&label.node), spec_of);
    let spec = nodes.entry(label.node.clone()).or_insert_with(known);
    let value = Some(label.value.clone()).filter(|value| !value.is_empty());
    match label.key.as_str() {
        "region" => spec.labels.region = value,
        "zone" => spec.labels.zone = value,
        "rack" => spec.labels.rack = value,
        other => return Err(Problem::invalid(format!("'{other}' is no label"), "labels are region, zone and rack")),
    }
    Ok(())
}

fn spec_of(node: &Node) -> NodeSpec {
    NodeSpec {
        name: node.name.clone(),
        api_address: node.api_address.clone(),
        data_address: node.data_address.clone(),
        labels: node.labels.clone(),
        roles: node.roles,
        session: node.session,
        shards: node.shards,
    }
}

fn new_node(name: &str) -> NodeSpec {
    NodeSpec {
        name: name.to_owned(),
        api_address: "new".into(),
        data_address: "new".into(),
        labels: Labels::default(),
        roles: Roles { store: true, target: false, meta: false },
        session: SessionId::from_u128(0),
        shards: 1,
    }
}

#[cfg(test)]
mod tests;
