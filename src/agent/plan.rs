//! Pure: what the shard must be told, given what the metadata says and what it was told before.
//!
//! Invariant: nothing is concluded from a view without a cluster, and nothing is deleted because it is absent: only
//! what the metadata names as deleted is reclaimed.

use super::view::{ClusterView, DeletedRow};
use crate::shard::control::DeviceRoute;
use ashlar_model::NodeId;
use ashlar_model::cluster::VolumeSpec;
use std::collections::BTreeSet;

/// Something to push to the shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Push {
    /// Where every device is.
    Routes(Vec<DeviceRoute>),
    /// Every volume.
    Volumes(Vec<VolumeSpec>),
    /// A device of this node shall free what it holds of a deleted volume; the answer goes to the metadata.
    Reclaim(DeletedRow),
}

/// What the shard was told last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pushed {
    routes: Option<Vec<DeviceRoute>>,
    volumes: Option<Vec<VolumeSpec>>,
    reclaims: BTreeSet<DeletedRow>,
    version: u64,
}

impl Pushed {
    /// Version of the view that was told last.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What differs from what was pushed, routes first: volumes name the devices that routes lead to.
pub fn plan(view: &ClusterView, node: NodeId, pushed: &mut Pushed) -> Vec<Push> {
    if view.cluster.is_none() || view.version < pushed.version {
        return Vec::new();
    }
    let mut pushes = Vec::new();
    let routes = routes(view);
    if pushed.routes.as_ref() != Some(&routes) {
        pushes.push(Push::Routes(routes.clone()));
        pushed.routes = Some(routes);
    }
    let specs = || view.volumes.iter().map(|row| &row.spec);
    // Most changes are of no volume's specification: nothing is copied then.
    if pushed.volumes.as_ref().is_none_or(|pushed| specs().ne(pushed.iter())) {
        let volumes: Vec<VolumeSpec> = specs().cloned().collect();
        pushes.push(Push::Volumes(volumes.clone()));
        pushed.volumes = Some(volumes);
    }
    let own: BTreeSet<_> = view.devices.iter().filter(|row| row.node == node).map(|row| row.id).collect();
    let wanted: BTreeSet<DeletedRow> = view.deleted.iter().filter(|row| own.contains(&row.device)).copied().collect();
    pushes.extend(wanted.difference(&pushed.reclaims).copied().map(Push::Reclaim));
    pushed.reclaims = wanted;
    pushed.version = view.version;
    pushes
}

/// Devices of nodes whose address does not parse have no route: links to them stay down.
fn routes(view: &ClusterView) -> Vec<DeviceRoute> {
    let route = |device: &super::view::DeviceRow| {
        let address = view.node(device.node)?.data_address.parse().ok()?;
        Some(DeviceRoute { device: device.id, at: view.shard_of(device)?, address })
    };
    view.devices.iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::super::view::{DeviceRow, NodeRow, VolumeRow};
    use super::*;
    use ashlar_model::cluster::QuorumPolicy;
    use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, SessionId, ShardId, VolumeGeometry, VolumeId};
    use ashlar_raft::state::entities::{DeviceState, Liveness};

    fn node(id: u64, data_address: &str) -> NodeRow {
        NodeRow {
            id: NodeId(id),
            name: format!("n{id}"),
            api_address: format!("127.0.0.1:{id}"),
            data_address: data_address.into(),
            meta: true,
            target: true,
            session: SessionId::from_u128(1),
            liveness: Liveness::Up,
            shards: 2,
        }
    }

    fn volume(id: u128) -> VolumeRow {
        let geometry = VolumeGeometry { size_bytes: 1 << 30, lane_count: 1 };
        let lanes = vec![vec![DeviceId::from_u128(7)]];
        let spec = VolumeSpec {
            id: VolumeId::from_u128(id),
            name: format!("v{id}"),
            geometry,
            replicas: 1,
            quorum: QuorumPolicy::Majority,
            restored: false,
            in_sync_min: 1,
            lanes,
        };
        VolumeRow { spec, epoch: Epoch(0), holder: None, maintenance: false, care: None }
    }

    fn view() -> ClusterView {
        ClusterView {
            version: 5,
            cluster: Some(ClusterId::from_u128(1)),
            nodes: vec![node(1, "127.0.0.1:9001"), node(2, "not an address")],
            devices: vec![
                DeviceRow { id: DeviceId::from_u128(7), node: NodeId(1), state: DeviceState::In, ordinal: 3 },
                DeviceRow { id: DeviceId::from_u128(8), node: NodeId(2), state: DeviceState::In, ordinal: 0 },
            ],
            volumes: vec![volume(1)],
            deleted: Vec::new(),
            full_percent: 90,
        }
    }

    fn route(port: u16) -> DeviceRoute {
        let at = ShardId { node: NodeId(1), shard: 1 };
        DeviceRoute { device: DeviceId::from_u128(7), at, address: ([127, 0, 0, 1], port).into() }
    }

    #[test]
    fn first_view_pushes_everything_and_the_same_view_nothing() {
        let mut pushed = Pushed::default();
        let expected = vec![Push::Routes(vec![route(9001)]), Push::Volumes(vec![volume(1).spec])];
        assert_eq!(plan(&view(), NodeId(1), &mut pushed), expected);
        assert_eq!(plan(&view(), NodeId(1), &mut pushed), Vec::new());
        assert_eq!(pushed.version(), 5);
    }

    #[test]
    fn nothing_is_concluded_from_an_unknown_cluster() {
        let mut pushed = Pushed::default();
        assert_eq!(plan(&ClusterView::default(), NodeId(1), &mut pushed), Vec::new());
        plan(&view(), NodeId(1), &mut pushed);
        let unknown = ClusterView { version: 9, ..ClusterView::default() };
        assert_eq!(plan(&unknown, NodeId(1), &mut pushed), Vec::new());
    }

    #[test]
    fn an_older_view_pushes_nothing() {
        let mut pushed = Pushed::default();
        plan(&view(), NodeId(1), &mut pushed);
        let older = ClusterView { version: 4, volumes: Vec::new(), ..view() };
        assert_eq!(plan(&older, NodeId(1), &mut pushed), Vec::new());
    }

    #[test]
    fn only_what_changed_is_pushed() {
        let mut pushed = Pushed::default();
        plan(&view(), NodeId(1), &mut pushed);
        let mut moved = ClusterView { version: 6, ..view() };
        moved.nodes[0].data_address = "127.0.0.1:9002".into();
        assert_eq!(plan(&moved, NodeId(1), &mut pushed), vec![Push::Routes(vec![route(9002)])]);
        let gone = ClusterView { version: 7, volumes: Vec::new(), ..moved };
        assert_eq!(plan(&gone, NodeId(1), &mut pushed), vec![Push::Volumes(Vec::new())]);
    }

    #[test]
    fn only_this_nodes_share_of_a_deleted_volume_is_reclaimed_once() {
        let mut pushed = Pushed::default();
        plan(&view(), NodeId(1), &mut pushed);
        let volume = VolumeId::from_u128(9);
        let row = |device| DeletedRow { device: DeviceId::from_u128(device), volume };
        let deleted = ClusterView { version: 6, deleted: vec![row(7), row(8)], ..view() };
        assert_eq!(plan(&deleted, NodeId(1), &mut pushed), vec![Push::Reclaim(row(7))]);
        let later = ClusterView { version: 7, ..deleted.clone() };
        assert_eq!(plan(&later, NodeId(1), &mut pushed), Vec::new());
    }

    #[test]
    fn a_node_with_another_number_of_shards_has_its_devices_elsewhere() {
        let mut pushed = Pushed::default();
        plan(&view(), NodeId(1), &mut pushed);
        let mut restarted = ClusterView { version: 6, ..view() };
        restarted.nodes[0].shards = 3;
        let moved = DeviceRoute { at: ShardId { node: NodeId(1), shard: 0 }, ..route(9001) };
        assert_eq!(plan(&restarted, NodeId(1), &mut pushed), [Push::Routes(vec![moved])]);
    }

    #[test]
    fn an_attachment_changes_nothing_for_the_shard() {
        let mut pushed = Pushed::default();
        plan(&view(), NodeId(1), &mut pushed);
        let mut attached = ClusterView { version: 6, ..view() };
        attached.volumes[0].holder = Some(NodeId(1));
        attached.volumes[0].epoch = Epoch(1);
        assert_eq!(plan(&attached, NodeId(1), &mut pushed), Vec::new());
    }
}
