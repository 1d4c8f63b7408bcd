//! Which copysets a device is in, and with which devices it shares them: derived from the copysets and kept with every
//! change of theirs, so that the planner need not look at all of them for each volume.

use super::State;
use super::entities::{Copyset, CopysetId};
use ashlar_model::DeviceId;
use std::collections::BTreeMap;

/// The copysets of one device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceCopysets {
    /// In order.
    sets: Vec<CopysetId>,
    /// In order, each with the number of copysets that it shares.
    partners: Vec<(DeviceId, u32)>,
}

impl DeviceCopysets {
    /// The copysets that it is a member of.
    pub fn sets(&self) -> &[CopysetId] {
        &self.sets
    }

    /// The devices that it shares copysets with: its scatter.
    pub fn partners(&self) -> impl ExactSizeIterator<Item = DeviceId> + '_ {
        self.partners.iter().map(|(device, _)| *device)
    }

    /// True if it shares a copyset with the other device.
    pub fn is_partner(&self, other: DeviceId) -> bool {
        self.find(other).is_ok()
    }

    fn find(&self, other: DeviceId) -> Result<usize, usize> {
        self.partners.binary_search_by_key(&other, |(device, _)| *device)
    }

    fn join(&mut self, set: &Copyset, own: DeviceId) {
        if let Err(place) = self.sets.binary_search(&set.id) {
            self.sets.insert(place, set.id);
        }
        for other in set.members.iter().filter(|other| **other != own) {
            match self.find(*other) {
                Ok(place) => self.partners[place].1 += 1,
                Err(place) => self.partners.insert(place, (*other, 1)),
            }
        }
    }

    fn leave(&mut self, set: &Copyset, own: DeviceId) {
        self.sets.retain(|id| *id != set.id);
        for other in set.members.iter().filter(|other| **other != own) {
            let Ok(place) = self.find(*other) else { continue };
            self.partners[place].1 -= 1;
            if self.partners[place].1 == 0 {
                self.partners.remove(place);
            }
        }
    }
}

/// The copysets of every device that is in one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct CopysetIndex(BTreeMap<DeviceId, DeviceCopysets>);

impl CopysetIndex {
    pub(super) fn of<'a>(sets: impl Iterator<Item = &'a Copyset>) -> Self {
        let mut index = Self::default();
        sets.for_each(|set| index.insert(set));
        index
    }

    pub(super) fn insert(&mut self, set: &Copyset) {
        for member in &set.members {
            self.0.entry(*member).or_default().join(set, *member);
        }
    }

    pub(super) fn remove(&mut self, set: &Copyset) {
        for member in &set.members {
            let Some(own) = self.0.get_mut(member) else { continue };
            own.leave(set, *member);
            if own.sets.is_empty() {
                self.0.remove(member);
            }
        }
    }
}

impl State {
    /// The copysets of a device; `None` if it is in none.
    pub fn copysets_of(&self, device: DeviceId) -> Option<&DeviceCopysets> {
        self.indexes.copysets_by_device.0.get(&device)
    }

    /// The devices that are in copysets, in order, with these.
    pub fn devices_in_copysets(&self) -> impl Iterator<Item = (DeviceId, &DeviceCopysets)> {
        self.indexes.copysets_by_device.0.iter().map(|(device, sets)| (*device, sets))
    }
}
