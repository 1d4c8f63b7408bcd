//! The way to the metadata service: the local member of it, or over HTTP to nodes that are members.

use super::view::ClusterView;
use crate::client::{Call, HttpClient};
use ashlar_raft::codec::{self, Kind};
use ashlar_raft::{Command, MetaError, MetaHandle, Response};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// A view is made of the whole metadata: making one after the other may take this part of the time at most, so that many
/// changes in a row cost little. It is known this late at the latest.
const VIEWS_PART: u32 = 16;
const VIEW_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a member holds a question for a newer view.
pub const VIEW_WAIT: Duration = Duration::from_secs(5);

/// The metadata service as this node reaches it. Cheap to clone.
#[derive(Clone)]
pub enum Metadata {
    /// This node belongs to it.
    Local {
        /// Its member.
        member: MetaHandle,
        /// The others, asked once the own one has ended.
        others: Arc<RemoteMetadata>,
    },
    /// Others do.
    Remote(Arc<RemoteMetadata>),
}

/// Members of the metadata service on other nodes.
pub struct RemoteMetadata {
    client: HttpClient,
    addresses: Mutex<Vec<String>>,
}

impl RemoteMetadata {
    /// Reaches the service through these API addresses first.
    pub fn new(client: HttpClient, addresses: Vec<String>) -> Self {
        Self { client, addresses: Mutex::new(addresses) }
    }

    /// The addresses, the one that answered last first.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn learn(&self, addresses: Vec<String>) {
        if !addresses.is_empty() {
            let mut known = self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let first = known.first().cloned();
            *known = addresses;
            if let Some(position) = known.iter().position(|address| Some(address) == first.as_ref()) {
                known.swap(0, position);
            }
        }
    }

    fn prefer(&self, address: &str) {
        let mut known = self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(position) = known.iter().position(|other| other == address) {
            known.swap(0, position);
        }
    }

    async fn propose(&self, command: &Command) -> Result<Response, MetaError> {
        let body = codec::encode(Kind::Command, command).map_err(|e| MetaError::BadRequest(e.to_string()))?;
        let mut last = "no address is known".to_owned();
        for address in self.addresses() {
            let call = Call::post(&address, "/internal/propose", body.clone(), Duration::from_secs(12));
            match self.client.call(call).await {
                Ok(answer) if answer.status.is_success() => {
                    self.prefer(&address);
                    return codec::decode::<Result<Response, MetaError>>(Kind::Outcome, &answer.body)
                        .map_err(|e| MetaError::Unavailable(format!("the answer of {address} is damaged: {e}")))?;
                }
                Ok(answer) => last = format!("{address} answered {}", answer.status),
                Err(error) => last = error.to_string(),
            }
        }
        Err(MetaError::Unavailable(last))
    }

    async fn view_after(&self, version: u64) -> Result<ClusterView, String> {
        let path = format!("/internal/view?after={version}");
        let mut last = "no address is known".to_owned();
        for address in self.addresses() {
            let call = Call::get(&address, &path, VIEW_WAIT + Duration::from_secs(3));
            match self.client.call(call).await {
                Ok(answer) if answer.status.is_success() => {
                    let view: ClusterView =
                        serde_json::from_slice(&answer.body).map_err(|e| format!("the view of {address}: {e}"))?;
                    self.prefer(&address);
                    self.learn(view.meta_addresses());
                    return Ok(view);
                }
                Ok(answer) => last = format!("{address} answered {}", answer.status),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

impl Metadata {
    /// Commits a command, wherever the leader is.
    ///
    /// # Errors
    /// Refused, or no leader answered; the outcome is then unknown.
    pub async fn propose(&self, command: Command) -> Result<Response, MetaError> {
        match self {
            Self::Local { member, others } => match member.propose_anywhere(command.clone()).await {
                Err(MetaError::Stopped(_)) => others.propose(&command).await,
                answer => answer,
            },
            Self::Remote(remote) => remote.propose(&command).await,
        }
    }

    /// The local member, if this node is one.
    pub fn local(&self) -> Option<&MetaHandle> {
        match self {
            Self::Local { member, .. } => Some(member),
            Self::Remote(_) => None,
        }
    }

    /// Where to forward what only a member can answer.
    pub fn remote_addresses(&self) -> Vec<String> {
        match self {
            Self::Local { .. } => Vec::new(),
            Self::Remote(remote) => remote.addresses(),
        }
    }

    /// Keeps `views` up to date for as long as somebody listens.
    pub async fn follow(self, views: watch::Sender<Arc<ClusterView>>) {
        match self {
            Self::Local { member, others } => {
                follow_local(&member, &others, &views).await;
                tracing::error!("the metadata service has ended on this node; other members are asked from now on");
                follow_remote(&others, &views).await;
            }
            Self::Remote(remote) => follow_remote(&remote, &views).await,
        }
    }
}

/// Runs until the service ends on this node. The first view is one that a quorum vouched for: a member that restarts may know an old state, and a list that
/// lacks volumes must never reach the shard.
async fn follow_local(handle: &MetaHandle, others: &RemoteMetadata, views: &watch::Sender<Arc<ClusterView>>) {
    let (mut applied, mut leader) = (handle.watch(), handle.watch_leader());
    loop {
        match handle.linearizable_state().await {
            Ok(state) if state.cluster().is_some() => {
                publish(views, ClusterView::of(&state));
                break;
            }
            Ok(_) => {}
            Err(MetaError::Stopped(_)) => return,
            Err(error) => tracing::debug!("the metadata cannot be read yet: {error}"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    loop {
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            // Ends with the service.
            changed = leader.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        applied.mark_unchanged();
        let began = Instant::now();
        let view = handle.with_state(ClusterView::of);
        others.learn(view.meta_addresses());
        publish(views, view);
        tokio::time::sleep(pause_after(began.elapsed())).await;
    }
}

/// How long the next view has to wait for others to be made with it, after one that took so long.
fn pause_after(took: Duration) -> Duration {
    (took * VIEWS_PART).min(VIEW_PAUSE_MAX)
}

async fn follow_remote(remote: &RemoteMetadata, views: &watch::Sender<Arc<ClusterView>>) {
    loop {
        let version = views.borrow().version;
        match remote.view_after(version).await {
            Ok(view) if view.version < version => tokio::time::sleep(RETRY_PAUSE).await,
            Ok(view) => publish(views, view),
            Err(error) => {
                tracing::debug!("the metadata cannot be read: {error}");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

fn publish(views: &watch::Sender<Arc<ClusterView>>, view: ClusterView) {
    views.send_if_modified(|known| {
        // A member that lags behind must not take back what another one said.
        let newer = view.cluster.is_some() && (known.cluster.is_none() || view.version > known.version);
        if newer {
            *known = Arc::new(view);
        }
        newer
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_that_take_long_are_made_less_often() {
        assert_eq!(pause_after(Duration::from_micros(20)), Duration::from_micros(320));
        assert_eq!(pause_after(Duration::from_millis(2)), Duration::from_millis(32));
        assert_eq!(pause_after(Duration::from_secs(1)), VIEW_PAUSE_MAX);
    }
}
