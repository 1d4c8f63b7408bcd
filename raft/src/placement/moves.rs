//! What has to move: members on devices that are lost or shall be emptied, members that stand too close together, members that
//! should be where their volume is used, and, when nothing of that is left, members of devices that are fuller than others. Pure: state in, moves out.
//!
//! A move wants another device in a member's place; the volume's writer copies and swaps, and until then the lane has every
//! copy that it had. So a move is never a risk, only work. Invariants: one change of a lane at a time, but for a device that
//! is lost on its way in, which is replaced itself; no move of a lane that nobody can write; at most what the settings allow,
//! of which lanes that stand still take nothing.

use super::balance::even_out;
use super::sites::{Budget, Obstacle, Site, Sites, Want};
use super::standstill::Standstills;
use crate::state::State;
use crate::state::entities::{
    Admin, AttachMode, CopysetId, Device, DeviceState, Lane, Liveness, Locality, Node, SpreadLevel, Volume,
};
use ashlar_model::{DeviceId, NodeId, VolumeId};
use serde::Serialize;
use std::collections::BTreeSet;

/// Places that are looked for at most, in one plan, for what is no loss: the rest comes with the next plans.
const PICKS_MAX: usize = 1024;

/// Why a member moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Its device has failed.
    DeviceFailed,
    /// Its node is out.
    NodeOut,
    /// Its device is being emptied.
    DeviceDraining,
    /// Its node is being emptied.
    NodeDraining,
    /// It stands closer to another member than the volume's spread asks for.
    Spread,
    /// The volume wants a copy on the node that has it attached.
    Locality,
    /// Its device is fuller than others.
    Balance,
}

/// One lane gets another device in the place of a member.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
pub struct Move {
    /// The volume.
    pub volume: VolumeId,
    /// The lane.
    pub lane: u16,
    /// The member that goes.
    pub leaving: DeviceId,
    /// The device that comes.
    pub joining: DeviceId,
    /// Why.
    pub reason: Reason,
    /// Bytes to copy at most.
    pub bytes_max: u64,
}

/// A lane that should change and cannot now.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Waiting {
    /// The volume.
    pub volume: VolumeId,
    /// The lane.
    pub lane: u16,
    /// The member that should go.
    pub leaving: DeviceId,
    /// What it waits for.
    pub why: String,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, Default)]
pub struct MovePlan {
    /// To be begun, most urgent first.
    pub moves: Vec<Move>,
    /// What cannot be begun because there is no place or no copy for it; the first of them.
    pub waiting: Vec<Waiting>,
    /// Members that have to go and have no change under way: begun here, waiting, or later because enough moves.
    pub wanted: u64,
    /// Lanes that have a change under way.
    pub running: u64,
}

/// Why the lanes of a device shall move elsewhere, if they shall.
pub(super) fn reason_to_vacate(node: &Node, device: &Device) -> Option<Reason> {
    match (device.state, node.liveness, node.admin) {
        (DeviceState::Out, ..) => None,
        (DeviceState::Failed, ..) => Some(Reason::DeviceFailed),
        (_, Liveness::Out, _) => Some(Reason::NodeOut),
        (DeviceState::Draining, ..) => Some(Reason::DeviceDraining),
        (_, _, Admin::Draining) => Some(Reason::NodeDraining),
        _ => None,
    }
}

/// True if what the device holds has to go elsewhere: it or its node is lost or being emptied.
pub fn must_vacate(state: &State, device: DeviceId) -> bool {
    let node = state.node_of_device(device);
    state.device(device).zip(node).is_some_and(|(device, node)| reason_to_vacate(node, device).is_some())
}

/// A member that has to go.
struct Task<'a> {
    /// Copies that answer: the fewer, the more urgent.
    copies: usize,
    /// Volumes in use come first.
    idle: bool,
    reason: Reason,
    want: Want<'a>,
    /// Other members that have to go, if there is no place for that one.
    next: Vec<(Reason, Want<'a>)>,
    /// Why nobody can change the lane now.
    standstill: Option<String>,
    /// Only devices of this node will do.
    to: Option<NodeId>,
}

/// What should move now, within the limits of the cluster's settings. Volumes that want a copy where they are attached get one
/// there.
pub fn moves(state: &State) -> MovePlan {
    moves_within(state, Budget::of(state), |_| true)
}

/// The same within other limits, and with locality for those volumes only that are said to stay where they are.
pub fn moves_within(state: &State, budget: Budget, stays: impl Fn(VolumeId) -> bool) -> MovePlan {
    let mut sites = Sites::of(state, budget);
    let mut plan = MovePlan::default();
    let alive = count_running(state, &mut sites, &mut plan);
    let mut healing = false;
    if sites.list.iter().any(|site| site.vacate.is_some() && site.device.lane_count > 0) {
        healing = settle_all(lost_members(state, &sites), &mut sites, &mut plan);
    }
    // What only waits holds up nothing else: it may wait for ever.
    if !healing && !settle_all(crowded_members(state, &sites), &mut sites, &mut plan) {
        settle_all(distant_members(state, &sites, stays), &mut sites, &mut plan);
    }
    if !healing && alive == 0 && plan.moves.is_empty() && is_calm(state) {
        even_out(state, &mut sites, &mut plan);
    }
    plan
}

/// Decides what can be decided, most urgent first. True if something moves or has its turn later.
fn settle_all(mut tasks: Vec<Task<'_>>, sites: &mut Sites<'_>, plan: &mut MovePlan) -> bool {
    tasks.sort_by_key(|task| (task.copies, task.idle, task.reason, task.want.volume.id, task.want.lane));
    plan.wanted += tasks.len() as u64;
    let mut is_moving = false;
    for task in tasks {
        is_moving |= settle(sites, task, plan);
    }
    is_moving
}

/// Books the changes that are under way. The answer is how many of them somebody can carry out: the others stay until a node
/// is back, and must not take the place of those that can end.
fn count_running(state: &State, sites: &mut Sites<'_>, plan: &mut MovePlan) -> usize {
    let mut standstills = Standstills::of(state);
    let mut alive = 0;
    for volume in state.volumes() {
        for (lane, change) in volume.lanes.iter().filter_map(|lane| Some((lane, lane.replacement.as_deref()?))) {
            plan.running += 1;
            if standstills.why(volume, lane).is_none() {
                sites.count_running(change.joining);
                alive += 1;
            }
        }
    }
    alive
}

/// Everybody is there who is expected: nothing is moved for evenness while a machine is being restarted.
fn is_calm(state: &State) -> bool {
    state.nodes().all(|node| match node.admin {
        Admin::Active => matches!(node.liveness, Liveness::Up | Liveness::Out),
        Admin::Draining | Admin::Removed => true,
    })
}

/// Copysets are few and lanes are many: lanes of copysets with nothing to do are passed by.
fn copysets_where(state: &State, is_meant: impl Fn(&[DeviceId]) -> bool) -> BTreeSet<CopysetId> {
    state.copysets().filter(|set| is_meant(&set.members)).map(|set| set.id).collect()
}

/// The lanes of these copysets, with their volumes.
fn lanes_of<'a>(state: &'a State, copysets: &BTreeSet<CopysetId>) -> impl Iterator<Item = (&'a Volume, u16, &'a Lane)> {
    let volumes = state.volumes().filter(|_| !copysets.is_empty());
    let lanes = volumes.flat_map(|volume| (0..).zip(&volume.lanes).map(move |(number, lane)| (volume, number, lane)));
    lanes.filter(|(_, _, lane)| copysets.contains(&lane.copyset))
}

/// Members on devices that shall have none.
fn lost_members<'a>(state: &'a State, sites: &Sites<'_>) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let is_vacated = |member: &DeviceId| sites.get(*member).is_some_and(|site| site.vacate.is_some());
    let affected = copysets_where(state, |members| members.iter().any(is_vacated));
    let mut standstills = Standstills::of(state);
    for (volume, number, lane) in lanes_of(state, &affected) {
        let members = state.members(lane.copyset);
        let vacates = |member: &DeviceId| sites.get(*member).and_then(|site| Some((*member, site.vacate?)));
        let mut candidates = members.iter().filter_map(vacates).collect::<Vec<_>>();
        candidates.sort_by_key(|(_, reason)| *reason);
        let in_sync = state.in_sync(lane);
        let may_go = candidates.into_iter().filter(|(member, _)| may_change(lane, *member, &in_sync));
        let mut wants = may_go.map(|(member, reason)| (reason, want(state, volume, number, lane, member)));
        // One at a time: the next one's turn comes when the lane has the first, or when there is no place for that.
        if let Some((reason, want)) = wants.next() {
            let next = wants.collect();
            let copies = in_sync.iter().filter(|device| state.is_device_alive(**device)).count();
            let (idle, standstill) = (volume.attachment.is_none(), standstills.why(volume, lane));
            tasks.push(Task { copies, idle, reason, want, next, standstill, to: None });
        }
    }
    tasks
}

/// It has every copy, no change under way and no member that has to go, and somebody can change it: it may move for what is no
/// loss.
pub(super) fn is_settled(sites: &Sites<'_>, standstills: &mut Standstills<'_>, volume: &Volume, lane: &Lane) -> bool {
    let members = sites.state.members(lane.copyset);
    let is_lost = |member: &DeviceId| sites.get(*member).is_none_or(|site| site.vacate.is_some());
    let is_whole = lane.replacement.is_none() && sites.state.in_sync(lane).len() == members.len();
    is_whole && !members.iter().any(is_lost) && standstills.why(volume, lane).is_none()
}

/// While a change is under way only a device that no set counts can give its place.
fn may_change(lane: &Lane, leaving: DeviceId, in_sync: &[DeviceId]) -> bool {
    lane.replacement.is_none() || !in_sync.contains(&leaving)
}

pub(super) fn want<'a>(state: &'a State, volume: &'a Volume, number: u16, lane: &Lane, leaving: DeviceId) -> Want<'a> {
    let others = state.members(lane.copyset).iter().filter(|member| **member != leaving).copied();
    // Who leaves already must not come back before it has freed its space.
    let parting = lane.replacement.iter().map(|change| change.leaving);
    Want { volume, lane: number, leaving, others: others.chain(parting).collect() }
}

/// The later one of two members that share a domain of the level: the first is the one that readers like.
fn crowded_member(sites: &Sites<'_>, level: SpreadLevel, members: &[DeviceId]) -> Option<DeviceId> {
    let domain = |device: &DeviceId| sites.get(*device).and_then(|site| site.domain(level));
    let shares = |i: &usize| members[..*i].iter().any(|other| domain(other) == domain(&members[*i]));
    (0..members.len()).rev().find(shares).map(|i| members[i])
}

/// Members that share a domain which they need not share.
fn crowded_members<'a>(state: &'a State, sites: &Sites<'_>) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let mut picks_left = PICKS_MAX;
    let mut standstills = Standstills::of(state);
    for level in [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node] {
        let usable = sites.domains_usable[level as usize];
        let crowded = copysets_where(state, |members| usable > 1 && crowded_member(sites, level, members).is_some());
        for (volume, number, lane) in lanes_of(state, &crowded).filter(|(volume, ..)| volume.spread.level == level) {
            let members = state.members(lane.copyset);
            let Some(leaving) = crowded_member(sites, level, members) else { continue };
            if !is_settled(sites, &mut standstills, volume, lane) {
                continue;
            }
            let want = want(state, volume, number, lane, leaving);
            let taken = sites.others(&want).iter().filter_map(|other| other.domain(level)).collect::<BTreeSet<_>>();
            if usable <= taken.len() || picks_left == 0 {
                continue; // every domain has one already, or there is enough to do for now
            }
            picks_left -= 1;
            if !matches!(sites.pick(&want, stands_apart(sites, &want)), Err(Obstacle::Nowhere(_))) {
                let (copies, idle) = (members.len(), volume.attachment.is_none());
                let (reason, next) = (Reason::Spread, Vec::new());
                tasks.push(Task { copies, idle, reason, want, next, standstill: None, to: None });
            }
        }
    }
    tasks
}

/// The node where a volume wants a copy: the one that has it attached for guests.
pub(super) fn home_of(volume: &Volume) -> Option<NodeId> {
    let held = volume.attachment.filter(|held| held.mode == AttachMode::ReadWrite)?;
    (volume.locality != Locality::None).then_some(held.node)
}

/// Lanes without a copy where their volume is used: the fullest member that may gives its place to a device there.
fn distant_members<'a>(state: &'a State, sites: &Sites<'_>, stays: impl Fn(VolumeId) -> bool) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let mut picks_left = PICKS_MAX;
    let mut standstills = Standstills::of(state);
    for volume in state.volumes() {
        let Some(home) = home_of(volume).filter(|_| stays(volume.id)) else { continue };
        if !sites.list.iter().any(|site| site.is_usable && site.node.id == home) {
            continue;
        }
        for (number, lane) in volume.lanes.iter().enumerate() {
            let members = state.members(lane.copyset);
            let is_there = members.iter().any(|member| sites.get(*member).is_some_and(|site| site.node.id == home));
            if is_there || !is_settled(sites, &mut standstills, volume, lane) {
                continue;
            }
            if picks_left == 0 {
                return tasks;
            }
            picks_left -= 1;
            let wants = members.iter().map(|member| want(state, volume, number as u16, lane, *member));
            let fits =
                |want: &Want<'_>| !matches!(sites.pick(want, at_home(sites, want, home)), Err(Obstacle::Nowhere(_)));
            let load = |want: &Want<'_>| sites.get(want.leaving).map(|site| site.load());
            if let Some(want) = wants.filter(fits).max_by_key(load) {
                let (copies, reason, to) = (members.len(), Reason::Locality, Some(home));
                let (next, standstill) = (Vec::new(), None);
                tasks.push(Task { copies, idle: false, reason, want, next, standstill, to });
            }
        }
    }
    tasks
}

/// Sites of a node that stand no closer to the other members than the one that leaves.
fn at_home(sites: &Sites<'_>, want: &Want<'_>, home: NodeId) -> impl Fn(&Site<'_>) -> bool + use<> {
    let level = want.volume.spread.level;
    let taken = sites.others(want).iter().map(|other| other.domain(level)).collect::<Vec<_>>();
    let shared = move |domain: Option<u32>| taken.iter().filter(|other| **other == domain).count();
    let before = sites.get(want.leaving).map_or(0, |site| shared(site.domain(level)));
    move |site| site.node.id == home && shared(site.domain(level)) <= before
}

/// Sites in another domain than all other members.
fn stands_apart(sites: &Sites<'_>, want: &Want<'_>) -> impl Fn(&Site<'_>) -> bool + use<> {
    let level = want.volume.spread.level;
    let taken = sites.others(want).iter().map(|other| other.domain(level)).collect::<Vec<_>>();
    move |site| site.domain(level).is_some() && !taken.contains(&site.domain(level))
}

/// True if the lane moves or has its turn later.
fn settle(sites: &mut Sites<'_>, task: Task<'_>, plan: &mut MovePlan) -> bool {
    let Task { reason, want, next, standstill, to, .. } = task;
    let waiting_max = sites.budget.waiting_max;
    let wait = |plan: &mut MovePlan, why: String| {
        if plan.waiting.len() < waiting_max {
            let Want { volume, lane, leaving, .. } = &want;
            plan.waiting.push(Waiting { volume: volume.id, lane: *lane, leaving: *leaving, why });
        }
        false
    };
    if let Some(why) = standstill {
        return wait(plan, why);
    }
    if sites.is_exhausted() {
        return true;
    }
    let mut nowhere = None;
    for (reason, want) in std::iter::once((reason, &want)).chain(next.iter().map(|(reason, want)| (*reason, want))) {
        match place_for(sites, reason, want, to) {
            Ok(joining) => {
                sites.take(want, joining);
                plan.moves.push(planned(want, joining, reason));
                return true;
            }
            Err(Obstacle::Busy) => return true,
            Err(Obstacle::Nowhere(why)) => {
                nowhere.get_or_insert(why);
            }
        }
    }
    nowhere.is_some_and(|why| wait(plan, why))
}

fn place_for(sites: &Sites<'_>, reason: Reason, want: &Want<'_>, to: Option<NodeId>) -> Result<DeviceId, Obstacle> {
    match (reason, to) {
        (_, Some(home)) => sites.pick(want, at_home(sites, want, home)),
        (Reason::Spread, _) => sites.pick(want, stands_apart(sites, want)),
        _ => sites.pick(want, |_| true),
    }
}

pub(super) fn planned(want: &Want<'_>, joining: DeviceId, reason: Reason) -> Move {
    let Want { volume, lane, leaving, .. } = want;
    Move { volume: volume.id, lane: *lane, leaving: *leaving, joining, reason, bytes_max: volume.lane_bytes() }
}
