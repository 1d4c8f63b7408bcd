//! What the leader does for all: judges who is alive, and decides who belongs to the Raft group.
//!
//! Renewals never go through the log; only verdicts do.

use crate::client::{Call, FORWARDED_HEADER, HttpClient};
use ashlar_model::{NodeId, SessionId};
use ashlar_raft::members::{Change, Situation, VOTERS_MAX, next_change};
use ashlar_raft::sessions::{SessionLimits, Sessions};
use ashlar_raft::{Command, MetaHandle, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);
/// Longer pauses between two rounds mean that this process did not run: its judgement of others is void.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Changes of the group in one round: so many come, and then they vote.
const CHANGES_MAX: usize = 2 * VOTERS_MAX;

/// A renewal as it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Renewal {
    /// The node.
    pub node: NodeId,
    /// The run of its daemon.
    pub session: SessionId,
}

/// The leader's duties on this node; idle while another node leads.
pub struct Leader {
    handle: MetaHandle,
    client: HttpClient,
    start: Instant,
    sessions: Mutex<Option<Sessions>>,
}

impl Leader {
    /// The duties of this member.
    pub fn new(handle: MetaHandle, client: HttpClient) -> Self {
        Self { handle, client, start: Instant::now(), sessions: Mutex::new(None) }
    }

    /// The metadata service.
    pub fn metadata(&self) -> MetaHandle {
        self.handle.clone()
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Takes a renewal: notes it if this node leads, else passes it on to the leader once.
    ///
    /// # Errors
    /// There is no leader, or it did not answer.
    pub async fn renew(&self, renewal: Renewal, forwarded: bool) -> Result<(), String> {
        if self.handle.is_leader() {
            let now_ms = self.now_ms();
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.get_or_insert_with(|| Sessions::new(now_ms)).renew(renewal.node, renewal.session, now_ms);
            return Ok(());
        }
        match self.handle.leader() {
            Some((_, address)) if !forwarded => send_renewal(&self.client, &address, renewal, true).await,
            Some(_) => Err("this node does not lead".into()),
            None => Err("there is no leader".into()),
        }
    }

    /// Runs the duties until the service stops.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tick.tick().await;
            let stalled = last.elapsed() > STALLED_AFTER;
            last = Instant::now();
            if !self.handle.is_leader() {
                *self.sessions.lock().unwrap_or_else(PoisonError::into_inner) = None;
                continue;
            }
            self.judge(stalled).await;
            self.change_members().await;
        }
    }

    async fn judge(&self, stalled: bool) {
        let now_ms = self.now_ms();
        let state = self.handle.state();
        let limits = SessionLimits::of(&state);
        let verdicts = {
            let mut guard = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            if stalled {
                *guard = None;
            }
            let sessions = guard.get_or_insert_with(|| Sessions::new(now_ms));
            sessions.retain_known(&state);
            sessions.verdicts(&state, limits, now_ms)
        };
        drop(state);
        for verdict in verdicts {
            tracing::info!(node = verdict.node.0, liveness = ?verdict.liveness, "liveness of a node changes");
            let command =
                Command::SetNodeLiveness { id: verdict.node, session: verdict.session, liveness: verdict.liveness };
            if let Err(error) = self.handle.propose(command).await {
                tracing::debug!("a liveness verdict was not recorded: {error}");
            }
        }
    }

    /// Takes nodes into the group of the metadata service and out of it, one change at a time. What is due next follows at
    /// once: a node that has joined and does not vote yet helps nobody when another one is lost.
    async fn change_members(&self) {
        for _ in 0..CHANGES_MAX {
            let Some((change, address)) = self.next_change() else { return };
            match self.handle.change_members(&change, &address).await {
                Ok(members) => {
                    tracing::info!(?change, voters = ?members.voters, learners = ?members.learners, "members change");
                }
                Err(error) => {
                    tracing::debug!("the members do not change yet ({change:?}): {error}");
                    return;
                }
            }
        }
    }

    /// The change that is due, with the address of a node that is to be added.
    fn next_change(&self) -> Option<(Change, String)> {
        let state = self.handle.state();
        let metrics = self.handle.metrics();
        let silent_ms = self.silences(&state);
        let change = next_change(&Situation {
            state: &state,
            leader: self.handle.node(),
            voters: &metrics.membership.voters,
            learners: &metrics.membership.learners,
            is_changing: metrics.membership.is_changing,
            silent_ms: &silent_ms,
            lag: &metrics.lag,
        })?;
        let added = match &change {
            Change::AddLearner(node) => state.node(*node),
            _ => None,
        };
        let address = added.map(|node| node.api_address.clone()).unwrap_or_default();
        Some((change, address))
    }

    /// How long each node has been silent, as far as this leader can know.
    fn silences(&self, state: &State) -> BTreeMap<NodeId, u64> {
        let now_ms = self.now_ms();
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sessions) = sessions.as_ref() else { return BTreeMap::new() };
        state.nodes().map(|node| (node.id, sessions.silence_ms(node.id, node.session, now_ms))).collect()
    }
}

/// Sends a renewal to the API of a node.
///
/// # Errors
/// No answer, or not from a leader.
pub async fn send_renewal(client: &HttpClient, address: &str, renewal: Renewal, forwarded: bool) -> Result<(), String> {
    let body = serde_json::to_value(renewal).map_err(|error| error.to_string())?;
    let mut call = Call::post_json(address, "/internal/session", &body, Duration::from_secs(2));
    if forwarded {
        call = call.header(FORWARDED_HEADER, "1");
    }
    match client.call(call).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => Err(format!("{address} answered {}", answer.status)),
        Err(error) => Err(error.to_string()),
    }
}
