//! Who should belong to the Raft group, one change at a time. Pure: the caller says who leads, who is how far behind, and
//! how long each node has been silent.
//!
//! Rules, in the order of their weight: a quorum is never given up (before and after a change a majority of the voters is
//! alive, and the last voter stays); draining nodes lose their vote and follow, since their daemons still work with the metadata,
//! and removed ones leave; 1, 3 or 5 nodes vote, as many as there are active meta nodes for; a voter that is out for long gives
//! its vote to a learner that is alive, in a zone without a voter if there is one.

use crate::settings::VOTER_OUT_MS;
use crate::state::State;
use crate::state::entities::{Admin, Labels, Liveness, Node};
use ashlar_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Voters of one group.
pub const VOTERS_MAX: usize = 5;
/// A learner this close to the end of the log, in entries, may vote.
pub const VOTER_LAG_MAX: u64 = 100;

/// The group as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Nodes with roles, labels, liveness and what operators decided.
    pub state: &'a State,
    /// The node that decides: it is alive.
    pub leader: NodeId,
    /// Who votes.
    pub voters: &'a [NodeId],
    /// Who follows without a vote.
    pub learners: &'a [NodeId],
    /// A change of the voters has begun and not ended: both sets are asked, and losing either stops the group.
    pub is_changing: bool,
    /// Milliseconds since each node's last sign of life. A node that is not named was heard just now.
    pub silent_ms: &'a BTreeMap<NodeId, u64>,
    /// Log entries that each member lacks. One that is not named has never answered.
    pub lag: &'a BTreeMap<NodeId, u64>,
}

/// One change of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// This node follows from now on, without a vote.
    AddLearner(NodeId),
    /// These vote from now on. Who voted before and is not among them follows; if the leader is not, they leave and are
    /// added again.
    Voters(BTreeSet<NodeId>),
    /// This learner follows no longer.
    RemoveLearner(NodeId),
}

/// The next change, if one is due and safe.
pub fn next_change(situation: &Situation<'_>) -> Option<Change> {
    if !situation.is_majority_alive(situation.voters.iter()) {
        return None;
    }
    let leaves = situation.learners.iter().find(|id| !situation.state.node(**id).is_some_and(follows));
    if let Some(id) = leaves {
        return Some(Change::RemoveLearner(*id));
    }
    let is_member = |id: &NodeId| situation.voters.contains(id) || situation.learners.contains(id);
    // One that has lost what it knew hears of the group only by being spoken to, and is down until then.
    let comes = situation.state.nodes().filter(|node| follows(node)).map(|node| node.id).filter(|id| !is_member(id));
    if let Some(id) = comes.min_by_key(|id| (!situation.is_alive(*id), *id)) {
        return Some(Change::AddLearner(id));
    }
    let voters = situation.best_voters();
    // A change that its leader did not live to end is ended by proposing the same again.
    let is_new = situation.is_changing || !voters.iter().eq(BTreeSet::from_iter(situation.voters));
    (is_new && !voters.is_empty() && situation.is_majority_alive(voters.iter())).then_some(Change::Voters(voters))
}

/// It belongs to the group, with a vote or without.
fn follows(node: &Node) -> bool {
    node.roles.meta && node.admin != Admin::Removed
}

impl Situation<'_> {
    /// Nodes that could vote.
    fn wanted(&self) -> impl Iterator<Item = &Node> {
        self.state.nodes().filter(|node| node.roles.meta && node.admin == Admin::Active)
    }

    fn is_wanted(&self, id: NodeId) -> bool {
        self.state.node(id).is_some_and(|node| node.roles.meta && node.admin == Admin::Active)
    }

    fn is_alive(&self, id: NodeId) -> bool {
        id == self.leader || self.state.node(id).is_some_and(|node| node.liveness == Liveness::Up)
    }

    fn is_majority_alive<'b>(&self, voters: impl ExactSizeIterator<Item = &'b NodeId>) -> bool {
        let count = voters.len();
        2 * voters.filter(|id| self.is_alive(**id)).count() > count
    }

    /// It is down, and has been for so long that its vote goes to another one.
    fn is_out(&self, id: NodeId) -> bool {
        let silent_ms = self.silent_ms.get(&id).copied().unwrap_or(0);
        id != self.leader
            && self.state.node(id).is_none_or(|node| node.liveness.is_silent())
            && silent_ms >= self.state.setting(&VOTER_OUT_MS)
    }

    /// As many as the active meta nodes are enough for.
    fn voters_wanted(&self) -> usize {
        match self.wanted().count() {
            count if count >= VOTERS_MAX => VOTERS_MAX,
            3 | 4 => 3,
            _ => 1,
        }
    }

    /// Those that vote and should, then learners that could, then voters that are out: they keep a vote that nobody takes.
    fn best_voters(&self) -> BTreeSet<NodeId> {
        let staying = self.voters.iter().copied().filter(|id| self.is_wanted(*id));
        let (out, mut chosen): (Vec<NodeId>, Vec<NodeId>) = staying.partition(|id| self.is_out(*id));
        // Where there are too many those go that are not alive.
        chosen.sort_by_key(|id| (*id != self.leader, !self.is_alive(*id), *id));
        let wanted = self.voters_wanted();
        while chosen.len() < wanted
            && let Some(next) = self.next_voter(&chosen)
        {
            chosen.push(next);
        }
        chosen.extend(out);
        if chosen.len() < wanted && self.is_worth_waiting(&chosen) {
            return self.voters.iter().copied().collect();
        }
        chosen.truncate(wanted);
        if chosen.len().is_multiple_of(2) {
            chosen.pop();
        }
        chosen.into_iter().collect()
    }

    /// Somebody is about to catch up, and until then those that shall leave are alive and keep their votes.
    fn is_worth_waiting(&self, chosen: &[NodeId]) -> bool {
        let mut comes = self.wanted().filter(|node| self.is_alive(node.id) && !chosen.contains(&node.id));
        let mut leaving = self.voters.iter().filter(|id| !self.is_wanted(**id));
        comes.next().is_some() && leaving.all(|id| self.is_alive(*id))
    }

    /// A learner that can vote, in a zone of its own if there is one.
    fn next_voter(&self, chosen: &[NodeId]) -> Option<NodeId> {
        let taken: BTreeSet<Zone<'_>> = chosen.iter().filter_map(|id| zone_of(self.state.node(*id)?)).collect();
        let keeps_up = |id: NodeId| self.lag.get(&id).is_some_and(|lag| *lag <= VOTER_LAG_MAX);
        let able = self
            .learners
            .iter()
            .copied()
            .filter(|id| self.is_wanted(*id) && self.is_alive(*id) && keeps_up(*id) && !chosen.contains(id));
        able.min_by_key(|id| {
            let zone = self.state.node(*id).and_then(zone_of);
            (zone.is_none_or(|zone| taken.contains(&zone)), *id)
        })
    }
}

/// A zone, with its region: zones are unique within one.
type Zone<'a> = (Option<&'a str>, &'a str);

fn zone_of(node: &Node) -> Option<Zone<'_>> {
    let Labels { region, zone, .. } = &node.labels;
    Some((region.as_deref(), zone.as_deref()?))
}
