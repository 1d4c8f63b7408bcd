//! Who belongs to the Raft group: tables of situations, and random groups that never give up their quorum.

mod fixture;

use ashlar_model::NodeId;
use ashlar_raft::members::{Change, Situation, next_change};
use ashlar_raft::state::entities::{Admin, Liveness};
use ashlar_raft::{Command, State};
use fixture::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const OUT_MS: u64 = 300_000;

fn ids(numbers: &[u64]) -> Vec<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

fn voters(numbers: &[u64]) -> Option<Change> {
    Some(Change::Voters(ids(numbers).into_iter().collect()))
}

/// A group in a state; node 1 leads unless said otherwise.
#[derive(Clone, Debug)]
struct Group {
    state: State,
    leader: NodeId,
    voters: Vec<NodeId>,
    learners: Vec<NodeId>,
    silent_ms: BTreeMap<NodeId, u64>,
    lag: BTreeMap<NodeId, u64>,
    is_changing: bool,
}

impl Group {
    fn new(zones: &[Option<&str>], voters: &[u64], learners: &[u64]) -> Self {
        let lag = (1..=zones.len() as u64).map(|id| (NodeId(id), 0)).collect();
        let (voters, learners) = (ids(voters), ids(learners));
        let (state, silent_ms) = (cluster(zones), BTreeMap::new());
        Self { state, leader: NodeId(1), voters, learners, silent_ms, lag, is_changing: false }
    }

    fn admin(mut self, node: u64, admin: Admin) -> Self {
        self.state.apply(&Command::SetNodeAdmin { id: NodeId(node), admin }).unwrap();
        self
    }

    fn down(mut self, node: u64, silent_ms: u64) -> Self {
        self.state.apply(&set_liveness(node, Liveness::Down)).unwrap();
        self.silent_ms.insert(NodeId(node), silent_ms);
        self
    }

    fn without_meta(mut self, node: u64) -> Self {
        let mut spec = node_spec(node, None);
        spec.roles.meta = false;
        self.state.apply(&Command::UpdateNode { id: NodeId(node), node: spec }).unwrap();
        self
    }

    fn lags(mut self, node: u64, lag: u64) -> Self {
        self.lag.insert(NodeId(node), lag);
        self
    }

    fn led_by(self, node: u64) -> Self {
        Self { leader: NodeId(node), ..self }
    }

    fn next(&self) -> Option<Change> {
        next_change(&Situation {
            state: &self.state,
            leader: self.leader,
            voters: &self.voters,
            learners: &self.learners,
            is_changing: self.is_changing,
            silent_ms: &self.silent_ms,
            lag: &self.lag,
        })
    }

    fn is_alive(&self, id: NodeId) -> bool {
        id == self.leader || self.state.node(id).unwrap().liveness == Liveness::Up
    }

    fn has_quorum(&self, voters: &[NodeId]) -> bool {
        2 * voters.iter().filter(|id| self.is_alive(**id)).count() > voters.len()
    }

    /// As Raft does it: who loses the vote follows, unless the leader is among them, which hands over to one that votes.
    fn apply(&mut self, change: Change) {
        match change {
            Change::AddLearner(id) => self.learners.push(id),
            Change::RemoveLearner(id) => self.learners.retain(|learner| *learner != id),
            Change::Voters(new) => {
                let before = std::mem::replace(&mut self.voters, new.iter().copied().collect());
                self.learners.retain(|id| !new.contains(id));
                if new.contains(&self.leader) {
                    self.learners.extend(before.into_iter().filter(|id| !new.contains(id)));
                } else {
                    self.leader = *self.voters.iter().find(|id| self.is_alive(**id)).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_change_whose_leader_died_in_its_middle_is_ended() {
    let group = || Group::new(&[None; 3], &[1, 2, 3], &[]);
    assert_eq!(group().next(), None);
    assert_eq!(Group { is_changing: true, ..group() }.next(), voters(&[1, 2, 3]), "until then losing node 1 ends all");
    let one_is_down = Group { is_changing: true, ..group() }.led_by(2).down(1, 0);
    assert_eq!(one_is_down.next(), voters(&[1, 2, 3]));
}

#[test]
fn nodes_come_as_learners_and_get_votes_in_odd_numbers() {
    let four = [None; 4];
    assert_eq!(Group::new(&four, &[1], &[]).next(), Some(Change::AddLearner(NodeId(2))));
    assert_eq!(Group::new(&four, &[1], &[2]).next(), Some(Change::AddLearner(NodeId(3))));
    assert_eq!(Group::new(&four, &[1], &[2, 3, 4]).next(), voters(&[1, 2, 3]));
    assert_eq!(Group::new(&four, &[1, 2, 3], &[4]).next(), None, "four nodes, three votes");
    assert_eq!(Group::new(&[None; 2], &[1], &[2]).next(), None, "two nodes, one vote");
    assert_eq!(Group::new(&[None; 5], &[1, 2, 3], &[4, 5]).next(), voters(&[1, 2, 3, 4, 5]));
    assert_eq!(Group::new(&[None; 7], &[1, 2, 3, 4, 5], &[6, 7]).next(), None, "five at most");
    // Who lags, or has never answered, gets no vote; who is not alive comes last.
    assert_eq!(Group::new(&four, &[1], &[2, 3, 4]).lags(2, 101).next(), voters(&[1, 3, 4]));
    let mut unknown = Group::new(&[None; 3], &[1], &[2, 3]);
    unknown.lag.remove(&NodeId(3));
    assert_eq!(unknown.next(), None);
    assert_eq!(Group::new(&four, &[1], &[]).down(2, 0).next(), Some(Change::AddLearner(NodeId(3))));
    assert_eq!(Group::new(&[None; 2], &[1], &[]).down(2, 0).next(), Some(Change::AddLearner(NodeId(2))));
    assert_eq!(Group::new(&[None; 3], &[1], &[2, 3]).down(3, 0).next(), None);
    assert_eq!(Group::new(&[None; 2], &[1], &[]).without_meta(2).next(), None);
}

#[test]
fn a_voter_that_is_out_is_replaced_and_keeps_its_vote_until_then() {
    let group = || Group::new(&[None; 4], &[1, 2, 3], &[4]);
    assert_eq!(group().down(3, OUT_MS - 1).next(), None);
    assert_eq!(group().down(3, OUT_MS).next(), voters(&[1, 2, 4]));
    // Given up as a keeper of replicas by then, it is no better as a voter.
    let mut given_up = group().down(3, OUT_MS);
    given_up.state.apply(&set_liveness(3, Liveness::Out)).unwrap();
    assert_eq!(given_up.next(), voters(&[1, 2, 4]));
    assert_eq!(group().down(3, OUT_MS).lags(4, 101).next(), None);
    assert_eq!(group().down(3, OUT_MS).down(4, 1).next(), None);
    assert_eq!(Group::new(&[None; 3], &[1, 2, 3], &[]).down(3, OUT_MS).next(), None, "nobody can take it");
    // It is back: it follows, ready for the next loss.
    assert_eq!(Group::new(&[None; 4], &[1, 2, 4], &[3]).next(), None);
    // The leader is never out, whatever is recorded of it.
    assert_eq!(group().down(1, OUT_MS).next(), None);
    let mut soon = group().down(3, 2_000);
    soon.state.apply(&Command::SetSetting { key: "voter_out_ms".to_owned(), value: 2_000 }).unwrap();
    assert_eq!(soon.next(), voters(&[1, 2, 4]));
}

#[test]
fn a_vote_goes_to_another_zone_if_possible() {
    let zones = |four, five| [Some("a"), Some("b"), Some("c"), four, five];
    let next = |four, five| Group::new(&zones(four, five), &[1, 2, 3], &[4, 5]).down(3, OUT_MS).next();
    // Five active nodes want five votes; one is out, so there are four for three.
    assert_eq!(next(Some("a"), Some("c")), voters(&[1, 2, 3, 4, 5]));
    let next = |four, five| {
        let group = Group::new(&zones(four, five), &[1, 2, 3], &[4, 5]).admin(3, Admin::Draining);
        group.next()
    };
    assert_eq!(next(Some("a"), Some("c")), voters(&[1, 2, 5]));
    assert_eq!(next(Some("a"), Some("b")), voters(&[1, 2, 4]), "none has a zone of its own");
    assert_eq!(next(None, Some("d")), voters(&[1, 2, 5]), "no zone is not another zone");
    assert_eq!(next(Some("c"), Some("d")), voters(&[1, 2, 4]));
}

#[test]
fn removed_and_draining_nodes_leave_but_never_the_last_voter() {
    let three = || Group::new(&[None; 3], &[1, 2, 3], &[]);
    assert_eq!(three().admin(3, Admin::Draining).next(), voters(&[1]), "two nodes are left for one vote");
    assert_eq!(three().admin(1, Admin::Draining).next(), voters(&[2]), "the leader, too");
    assert_eq!(Group::new(&[None; 3], &[1], &[2, 3]).admin(3, Admin::Removed).next(), {
        Some(Change::RemoveLearner(NodeId(3)))
    });
    let without_vote = Group::new(&[None; 3], &[1], &[2]).admin(3, Admin::Draining);
    assert_eq!(without_vote.next(), Some(Change::AddLearner(NodeId(3))), "its daemon goes on with the metadata");
    assert_eq!(Group::new(&[None; 1], &[1], &[]).admin(1, Admin::Draining).next(), None, "the last one");
    let moved = Group::new(&[None; 2], &[1], &[2]).admin(1, Admin::Draining);
    assert_eq!(moved.next(), voters(&[2]));
    assert_eq!(moved.clone().lags(2, 101).next(), None, "its successor lags");
    let four = || Group::new(&[None; 4], &[1, 2, 3], &[4]);
    assert_eq!(four().admin(2, Admin::Draining).next(), voters(&[1, 3, 4]));
    assert_eq!(four().without_meta(2).next(), voters(&[1, 3, 4]));
    // A node that shall leave waits for one that is about to come; one that is gone does not.
    assert_eq!(four().admin(2, Admin::Draining).lags(4, 101).next(), None);
    assert_eq!(four().admin(2, Admin::Draining).down(2, 1).lags(4, 101).next(), voters(&[1]));
}

#[test]
fn nothing_changes_without_a_majority_before_and_after() {
    let three = || Group::new(&[None; 4], &[1, 2, 3], &[4]);
    assert_eq!(three().down(2, OUT_MS).down(3, OUT_MS).next(), None);
    assert_eq!(Group::new(&[None; 4], &[1, 2, 3], &[]).down(2, 1).down(3, 1).next(), None);
    // The one that would be left with the leader is not alive.
    let led = Group::new(&[None; 3], &[1, 2, 3], &[]).led_by(3).admin(3, Admin::Draining).down(1, 1);
    assert_eq!(led.next(), voters(&[2]), "the one that is alive keeps the vote");
    // Of too many voters those go that are not alive.
    let shrunk = Group::new(&[None; 5], &[1, 2, 3, 4, 5], &[]).without_meta(5).down(2, 1);
    assert_eq!(shrunk.next(), voters(&[1, 3, 4]));
}

fn random_group() -> impl Strategy<Value = Group> {
    let node = (0..8u8, 0..3u8, 0..2u8, 0..3usize, prop_oneof![Just(0u64), Just(500u64)], any::<bool>());
    (1..8usize, proptest::collection::vec(node, 8), 0..5usize).prop_map(|(count, nodes, leader)| {
        let zones = nodes.iter().take(count).map(|node| [None, Some("a"), Some("b")][node.3]).collect::<Vec<_>>();
        let mut group = Group::new(&zones, &[], &[]);
        for (number, (fate, place, out, _, lag, meta)) in (1..=count as u64).zip(nodes) {
            let id = NodeId(number);
            match place {
                0 => group.learners.push(id),
                1 if group.voters.len() < 5 => group.voters.push(id),
                _ => {}
            }
            if !meta && number % 4 == 0 {
                group = group.without_meta(number);
            }
            group = match fate {
                0 => group.admin(number, Admin::Draining),
                1 => group.admin(number, Admin::Removed),
                2 | 3 => group.down(number, u64::from(out) * OUT_MS),
                _ => group,
            };
            group = group.lags(number, lag);
        }
        if group.voters.is_empty() {
            group.learners.retain(|id| *id != NodeId(1));
            group.voters.push(NodeId(1));
        }
        group.leader = group.voters[leader % group.voters.len()];
        group
    })
}

proptest! {
    /// Whatever comes together: each change keeps a live majority, before and after; the number of voters becomes odd and
    /// stays so; who gets a vote shall have one; and after a few changes there is nothing left to do.
    #[test]
    fn quorum_is_never_given_up(group in random_group()) {
        let mut group = group;
        let mut steps = 0;
        while let Some(change) = group.next() {
            prop_assert!(group.has_quorum(&group.voters), "{change:?} without a majority");
            if let Change::Voters(new) = &change {
                let new = new.iter().copied().collect::<Vec<_>>();
                prop_assert!([1, 3, 5].contains(&new.len()));
                prop_assert!(group.has_quorum(&new), "{new:?} have no majority alive");
                for id in &new {
                    let node = group.state.node(*id).unwrap();
                    prop_assert!(node.roles.meta && node.admin == Admin::Active, "{id} shall not vote");
                    prop_assert!(group.voters.contains(id) || (group.is_alive(*id) && group.lag[id] <= 100));
                }
            }
            if let Change::RemoveLearner(id) = &change {
                prop_assert!(!group.voters.contains(id));
            }
            group.apply(change);
            prop_assert!(!group.voters.is_empty());
            steps += 1;
            prop_assert!(steps <= 40, "the group does not come to rest");
        }
        // With everybody alive and in step, those and only those vote that should.
        let everybody = group.state.nodes().all(|node| group.is_alive(node.id) && group.lag[&node.id] <= 100);
        let wanted: BTreeSet<NodeId> = group
            .state
            .nodes()
            .filter(|node| node.roles.meta && node.admin == Admin::Active)
            .map(|node| node.id)
            .collect();
        if everybody && !wanted.is_empty() {
            let votes = match wanted.len() { 0..=2 => 1, 3 | 4 => 3, _ => 5 };
            prop_assert_eq!(group.voters.len(), votes);
            prop_assert!(group.voters.iter().all(|id| wanted.contains(id)));
        }
    }
}
