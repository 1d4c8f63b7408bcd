//! Members come and go; the number of voters stays 1, 3 or 5.

use super::Engine;
use crate::members::{Change, VOTER_LAG_MAX, VOTERS_MAX};
use crate::service::{Membership, MetaError};
use ashlar_model::NodeId;
use openraft::{BasicNode, ChangeMembers};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// How long a new learner may take to catch up before the change goes on without it; a later call takes it in.
const CATCH_UP: Duration = Duration::from_secs(5);
/// The same where the leader's other duties wait for it.
const CATCH_UP_SOON: Duration = Duration::from_secs(1);

impl Engine {
    /// Carries out one change that was decided. Raft commits it with the old voters and the new ones, or not at all.
    pub async fn change_members(&self, change: &Change, address: &str) -> Result<Membership, MetaError> {
        self.read_index().await?; // only the leader, and with a current view of the members
        // A leader that keeps a place in the group without a vote goes on leading: it leaves, and comes again.
        let leads_on = !matches!(change, Change::Voters(voters) if !voters.contains(&self.node()));
        let added = if let Change::AddLearner(node) = change { Some(*node) } else { None };
        let change = match change {
            Change::AddLearner(node) => ChangeMembers::AddNodes([(node.0, BasicNode::new(address))].into()),
            Change::Voters(voters) => ChangeMembers::ReplaceAllVoters(voters.iter().map(|id| id.0).collect()),
            Change::RemoveLearner(node) => ChangeMembers::RemoveNodes(BTreeSet::from([node.0])),
        };
        self.change_retaining(change, leads_on).await?;
        if let Some(node) = added {
            // It may vote the sooner: until it does the group bears no loss.
            self.wait_caught_up(node, CATCH_UP_SOON).await;
        }
        self.members_now().await
    }

    /// Takes a node in as a learner, and as a voter as soon as the number of voters stays odd.
    pub async fn add_member(&self, node: NodeId, address: &str) -> Result<Membership, MetaError> {
        self.read_index().await?; // only the leader, and with a current view of the members
        let membership = self.members_now().await?;
        if !membership.voters.contains(&node) && !membership.learners.contains(&node) {
            self.change(ChangeMembers::AddNodes([(node.0, BasicNode::new(address))].into())).await?;
        }
        if !membership.voters.contains(&node) {
            self.wait_caught_up(node, CATCH_UP).await;
        }
        let membership = self.members_now().await?;
        let learners = membership.learners.iter().filter(|learner| self.is_caught_up(**learner));
        let voters = self.choose_voters(&membership.voters, learners.copied());
        self.set_voters(voters).await?;
        self.members_now().await
    }

    /// Takes a node out. Another one takes its vote if there is a learner, else the number of voters falls to the next odd one.
    pub async fn remove_member(&self, node: NodeId) -> Result<Membership, MetaError> {
        self.read_index().await?;
        if node == self.node() {
            return Err(MetaError::BadRequest(
                "the leader cannot take itself out: stop it first, then ask its successor".to_owned(),
            ));
        }
        let membership = self.members_now().await?;
        let staying = membership.voters.iter().filter(|voter| **voter != node).copied().collect::<Vec<_>>();
        let learners = membership.learners.iter().filter(|l| **l != node && self.is_caught_up(**l));
        let voters = self.choose_voters(&staying, learners.copied());
        self.set_voters(voters).await?;
        if self.members_now().await?.learners.contains(&node) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node.0]))).await?;
        }
        self.members_now().await
    }

    /// The members as the raft task knows them: metrics come a moment later.
    async fn members_now(&self) -> Result<Membership, MetaError> {
        let read = self.raft.with_raft_state(|state| super::split(state.membership_state.effective().membership()));
        read.await.map_err(|e| MetaError::Stopped(e.to_string()))
    }

    /// This node, then the voters, then the learners that keep up: the largest odd number of them.
    fn choose_voters(&self, voters: &[NodeId], learners: impl Iterator<Item = NodeId>) -> BTreeSet<u64> {
        let others = voters.iter().copied().filter(|voter| *voter != self.node());
        let mut chosen = std::iter::once(self.node()).chain(others).chain(learners).map(|id| id.0).collect::<Vec<_>>();
        chosen.truncate(VOTERS_MAX);
        if chosen.len().is_multiple_of(2) {
            chosen.pop();
        }
        assert!(!chosen.is_empty(), "this node is among them");
        chosen.into_iter().collect()
    }

    async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MetaError> {
        let present = self.members_now().await?;
        if !present.is_changing && present.voters.iter().map(|id| id.0).eq(voters.iter().copied()) {
            return Ok(());
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), MetaError> {
        self.change_retaining(change, true).await
    }

    /// `retain`: who loses the vote follows.
    async fn change_retaining(&self, change: ChangeMembers<u64, BasicNode>, retain: bool) -> Result<(), MetaError> {
        let changed = tokio::time::timeout(self.request_timeout(), self.raft.change_membership(change, retain)).await;
        let changed = changed.map_err(|_| super::no_quorum())?;
        changed.map(|_| ()).map_err(|e| self.write_error(e))
    }

    fn is_caught_up(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&node.0).copied().flatten());
        matched.is_some_and(|id| id.index + VOTER_LAG_MAX >= metrics.last_log_index.unwrap_or(0))
    }

    async fn wait_caught_up(&self, node: NodeId, limit: Duration) {
        let deadline = Instant::now() + limit.min(self.request_timeout());
        let mut metrics = self.raft.metrics();
        while !self.is_caught_up(node) {
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    }
}
