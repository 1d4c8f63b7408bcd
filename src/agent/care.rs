//! Pure: which detached volumes this node should attach for maintenance, so that their members come in sync again.
//!
//! Every node decides from the same view; where views differ for a moment the attach arbitrates, and a caretaker that
//! lost it hears so. Invariant: a volume that somebody uses is left alone.

use super::view::{CareRow, ClusterView, NodeRow, VolumeRow};
use ashlar_model::{DeviceId, NodeId, VolumeId};
use ashlar_raft::state::entities::{DeviceState, Liveness};
use std::collections::{BTreeMap, BTreeSet};

/// Volumes that one node takes care of at a time; the next begin when these are done.
pub const CARED_MAX: usize = 8;
/// A volume must need care for this long: guests come back, and members that were away a moment follow by themselves.
const GRACE_MS: u64 = 5_000;
/// Without progress for this long a caretaker lets go.
const STALL_MS: u64 = 60_000;
/// First pause after a care that came to nothing; each further one doubles it.
const PAUSE_MS: u64 = 5_000;
const PAUSE_MS_MAX: u64 = 600_000;

/// Volumes that this node should care for, by identity.
pub fn wanted(view: &ClusterView, node: NodeId) -> Vec<&VolumeRow> {
    view.volumes.iter().filter(|row| caretaker_of(view, row) == Some(node)).collect()
}

/// The node that should care for a volume: the one that does, else the lowest live target node with an in-sync member,
/// else the lowest live target node.
pub fn caretaker_of(view: &ClusterView, row: &VolumeRow) -> Option<NodeId> {
    let care = row.care.as_ref().filter(|care| can_heal(view, care))?;
    if let Some(holder) = row.holder.filter(|_| care.holder_alive) {
        return row.maintenance.then_some(holder);
    }
    // Every node looks at every volume in need with each new view: by the few members, not by all nodes.
    let is_fit = |node: &&NodeRow| node.target && node.liveness == Liveness::Up;
    let near = care.in_sync.iter().filter_map(|device| view.node(view.device(*device)?.node)).filter(is_fit);
    near.map(|node| node.id).min().or_else(|| view.nodes.iter().find(is_fit).map(|node| node.id))
}

/// Some member that is missing could come, and the volume opens without it.
fn can_heal(view: &ClusterView, care: &CareRow) -> bool {
    let can_come = |device: &DeviceId| {
        let usable = view.device(*device).filter(|row| !matches!(row.state, DeviceState::Failed | DeviceState::Out));
        let node = usable.and_then(|row| view.node(row.node));
        node.is_some_and(|node| node.liveness == Liveness::Up)
    };
    care.openable && (care.missing.is_empty() || care.missing.iter().any(can_come))
}

/// What is remembered of a volume that this node should care for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Memory {
    /// Not before this time.
    begin_ms: u64,
    /// It is cared for, and this is when something moved last; `None`: it is not cared for.
    moved_ms: Option<u64>,
    /// What was moving then.
    activity: u64,
    /// Most copies in sync that were ever seen.
    copies: u32,
    pause_ms: u64,
}

impl Memory {
    fn observe(&mut self, now_ms: u64, activity: u64, copies: u32) {
        if copies > self.copies {
            self.copies = copies;
            self.pause_ms = PAUSE_MS;
        }
        let before = std::mem::replace(&mut self.activity, activity);
        let moves = before != activity;
        match self.moved_ms {
            Some(_) if activity == 0 && moves => {
                // It was let go here: somebody asked for it, or has taken it.
                self.moved_ms = None;
                self.begin_ms = now_ms + GRACE_MS;
            }
            Some(_) if moves => self.moved_ms = Some(now_ms),
            Some(since_ms) if now_ms >= since_ms + STALL_MS => {
                self.moved_ms = None;
                self.begin_ms = now_ms + self.pause_ms;
                self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
            }
            _ => {}
        }
    }
}

/// Remembers which volumes are cared for, and which made no progress.
#[derive(Debug, Default)]
pub struct Caretaker {
    memory: BTreeMap<VolumeId, Memory>,
}

impl Caretaker {
    /// The volumes to care for now. `activity` is a number that changes with whatever moves in the care of a volume, and
    /// 0 while it is not attached here: it keeps the care going. Only another copy in sync makes up for earlier failures.
    pub fn decide(
        &mut self,
        view: &ClusterView,
        node: NodeId,
        now_ms: u64,
        activity: impl Fn(VolumeId) -> u64,
    ) -> Vec<VolumeId> {
        let wanted = wanted(view, node);
        let in_need: BTreeSet<VolumeId> = wanted.iter().map(|row| row.spec.id).collect();
        self.memory.retain(|id, _| in_need.contains(id));
        for row in &wanted {
            let begin_ms = now_ms + GRACE_MS;
            let new = || Memory { begin_ms, moved_ms: None, activity: 0, copies: 0, pause_ms: PAUSE_MS };
            let memory = self.memory.entry(row.spec.id).or_insert_with(new);
            let copies = row.care.as_ref().map_or(0, |care| care.copies);
            memory.observe(now_ms, activity(row.spec.id), copies);
        }
        let free = CARED_MAX.saturating_sub(self.memory.values().filter(|memory| memory.moved_ms.is_some()).count());
        let due = self.memory.values_mut().filter(|memory| memory.moved_ms.is_none() && now_ms >= memory.begin_ms);
        for memory in due.take(free) {
            memory.moved_ms = Some(now_ms);
        }
        self.memory.iter().filter(|(_, memory)| memory.moved_ms.is_some()).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::DeviceRow;
    use super::*;
    use ashlar_model::cluster::{QuorumPolicy, VolumeSpec};
    use ashlar_model::{ClusterId, Epoch, SessionId, VolumeGeometry};

    fn node(id: u64, target: bool, liveness: Liveness) -> NodeRow {
        NodeRow {
            id: NodeId(id),
            name: format!("n{id}"),
            api_address: format!("127.0.0.1:{id}"),
            data_address: format!("127.0.0.1:{id}"),
            meta: true,
            target,
            session: SessionId::from_u128(1),
            liveness,
            shards: 1,
        }
    }

    fn device(id: u128) -> DeviceId {
        DeviceId::from_u128(id)
    }

    /// Node n has device n. Node 1 is no target.
    fn view(care: CareRow) -> ClusterView {
        let spec = VolumeSpec {
            id: VolumeId::from_u128(1),
            name: "v".into(),
            geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 1 },
            replicas: 3,
            quorum: QuorumPolicy::Majority,
            restored: false,
            in_sync_min: 1,
            lanes: vec![vec![device(1), device(3), device(4)]],
        };
        let row = |id: u64| {
            let (node, state) = (NodeId(id), DeviceState::In);
            DeviceRow { id: device(u128::from(id)), node, state, ordinal: 0 }
        };
        ClusterView {
            version: 1,
            cluster: Some(ClusterId::from_u128(1)),
            nodes: (1..=4).map(|id| node(id, id != 1, Liveness::Up)).collect(),
            devices: (1..=4).map(row).collect(),
            volumes: vec![VolumeRow { spec, epoch: Epoch(4), holder: None, maintenance: false, care: Some(care) }],
            deleted: Vec::new(),
            full_percent: 90,
        }
    }

    fn care() -> CareRow {
        let (missing, in_sync) = (vec![device(4)], vec![device(1), device(3)]);
        CareRow { missing, in_sync, copies: 2, openable: true, holder_alive: false }
    }

    fn caretaker(view: &ClusterView) -> Option<u64> {
        caretaker_of(view, &view.volumes[0]).map(|node| node.0)
    }

    #[test]
    fn the_lowest_live_target_with_an_in_sync_member_cares() {
        let mut view = view(care());
        assert_eq!(caretaker(&view), Some(3), "node 1 is no target, node 2 has no member");
        view.nodes[2].liveness = Liveness::Suspect;
        assert_eq!(caretaker(&view), Some(2), "nobody with a member is up");
        assert_eq!(wanted(&view, NodeId(2)).len(), 1);
        assert_eq!(wanted(&view, NodeId(3)).len(), 0);
    }

    #[test]
    fn nobody_cares_without_a_chance() {
        let mut away = view(care());
        away.nodes[3].liveness = Liveness::Down;
        assert_eq!(caretaker(&away), None, "the missing member cannot come");
        let mut failed = view(care());
        failed.devices[3].state = DeviceState::Failed;
        assert_eq!(caretaker(&failed), None);
        assert_eq!(caretaker(&view(CareRow { openable: false, ..care() })), None);
        let mut well = view(care());
        well.volumes[0].care = None;
        assert_eq!(caretaker(&well), None);
        // A replacement that was taken back only has to be noticed by an open.
        assert_eq!(caretaker(&view(CareRow { missing: vec![], ..care() })), Some(3));
    }

    #[test]
    fn an_attached_volume_is_left_alone_and_a_caretaker_stays() {
        let mut view = view(care());
        view.volumes[0].holder = Some(NodeId(2));
        assert_eq!(caretaker(&view), Some(3), "its daemon has ended");
        view.volumes[0].care = Some(CareRow { holder_alive: true, ..care() });
        assert_eq!(caretaker(&view), None);
        view.volumes[0].care = None;
        assert_eq!(caretaker(&view), None, "guests may be there");
        view.volumes[0].maintenance = true;
        view.volumes[0].care = Some(care());
        assert_eq!(caretaker(&view), Some(3), "the caretaker died");
        view.volumes[0].care = Some(CareRow { holder_alive: true, ..care() });
        assert_eq!(caretaker(&view), Some(2));
    }

    #[test]
    fn care_begins_after_a_grace_and_rests_longer_each_time_that_it_achieves_nothing() {
        let mut keeper = Caretaker::default();
        let mut view = view(care());
        let mut decide = |now_ms, activity, copies| {
            view.volumes[0].care = Some(CareRow { copies, ..care() });
            keeper.decide(&view, NodeId(3), now_ms, |_| activity).len()
        };
        assert_eq!((decide(0, 0, 2), decide(4_999, 0, 2), decide(5_000, 0, 2)), (0, 0, 1));
        assert_eq!((decide(64_000, 1, 2), decide(123_000, 1, 2)), (1, 1), "it moved at 64 s");
        assert_eq!((decide(124_000, 1, 2), decide(128_999, 1, 2), decide(129_000, 1, 2)), (0, 0, 1), "after 5 s");
        assert_eq!((decide(189_000, 1, 2), decide(198_999, 1, 2), decide(199_000, 1, 2)), (0, 0, 1), "after 10 s");
        assert_eq!((decide(200_000, 2, 3), decide(260_000, 2, 3), decide(265_000, 2, 3)), (1, 0, 1), "a copy: 5 s");
    }

    #[test]
    fn what_was_let_go_is_not_taken_back_at_once() {
        let mut keeper = Caretaker::default();
        let view = view(care());
        let mut decide = |now_ms, activity| keeper.decide(&view, NodeId(3), now_ms, |_| activity).len();
        assert_eq!((decide(0, 0), decide(5_000, 0), decide(6_000, 7)), (0, 1, 1));
        assert_eq!((decide(7_000, 0), decide(11_999, 0), decide(12_000, 0)), (0, 0, 1));
    }

    #[test]
    fn only_some_volumes_at_a_time() {
        let mut many = view(care());
        for id in 2..=20 {
            let mut row = many.volumes[0].clone();
            row.spec.id = VolumeId::from_u128(id);
            many.volumes.push(row);
        }
        let mut keeper = Caretaker::default();
        keeper.decide(&many, NodeId(3), 0, |_| 0);
        assert_eq!(keeper.decide(&many, NodeId(3), 5_000, |_| 0).len(), CARED_MAX);
        many.volumes.drain(..CARED_MAX);
        assert_eq!(keeper.decide(&many, NodeId(3), 6_000, |_| 0).len(), CARED_MAX, "the next ones");
    }
}
