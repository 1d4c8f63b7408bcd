//! Evenness: members move from devices that are fuller than the mean of their class to emptier ones. Pure.
//!
//! It moves from the fullest to the emptiest and only what makes the fuller of the two emptier, so nothing moves back; it
//! stops as soon as all are near enough, so little more moves than must. A copy that a volume wants where it is used stays.
//!
//! A device that is full in truth gives in any case, while one of its class has less promised: what is promised says little of
//! what is written, and its writers wait. It gets nothing.

use super::moves::{MovePlan, Reason, home_of, is_settled, planned, want};
use super::sites::{Site, Sites, Want, load};
use super::standstill::Standstills;
use crate::settings::BALANCE_PERCENT;
use crate::state::State;
use ashlar_model::{DeviceId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Moves that make loads even, after everything else is done.
pub(super) fn even_out(state: &State, sites: &mut Sites<'_>, plan: &mut MovePlan) {
    let percent = state.setting(&BALANCE_PERCENT);
    if percent == 0 {
        return;
    }
    let classes = sites.list.iter().filter(|site| site.is_usable).map(|site| site.device.class.clone());
    for class in classes.collect::<BTreeSet<_>>() {
        let bounds = Bounds::of(sites, &class, percent);
        if bounds.are_kept(sites, &class) {
            continue;
        }
        even_out_class(state, sites, &class, bounds, plan);
    }
}

/// Loads that are near enough to the mean.
#[derive(Clone, Copy)]
struct Bounds {
    low: u64,
    high: u64,
}

impl Bounds {
    fn of(sites: &Sites<'_>, class: &str, percent: u64) -> Self {
        let (mut committed, mut capacity) = (0u128, 0u128);
        for site in taking_part(sites, class) {
            committed += u128::from(site.committed_bytes);
            capacity += u128::from(site.device.capacity_bytes);
        }
        let mean = (committed << 20) / capacity.max(1);
        let margin = mean * u128::from(percent) / 100;
        let number = |load: u128| u64::try_from(load).unwrap_or(u64::MAX);
        Self { low: number(mean - margin.min(mean)), high: number(mean + margin) }
    }

    fn are_kept(self, sites: &Sites<'_>, class: &str) -> bool {
        taking_part(sites, class).all(|site| !site.is_full && (self.low..=self.high).contains(&site.load()))
    }
}

fn usable<'s, 'a>(sites: &'s Sites<'a>, class: &'s str) -> impl Iterator<Item = &'s Site<'a>> {
    sites.list.iter().filter(move |site| site.is_usable && site.device.class == class)
}

/// Usable devices, and those that may only give.
fn taking_part<'s, 'a>(sites: &'s Sites<'a>, class: &'s str) -> impl Iterator<Item = &'s Site<'a>> {
    sites.list.iter().filter(move |site| (site.is_usable || site.is_full) && site.device.class == class)
}

/// Lanes on each device, as volume and number.
type Holdings = BTreeMap<DeviceId, Vec<(VolumeId, u16)>>;

/// Members that may move: of lanes that have all copies and no change under way, and somebody who can change them.
fn holdings(state: &State, sites: &Sites<'_>, class: &str) -> Holdings {
    let mut holdings = Holdings::new();
    let mut standstills = Standstills::of(state);
    for volume in state.volumes() {
        for (number, lane) in volume.lanes.iter().enumerate() {
            let members = state.members(lane.copyset);
            if !is_settled(sites, &mut standstills, volume, lane) {
                continue;
            }
            let home = home_of(volume);
            let may_go = |site: &Site<'_>| site.device.class == class && home != Some(site.node.id);
            for member in members.iter().filter(|member| sites.get(**member).is_some_and(may_go)) {
                holdings.entry(*member).or_default().push((volume.id, number as u16));
            }
        }
    }
    holdings
}

fn even_out_class(state: &State, sites: &mut Sites<'_>, class: &str, bounds: Bounds, plan: &mut MovePlan) {
    let mut holdings = holdings(state, sites, class);
    let mut moved = BTreeSet::new();
    // Fullest devices that cannot give anything useful are set aside.
    let mut stuck = BTreeSet::new();
    let coming_max = sites.budget.moves_per_device_max;
    while !sites.is_exhausted() && !bounds.are_kept(sites, class) {
        // One that gets as much as it may at a time helps nobody now: looking for a place for every lane would find none.
        let is_low = usable(sites, class).any(|site| site.load() < bounds.low && site.coming < coming_max);
        let gives = |site: &Site<'_>| site.is_full || site.load() > if is_low { bounds.low } else { bounds.high };
        let giving = |site: &&Site<'_>| !stuck.contains(&site.device.id) && gives(site);
        let order = |site: &&Site<'_>| (site.load(), site.is_full, site.device.id);
        let Some(fullest) = taking_part(sites, class).filter(giving).max_by_key(order) else { return };
        let fullest = fullest.device.id;
        if !give_one(state, sites, fullest, &mut holdings, &mut moved, bounds, plan) {
            stuck.insert(fullest);
        }
    }
}

/// Moves one lane away from a device, if that makes the fuller of both emptier.
fn give_one(
    state: &State,
    sites: &mut Sites<'_>,
    from: DeviceId,
    holdings: &mut Holdings,
    moved: &mut BTreeSet<(VolumeId, u16)>,
    bounds: Bounds,
    plan: &mut MovePlan,
) -> bool {
    let Some(held) = holdings.get_mut(&from) else { return false };
    let mut kept = Vec::new();
    let mut done = false;
    while let Some((id, number)) = held.pop() {
        let Some(volume) = state.volume(id) else { continue };
        let lane = &volume.lanes[usize::from(number)];
        if moved.contains(&(id, number)) {
            continue;
        }
        let want = want(state, volume, number, lane, from);
        let Some(to) = better_place(sites, &want, bounds) else {
            kept.push((id, number));
            continue;
        };
        sites.take(&want, to);
        sites.release(&want);
        moved.insert((id, number));
        plan.moves.push(planned(&want, to, Reason::Balance));
        plan.wanted += 1;
        done = true;
        break;
    }
    held.extend(kept.into_iter().rev());
    done
}

/// The best device for the lane among those that it helps to go there: its spread gets no worse.
fn better_place(sites: &Sites<'_>, want: &Want<'_>, bounds: Bounds) -> Option<DeviceId> {
    let (from, others) = (sites.get(want.leaving)?, sites.others(want));
    let bytes = want.volume.lane_bytes();
    let level = want.volume.spread.level;
    let shared = |site: &Site<'_>| others.iter().filter(|other| other.domain(level) == site.domain(level)).count();
    let helps = |site: &Site<'_>| {
        let after = load(site.committed_bytes.saturating_add(bytes), site.device.capacity_bytes);
        let needed = from.is_full || site.load() < bounds.low || from.load() > bounds.high;
        let same_class = site.device.class == from.device.class;
        needed && same_class && after < from.load() && shared(site) <= shared(from)
    };
    sites.pick(want, helps).ok()
}
