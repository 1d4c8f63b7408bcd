//! How much may be promised: of a device, and of all devices together so that what the largest failure domain holds
//! could be rebuilt in the others.
//!
//! ```text
//! of a device     capacity x overcommit_percent, less reserve_percent
//! of all          (capacity - reserve_domain_percent of the largest domain) x overcommit_percent, less reserve_percent
//! ```
//!
//! The largest domain is a zone if there are more zones than a lane has copies at most: only then what is lost could be
//! rebuilt apart from the other copies. Else it is a rack if there are enough racks, else a node if there are enough
//! nodes, else nothing could be rebuilt and nothing is kept for it.

use super::{Domain, NoPlacement, PlacementRequest, domain_of};
use crate::settings::{OVERCOMMIT_PERCENT, RESERVE_DOMAIN_PERCENT, RESERVE_PERCENT};
use crate::state::State;
use crate::state::entities::{Admin, Device, DeviceState, Liveness, Node, SpreadLevel, lane_bytes};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::units::ByteSize;
use serde::Serialize;
use std::collections::BTreeMap;

/// What may be promised, by the settings.
#[derive(Clone, Copy)]
pub(super) struct Promises {
    overcommit_percent: u128,
    reserve_percent: u128,
}

impl Promises {
    pub(super) fn of(state: &State) -> Self {
        Self {
            overcommit_percent: state.setting(&OVERCOMMIT_PERCENT).into(),
            reserve_percent: state.setting(&RESERVE_PERCENT).into(),
        }
    }

    /// Of so much capacity.
    pub(super) fn bytes_max(self, capacity_bytes: u64) -> u64 {
        let kept = 100 - self.reserve_percent.min(100);
        let bytes = u128::from(capacity_bytes) * self.overcommit_percent * kept / 10_000;
        bytes.min(u128::from(u64::MAX / 2)) as u64
    }
}

/// The account of all devices that a volume may use.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct CapacityNote {
    /// Capacity of the devices in normal use.
    pub capacity_bytes: u64,
    /// The failure domain whose loss is provided for; `None`: there are too few domains to rebuild anything.
    pub reserve_domain: Option<String>,
    /// Capacity kept for its loss.
    pub reserve_bytes: u64,
    /// Bytes that may be promised, after all reserves.
    pub committed_bytes_max: u64,
    /// Bytes promised before.
    pub committed_bytes: u64,
    /// Bytes that the volume asks for, all copies.
    pub wanted_bytes: u64,
}

impl CapacityNote {
    /// The account as it is before the volume is placed.
    pub(super) fn of(state: &State, request: &PlacementRequest) -> Self {
        let mut nodes = state.nodes().map(|node| (node, 0u64)).collect::<Vec<_>>();
        let (mut capacity_bytes, mut committed_bytes) = (0u64, 0u64);
        for device in state.devices().filter(|device| device.state != DeviceState::Out) {
            if request.class.as_ref().is_some_and(|class| *class != device.class) {
                continue;
            }
            // What a failed device or one that is emptied holds will be promised by others.
            committed_bytes = committed_bytes.saturating_add(device.committed_bytes);
            let Ok(place) = nodes.binary_search_by_key(&device.node, |(node, _)| node.id) else { continue };
            if counts(nodes[place].0, device) {
                capacity_bytes = capacity_bytes.saturating_add(device.capacity_bytes);
                nodes[place].1 = nodes[place].1.saturating_add(device.capacity_bytes);
            }
        }
        let largest = largest_domain(nodes.iter().copied().filter(|(_, bytes)| *bytes > 0));
        let percent = u128::from(state.setting(&RESERVE_DOMAIN_PERCENT));
        let reserve_bytes = largest.as_ref().map_or(0, |(_, bytes)| (u128::from(*bytes) * percent / 100) as u64);
        let geometry = request.geometry;
        let copies = u64::from(geometry.lane_count) * u64::from(request.replicas);
        Self {
            capacity_bytes,
            reserve_domain: largest.map(|(name, _)| name).filter(|_| reserve_bytes > 0),
            reserve_bytes,
            committed_bytes_max: Promises::of(state).bytes_max(capacity_bytes.saturating_sub(reserve_bytes)),
            committed_bytes,
            wanted_bytes: lane_bytes(geometry).saturating_mul(copies),
        }
    }

    /// May the volume be promised beside the reserve? Without one, the devices decide each for itself.
    pub(super) fn check(&self, state: &State) -> Result<(), NoPlacement> {
        let Some(domain) = &self.reserve_domain else { return Ok(()) };
        let total = self.committed_bytes.saturating_add(self.wanted_bytes);
        let Some(excess) = total.checked_sub(self.committed_bytes_max).filter(|excess| *excess > 0) else {
            return Ok(());
        };
        let size = |bytes: u64| ByteSize(bytes).to_string();
        let Promises { overcommit_percent, reserve_percent } = Promises::of(state);
        let reason = format!(
            "no room beside the reserve: {} ({} bytes) may be promised and {} are promised, {} more for all copies are {excess} bytes \
             too many; {overcommit_percent} % of {} may be promised, {} of {} being kept for the loss of {domain}, less {reserve_percent} %",
            size(self.committed_bytes_max),
            self.committed_bytes_max,
            size(self.committed_bytes),
            size(self.wanted_bytes),
            size(self.capacity_bytes.saturating_sub(self.reserve_bytes)),
            size(self.reserve_bytes),
            size(self.capacity_bytes),
        );
        let hint = "add devices or delete volumes; or promise more (`ashlar cluster set overcommit_percent`), or keep less \
                    for losses (`ashlar cluster set reserve_domain_percent`)";
        Err(NoPlacement::new(reason, hint))
    }
}

/// In normal use: a node that is down comes back, one that is out or being emptied does not count.
fn counts(node: &Node, device: &Device) -> bool {
    node.roles.store
        && node.admin == Admin::Active
        && matches!(node.liveness, Liveness::Up | Liveness::Suspect | Liveness::Down)
        && matches!(device.state, DeviceState::In | DeviceState::Full)
}

/// Name and capacity of the largest domain whose loss could be rebuilt in the others.
fn largest_domain<'a>(nodes: impl Iterator<Item = (&'a Node, u64)> + Clone) -> Option<(String, u64)> {
    [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node].into_iter().find_map(|level| {
        let mut domains = BTreeMap::<Domain, (u64, &Node)>::new();
        for (node, bytes) in nodes.clone() {
            // One node of an unknown place, and nobody knows how large the largest domain is.
            let sum = domains.entry(domain_of(node, level)?).or_insert((0, node));
            sum.0 = sum.0.saturating_add(bytes);
        }
        if domains.len() <= REPLICAS_MAX {
            return None;
        }
        // The first of equals, so that the same name is said every time.
        let largest = domains.values().rev().max_by_key(|(bytes, _)| *bytes)?;
        Some((name_of(largest.1, level), largest.0))
    })
}

fn name_of(node: &Node, level: SpreadLevel) -> String {
    let label = |label: &Option<String>| label.clone().unwrap_or_default();
    match level {
        SpreadLevel::Zone => format!("zone {}", label(&node.labels.zone)),
        SpreadLevel::Rack => format!("rack {}", label(&node.labels.rack)),
        SpreadLevel::Node => format!("node {}", node.name),
    }
}
