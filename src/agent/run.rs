//! The agent's loops: watch and push, register and renew the session, open the devices.

use super::care::{Caretaker, wanted};
use super::leader::{Leader, Renewal, send_renewal};
use super::plan::{Push, Pushed, plan};
use super::reclaim::{reclaim, sweep};
use super::requests::Answers;
use super::serving::serve;
use super::view::{ClusterView, owner};
use super::{Node, devices::DeviceOpen, node_spec};
use crate::client::HttpClient;
use crate::config::DeviceConfig;
use crate::shard::control::{AttachedVolume, LocalDevice, OpenFailure, ShardCommand, ShardRequest, ShardStatus};
use crate::shard::identify;
use ashlar_model::{DeviceId, VolumeId};
use ashlar_raft::Command;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};

/// Deleted volumes that are reclaimed at a time.
const RECLAIMS_INFLIGHT_MAX: usize = 8;
/// The needs of detached volumes are looked at this often, and after changes of the metadata, but not more often than
/// the pause.
const CARE_PERIOD: Duration = Duration::from_secs(2);
const CARE_PAUSE: Duration = Duration::from_millis(500);
const RENEW_PERIOD: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a device to open: its log is replayed.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a start waits for a device that is in use. The kernel ends the I/O of a killed daemon after the process is
/// gone, and keeps its lock until then; a drive that does not answer takes tens of seconds.
const IN_USE_PATIENCE: Duration = Duration::from_secs(60);
const IN_USE_PAUSE: Duration = Duration::from_millis(20);

/// Starts the agent's tasks. They end with the runtime.
pub fn start(node: &Arc<Node>, client: HttpClient, requests: mpsc::Receiver<ShardRequest>) {
    let views = node.views.clone();
    tokio::spawn(push(node.clone(), views.clone()));
    tokio::spawn(serve(Arc::new(Answers::new(node.clone(), client.clone(), views.clone())), requests));
    tokio::spawn(care(node.clone(), views.clone()));
    tokio::spawn(sweep(node.clone()));
    tokio::spawn(super::full::watch(node.clone()));
    tokio::spawn(register(node.clone()));
    tokio::spawn(renew(node.clone(), client, views));
    if let Some(leader) = node.leader.clone() {
        tokio::spawn(super::heal::run(leader.metadata()));
        tokio::spawn(async move { leader.run().await });
    }
}

/// Tells the shard what the metadata says.
async fn push(node: Arc<Node>, mut views: watch::Receiver<Arc<ClusterView>>) {
    let mut pushed = Pushed::default();
    let permits = Arc::new(Semaphore::new(RECLAIMS_INFLIGHT_MAX));
    loop {
        let view = views.borrow_and_update().clone();
        for push in plan(&view, node.id, &mut pushed) {
            match push {
                Push::Routes(routes) => tell(&node, || ShardCommand::Routes(routes.clone())).await,
                Push::Volumes(volumes) => tell(&node, || ShardCommand::Volumes(volumes.clone())).await,
                Push::Reclaim(row) => drop(tokio::spawn(reclaim(node.clone(), row, permits.clone()))),
            }
        }
        node.pushed.send_replace(pushed.version());
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Lists must arrive: a shard that does not take them now is told again.
async fn tell(node: &Node, make: impl Fn() -> ShardCommand) {
    while let Err(error) = node.tell_shard(&make).await {
        tracing::warn!("the data plane lags behind the metadata: {error}");
    }
}

/// Brings detached volumes in sync, if this node is the one to do it.
async fn care(node: Arc<Node>, mut views: watch::Receiver<Arc<ClusterView>>) {
    if !node.config.roles.target {
        return;
    }
    let began = Instant::now();
    let mut caretaker = Caretaker::default();
    let mut told = Vec::new();
    loop {
        let view = views.borrow_and_update().clone();
        let activity = match wanted(&view, node.id).is_empty() {
            true => BTreeMap::new(),
            false => node.shard_status().await.map(|status| activity_of(&status)).unwrap_or_default(),
        };
        let now_ms = began.elapsed().as_millis() as u64;
        let volumes = caretaker.decide(&view, node.id, now_ms, |id| activity.get(&id).copied().unwrap_or(0));
        // Told again while there is something to do: an attach that was refused is tried anew.
        if volumes != told || !volumes.is_empty() {
            tell(&node, || ShardCommand::Maintain(volumes.clone())).await;
        }
        told = volumes;
        drop(tokio::time::timeout(CARE_PERIOD, views.changed()).await);
        tokio::time::sleep(CARE_PAUSE).await;
    }
}

/// A number per attached volume that changes with whatever moves in it: chunks and bytes of joins.
fn activity_of(status: &ShardStatus) -> BTreeMap<VolumeId, u64> {
    let sum = |volume: &AttachedVolume| {
        let joins = volume.status.lanes.iter().filter_map(|lane| lane.join.as_ref());
        let counters = volume.status.counters;
        1 + counters.join_bytes + counters.joins + joins.map(|join| join.chunks_done + join.compared_bytes).sum::<u64>()
    };
    status.volumes.iter().map(|volume| (volume.id, sum(volume))).collect()
}

/// Makes this run of the daemon known, then opens the devices.
async fn register(node: Arc<Node>) {
    for device in node.devices.devices() {
        let node = node.clone();
        tokio::spawn(async move { open_listed(&node, device).await });
    }
    loop {
        let wanted = node_spec(&node.config, node.session);
        let command = Command::UpdateNode { id: node.id, node: wanted };
        match node.metadata.propose(command).await {
            Ok(_) => break,
            Err(error) => tracing::info!("not registered yet: {error}"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    if node.see_registration().await {
        node.registered.store(true, Ordering::Relaxed);
        tracing::info!(node = node.id.0, name = node.config.name, "registered with the cluster");
    }
}

/// Opens a device of the list. A failure is kept for status and tried again only by a restart or `device add`.
async fn open_listed(node: &Arc<Node>, device: DeviceConfig) {
    match open_when_free(node, &device).await {
        Ok(id) => {
            if !node.see_registration().await {
                return;
            }
            let known = node.view().devices.iter().any(|row| row.id == id && row.node == node.id);
            if !known && let Err(error) = announce_device(node, &device, id, "ssd").await {
                tracing::warn!("device {} serves but is not in the metadata: {error}", device.path.display());
            }
        }
        Err(error) => tracing::error!("device {} does not serve: {error}", device.path.display()),
    }
}

/// Opens a device that the daemon before this one may still hold.
async fn open_when_free(node: &Node, device: &DeviceConfig) -> Result<DeviceId, OpenFailure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match open_device(node, device).await {
            Err(OpenFailure::InUse(why)) if began.elapsed() < IN_USE_PATIENCE => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{why}; waits for it");
                }
                tokio::time::sleep(IN_USE_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Opens a formatted device in the data plane.
///
/// # Errors
/// Why it does not serve.
pub async fn open_device(node: &Node, device: &DeviceConfig) -> Result<DeviceId, OpenFailure> {
    node.devices.set_state(&device.path, DeviceOpen::Opening);
    let DeviceConfig { path, power_loss_protected, atomic_writes } = device.clone();
    let local = LocalDevice { path, power_loss_protected, atomic_writes };
    let opened = open_at_owner(node, local).await;
    let state = match &opened {
        Ok(id) => DeviceOpen::Serving(*id),
        Err(error) => DeviceOpen::Failed(error.to_string()),
    };
    node.devices.set_state(&device.path, state);
    opened
}

/// Which shard a device belongs to is known once the metadata is, and who the device is. A daemon with one shard need not
/// wait for that.
async fn open_at_owner(node: &Node, device: LocalDevice) -> Result<DeviceId, OpenFailure> {
    let mut shard = 0;
    if node.shards.count() > 1 {
        if !node.see_registration().await {
            return Err(OpenFailure::Refused("the daemon ends".into()));
        }
        let looked_at = device.clone();
        let identity = tokio::task::spawn_blocking(move || identify(&looked_at)).await;
        let id = identity.map_err(|error| OpenFailure::Refused(error.to_string()))??;
        shard = owner(node.ordinal_of(id), node.shards.count());
    }
    let answer = node.ask_shard(OPEN_TIMEOUT, |done| ShardCommand::OpenDevice { device, shard, done }).await;
    answer.map_err(OpenFailure::Refused)?
}

/// Records an open device in the metadata.
///
/// # Errors
/// Why it was not recorded.
pub async fn announce_device(node: &Node, device: &DeviceConfig, id: DeviceId, class: &str) -> Result<(), String> {
    let status = node.shard_status().await?;
    let open = status.devices.iter().find(|open| open.id == id);
    let capacity_bytes = open.map(|open| open.total_bytes).ok_or("the data plane does not report the device")?;
    let name = device.path.display().to_string();
    let (class, ordinal) = (class.to_owned(), node.ordinal_of(id));
    let command = Command::AddDevice { id, node: node.id, name, class, capacity_bytes, ordinal };
    node.metadata.propose(command).await.map(drop).map_err(|error| error.to_string())
}

/// Renews the session once a second with the leader, or with any member, which passes it on.
async fn renew(node: Arc<Node>, client: HttpClient, views: watch::Receiver<Arc<ClusterView>>) {
    let renewal = Renewal { node: node.id, session: node.session };
    let mut tick = tokio::time::interval(RENEW_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Some(leader) = &node.leader
            && renew_here(leader, renewal).await
        {
            continue;
        }
        let mut addresses = node.metadata.remote_addresses();
        if addresses.is_empty() {
            addresses = views.borrow().meta_addresses();
        }
        let own = node.config.api_address.to_string();
        for address in addresses.into_iter().filter(|address| *address != own) {
            if send_renewal(&client, &address, renewal, false).await.is_ok() {
                break;
            }
        }
    }
}

async fn renew_here(leader: &Leader, renewal: Renewal) -> bool {
    leader.renew(renewal, false).await.is_ok()
}
