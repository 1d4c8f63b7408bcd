//! Devices that fill up get no new lanes: each node tells the metadata of its own, and takes it back when they have room.
//!
//! The mark is `full_percent` of the bytes that the store has room for; a device is taken back five percent below it, so
//! that one at the mark does not go to and fro.
//!
//! A device of the metadata that does not serve here (its drive does not open) has no room either: what is placed on it would
//! lack a copy from the beginning. What it holds stays its own, for it may come back; `ashlar doctor` says what can be done.

use super::Node;
use super::devices::DeviceOpen;
use super::view::ClusterView;
use ashlar_model::{DeviceId, NodeId};
use ashlar_raft::Command;
use ashlar_raft::state::entities::DeviceState;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A device fills by a few percent in this time, not more, and nobody is woken often.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// Percent below the mark where a device is no longer full.
const BELOW_PERCENT: u64 = 5;

/// Looks at this node's devices, again and again.
pub async fn watch(node: Arc<Node>) {
    let mut missing = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let Ok(status) = node.shard_status().await else { continue };
        let fillings = status.devices.iter().map(|device| (device.id, device.used_bytes, device.total_bytes));
        let mut verdicts = verdicts(&node.view(), node.id, fillings);
        // Seen twice: a daemon that has just started opens its devices one after the other.
        let opening = node.devices.states().into_values().any(|state| state == DeviceOpen::Opening);
        let serving: BTreeSet<DeviceId> = status.devices.iter().map(|device| device.id).collect();
        let now_missing = if opening { BTreeSet::new() } else { not_serving(&node.view(), node.id, &serving) };
        verdicts.extend(now_missing.intersection(&missing).map(|id| (*id, true)));
        missing = now_missing;
        for (id, full) in verdicts {
            match node.metadata.propose(Command::MarkFull { id, full }).await {
                Ok(_) if full => tracing::warn!(device = %id, "it is full or does not serve: it gets no new lanes"),
                Ok(_) => tracing::info!(device = %id, "it has room again"),
                Err(error) => tracing::debug!(device = %id, "its filling is not known yet: {error}"),
            }
        }
    }
}

/// Pure: of devices with their used and total bytes, those that are full by now, or no more. What operators decided stays.
fn verdicts(
    view: &ClusterView,
    node: NodeId,
    fillings: impl Iterator<Item = (DeviceId, u64, u64)>,
) -> Vec<(DeviceId, bool)> {
    let mark = view.full_percent;
    if view.cluster.is_none() || mark == 0 {
        return Vec::new(); // nothing is concluded before the metadata is known
    }
    let verdict = |(id, used_bytes, total_bytes): (DeviceId, u64, u64)| {
        let known = view.devices.iter().find(|row| row.id == id && row.node == node)?;
        let percent = used_bytes.saturating_mul(100) / total_bytes.max(1);
        match known.state {
            DeviceState::In if percent >= mark => Some((id, true)),
            DeviceState::Full if percent + BELOW_PERCENT < mark => Some((id, false)),
            _ => None,
        }
    };
    fillings.filter_map(verdict).collect()
}

/// Pure: devices that should get lanes and do not serve here.
fn not_serving(view: &ClusterView, node: NodeId, serving: &BTreeSet<DeviceId>) -> BTreeSet<DeviceId> {
    let own = view.devices.iter().filter(|row| row.node == node && row.state == DeviceState::In);
    own.map(|row| row.id).filter(|id| !serving.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::view::DeviceRow;
    use ashlar_model::ClusterId;

    fn row(id: u128, node: u64, state: DeviceState) -> DeviceRow {
        DeviceRow { id: DeviceId::from_u128(id), node: NodeId(node), state, ordinal: 0 }
    }

    #[test]
    fn a_device_that_does_not_serve_gets_no_lanes_and_keeps_what_was_decided() {
        let rows = vec![
            row(1, 1, DeviceState::In),
            row(2, 1, DeviceState::In),
            row(3, 1, DeviceState::Failed),
            row(4, 1, DeviceState::Draining),
            row(5, 2, DeviceState::In),
        ];
        let view = ClusterView { devices: rows, ..ClusterView::default() };
        let serving = BTreeSet::from([DeviceId::from_u128(2)]);
        assert_eq!(not_serving(&view, NodeId(1), &serving), BTreeSet::from([DeviceId::from_u128(1)]));
    }

    #[test]
    fn a_device_is_full_at_the_mark_and_back_well_below_it() {
        let rows = vec![
            row(1, 1, DeviceState::In),
            row(2, 1, DeviceState::Full),
            row(3, 1, DeviceState::Draining),
            row(4, 2, DeviceState::In),
        ];
        let mut view = ClusterView { devices: rows, full_percent: 90, ..ClusterView::default() };
        let of = |view: &ClusterView, used| {
            verdicts(view, NodeId(1), (1..=5).map(|id| (DeviceId::from_u128(id), used, 1_000)))
        };
        assert_eq!(of(&view, 950), [], "the cluster is not known yet");
        view.cluster = Some(ClusterId::from_u128(1));
        let (one, two) = (DeviceId::from_u128(1), DeviceId::from_u128(2));
        assert_eq!(of(&view, 899), []);
        assert_eq!(of(&view, 900), [(one, true)]);
        assert_eq!(of(&view, 850), [], "in between nothing changes");
        assert_eq!(of(&view, 849), [(two, false)]);
        view.full_percent = 100;
        assert_eq!(of(&view, 999), []);
        assert_eq!(of(&view, 1_000), [(one, true)]);
    }
}
