//! What is wrong with the cluster, what it is doing about it, and what an operator could do: findings, worst first.
//!
//! Pure but for the gathering: judged are the metadata and what nodes report of their devices.

use super::drain_view::{EmptyingKind, emptyings};
use super::operation_view::{OperationState, Reports};
use super::problem::Problem;
use super::volume_view::{dead_holder, node_name};
use super::{Api, beside, reports};
use ashlar_model::units::ByteSize;
use ashlar_raft::outs::Outs;
use ashlar_raft::settings::{DOWN_OUT_MS, MOVES_MAX};
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{Admin, Device, DeviceState, Liveness, Node, Volume};
use ashlar_raft::{MetaHandle, State};
use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Findings of one kind that are told one by one; the rest is counted.
const TOLD_MAX: usize = 10;
/// A device that is fuller than this is worth a word.
const NEARLY_FULL_PERCENT: u64 = 85;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work now.
    Error,
    /// The next failure may hurt, or something waits for an operator.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of its kind.
    pub code: &'static str,
    /// What is the matter.
    pub what: String,
    /// Why, or what the cluster does about it.
    pub why: String,
    /// What to do; empty: nothing.
    pub hint: String,
}

fn finding(
    severity: Severity,
    code: &'static str,
    what: impl Into<String>,
    why: impl Into<String>,
    hint: impl Into<String>,
) -> Finding {
    Finding { severity, code, what: what.into(), why: why.into(), hint: hint.into() }
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Diagnosis {
    /// Nothing needs attention.
    pub healthy: bool,
    /// Worst first.
    pub findings: Vec<Finding>,
}

/// What is wrong, and what to do
#[utoipa::path(
    get, path = "/v1/doctor", operation_id = "doctor", tag = "cluster",
    responses((status = 200, description = "Findings, worst first", body = Diagnosis)),
)]
pub(super) async fn doctor(Shared(api): Shared<Arc<Api>>) -> Result<Json<Diagnosis>, Problem> {
    let (state, stale) = api.read_state().await?;
    let nodes = state.devices().filter(|device| device.state != DeviceState::Out).map(|device| device.node).collect();
    let reports = reports::gather(&api, &state, nodes).await;
    let mut findings = Vec::new();
    if let Some(handle) = api.node()?.metadata.local() {
        findings.extend(of_metadata(&state, stale, handle));
    }
    findings.extend(beside(move || examine(&state, &reports)).await?);
    findings.sort_by_key(|finding| finding.severity);
    let worst = findings.first().map(|finding| finding.severity);
    Ok(Json(Diagnosis { healthy: worst.is_none_or(|worst| worst == Severity::Note), findings }))
}

fn of_metadata(state: &State, stale: bool, handle: &MetaHandle) -> Option<Finding> {
    let metrics = handle.metrics();
    let voters = &metrics.membership.voters;
    if handle.has_stopped() {
        let what = format!("the metadata service has ended on node {}", node_name(state, handle.node()));
        let why = "other members are asked in its place, and the group bears one loss less; the node's log says why";
        let hint = "see whether the file system of its data_dir is full or broken, mend it, and restart its daemon";
        return Some(finding(Severity::Error, "metadata_stopped", what, why, hint));
    }
    if stale {
        let what = "the metadata service has no leader with a quorum";
        let why = "attached volumes go on; nothing can be attached, created or rebuilt";
        return Some(finding(Severity::Error, "metadata_no_quorum", what, why, "start a majority of its voters"));
    }
    let silent = voters.iter().filter(|id| state.node(**id).is_none_or(|node| node.liveness.is_silent()));
    let names = silent.map(|id| node_name(state, *id)).collect::<Vec<_>>();
    if !names.is_empty() {
        let left = voters.len() - names.len();
        let what = format!("{left} of {} voters of the metadata service answer", voters.len());
        let why = format!("silent: {}", names.join(", "));
        return Some(finding(Severity::Warning, "metadata_voter_silent", what, why, "start them"));
    }
    let candidates = state.nodes().filter(|node| node.admin != Admin::Removed).count();
    (voters.len() < 3 && candidates >= 3).then(|| {
        let what = format!("the metadata service has {} voter", voters.len());
        let why = "if it is lost nothing can be attached, created or rebuilt";
        finding(
            Severity::Warning,
            "metadata_few_voters",
            what,
            why,
            "give three nodes the role \"meta\" and restart them",
        )
    })
}

/// Everything that the state and the nodes' reports tell.
pub fn examine(state: &State, reports: &Reports) -> Vec<Finding> {
    let mut findings = Vec::new();
    let nodes = state.nodes().filter(|node| node.admin != Admin::Removed);
    findings.extend(limited(nodes.filter_map(|node| of_node(state, node)).collect()));
    let devices = state.devices().filter(|device| device.state != DeviceState::Out);
    findings.extend(limited(devices.flat_map(|device| of_device(state, device, reports)).collect()));
    findings.extend(limited(state.volumes().filter_map(|volume| of_volume(state, volume)).collect()));
    findings.extend(of_emptying(state));
    findings
}

/// The worst of many, and how many more there are.
fn limited(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| finding.severity);
    let rest = findings.len().saturating_sub(TOLD_MAX);
    if rest > 0 {
        findings.truncate(TOLD_MAX);
        let (severity, code) = (findings[TOLD_MAX - 1].severity, findings[TOLD_MAX - 1].code);
        findings.push(finding(severity, code, format!("and {rest} more like these"), "", ""));
    }
    findings
}

fn of_node(state: &State, node: &Node) -> Option<Finding> {
    let name = &node.name;
    let lanes: u32 = state.devices().filter(|device| device.node == node.id).map(|device| device.lane_count).sum();
    match node.liveness {
        Liveness::Up => None,
        Liveness::Suspect => {
            let why = "it missed some renewals; nothing new is placed there";
            Some(finding(Severity::Warning, "node_suspect", format!("node {name} answers late"), why, ""))
        }
        Liveness::Down => {
            let minutes = state.setting(&DOWN_OUT_MS).div_ceil(60_000);
            let why = match Outs::of(state).brake(node) {
                Some(brake) => format!("its {lanes} lanes are not rebuilt: {brake}"),
                None => format!("its {lanes} lanes are rebuilt elsewhere {minutes} min after it fell silent"),
            };
            Some(finding(
                Severity::Warning,
                "node_down",
                format!("node {name} is down"),
                why,
                "start it, or look at its log",
            ))
        }
        Liveness::Out => {
            let why = format!("{lanes} of its lanes are still to be rebuilt elsewhere");
            let hint = format!("start it, or `ashlar node remove {name}` when it is empty");
            Some(finding(Severity::Warning, "node_out", format!("node {name} is given up"), why, hint))
        }
    }
}

fn of_device(state: &State, device: &Device, reports: &Reports) -> Vec<Finding> {
    let node = node_name(state, device.node);
    let what = |text: &str| format!("device {} ({}) of node {node} {text}", device.id, device.name);
    let mut findings = Vec::new();
    if device.state == DeviceState::Failed {
        let why = format!("{} of its lanes are still to be rebuilt elsewhere", device.lane_count);
        let hint = "exchange the drive and add it with `ashlar device add`";
        findings.push(finding(Severity::Warning, "device_failed", what("has failed"), why, hint));
        return findings;
    }
    let Some(report) = reports.get(&device.node).and_then(Option::as_ref) else { return findings };
    let Some(open) = reports::of_device(report, &device.id.to_string()) else {
        let why = "its node runs and does not have it open; nothing is rebuilt as long as it may come back";
        let hint = "look at the node's log; is the drive there? If it is lost: `ashlar device retire` rebuilds its lanes elsewhere";
        findings.push(finding(Severity::Error, "device_not_serving", what("does not serve"), why, hint));
        return findings;
    };
    let number = |name: &str| open[name].as_u64().unwrap_or(0);
    let percent = number("used_bytes") * 100 / device.capacity_bytes.max(1);
    if percent >= NEARLY_FULL_PERCENT {
        let (used, all) = (ByteSize(number("used_bytes")), ByteSize(device.capacity_bytes));
        let why = format!("{used} of {all} are used; writes wait when it is full");
        let hint = "add a device or a node: lanes move there by themselves; or delete volumes";
        findings.push(finding(
            Severity::Warning,
            "device_nearly_full",
            what(&format!("is {percent} % full")),
            why,
            hint,
        ));
    }
    let (bad, repaired) = (number("bad_blocks"), number("repaired_blocks"));
    if bad > repaired {
        let why = format!("{bad} blocks did not match their checksums, {repaired} were repaired from other copies");
        let hint = "the scrub goes on repairing; retire a device that keeps decaying (`ashlar device retire`)";
        findings.push(finding(Severity::Warning, "device_decays", what("loses blocks"), why, hint));
    }
    findings
}

fn of_volume(state: &State, volume: &Volume) -> Option<Finding> {
    let name = &volume.name;
    if let Some(dead) = dead_holder(state, volume) {
        return Some(finding(
            Severity::Error,
            "volume_holder_down",
            format!("volume {name} is held by a dead node"),
            dead,
            "",
        ));
    }
    match state.volume_health(volume) {
        VolumeHealth::Unavailable => {
            let why = "some lane has too few copies that answer: it cannot be opened, and nothing is lost";
            let hint = format!("start the nodes of its members (`ashlar volume show {name}`)");
            Some(finding(Severity::Error, "volume_unavailable", format!("volume {name} is unavailable"), why, hint))
        }
        VolumeHealth::Degraded => {
            let why = "a copy of some lane is missing or does not answer; it can be written";
            Some(finding(Severity::Warning, "volume_degraded", format!("volume {name} is degraded"), why, ""))
        }
        VolumeHealth::Healthy if volume.replicas == 1 => {
            let why = "what is lost with a device is lost";
            Some(finding(Severity::Note, "volume_single_copy", format!("volume {name} has one copy"), why, ""))
        }
        VolumeHealth::Healthy => None,
    }
}

/// What waits although it should move.
fn of_emptying(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in emptyings(state).iter().filter(|one| one.state == OperationState::Waiting) {
        let hint = match one.kind {
            EmptyingKind::Rebuild => "add a node or a device, or bring back what is lost",
            EmptyingKind::Drain | EmptyingKind::Retire => {
                "add a node or a device, or take it back (`ashlar operation cancel`)"
            }
        };
        let why = one.reason.clone().unwrap_or_default();
        findings.push(finding(Severity::Warning, "moves_wait", format!("{} does not get on", one.id), why, hint));
    }
    if state.setting(&MOVES_MAX) == 0 {
        let hint = format!("`ashlar cluster set {} 256` when the reason is gone", MOVES_MAX.key);
        let why = format!("{} is 0", MOVES_MAX.key);
        findings.push(finding(
            Severity::Warning,
            "moves_stopped",
            "nothing is rebuilt, drained or evened out",
            why,
            hint,
        ));
    }
    findings
}

#[cfg(test)]
mod tests;
