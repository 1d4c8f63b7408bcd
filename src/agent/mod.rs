//! Makes this node match the metadata: watches it, tells the shards, carries their questions to the leader.
//!
//! ```text
//! view       what an agent must know of the metadata, complete or not at all
//! plan       pure: view + what was pushed -> commands to push
//! care       pure: view + what was tried -> detached volumes that this node brings in sync
//! handover   asking a volume's holder to let go
//! metadata   the way to the metadata service: here, or over HTTP
//! transport  Raft's calls over HTTP
//! run        the loops: watch, push, renew the session
//! reclaim    freeing what is deleted or has left
//! serving    the shards' questions, one at a time about one thing
//! requests   one question of a shard, from question to answer
//! leader     what the leader does for all: liveness, membership
//! heal       what the leader begins by itself: rebuilds, drains, evenness
//! devices    the list of devices that this node serves
//! full       devices that fill up get no new lanes
//! format     checks and formats a device that is added
//! ```
//!
//! Invariant: it knows no HTTP API and no command line; the data path never imports it.

pub mod care;
pub mod devices;
pub mod format;
pub mod full;
pub mod handover;
pub mod heal;
pub mod leader;
pub mod metadata;
pub mod plan;
pub mod reclaim;
pub mod requests;
pub mod run;
pub mod serving;
pub mod transport;
pub mod view;

use crate::config::Config;
use crate::shard::ShardSet;
use crate::shard::control::{ShardCommand, ShardStatus};
use ashlar_model::{ClusterId, DeviceId, NodeId, SessionId};
use ashlar_raft::command::NodeSpec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Longest wait for a shard's report.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY: &str = "the data plane is busy";
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// A node that belongs to a cluster, with everything that its control plane needs.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// This run of the daemon.
    pub session: SessionId,
    /// What it was told.
    pub config: Arc<Config>,
    /// The way to the metadata.
    pub metadata: metadata::Metadata,
    /// The data plane.
    pub shards: ShardSet,
    /// The devices it serves.
    pub devices: devices::DeviceList,
    /// The leader's duties, on meta nodes.
    pub leader: Option<Arc<leader::Leader>>,
    /// The cluster knows this run of the daemon.
    pub registered: AtomicBool,
    /// The metadata as the agent sees it.
    pub views: watch::Receiver<Arc<view::ClusterView>>,
    /// Version of the metadata that all shards were told last.
    pub pushed: watch::Sender<u64>,
}

impl Node {
    /// The metadata as the agent sees it now.
    pub fn view(&self) -> Arc<view::ClusterView> {
        self.views.borrow().clone()
    }

    /// How this run introduces itself.
    pub fn spec(&self) -> NodeSpec {
        node_spec(&self.config, self.session)
    }

    /// Sends a command to the shards that it concerns; waits while a queue is full.
    ///
    /// # Errors
    /// The queue stayed full for two seconds.
    pub async fn tell_shard(&self, make: impl Fn() -> ShardCommand) -> Result<(), String> {
        let until = tokio::time::Instant::now() + STATUS_TIMEOUT;
        while self.shards.send(make()).is_err() {
            if tokio::time::Instant::now() > until {
                return Err("the data plane does not take commands".into());
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        Ok(())
    }

    /// Sends a command that carries its own answer channel, and waits for the answer.
    ///
    /// # Errors
    /// The shard took no command, or did not answer in time.
    pub async fn ask_shard<T>(
        &self,
        timeout: Duration,
        make: impl FnOnce(oneshot::Sender<T>) -> ShardCommand,
    ) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        self.shards.send(make(answer)).map_err(|_| BUSY.to_owned())?;
        answer_of(answered, timeout).await
    }

    /// Asks every shard the same, and waits for all of them.
    ///
    /// # Errors
    /// As [`Self::ask_shard`], for any of them.
    pub async fn ask_shards<T>(
        &self,
        timeout: Duration,
        make: impl Fn(oneshot::Sender<T>) -> ShardCommand,
    ) -> Result<Vec<T>, String> {
        let until = tokio::time::Instant::now() + timeout;
        let mut questions = Vec::new();
        for shard in 0..self.shards.count() {
            let (answer, answered) = oneshot::channel();
            self.shards.send_to(shard, make(answer)).map_err(|_| BUSY.to_owned())?;
            questions.push(answered);
        }
        let mut answers = Vec::new();
        for answered in questions {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            answers.push(answer_of(answered, left).await?);
        }
        Ok(answers)
    }

    /// What all shards report together.
    ///
    /// # Errors
    /// As [`Self::ask_shard`].
    pub async fn shard_status(&self) -> Result<ShardStatus, String> {
        Ok(ShardStatus::merged(self.ask_shards(STATUS_TIMEOUT, ShardCommand::Status).await?))
    }

    /// Waits until all shards were told a version of the metadata.
    pub async fn wait_pushed(&self, version: u64, timeout: Duration) -> bool {
        let mut pushed = self.pushed.subscribe();
        let told = pushed.wait_for(|told| *told >= version);
        tokio::time::timeout(timeout, told).await.is_ok_and(|result| result.is_ok())
    }

    /// Waits until the metadata that this node sees knows this run of the daemon: then it has all that was recorded of its
    /// devices before. False if the daemon ends first.
    pub async fn see_registration(&self) -> bool {
        let mut views = self.views.clone();
        let sees = |view: &Arc<view::ClusterView>| view.node(self.id).is_some_and(|row| row.session == self.session);
        views.wait_for(sees).await.is_ok()
    }

    /// The ordinal of a device of this node, to be asked once this run is registered.
    pub fn ordinal_of(&self, device: DeviceId) -> u32 {
        self.devices.ordinal(device, &self.view().ordinals(self.id))
    }

    /// True once the cluster knows this run of the daemon.
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }
}

/// How a run of the daemon introduces itself to the cluster.
pub fn node_spec(config: &Config, session: SessionId) -> NodeSpec {
    NodeSpec {
        name: config.name.clone(),
        api_address: config.api_address.to_string(),
        data_address: config.data_address.to_string(),
        labels: config.labels.clone(),
        roles: config.roles,
        session,
        shards: config.shards,
    }
}

async fn answer_of<T>(answered: oneshot::Receiver<T>, timeout: Duration) -> Result<T, String> {
    match tokio::time::timeout(timeout, answered).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err("the data plane dropped the question".into()),
        Err(_) => Err("the data plane did not answer in time".into()),
    }
}
