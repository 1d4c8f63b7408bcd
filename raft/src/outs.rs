//! Which node that is down may be given up, so that its replicas are rebuilt elsewhere. Pure.
//!
//! Rebuilding is right when a machine is lost, and wrong when a network, a room or a power feed is: then everything would be
//! copied once more to what is left, while all of it comes back as it was. So a node stays down, and is not out, while its
//! whole rack or zone is silent and, by [`crate::sessions`], for the usual time after, or when too many would be out at a time.

use crate::placement::{Domain, domain_of};
use crate::settings::OUT_PERCENT_MAX;
use crate::state::State;
use crate::state::entities::{Admin, Liveness, Node, SpreadLevel};
use std::collections::BTreeMap;

/// Why a silent node is not given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Brake {
    /// All nodes of its rack or zone are silent.
    WholeDomain(Domain),
    /// As many nodes are out as may be.
    TooMany {
        /// Nodes that are out.
        out: usize,
        /// Nodes that may be.
        out_max: usize,
    },
}

impl std::fmt::Display for Brake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WholeDomain(domain) => {
                write!(f, "all nodes of {domain} are silent: it is expected to come back as it was")
            }
            Self::TooMany { out, out_max } => {
                write!(f, "{out} nodes are out, and no more than {out_max} may be (setting {})", OUT_PERCENT_MAX.key)
            }
        }
    }
}

/// The nodes of a rack or zone.
#[derive(Default)]
struct Members {
    all: usize,
    silent: usize,
}

/// Who is out, and who may be too.
pub struct Outs {
    out: usize,
    out_max: usize,
    domains: BTreeMap<Domain, Members>,
}

impl Outs {
    /// As the state has it. Only nodes that keep replicas count.
    pub fn of(state: &State) -> Self {
        let percent = state.setting(&OUT_PERCENT_MAX) as usize;
        let mut outs = Self { out: 0, out_max: 0, domains: BTreeMap::new() };
        let mut stores = 0;
        for node in state.nodes().filter(|node| counts(node)) {
            stores += 1;
            outs.out += usize::from(node.liveness == Liveness::Out);
            for domain in domains_of(node) {
                let members = outs.domains.entry(domain).or_default();
                members.all += 1;
                members.silent += usize::from(node.liveness.is_silent());
            }
        }
        outs.out_max = if percent == 0 { 0 } else { (stores * percent / 100).max(1) };
        outs
    }

    /// What keeps a silent node from being given up. A domain of one node is no more than the node.
    pub fn brake(&self, node: &Node) -> Option<Brake> {
        let whole = |domain: &Domain| self.domains.get(domain).is_some_and(|all| all.all > 1 && all.silent == all.all);
        if let Some(domain) = domains_of(node).find(whole) {
            return Some(Brake::WholeDomain(domain));
        }
        (self.out >= self.out_max).then_some(Brake::TooMany { out: self.out, out_max: self.out_max })
    }

    /// True if the node is out or may be from now on; it counts then. Only what is recorded as silent can be.
    pub fn allow(&mut self, node: &Node) -> bool {
        match node.liveness {
            Liveness::Out => true,
            Liveness::Down if counts(node) && self.brake(node).is_none() => {
                self.out += 1;
                true
            }
            _ => false,
        }
    }
}

fn counts(node: &Node) -> bool {
    node.roles.store && node.admin != Admin::Removed
}

/// Its rack and its zone, as far as it has labels.
fn domains_of(node: &Node) -> impl Iterator<Item = Domain> {
    [SpreadLevel::Rack, SpreadLevel::Zone].into_iter().filter_map(|level| domain_of(node, level))
}
