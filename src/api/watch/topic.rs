//! What can be watched, and how it looks now. Pure: state and reports in, items out.

use super::snapshot::Item;
use crate::api::operation_view::{self, Operation, Reports, with_pace};
use crate::api::{devices, drain_view, nodes, volume_view, volumes};
use ashlar_model::NodeId;
use ashlar_raft::State;
use ashlar_raft::state::entities::{DeviceState, Volume};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// What is watched: a list, or one thing of it by what it is called in the path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Topic {
    /// The list.
    pub kind: Kind,
    /// The only item, if not all.
    pub one: Option<String>,
}

/// A list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Nodes, by name.
    Nodes,
    /// Devices, by identity.
    Devices,
    /// Volumes, by name.
    Volumes,
    /// Operations, by name.
    Operations,
}

/// What a look is made of.
pub struct Seen<'a> {
    /// The metadata.
    pub state: &'a State,
    /// What nodes report, of those that [`holders`] named.
    pub reports: &'a Reports,
    /// Who leads the metadata service.
    pub leader: Option<NodeId>,
    /// Operations of the look before, by name, and how long ago that was.
    pub before: &'a BTreeMap<String, Operation>,
    /// Seconds since then.
    pub seconds: f64,
}

/// The nodes whose reports tell more than the metadata.
pub fn holders(topic: &Topic, state: &State) -> BTreeSet<NodeId> {
    let holder = |volume: &Volume| volume.attachment.map(|held| held.node);
    match topic.kind {
        Kind::Nodes => BTreeSet::new(),
        Kind::Devices => devices_of(topic, state).map(|device| device.node).collect(),
        Kind::Volumes => volumes_of(topic, state).filter_map(holder).collect(),
        Kind::Operations => busy(topic, state).filter_map(holder).collect(),
    }
}

/// As many items as a look would have.
pub fn count(topic: &Topic, state: &State) -> usize {
    match topic.kind {
        Kind::Nodes => state.nodes().count(),
        Kind::Devices => devices_of(topic, state).count(),
        Kind::Volumes => volumes_of(topic, state).count(),
        Kind::Operations => busy(topic, state).count() + drain_view::subjects(state).len(),
    }
}

/// The items; none if the only one is not there. Operations come twice: the next look compares with them.
pub fn look(topic: &Topic, seen: &Seen) -> (Vec<Item>, Vec<Operation>) {
    let Seen { state, reports, .. } = seen;
    let items = match (topic.kind, &topic.one) {
        (Kind::Nodes, None) => {
            let shown = nodes::shown(state).map(|node| nodes::node_view(state, node, seen.leader == Some(node.id)));
            shown.map(|view| (view.name.clone(), json!(view))).collect()
        }
        (Kind::Nodes, Some(one)) => {
            let detail =
                nodes::find(state, one).map(|node| nodes::node_detail(state, node, seen.leader == Some(node.id)));
            detail.into_iter().map(|detail| (detail.node.name.clone(), json!(detail))).collect()
        }
        (Kind::Devices, _) => {
            let views = devices_of(topic, state).map(|device| devices::device_view(state, device, reports));
            views.map(|view| (view.id.to_string(), json!(view))).collect()
        }
        (Kind::Volumes, one) => {
            let view = |volume| volume_view::volume_view(state, volume, reports, one.is_some());
            volumes_of(topic, state).map(|volume| (volume.name.clone(), json!(view(volume)))).collect()
        }
        (Kind::Operations, _) => {
            let found = operations(topic, seen);
            let emptying = match &topic.one {
                None => drain_view::emptyings(state),
                Some(one) => drain_view::find(state, one).into_iter().collect(),
            };
            let of_volumes = found.iter().map(|operation| (operation.id.clone(), json!(operation)));
            let items = of_volumes.chain(emptying.iter().map(|one| (one.id.clone(), json!(one)))).collect();
            return (items, found);
        }
    };
    (items, Vec::new())
}

/// The operations with their pace. One that is over is told as done if it is watched alone.
fn operations(topic: &Topic, seen: &Seen) -> Vec<Operation> {
    let all =
        busy(topic, seen.state).flat_map(|volume| operation_view::operations_of(seen.state, volume, seen.reports));
    let paced = all.map(|operation| {
        let before = seen.before.get(&operation.id);
        with_pace(operation, before, seen.seconds)
    });
    let Some(one) = &topic.one else { return paced.collect() };
    let found = paced.into_iter().find(|operation| operation.id == *one);
    found.or_else(|| operation_view::finished(seen.state, one)).into_iter().collect()
}

fn volumes_of<'a>(topic: &'a Topic, state: &'a State) -> Box<dyn Iterator<Item = &'a Volume> + 'a> {
    match &topic.one {
        None => Box::new(state.volumes_after(None)),
        Some(one) => Box::new(volumes::find(state, one).into_iter()),
    }
}

fn devices_of<'a>(
    topic: &'a Topic,
    state: &'a State,
) -> Box<dyn Iterator<Item = &'a ashlar_raft::state::entities::Device> + 'a> {
    match &topic.one {
        None => Box::new(state.devices().filter(|device| device.state != DeviceState::Out)),
        Some(one) => Box::new(devices::find_device(state, one).into_iter()),
    }
}

fn busy<'a>(topic: &'a Topic, state: &'a State) -> impl Iterator<Item = &'a Volume> + 'a {
    debug_assert_eq!(topic.kind, Kind::Operations);
    state.volumes().filter(|volume| operation_view::has_work(state, volume))
}
