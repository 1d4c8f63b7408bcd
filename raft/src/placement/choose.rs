//! The choice of the members of each lane, one lane after the other.
//!
//! The first member is the least loaded device (with a wish for locality: of those nearest to the attach node). A device
//! whose copysets do not reach the scatter width yet gets a new one, made of the least loaded devices that are apart and
//! have width left. Else one of its copysets is used again: the one whose other members are loaded least. Only if none
//! of them is as far apart as can be, or all have an overloaded member, a new one may exceed the width: by a third for
//! the sake of the load, by more for the sake of the spread alone.
//!
//! Invariant: a choice looks at the candidates and the copysets of one device, never at all copysets.

use super::candidates::{Candidate, Clashes, clashes_min, load};
use super::{NoPlacement, PlacementRequest};
use crate::settings::SCATTER_WIDTH;
use crate::state::State;
use crate::state::entities::{Locality, SpreadLevel};
use ashlar_model::DeviceId;
use ashlar_model::limits::REPLICAS_MAX;
use std::collections::BTreeSet;

/// What is wrong with a set of members; smaller is better, what is named first counts most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Flaws {
    clashes: Clashes,
    /// A member would have more partners than the width and a third.
    far: bool,
    /// A member, other than the one that the choice began with, has much more than the mean load.
    overloaded: bool,
    /// A member would have more partners than the width.
    wide: bool,
}

/// Members by their place among the candidates.
#[derive(Clone, Copy)]
struct Set {
    places: [usize; REPLICAS_MAX],
    count: usize,
}

impl Set {
    const EMPTY: Self = Self { places: [0; REPLICAS_MAX], count: 0 };

    fn push(&mut self, place: usize) {
        self.places[self.count] = place;
        self.count += 1;
    }

    #[inline]
    fn members(&self) -> &[usize] {
        &self.places[..self.count]
    }

    fn has_same(&self, other: &Self) -> bool {
        self.count == other.count && self.members().iter().all(|member| other.members().contains(member))
    }
}

/// Chooses lane by lane and counts what it has chosen.
pub(super) struct Planner<'a> {
    state: &'a State,
    request: &'a PlacementRequest,
    candidates: Vec<Candidate>,
    /// Of each candidate. Apart, because all of them are looked at for every lane.
    loads: Vec<u64>,
    lane_bytes: u64,
    /// Members must not share a domain of the wanted level.
    is_strict: bool,
    scatter_width: usize,
    /// The least clashes that the domains allow.
    clashes_min: Clashes,
    committed_bytes: u128,
    capacity_bytes: u128,
    /// Copysets that were decided here and do not exist yet.
    fresh: Vec<Set>,
    /// Per candidate: bit i says that it is a partner of the i-th member chosen so far.
    marks: Vec<u8>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        state: &'a State,
        request: &'a PlacementRequest,
        candidates: Vec<Candidate>,
        lane_bytes: u64,
        is_strict: bool,
    ) -> Self {
        Self {
            state,
            request,
            lane_bytes,
            is_strict,
            scatter_width: state.setting(&SCATTER_WIDTH) as usize,
            clashes_min: clashes_min(&candidates, request.replicas),
            committed_bytes: candidates.iter().map(|c| u128::from(c.committed_bytes)).sum(),
            capacity_bytes: candidates.iter().map(|c| u128::from(c.capacity_bytes)).sum(),
            fresh: Vec::new(),
            marks: vec![0; candidates.len()],
            loads: candidates.iter().map(|c| load(c.committed_bytes, c.capacity_bytes)).collect(),
            candidates,
        }
    }

    /// The members of all lanes.
    pub(super) fn lanes(&mut self) -> Result<Vec<Vec<DeviceId>>, NoPlacement> {
        (0..self.request.geometry.lane_count).map(|lane| self.lane(lane)).collect()
    }

    fn lane(&mut self, lane: u16) -> Result<Vec<DeviceId>, NoPlacement> {
        let overloaded_from = self.overloaded_from();
        let first = self.first(lane).ok_or_else(|| self.exhausted(lane, 0))?;
        let kept = self.kept(first, overloaded_from);
        let has_width = self.candidates[first].width + usize::from(self.request.replicas) <= self.scatter_width + 1;
        let set = match kept {
            Some((flaws, kept)) if !has_width && self.is_fine(flaws) => kept,
            _ => {
                let built = self.built(first, lane, overloaded_from)?;
                match kept {
                    None => built,
                    Some((flaws, kept)) => {
                        let of_built = self.flaws(&built, overloaded_from, first);
                        let is_better = of_built < flaws || (has_width && of_built == flaws);
                        if is_better { self.same_as_known(first, built) } else { kept }
                    }
                }
            }
        };
        self.book(&set);
        let mut members = set.members().to_vec();
        // The copy on the attach node comes first.
        if self.request.locality != Locality::None {
            members.sort_by_key(|place| self.candidates[*place].distance);
        }
        Ok(members.into_iter().map(|place| self.candidates[place].device).collect())
    }

    fn is_fine(&self, flaws: Flaws) -> bool {
        flaws.clashes == self.clashes_min && !flaws.far && !flaws.overloaded && !flaws.wide
    }

    /// Loads from here on are too much: the mean and a sixteenth.
    fn overloaded_from(&self) -> u64 {
        let mean = (self.committed_bytes << 20) / self.capacity_bytes.max(1);
        u64::try_from(mean + mean / 16).unwrap_or(u64::MAX)
    }

    fn is_overloaded(&self, place: usize, overloaded_from: u64) -> bool {
        self.loads[place] > overloaded_from.saturating_add(self.candidates[place].lane_load)
    }

    fn fits(&self, candidate: &Candidate) -> bool {
        candidate.committed_bytes.saturating_add(self.lane_bytes) <= candidate.committed_bytes_max
    }

    /// The least loaded device; with a wish for locality, of the nearest ones.
    fn first(&self, lane: u16) -> Option<usize> {
        let locality = self.request.locality;
        let mut best: Option<(u8, u64, u64, usize)> = None;
        for (place, load) in self.loads.iter().enumerate() {
            // Without a wish most are out at a glance.
            if locality == Locality::None && best.is_some_and(|best| *load > best.1) {
                continue;
            }
            let candidate = &self.candidates[place];
            let is_local = locality != Locality::Require || candidate.distance == 0;
            if is_local && self.fits(candidate) {
                let key = (candidate.distance, *load, tie_of_lane(candidate.tie, lane), place);
                best = Some(best.map_or(key, |best| best.min(key)));
            }
        }
        best.map(|best| best.3)
    }

    /// The best of the copysets that the device is in already.
    fn kept(&self, first: usize, overloaded_from: u64) -> Option<(Flaws, Set)> {
        let rated = self.known_sets(first).filter(|set| self.is_allowed_set(set)).map(|set| {
            let others = || set.members().iter().filter(|place| **place != first).map(|p| self.loads[*p]);
            let loads = (others().max(), others().map(u128::from).sum::<u128>());
            (self.flaws(&set, overloaded_from, first), loads, set)
        });
        rated.min_by_key(|(flaws, loads, _)| (*flaws, *loads)).map(|(flaws, _, set)| (flaws, set))
    }

    /// Copysets of the device with as many members as asked for, all of them candidates.
    fn known_sets(&self, first: usize) -> impl Iterator<Item = Set> + '_ {
        let sets = self.state.copysets_of(self.candidates[first].device).map_or(&[][..], |own| own.sets());
        let existing = sets.iter().filter_map(|id| self.set_of(self.state.members(*id)));
        let fresh = self.fresh.iter().filter(move |set| set.members().contains(&first)).copied();
        existing.chain(fresh)
    }

    fn set_of(&self, members: &[DeviceId]) -> Option<Set> {
        if members.len() != usize::from(self.request.replicas) {
            return None;
        }
        let mut set = Set::EMPTY;
        for member in members {
            set.push(self.find(*member)?);
        }
        Some(set)
    }

    fn find(&self, device: DeviceId) -> Option<usize> {
        self.candidates.binary_search_by_key(&device, |candidate| candidate.device).ok()
    }

    fn is_allowed_set(&self, set: &Set) -> bool {
        let members = set.members();
        let has_room = members.iter().all(|place| self.fits(&self.candidates[*place]));
        has_room && (1..members.len()).all(|i| self.is_apart(&self.candidates[members[i]], &members[..i]))
    }

    /// May it stand beside these?
    fn is_apart(&self, candidate: &Candidate, chosen: &[usize]) -> bool {
        let clash =
            |other: &Candidate| other.node == candidate.node || (self.is_strict && other.wanted == candidate.wanted);
        !chosen.iter().any(|place| clash(&self.candidates[*place]))
    }

    fn flaws(&self, set: &Set, overloaded_from: u64, first: usize) -> Flaws {
        let members = set.members();
        let mut clashes = Clashes::default();
        let mut widest = 0;
        let mut overloaded = false;
        for (i, place) in members.iter().enumerate() {
            let candidate = &self.candidates[*place];
            let before = self.clashes(candidate, &members[..i]);
            clashes.iter_mut().zip(before).for_each(|(sum, more)| *sum += more);
            let is_new = |other: &&usize| **other != *place && !self.are_partners(*place, **other);
            let new = members.iter().filter(is_new).count();
            widest = widest.max(if new == 0 { 0 } else { candidate.width + new });
            overloaded |= *place != first && self.is_overloaded(*place, overloaded_from);
        }
        let (wide, far) = self.excess(widest);
        Flaws { clashes, far, overloaded, wide }
    }

    fn clashes(&self, candidate: &Candidate, chosen: &[usize]) -> Clashes {
        let mut clashes = Clashes::default();
        for other in chosen.iter().map(|place| &self.candidates[*place]) {
            clashes[0] += u8::from(other.wanted == candidate.wanted);
            clashes[1] += u8::from(other.zone == candidate.zone);
            clashes[2] += u8::from(other.rack == candidate.rack);
        }
        clashes
    }

    /// Whether so many partners are more than the width, and more than the width and a third.
    fn excess(&self, partners: usize) -> (bool, bool) {
        (partners > self.scatter_width, partners > self.scatter_width + self.scatter_width / 3)
    }

    fn are_partners(&self, one: usize, other: usize) -> bool {
        let (device, partner) = (self.candidates[one].device, self.candidates[other].device);
        let together = |set: &Set| set.members().contains(&one) && set.members().contains(&other);
        self.state.copysets_of(device).is_some_and(|own| own.is_partner(partner)) || self.fresh.iter().any(together)
    }

    /// A copyset of the best devices beside the first one, whether it exists or not.
    fn built(&mut self, first: usize, lane: u16, overloaded_from: u64) -> Result<Set, NoPlacement> {
        let mut set = Set::EMPTY;
        set.push(first);
        let mut widths = [self.candidates[first].width, 0, 0];
        while set.count < usize::from(self.request.replicas) {
            self.mark(&set, true);
            let best = self.best_beside(&set, &widths[..set.count], lane, overloaded_from);
            let marks = best.map_or(0, |place| self.marks[place]);
            self.mark(&set, false);
            let Some(best) = best else {
                return Err(self.exhausted(lane, set.count as u8));
            };
            let strangers = (0..set.count).filter(|i| marks & 1 << i == 0);
            widths[set.count] = self.candidates[best].width;
            for i in strangers {
                widths[i] += 1;
                widths[set.count] += 1;
            }
            set.push(best);
        }
        Ok(set)
    }

    /// The best device beside those chosen, whose partners are marked.
    fn best_beside(&self, set: &Set, widths: &[usize], lane: u16, overloaded_from: u64) -> Option<usize> {
        let mut best: Option<((Flaws, u64, u64), usize)> = None;
        for (place, candidate) in self.candidates.iter().enumerate() {
            let load = self.loads[place];
            let clashes = self.clashes(candidate, set.members());
            // Who is loaded more is not better than one without a flaw of its own: most are out at a glance.
            let is_out = |((flaws, best_load, _), _): &((Flaws, u64, u64), usize)| {
                let is_flawless = !flaws.far && !flaws.overloaded && !flaws.wide;
                clashes > flaws.clashes || (is_flawless && clashes == flaws.clashes && load > *best_load)
            };
            if best.as_ref().is_some_and(is_out) || !self.fits(candidate) || !self.is_apart(candidate, set.members()) {
                continue;
            }
            let (wide, far) = self.excess(self.widest_with(place, widths));
            let overloaded = self.is_overloaded(place, overloaded_from);
            let key = (Flaws { clashes, far, overloaded, wide }, load, tie_of_lane(candidate.tie, lane));
            if best.as_ref().is_none_or(|(best, _)| key < *best) {
                best = Some((key, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Partners that the candidate or one of the chosen would have, if they do not know each other yet.
    fn widest_with(&self, place: usize, widths: &[usize]) -> usize {
        let marks = self.marks[place];
        let mut strangers = 0;
        let mut widest = 0;
        for (i, width) in widths.iter().enumerate() {
            if marks & 1 << i == 0 {
                strangers += 1;
                widest = widest.max(width + 1);
            }
        }
        if strangers == 0 { 0 } else { widest.max(self.candidates[place].width + strangers) }
    }

    /// Sets or clears the marks of the members' partners.
    fn mark(&mut self, set: &Set, is_set: bool) {
        for (i, member) in set.members().iter().enumerate() {
            let existing = self.state.copysets_of(self.candidates[*member].device);
            let existing = existing.into_iter().flat_map(|own| own.partners()).filter_map(|device| self.find(device));
            let with_it = self.fresh.iter().filter(|fresh| fresh.members().contains(member));
            let fresh = with_it.flat_map(|fresh| fresh.members().iter().copied());
            let partners = existing.chain(fresh).collect::<Vec<_>>();
            for partner in partners {
                self.marks[partner] = if is_set { self.marks[partner] | 1 << i } else { 0 };
            }
        }
    }

    /// The same members in the order in which a copyset has them already.
    fn same_as_known(&self, first: usize, built: Set) -> Set {
        self.known_sets(first).find(|known| known.has_same(&built)).unwrap_or(built)
    }

    /// Counts a lane on these members.
    fn book(&mut self, set: &Set) {
        let members = set.members();
        for (i, one) in members.iter().enumerate() {
            for other in &members[i + 1..] {
                if !self.are_partners(*one, *other) {
                    self.candidates[*one].width += 1;
                    self.candidates[*other].width += 1;
                }
            }
            let candidate = &mut self.candidates[*one];
            candidate.committed_bytes = candidate.committed_bytes.saturating_add(self.lane_bytes);
            self.loads[*one] = load(candidate.committed_bytes, candidate.capacity_bytes);
            self.committed_bytes += u128::from(self.lane_bytes);
        }
        let is_known = members.first().is_some_and(|first| self.known_sets(*first).any(|known| known.has_same(set)));
        if !is_known {
            self.fresh.push(*set);
        }
    }

    fn exhausted(&self, lane: u16, position: u8) -> NoPlacement {
        let roomy = || self.candidates.iter().filter(|candidate| self.fits(candidate));
        let (lane_bytes, replicas) = (self.lane_bytes, self.request.replicas);
        let is_local = self.request.locality == Locality::Require && position == 0;
        let mut reason = format!("no room for replica {} of lane {lane}: {lane_bytes} more bytes ", position + 1);
        if is_local {
            let free = |c: &Candidate| c.committed_bytes_max - c.committed_bytes.min(c.committed_bytes_max);
            let most = self.candidates.iter().filter(|c| c.distance == 0).map(free).max().unwrap_or(0);
            let node = self.request.attach_node.and_then(|id| self.state.node(id)).map_or("?", |node| &node.name);
            reason += &format!("do not fit on node {node}, whose emptiest device has {most} left (locality 'require')");
        } else {
            let nodes = roomy().map(|c| c.node).collect::<BTreeSet<_>>().len();
            let domains = roomy().map(|c| c.wanted).collect::<BTreeSet<_>>().len();
            let (there, what) = match self.request.spread.level {
                SpreadLevel::Zone if self.is_strict => (domains, "zones"),
                SpreadLevel::Rack if self.is_strict => (domains, "racks"),
                _ => (nodes, "nodes"),
            };
            reason += &format!("fit on {there} {what} only, {replicas} are needed");
        }
        NoPlacement::new(
            reason,
            "add devices, delete volumes, ask for a smaller volume, or promise more of each device \
             (`ashlar cluster set overcommit_percent`, or less reserve_percent)",
        )
    }
}

/// Another order of equals for each lane.
#[inline]
fn tie_of_lane(tie: u64, lane: u16) -> u64 {
    (tie ^ u64::from(lane).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}
