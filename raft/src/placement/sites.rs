//! Devices as places for a lane's member: what is on them, what is on its way, and which one is best. Pure.
//!
//! The same rules as for a new volume: never two members on one node, a hard spread always, a soft one as far as it goes.

use super::capacity::Promises;
use super::{Domain, domain_of, tie_break};
use crate::settings::{MOVES_MAX, MOVES_PER_DEVICE_MAX, SCATTER_WIDTH};
use crate::state::State;
use crate::state::entities::{Admin, Device, DeviceState, Liveness, Node, SpreadLevel, Volume};
use ashlar_model::DeviceId;
use std::collections::{BTreeMap, BTreeSet};

/// How much may be under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Lanes of the cluster that change a member.
    pub moves_max: usize,
    /// Lanes that come to one device.
    pub moves_per_device_max: usize,
    /// Lanes that have no place which are told.
    pub waiting_max: usize,
}

/// Enough to say what is in the way.
const WAITING_MAX: usize = 64;

impl Budget {
    /// What the cluster's settings say.
    pub fn of(state: &State) -> Self {
        let number = |info| usize::try_from(state.setting(info)).unwrap_or(usize::MAX);
        Self {
            moves_max: number(&MOVES_MAX),
            moves_per_device_max: number(&MOVES_PER_DEVICE_MAX),
            waiting_max: WAITING_MAX,
        }
    }

    /// For questions: what would move in all.
    pub const UNLIMITED: Self =
        Self { moves_max: usize::MAX, moves_per_device_max: usize::MAX, waiting_max: usize::MAX };
}

/// One device.
pub(super) struct Site<'a> {
    pub device: &'a Device,
    pub node: &'a Node,
    /// It may get lanes.
    pub is_usable: bool,
    /// It gets none because it is full, and would be usable otherwise: it may only give.
    pub is_full: bool,
    /// Its lanes shall move elsewhere, and why.
    pub vacate: Option<super::Reason>,
    /// Bytes promised, what was decided here included.
    pub committed_bytes: u64,
    committed_bytes_max: u64,
    /// Lanes that come to it, what was decided here included.
    pub coming: usize,
    /// Numbers of its domains, by level; `None` without the label.
    domains: [Option<u32>; 3],
}

impl Site<'_> {
    pub fn domain(&self, level: SpreadLevel) -> Option<u32> {
        self.domains[level as usize]
    }

    /// Promised bytes of a mebibyte of capacity.
    pub fn load(&self) -> u64 {
        load(self.committed_bytes, self.device.capacity_bytes)
    }
}

pub(super) fn load(committed_bytes: u64, capacity_bytes: u64) -> u64 {
    u64::try_from((u128::from(committed_bytes) << 20) / u128::from(capacity_bytes.max(1))).unwrap_or(u64::MAX)
}

/// All devices that are not gone.
pub(super) struct Sites<'a> {
    pub state: &'a State,
    pub list: Vec<Site<'a>>,
    index: BTreeMap<DeviceId, usize>,
    /// Devices that will share copysets because of what was decided here.
    new_partners: BTreeMap<DeviceId, BTreeSet<DeviceId>>,
    scatter_width: usize,
    /// Domains with a usable device, by level.
    pub domains_usable: [usize; 3],
    pub budget: Budget,
    /// Moves that may still be decided.
    left: usize,
}

/// A member that is looked for: of which volume and lane, beside whom.
pub(super) struct Want<'a> {
    pub volume: &'a Volume,
    pub lane: u16,
    /// The member whose place it takes.
    pub leaving: DeviceId,
    /// The other members of the lane, and who leaves it already.
    pub others: Vec<DeviceId>,
}

impl<'a> Sites<'a> {
    pub fn of(state: &'a State, budget: Budget) -> Self {
        let promises = Promises::of(state);
        let mut numbers = BTreeMap::<Domain, u32>::new();
        let mut domains_usable = [const { BTreeSet::new() }; 3];
        let mut list = Vec::new();
        for device in state.devices().filter(|device| device.state != DeviceState::Out) {
            let Some(node) = state.node(device.node) else { continue };
            let domains = [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node].map(|level| {
                let domain = domain_of(node, level)?;
                let next = numbers.len() as u32;
                Some(*numbers.entry(domain).or_insert(next))
            });
            let is_there = node.roles.store && node.admin == Admin::Active && node.liveness == Liveness::Up;
            let is_usable = is_there && device.state == DeviceState::In;
            for (set, domain) in domains_usable.iter_mut().zip(domains).filter(|_| is_usable) {
                set.extend(domain);
            }
            list.push(Site {
                device,
                node,
                is_usable,
                is_full: is_there && device.state == DeviceState::Full,
                vacate: super::moves::reason_to_vacate(node, device),
                committed_bytes: device.committed_bytes,
                committed_bytes_max: promises.bytes_max(device.capacity_bytes),
                coming: 0,
                domains,
            });
        }
        let index = list.iter().enumerate().map(|(i, site)| (site.device.id, i)).collect();
        let scatter_width = state.setting(&SCATTER_WIDTH) as usize;
        let domains_usable = domains_usable.map(|set| set.len());
        let new_partners = BTreeMap::new();
        Self { state, list, index, new_partners, scatter_width, domains_usable, budget, left: budget.moves_max }
    }

    pub fn get(&self, device: DeviceId) -> Option<&Site<'a>> {
        self.index.get(&device).map(|i| &self.list[*i])
    }

    /// A change that is under way already.
    pub fn count_running(&mut self, joining: DeviceId) {
        self.left = self.left.saturating_sub(1);
        if let Some(i) = self.index.get(&joining) {
            self.list[*i].coming += 1;
        }
    }

    /// No further move may be decided now.
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// Books a move.
    pub fn take(&mut self, want: &Want<'_>, joining: DeviceId) {
        let bytes = want.volume.lane_bytes();
        self.left = self.left.saturating_sub(1);
        if let Some(i) = self.index.get(&joining) {
            self.list[*i].coming += 1;
            self.list[*i].committed_bytes = self.list[*i].committed_bytes.saturating_add(bytes);
        }
        for other in &want.others {
            self.new_partners.entry(*other).or_default().insert(joining);
            self.new_partners.entry(joining).or_default().insert(*other);
        }
    }

    /// What leaves a device is gone from it some time: counts for evenness only.
    pub fn release(&mut self, want: &Want<'_>) {
        if let Some(i) = self.index.get(&want.leaving) {
            self.list[*i].committed_bytes = self.list[*i].committed_bytes.saturating_sub(want.volume.lane_bytes());
        }
    }

    /// The best device for a member, of those that `suits` says yes to.
    ///
    /// # Errors
    /// What stands in the way, for people: busy devices are said apart, they only take time.
    pub fn pick(&self, want: &Want<'_>, suits: impl Fn(&Site<'_>) -> bool) -> Result<DeviceId, Obstacle> {
        let others = self.others(want);
        let fits = |site: &&Site<'_>| suits(site) && self.obstacle(want, &others, site).is_none();
        let fitting = || self.list.iter().filter(fits);
        let free = fitting().filter(|site| site.coming < self.budget.moves_per_device_max);
        let best = free.min_by_key(|site| self.rank(want, &others, site)).map(|site| site.device.id);
        match best {
            Some(device) => Ok(device),
            None if fitting().next().is_some() => Err(Obstacle::Busy),
            None => Err(Obstacle::Nowhere(self.why_nowhere(want, &others))),
        }
    }

    pub fn others(&self, want: &Want<'_>) -> Vec<&Site<'a>> {
        want.others.iter().filter_map(|device| self.get(*device)).collect()
    }

    /// Why a device cannot take the member.
    pub fn obstacle(&self, want: &Want<'_>, others: &[&Site<'_>], site: &Site<'_>) -> Option<&'static str> {
        let volume = want.volume;
        let level = volume.spread.level;
        let shares = |other: &&Site<'_>| site.domain(level).is_some() && other.domain(level) == site.domain(level);
        if site.device.id == want.leaving || others.iter().any(|other| other.node.id == site.node.id) {
            Some("holds the lane, or its node does")
        } else if !site.is_usable {
            Some("is not usable: its node is not up, or is being emptied, or it is full or failed")
        } else if volume.class.as_ref().is_some_and(|class| *class != site.device.class) {
            Some("is of another class")
        } else if !volume.spread.soft && (site.domain(level).is_none() || others.iter().any(shares)) {
            Some("is in a failure domain that the spread forbids")
        } else if site.committed_bytes.saturating_add(volume.lane_bytes()) > site.committed_bytes_max {
            Some("has no room")
        } else if self.state.still_frees(volume.id, site.device.id) {
            Some("still frees what it held of the volume before")
        } else {
            None
        }
    }

    /// Smaller is better. The first is what the spread asks for.
    pub fn rank(&self, want: &Want<'_>, others: &[&Site<'_>], site: &Site<'_>) -> impl Ord + use<> {
        let shared = |level| others.iter().filter(|other| other.domain(level) == site.domain(level)).count();
        let scattered = others.iter().any(|other| self.would_scatter(site.device.id, other.device.id));
        let tie = tie_break(want.volume.id, want.lane, site.device.id);
        let spread = (shared(want.volume.spread.level), shared(SpreadLevel::Zone), shared(SpreadLevel::Rack));
        (spread, scattered, site.load(), tie)
    }

    /// True if sharing a copyset would give one of the two more partners than the scatter width.
    fn would_scatter(&self, one: DeviceId, other: DeviceId) -> bool {
        let full = |device: DeviceId, partner: DeviceId| {
            let (old, new) = (self.state.copysets_of(device), self.new_partners.get(&device));
            let is_known = |other: DeviceId| old.is_some_and(|old| old.is_partner(other));
            if is_known(partner) || new.is_some_and(|new| new.contains(&partner)) {
                return false;
            }
            let added = new.map_or(0, |new| new.iter().filter(|other| !is_known(**other)).count());
            old.map_or(0, |old| old.partners().len()) + added >= self.scatter_width
        };
        full(one, other) || full(other, one)
    }

    fn why_nowhere(&self, want: &Want<'_>, others: &[&Site<'_>]) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for why in self.list.iter().filter_map(|site| self.obstacle(want, others, site)) {
            *counts.entry(why).or_default() += 1;
        }
        let counts = counts.iter().map(|(why, count)| format!("{count} {}", plural(why, *count)));
        format!("no device can take it: {}", counts.collect::<Vec<_>>().join("; "))
    }
}

/// "is of" for several is "are of".
fn plural(why: &str, count: usize) -> String {
    let changed = |(one, many): (&str, &str)| why.strip_prefix(one).map(|rest| format!("{many}{rest}"));
    let words = [("holds", "hold"), ("is", "are"), ("has", "have"), ("still frees", "still free")];
    if count == 1 { why.to_owned() } else { words.into_iter().find_map(changed).unwrap_or_else(|| why.to_owned()) }
}

/// Why there is no place now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Obstacle {
    /// Those that could take it are getting as many lanes as they may.
    Busy,
    /// None can.
    Nowhere(String),
}
