//! The leader's bookkeeping of sessions: who renewed when. Pure; the daemon brings the time and proposes the verdicts.
//!
//! Renewals never go through the log. A new leader knows nobody's renewals, so it gives every node one full period
//! from the moment it became leader.

use crate::outs::{Brake, Outs};
use crate::state::State;
use crate::state::entities::{Admin, Liveness, Node};
use ashlar_model::{NodeId, SessionId};
use std::collections::BTreeMap;

/// How long a node may be silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// Silence after which it is suspect, in milliseconds.
    pub suspect_after_ms: u64,
    /// Silence after which it is down, in milliseconds.
    pub down_after_ms: u64,
    /// Silence after which it is out, in milliseconds, if nothing speaks against it ([`crate::outs`]).
    pub down_out_ms: u64,
}

impl SessionLimits {
    /// The limits that the cluster's settings say.
    pub fn of(state: &State) -> Self {
        let suspect_after_ms = state.setting(&crate::settings::SUSPECT_AFTER_MS);
        let down_after_ms = state.setting(&crate::settings::DOWN_AFTER_MS).max(suspect_after_ms);
        let down_out_ms = state.setting(&crate::settings::DOWN_OUT_MS).max(down_after_ms);
        Self { suspect_after_ms, down_after_ms, down_out_ms }
    }
}

/// A verdict to be proposed as [`crate::Command::SetNodeLiveness`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The node.
    pub node: NodeId,
    /// The session that the verdict is about.
    pub session: SessionId,
    /// What it is now.
    pub liveness: Liveness,
}

/// Last renewals, as the leader saw them.
#[derive(Clone, Debug)]
pub struct Sessions {
    leader_since_ms: u64,
    renewed_ms: BTreeMap<NodeId, (SessionId, u64)>,
    /// When a node was silent together with its whole rack or zone for the last time.
    braked_ms: BTreeMap<NodeId, u64>,
}

impl Sessions {
    /// The bookkeeping of a node that became leader now.
    pub fn new(now_ms: u64) -> Self {
        Self { leader_since_ms: now_ms, renewed_ms: BTreeMap::new(), braked_ms: BTreeMap::new() }
    }

    /// A node renewed its session.
    pub fn renew(&mut self, node: NodeId, session: SessionId, now_ms: u64) {
        self.renewed_ms.insert(node, (session, now_ms));
    }

    /// Milliseconds since a node's last sign of life, counted from the start of the leadership if there was none.
    pub fn silence_ms(&self, node: NodeId, session: SessionId, now_ms: u64) -> u64 {
        let seen = match self.renewed_ms.get(&node) {
            Some((renewed, at)) if *renewed == session => (*at).max(self.leader_since_ms),
            _ => self.leader_since_ms,
        };
        now_ms.saturating_sub(seen)
    }

    /// The silence that counts for giving a node up. A rack comes back one node after the other: those that take longer have
    /// their time from when the first of them answers. Who is out already stays that.
    fn silence_for_out_ms(&self, node: &Node, now_ms: u64) -> u64 {
        let silent = self.silence_ms(node.id, node.session, now_ms);
        match self.braked_ms.get(&node.id) {
            Some(braked) if node.liveness != Liveness::Out => silent.min(now_ms.saturating_sub(*braked)),
            _ => silent,
        }
    }

    /// The nodes whose recorded liveness is not what their renewals say: to be proposed. A node that is recorded as
    /// down or out comes up again by a renewal of its session.
    pub fn verdicts(&mut self, state: &State, limits: SessionLimits, now_ms: u64) -> Vec<Verdict> {
        let nodes = || state.nodes().filter(|node| node.admin != Admin::Removed);
        let mut outs = Outs::of(state);
        let is_braked = |node: &&Node| matches!(outs.brake(node), Some(Brake::WholeDomain(_)));
        self.braked_ms.extend(nodes().filter(is_braked).map(|node| (node.id, now_ms)));
        let verdicts = nodes().filter_map(|node| {
            let liveness = match self.silence_ms(node.id, node.session, now_ms) {
                _ if self.silence_for_out_ms(node, now_ms) >= limits.down_out_ms && outs.allow(node) => Liveness::Out,
                silent if silent >= limits.down_after_ms => Liveness::Down,
                silent if silent >= limits.suspect_after_ms => Liveness::Suspect,
                _ => Liveness::Up,
            };
            // No sign of life since this leader began: silence may make it worse, but only a renewal makes it better.
            let heard = self.renewed_ms.get(&node.id).is_some_and(|(session, _)| *session == node.session);
            let better = rank(liveness) < rank(node.liveness);
            let changed = liveness != node.liveness && (heard || !better);
            changed.then_some(Verdict { node: node.id, session: node.session, liveness })
        });
        verdicts.collect()
    }

    /// Forgets nodes that are no longer known, so that strangers cannot grow the table.
    pub fn retain_known(&mut self, state: &State) {
        self.renewed_ms.retain(|node, _| state.node(*node).is_some());
        self.braked_ms.retain(|node, _| state.node(*node).is_some());
    }
}

fn rank(liveness: Liveness) -> u8 {
    match liveness {
        Liveness::Up => 0,
        Liveness::Suspect => 1,
        Liveness::Down => 2,
        Liveness::Out => 3,
    }
}
