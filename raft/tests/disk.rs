//! Disks that are full or slow under the log of one member: the group goes on, and nothing acknowledged is lost.

mod common;

use ashlar_model::NodeId;
use ashlar_raft::service::{DiskFaults, StartError, Timings};
use ashlar_raft::settings::DOWN_AFTER_MS;
use ashlar_raft::{Command, MetaHandle, MetaOptions};
use common::{CLUSTER, Net, eventually, spec};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Three voters, each with a disk of its own; node 1 leads.
struct Group {
    net: Arc<Net>,
    dirs: Vec<TempDir>,
    faults: Vec<Arc<DiskFaults>>,
    handles: Vec<Option<MetaHandle>>,
}

impl Group {
    async fn new() -> Self {
        let dirs = NODES.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let faults = NODES.iter().map(|_| Arc::default()).collect();
        let mut group = Self { net: Arc::default(), dirs, faults, handles: vec![None, None, None] };
        for number in 0..NODES.len() {
            group.start(number).await;
        }
        group.on(0).init(CLUSTER, "test", spec(NODES[0])).await.unwrap();
        for node in &NODES[1..] {
            group.on(0).propose(Command::AddNode { id: Some(*node), node: spec(*node) }).await.unwrap();
            group.on(0).add_member(*node, &spec(*node).api_address).await.unwrap();
        }
        eventually("three vote", LIMIT, || group.on(0).membership().voters.len() == 3).await;
        group
    }

    async fn start(&mut self, number: usize) {
        self.handles[number] = Some(self.try_start(number).await.unwrap());
    }

    async fn try_start(&self, number: usize) -> Result<MetaHandle, StartError> {
        let dir: &Path = self.dirs[number].path();
        let faults = Some(Arc::clone(&self.faults[number]));
        let options = MetaOptions {
            node: NODES[number],
            cluster: None,
            dir: dir.to_owned(),
            timings: Timings::default(),
            faults,
        };
        self.net.start_with(options).await
    }

    async fn stop(&mut self, number: usize) {
        self.net.kill(NODES[number]).await;
        self.handles[number] = None;
    }

    fn on(&self, number: usize) -> &MetaHandle {
        self.handles[number].as_ref().unwrap()
    }

    fn fill(&self, number: usize, full: bool) {
        self.faults[number].full.store(full, Ordering::Release);
    }

    fn slow(&self, number: usize, sync_delay_ms: u64) {
        self.faults[number].sync_delay_ms.store(sync_delay_ms, Ordering::Release);
    }

    async fn read(&self, number: usize) -> u64 {
        self.on(number).linearizable_state().await.unwrap().setting(&DOWN_AFTER_MS)
    }
}

fn setting(value: u64) -> Command {
    Command::SetSetting { key: "down_after_ms".to_owned(), value }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_ends_and_the_others_go_on() {
    let mut group = Group::new().await;
    group.fill(2, true);
    for value in 11_000..11_020 {
        group.on(0).propose(setting(value)).await.unwrap();
    }
    eventually("it has ended", LIMIT, || group.on(2).has_stopped()).await;
    assert_eq!(group.on(2).leader(), None, "it knows nothing that others should go by");
    assert_eq!(group.on(2).propose_anywhere(setting(12_000)).await.unwrap_err().code(), "stopped");
    assert_eq!(group.read(1).await, 11_019);

    group.stop(2).await;
    let why = group.try_start(2).await.err().unwrap().to_string();
    assert!(why.contains("raft.redb") && why.contains("no storage space"), "{why}");
    group.fill(2, false);
    group.start(2).await;
    assert_eq!(group.read(2).await, 11_019);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_gives_way_and_keeps_what_it_acknowledged() {
    let mut group = Group::new().await;
    group.on(0).propose(setting(11_000)).await.unwrap();
    group.fill(0, true);
    let answer = group.on(0).propose(setting(12_000)).await;
    eventually("another one leads", LIMIT, || group.on(1).is_leader() || group.on(2).is_leader()).await;
    assert!(group.on(0).has_stopped() && !group.on(0).is_leader());
    let read = group.read(1).await;
    assert!(read == 12_000 || read == 11_000 && answer.is_err(), "{read} after {answer:?}");

    group.on(1).propose_anywhere(setting(13_000)).await.unwrap();
    group.fill(0, false);
    group.stop(0).await;
    group.start(0).await;
    assert_eq!(group.read(0).await, 13_000);
    eventually("it follows", LIMIT, || group.on(0).state() == group.on(1).state()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_disks_depose_nobody() {
    let group = Group::new().await;
    let term = group.on(0).metrics().term;
    for slow in [2, 0] {
        group.slow(slow, 150);
        for value in 11_000..11_010 {
            group.on(0).propose(setting(value)).await.unwrap();
        }
        assert_eq!(group.read(1).await, 11_009);
        assert_eq!((group.on(0).metrics().term, group.on(0).is_leader()), (term, true), "disk {slow} is slow");
        group.slow(slow, 0);
    }
    eventually("all have everything", LIMIT, || group.on(2).state() == group.on(0).state()).await;
}
