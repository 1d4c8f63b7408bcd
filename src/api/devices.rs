//! Devices: list, show, and add: format, open, record.

use super::page::{Page, PageQuery};
use super::problem::Problem;
use super::watch::{self, Kind, WatchLine, WatchQuery};
use super::{Api, forward, reports, volume_view::node_name};
use crate::agent::format::{self, FormatError, FormatRequest};
use crate::agent::view::{ClusterView, DeviceRow, owner};
use crate::agent::{devices::DeviceOpen, run};
use crate::config::DeviceConfig;
use ashlar_model::{DeviceId, NodeId};
use ashlar_raft::State;
use ashlar_raft::state::entities::{Device, DeviceState};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// How long a device that is added waits until this node is registered.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(15);
const ADD_TIMEOUT: Duration = Duration::from_secs(300);

/// A device to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddBody {
    /// File or block device on the node.
    #[schema(value_type = String)]
    path: PathBuf,
    /// Name or number of the node; the one that is asked if absent.
    node: Option<String>,
    /// `nvme`, `ssd`, `hdd` or an own name.
    #[serde(default = "default_class")]
    class: String,
    /// Its write cache survives a power cut.
    #[serde(default)]
    power_loss_protected: bool,
    /// It never tears an aligned 4 KiB write.
    #[serde(default)]
    atomic_writes: bool,
    /// Destroy what is on the device.
    #[serde(default)]
    force: bool,
}

fn default_class() -> String {
    "ssd".into()
}

/// A device. What only its node knows is null while that does not answer.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = Device)]
pub struct DeviceView {
    /// Identity of this formatting.
    #[schema(value_type = String, format = "uuid")]
    pub id: DeviceId,
    /// Name of its node.
    pub node: String,
    /// File or block device on the node.
    pub path: String,
    /// `nvme`, `ssd`, `hdd` or an own name.
    pub class: String,
    /// `in`, `full`, `failed`, `draining` or `out`.
    #[schema(value_type = String)]
    pub state: DeviceState,
    /// Its node has it open, and it has not failed.
    pub serving: bool,
    /// Why it no longer serves.
    #[schema(value_type = Option<String>)]
    pub failed: Value,
    /// Bytes that it offers.
    pub capacity_bytes: u64,
    /// Bytes that are promised to volumes.
    pub committed_bytes: u64,
    /// Lanes on it.
    pub lane_count: u32,
    /// The thread of its node's data plane that serves it.
    pub shard: Option<u16>,
    /// Data bytes in use.
    #[schema(value_type = Option<u64>)]
    pub used_bytes: Value,
    /// Bytes written to the medium since it was opened.
    #[schema(value_type = Option<u64>)]
    pub written_bytes: Value,
    /// Blocks found damaged since it was opened.
    #[schema(value_type = Option<u64>)]
    pub bad_blocks: Value,
    /// Blocks repaired since it was opened.
    #[schema(value_type = Option<u64>)]
    pub repaired_blocks: Value,
    /// Every commit is followed by a flush.
    #[schema(value_type = Option<bool>)]
    pub flushes: Value,
    /// An operator declared that its write cache survives a power cut.
    #[schema(value_type = Option<bool>)]
    pub power_loss_protected: Value,
    /// Aligned 4 KiB writes are taken as never torn.
    #[schema(value_type = Option<bool>)]
    pub atomic: Value,
    /// An operator declared that, whatever the device says.
    #[schema(value_type = Option<bool>)]
    pub atomic_declared: Value,
    /// Its background scrub: pace, rate, how far it is, what it met.
    #[schema(value_type = Option<Object>)]
    pub scrub: Value,
}

/// A device was added, or was there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct DeviceAdded {
    /// Its identity.
    #[schema(value_type = String, format = "uuid")]
    pub id: DeviceId,
    /// Where it is on its node.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Name of its node.
    pub node: String,
    /// False: it was there already.
    pub added: bool,
}

/// All devices
#[utoipa::path(
    get, path = "/v1/devices", operation_id = "list_devices", tag = "devices", params(PageQuery),
    responses((
        status = 200, description = "The devices, by identity",
        content((Page<DeviceView> = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn list(Shared(api): Shared<Arc<Api>>, Query(query): Query<PageQuery>) -> Result<Response, Problem> {
    if query.is_watch()? {
        return watch::stream(&api, Kind::Devices, None).await;
    }
    let asked = query.of("devices")?;
    let (state, stale) = api.read_state().await?;
    let shown = state.devices().filter(|device| device.state != DeviceState::Out);
    let (page, next) = asked.cut(shown, |device| device.id);
    let reports = reports::gather(&api, &state, page.iter().map(|device| device.node).collect()).await;
    let items = page.into_iter().map(|device| device_view(&state, device, &reports)).collect();
    Ok(Json(Page { items, next, stale }).into_response())
}

/// One device
#[utoipa::path(
    get, path = "/v1/devices/{id}", operation_id = "get_device", tag = "devices",
    params(("id" = String, Path, description = "Identity, or its beginning"), WatchQuery),
    responses((
        status = 200, description = "The device",
        content((DeviceView = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn show(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, Problem> {
    let (state, _) = api.read_state().await?;
    let device = find_device(&state, &id)?;
    if query.watch {
        return watch::stream(&api, Kind::Devices, Some(device.id.to_string())).await;
    }
    let reports = reports::gather(&api, &state, [device.node].into()).await;
    Ok(Json(device_view(&state, device, &reports)).into_response())
}

/// A device by its identity or the beginning of it.
pub(super) fn find_device<'a>(state: &'a State, id: &str) -> Result<&'a Device, Problem> {
    let mut matching = state.devices().filter(|device| device.id.to_string().starts_with(id));
    let device = matching.next().ok_or_else(|| Problem::not_found("device", id))?;
    if matching.next().is_some() {
        return Err(Problem::invalid(format!("several devices begin with '{id}'"), "give more of the identity"));
    }
    Ok(device)
}

/// The same in what an agent knows.
pub(super) fn find_device_row<'a>(view: &'a ClusterView, id: &str) -> Result<&'a DeviceRow, Problem> {
    let mut matching = view.devices.iter().filter(|device| device.id.to_string().starts_with(id));
    let device = matching.next().ok_or_else(|| Problem::not_found("device", id))?;
    match matching.next() {
        None => Ok(device),
        Some(_) => Err(Problem::invalid(format!("several devices begin with '{id}'"), "give more of the identity")),
    }
}

pub(super) fn device_view(state: &State, device: &Device, reports: &BTreeMap<NodeId, Option<Value>>) -> DeviceView {
    let id = device.id.to_string();
    let report = reports.get(&device.node).and_then(Option::as_ref);
    let open = report.and_then(|report| reports::of_device(report, &id));
    let field = |name: &str| open.as_ref().map_or(Value::Null, |open| open[name].clone());
    DeviceView {
        id: device.id,
        node: node_name(state, device.node),
        path: device.name.clone(),
        class: device.class.clone(),
        state: device.state,
        serving: open.as_ref().is_some_and(|open| open["failed"].is_null()),
        failed: field("failed"),
        capacity_bytes: device.capacity_bytes,
        committed_bytes: device.committed_bytes,
        lane_count: device.lane_count,
        shard: state.node(device.node).map(|node| owner(device.ordinal, node.shards)),
        used_bytes: field("used_bytes"),
        written_bytes: field("written_bytes"),
        bad_blocks: field("bad_blocks"),
        repaired_blocks: field("repaired_blocks"),
        flushes: field("flushes"),
        power_loss_protected: field("power_loss_protected"),
        atomic: field("atomic"),
        atomic_declared: field("atomic_declared"),
        scrub: field("scrub"),
    }
}

/// Format a blank device and put it to use
///
/// May be repeated: a device that serves already is answered with `added: false`.
#[utoipa::path(
    post, path = "/v1/devices", operation_id = "add_device", tag = "devices", request_body = AddBody,
    responses((status = 200, description = "It serves", body = DeviceAdded)),
)]
pub(super) async fn add(
    Shared(api): Shared<Arc<Api>>,
    headers: HeaderMap,
    Json(body): Json<AddBody>,
) -> Result<Response, Problem> {
    let node = api.node()?;
    if let Some(wanted) = &body.node {
        let view = node.view();
        let row = view.find_node(wanted).ok_or_else(|| Problem::not_found("node", wanted))?;
        if row.id != node.id {
            let json =
                serde_json::to_value(&body).map_err(|error| Problem::invalid(error.to_string(), "correct it"))?;
            return forward::to_node(&api, &headers, &row.api_address, "/v1/devices", &json, ADD_TIMEOUT).await;
        }
    }
    // The work goes on if the client goes away: a device that is half added would be refused the next time.
    let work = tokio::spawn(add_here(api.clone(), body));
    let added =
        work.await.map_err(|_| Problem::unavailable("device_add_failed", "the work ended early", "look at the log"))?;
    Ok(Json(added?).into_response())
}

async fn add_here(api: Arc<Api>, body: AddBody) -> Result<DeviceAdded, Problem> {
    let node = api.node()?;
    if !node.config.roles.store {
        let detail = format!("node {} has no store role", node.config.name);
        return Err(Problem::conflict(
            "node_unfit",
            "this node keeps no devices",
            detail,
            "add the role and restart it",
        ));
    }
    let path = tokio::fs::canonicalize(&body.path).await.map_err(|error| {
        Problem::invalid(
            format!("{}: {error}", body.path.display()),
            "give the path of a block device or of a preallocated file",
        )
    })?;
    let device = DeviceConfig {
        path: path.clone(),
        power_loss_protected: body.power_loss_protected,
        atomic_writes: body.atomic_writes,
    };
    if let Some(DeviceOpen::Serving(id)) = node.devices.states().get(&path) {
        let view = node.view();
        if view.devices.iter().any(|row| row.id == *id) {
            return Ok(DeviceAdded { id: *id, path, node: node.config.name.clone(), added: false });
        }
    } else {
        let request = FormatRequest {
            path: path.clone(),
            cluster: node.cluster,
            power_loss_protected: body.power_loss_protected,
            atomic_writes: body.atomic_writes,
            force: body.force,
        };
        let prepared = tokio::task::spawn_blocking(move || format::prepare(&request)).await;
        prepared
            .map_err(|error| Problem::unavailable("device_add_failed", error.to_string(), "look at the log"))?
            .map_err(|error| format_problem(&error))?;
    }
    let fail = |what: &str, why: String| {
        Problem::conflict(
            "device_add_failed",
            what,
            format!("{}: {why}", path.display()),
            "look at the daemon's log and add it again",
        )
    };
    let seen = async || tokio::time::timeout(REGISTRATION_TIMEOUT, node.see_registration()).await == Ok(true);
    let unknown = || "the cluster does not know this run of the daemon".to_owned();
    // Its shard is known only then.
    if node.shards.count() > 1 && !seen().await {
        return Err(fail("the device is not opened", unknown()));
    }
    let id = match node.devices.states().get(&path) {
        Some(DeviceOpen::Serving(id)) => *id,
        _ => run::open_device(node, &device).await.map_err(|why| fail("the device does not open", why.to_string()))?,
    };
    node.devices
        .add(device.clone())
        .map_err(|error| fail("the device list cannot be written", format!("{error:#}")))?;
    if !seen().await {
        return Err(fail("the device serves but is not recorded", unknown()));
    }
    let announced = run::announce_device(node, &device, id, &body.class).await;
    announced.map_err(|why| fail("the device serves but is not recorded", why))?;
    tracing::info!(device = %id, path = %path.display(), "device added");
    Ok(DeviceAdded { id, path, node: node.config.name.clone(), added: true })
}

fn format_problem(error: &FormatError) -> Problem {
    match error {
        FormatError::Unfit(why) => {
            Problem::invalid(why, "give the path of a block device or of a preallocated file that is large enough")
        }
        FormatError::NotBlank(why) => Problem::unsafe_request(
            "device_not_blank",
            "the device was not touched",
            why,
            "use another device, or destroy what is on it with --force",
        ),
        FormatError::Failed(why) => Problem::conflict(
            "device_add_failed",
            "the device was not added",
            why,
            "look at the daemon's log and try again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_is_declared_unless_the_body_says_so() {
        let body = |value: Value| serde_json::from_value::<AddBody>(value);
        let plain = body(json!({ "path": "/x" })).unwrap();
        assert_eq!((plain.power_loss_protected, plain.atomic_writes), (false, false));
        let atomic = body(json!({ "path": "/x", "atomic_writes": true })).unwrap();
        assert_eq!((atomic.power_loss_protected, atomic.atomic_writes), (false, true));
        assert!(body(json!({ "path": "/x", "atomic_write": true })).is_err());
    }
}
