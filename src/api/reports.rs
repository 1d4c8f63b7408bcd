//! What the shards of several nodes report, gathered at once.

use super::Api;
use crate::client::Call;
use ashlar_model::NodeId;
use ashlar_raft::State;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinSet;

const REPORT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The reports of these nodes; `None` for a node that did not answer.
pub async fn gather(api: &Api, state: &State, nodes: BTreeSet<NodeId>) -> BTreeMap<NodeId, Option<Value>> {
    let mut reports = BTreeMap::new();
    let mut calls = JoinSet::new();
    for id in nodes {
        reports.insert(id, None);
        if let Some(own) = api.node.get().filter(|own| own.id == id) {
            let own = own.clone();
            calls.spawn(async move {
                (id, own.shard_status().await.ok().and_then(|status| serde_json::to_value(status).ok()))
            });
        } else if let Some(address) = state.node(id).map(|node| node.api_address.clone()) {
            let client = api.client.clone();
            calls.spawn(async move {
                let answer = client.call(Call::get(&address, "/internal/status", REPORT_TIMEOUT)).await.ok();
                let answer = answer.filter(|answer| answer.status.is_success());
                (id, answer.and_then(|answer| serde_json::from_slice(&answer.body).ok()))
            });
        }
    }
    while let Some(done) = calls.join_next().await {
        if let Ok((id, report)) = done {
            reports.insert(id, report);
        }
    }
    reports
}

/// The part of a node's report that is about one volume.
pub fn of_volume(report: &Value, volume: &str) -> Option<Value> {
    report["volumes"].as_array()?.iter().find(|attached| attached["id"] == volume).cloned()
}

/// The part of a node's report that is about one device.
pub fn of_device(report: &Value, device: &str) -> Option<Value> {
    report["devices"].as_array()?.iter().find(|open| open["id"] == device).cloned()
}
