//! When this node may stand for election: only while a majority of the voters hears no leader either.
//!
//! Openraft 0.9 has no pre-vote: a node that was cut off would raise its term all the while and depose a healthy leader
//! when it comes back. So elections are switched off, and this task switches them on after asking the other voters.
//! The vote itself stays openraft's; this can only hold one back.

use super::Engine;
use super::network::Caller;
use super::types::Raft;
use crate::codec::{self, Kind};
use crate::service::Timings;
use crate::transport::RpcKind;
use ashlar_model::NodeId;
use openraft::{BasicNode, ServerState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// When a leader was last heard here, and whether this node knows enough to vote.
pub struct Contact {
    heard: Mutex<Instant>,
    catching_up: AtomicBool,
}

impl Contact {
    pub fn new(catching_up: bool) -> Self {
        Self { heard: Mutex::new(Instant::now()), catching_up: AtomicBool::new(catching_up) }
    }

    /// See `Identity::is_catching_up`.
    pub fn is_catching_up(&self) -> bool {
        self.catching_up.load(Ordering::Acquire)
    }

    /// It knows whatever a quorum has acknowledged.
    pub fn has_caught_up(&self) {
        self.catching_up.store(false, Ordering::Release);
    }

    /// A leader spoke.
    pub fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Silence that makes a node doubt its leader: three missed heartbeats, well below the shortest election timeout.
fn doubt(timings: &Timings) -> Duration {
    Duration::from_millis(3 * timings.heartbeat_ms)
}

/// How long nothing can change after so much silence: doubt comes no earlier, and what was asked is asked again then.
fn pause_after(silence: Duration, timings: &Timings) -> Duration {
    doubt(timings).saturating_sub(silence).max(Duration::from_millis(timings.heartbeat_ms))
}

/// True if this node would welcome an election: it hears no leader and is none.
pub fn is_leaderless(raft: &Raft, contact: &Contact, timings: &Timings) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    metrics.state != ServerState::Leader && !contact.is_catching_up() && contact.silence() >= doubt(timings)
}

/// Runs until the raft task ends or the engine, which owns the contact, is dropped.
pub fn watch(raft: Raft, caller: Arc<Caller>, contact: Weak<Contact>, timings: Timings) {
    tokio::spawn(async move {
        while let Some(contact) = contact.upgrade() {
            let allowed = may_campaign(&raft, &caller, &contact, &timings).await;
            let leads = raft.metrics().borrow().state == ServerState::Leader;
            let pause = pause_after(if leads { Duration::ZERO } else { contact.silence() }, &timings);
            drop(contact);
            raft.runtime_config().elect(allowed);
            tokio::time::sleep(pause).await;
            if raft.metrics().borrow().running_state.is_err() {
                return;
            }
        }
    });
}

async fn may_campaign(raft: &Raft, caller: &Arc<Caller>, contact: &Contact, timings: &Timings) -> bool {
    let membership = Arc::clone(&raft.metrics().borrow().membership_config);
    let membership = membership.membership();
    let others = membership.nodes().filter(|(id, _)| **id != caller.node.0);
    let voters = membership.voter_ids().collect::<Vec<_>>();
    let asked = others.filter(|(id, _)| voters.contains(id)).map(|(id, node)| (*id, node.clone())).collect::<Vec<_>>();
    if asked.is_empty() {
        return true; // the only voter, or no group yet
    }
    if !is_leaderless(raft, contact, timings) {
        return false;
    }
    let mut answers = JoinSet::new();
    for (id, joined) in asked {
        let (caller, timeout) = (Arc::clone(caller), Duration::from_millis(2 * timings.heartbeat_ms));
        answers.spawn(async move { (id, ask(&caller, id, &joined, timeout).await) });
    }
    let mut agreed = vec![caller.node.0];
    while let Some(answer) = answers.join_next().await {
        if let Ok((id, true)) = answer {
            agreed.push(id);
        }
    }
    // In a joint configuration each of the two sets needs its majority.
    membership.get_joint_config().iter().all(|set| 2 * agreed.iter().filter(|id| set.contains(id)).count() > set.len())
}

/// True if the other node answers and hears no leader either.
async fn ask(caller: &Caller, id: u64, joined: &BasicNode, timeout: Duration) -> bool {
    let Some(address) = caller.address(id, Some(joined)) else { return false };
    let Ok(question) = codec::encode(Kind::Request, &()) else { return false };
    let call = caller.call(NodeId(id), &address, RpcKind::Probe, &question, timeout);
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => codec::decode(Kind::Reply, &answer).unwrap_or(false),
        _ => false,
    }
}

impl Engine {
    /// The answer to another node's probe.
    pub(super) fn would_welcome_election(&self) -> bool {
        is_leaderless(&self.raft, &self.contact, &self.timings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_again_when_doubt_may_begin_and_with_each_heartbeat_from_then_on() {
        let timings = Timings { heartbeat_ms: 100, ..Timings::default() };
        for (silence_ms, pause_ms) in [(0, 300), (20, 280), (250, 100), (300, 100), (9_000, 100)] {
            assert_eq!(pause_after(Duration::from_millis(silence_ms), &timings), Duration::from_millis(pause_ms));
        }
    }
}
