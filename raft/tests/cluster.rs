//! Metadata groups of up to three nodes over an in-memory network, with real log and snapshot files.

mod common;

use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{ClusterId, DeviceId, NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::command::CreateVolume;
use ashlar_raft::service::{Membership, Timings};
use ashlar_raft::state::entities::{Locality, Spread};
use ashlar_raft::{Command, MetaError, MetaHandle, Response, StartError};
use common::{CLUSTER, Net, eventually, spec};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ONE: NodeId = NodeId(1);
const LIMIT: Duration = Duration::from_secs(15);

struct Cluster {
    net: Arc<Net>,
    dirs: Vec<TempDir>,
    handles: Vec<MetaHandle>,
    timings: Timings,
}

impl Cluster {
    /// Founds a cluster on node 1 and takes in the others.
    async fn new(count: u64, timings: Timings) -> Self {
        let net = Arc::new(Net::default());
        let (mut dirs, mut handles) = (Vec::new(), Vec::new());
        for node in 1..=count {
            dirs.push(tempfile::tempdir().unwrap());
            handles.push(net.start(NodeId(node), dirs[node as usize - 1].path(), timings).await);
        }
        handles[0].init(CLUSTER, "test", spec(ONE)).await.unwrap();
        for node in (2..=count).map(NodeId) {
            let added = Command::AddNode { id: Some(node), node: spec(node) };
            assert_eq!(handles[0].propose(added).await, Ok(Response::Node(node)));
            handles[0].add_member(node, &spec(node).api_address).await.unwrap();
        }
        Self { net, dirs, handles, timings }
    }

    fn dir(&self, node: NodeId) -> &Path {
        self.dirs[node.0 as usize - 1].path()
    }

    fn handle(&self, node: NodeId) -> &MetaHandle {
        &self.handles[node.0 as usize - 1]
    }
}

fn setting(value: u64) -> Command {
    Command::SetSetting { key: "down_after_ms".to_owned(), value }
}

fn value(handle: &MetaHandle) -> u64 {
    handle.with_state(|state| state.setting(&ashlar_raft::settings::DOWN_AFTER_MS))
}

fn add_device(node: NodeId) -> Command {
    let id = DeviceId::from_u128(u128::from(node.0));
    let capacity_bytes = 1 << 40;
    Command::AddDevice { id, node, name: "/dev/test".to_owned(), class: "nvme".to_owned(), capacity_bytes, ordinal: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_founds_a_cluster_and_survives_a_restart() {
    let mut cluster = Cluster::new(1, Timings::default()).await;
    let handle = cluster.handle(ONE).clone();
    assert!(handle.is_leader());
    assert_eq!(handle.propose(setting(20_000)).await, Ok(Response::Done));
    // Founding again: the same cluster repeats its answer, another one is refused.
    assert_eq!(handle.init(CLUSTER, "test", spec(ONE)).await, Ok(Response::Node(ONE)));
    let other = handle.init(ClusterId::from_u128(9), "other", spec(ONE)).await.unwrap_err();
    assert_eq!(other.code(), "already_initialised");
    // A refusal is typed and has no effect.
    assert_eq!(handle.propose(setting(1)).await.unwrap_err().code(), "invalid");
    // A command that does not fit never reaches the log.
    let huge = Command::SetSetting { key: "x".repeat(2 << 20), value: 1 };
    assert_eq!(handle.propose(huge).await.unwrap_err().code(), "bad_request");

    drop(handle);
    cluster.net.kill(ONE).await;
    assert_eq!(cluster.handle(ONE).propose(setting(30_000)).await.unwrap_err().code(), "stopped");
    cluster.handles.clear();
    cluster.handles.push(cluster.net.start(ONE, cluster.dir(ONE), cluster.timings).await);
    let state = cluster.handle(ONE).linearizable_state().await.unwrap();
    assert_eq!(state.cluster().unwrap().id, CLUSTER);
    assert_eq!(value(cluster.handle(ONE)), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_stay_odd_and_a_new_leader_answers_within_three_seconds() {
    let mut cluster = Cluster::new(3, Timings::default()).await;
    let handle = cluster.handle(ONE);
    eventually("three voters", LIMIT, || {
        handle.membership().voters.len() == 3 && handle.membership().learners.is_empty()
    })
    .await;

    // Followers forward, and read what the leader committed.
    assert_eq!(cluster.handle(NodeId(2)).propose_anywhere(setting(11_000)).await, Ok(Response::Done));
    let refused = cluster.handle(NodeId(2)).propose(setting(12_000)).await;
    assert_eq!(refused, Err(MetaError::NotLeader { leader: Some((ONE, spec(ONE).api_address)) }));
    let state = cluster.handle(NodeId(3)).linearizable_state().await.unwrap();
    assert_eq!(state.setting(&ashlar_raft::settings::DOWN_AFTER_MS), 11_000);

    // Kill the leader: the others go on.
    cluster.net.kill(ONE).await;
    let killed = Instant::now();
    assert_eq!(cluster.handle(NodeId(2)).propose_anywhere(setting(13_000)).await, Ok(Response::Done));
    assert!(killed.elapsed() < Duration::from_secs(3), "new leader after {:?}", killed.elapsed());
    println!("a new leader answered after {:?}", killed.elapsed());

    // The old leader comes back from disk and catches up.
    cluster.handles.remove(0);
    let back = cluster.net.start(ONE, cluster.dir(ONE), cluster.timings).await;
    cluster.handles.insert(0, back);
    eventually("the old leader follows", LIMIT, || value(cluster.handle(ONE)) == 13_000).await;
    cluster.restart_all_and_compare().await;
}

impl Cluster {
    async fn restart_all_and_compare(&mut self) {
        for node in 1..=self.handles.len() as u64 {
            self.net.kill(NodeId(node)).await;
        }
        let count = self.handles.len() as u64;
        self.handles.clear();
        for node in 1..=count {
            self.handles.push(self.net.start(NodeId(node), self.dir(NodeId(node)), self.timings).await);
        }
        let states =
            [self.handles[0].linearizable_state().await.unwrap(), self.handles[1].linearizable_state().await.unwrap()];
        assert_eq!(states[0], states[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_members_one_votes() {
    let cluster = Cluster::new(2, Timings::default()).await;
    let handle = cluster.handle(ONE);
    let expected = Membership { voters: vec![ONE], learners: vec![NodeId(2)], is_changing: false };
    eventually("one votes", LIMIT, || handle.membership() == expected).await;
    // The learner serves reads and forwards, and its death stops nothing.
    assert_eq!(cluster.handle(NodeId(2)).propose_anywhere(setting(11_000)).await, Ok(Response::Done));
    cluster.net.kill(NodeId(2)).await;
    assert_eq!(cluster.handle(ONE).propose(setting(12_000)).await, Ok(Response::Done));
    let left = cluster.handle(ONE).remove_member(NodeId(2)).await.unwrap();
    assert_eq!((left.voters, left.learners), (vec![ONE], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_voter_leaves_an_odd_number() {
    let cluster = Cluster::new(3, Timings::default()).await;
    cluster.net.kill(NodeId(3)).await;
    let left = cluster.handle(ONE).remove_member(NodeId(3)).await.unwrap();
    assert_eq!((left.voters, left.learners), (vec![ONE], vec![NodeId(2)]));
    assert_eq!(cluster.handle(ONE).propose(setting(12_000)).await, Ok(Response::Done));
    assert_eq!(cluster.handle(ONE).remove_member(ONE).await.unwrap_err().code(), "bad_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_node_gets_a_snapshot() {
    let timings = Timings { snapshot_after_entries: 50, log_keep_entries: 5, ..Timings::default() };
    let mut cluster = Cluster::new(3, timings).await;
    cluster.net.kill(NodeId(3)).await;
    for step in 0..200 {
        cluster.handle(ONE).propose(setting(10_001 + step)).await.unwrap();
    }
    let metrics = cluster.handle(ONE).metrics();
    assert!(metrics.snapshot_index >= 150, "{metrics:?}");
    cluster.handles.remove(2);
    let back = cluster.net.start(NodeId(3), cluster.dir(NodeId(3)), timings).await;
    cluster.handles.push(back);
    eventually("node 3 catches up", LIMIT, || value(cluster.handle(NodeId(3))) == 10_200).await;
    assert!(cluster.handle(NodeId(3)).metrics().snapshot_index >= 150, "it got a snapshot, not the log");
    // And its own snapshot carries it through a restart.
    cluster.restart_all_and_compare().await;
    assert_eq!(value(cluster.handle(NodeId(3))), 10_200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_commits_nothing_and_comes_back() {
    let timings = Timings { request_ms_max: 4_000, ..Timings::default() };
    let cluster = Cluster::new(3, timings).await;
    cluster.net.cut(ONE);
    let lost = cluster.handle(ONE).propose(setting(44_000)).await.unwrap_err();
    assert!(matches!(lost, MetaError::Unavailable(_) | MetaError::NotLeader { .. }), "{lost}");
    assert!(cluster.handle(ONE).linearizable_state().await.is_err(), "no quorum, no linearizable read");
    assert_eq!(cluster.handle(NodeId(2)).propose_anywhere(setting(11_000)).await, Ok(Response::Done));
    cluster.net.heal(ONE);
    eventually("the old leader follows", LIMIT, || value(cluster.handle(ONE)) == 11_000).await;
    assert_eq!(cluster.handle(ONE).propose_anywhere(setting(12_000)).await, Ok(Response::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_cut_off_does_not_campaign() {
    let cluster = Cluster::new(3, Timings::default()).await;
    let term = cluster.handle(ONE).metrics().term;
    cluster.net.cut(NodeId(3));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.handle(NodeId(3)).metrics().term, term);
    cluster.net.heal(NodeId(3));
    cluster.handle(ONE).propose(setting(11_000)).await.unwrap();
    eventually("node 3 follows again", LIMIT, || value(cluster.handle(NodeId(3))) == 11_000).await;
    assert_eq!(cluster.handle(ONE).metrics().term, term, "and the leader stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_service_lets_go_of_its_directory() {
    let net = Arc::new(Net::default());
    let dir = tempfile::tempdir().unwrap();
    let handle = net.start(ONE, dir.path(), Timings::default()).await;
    handle.init(CLUSTER, "test", spec(ONE)).await.unwrap();
    handle.propose(setting(20_000)).await.unwrap();
    net.forget(ONE);
    drop(handle); // no shutdown
    let net = Arc::new(Net::default());
    let start = Instant::now();
    let again = loop {
        match net.try_start(ONE, dir.path(), Timings::default()).await {
            Ok(handle) => break handle,
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    again.linearizable_state().await.unwrap();
    assert_eq!(value(&again), 20_000);
}

/// What a kill -9 leaves is what is on disk at that moment: copy it while the node runs, and start from the copy.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_on_disk() {
    let timings = Timings { snapshot_after_entries: 20, log_keep_entries: 2, ..Timings::default() };
    let cluster = Cluster::new(1, timings).await;
    let handle = cluster.handle(ONE).clone();
    handle.propose(add_device(ONE)).await.unwrap();
    for step in 0..45 {
        handle.propose(create(step)).await.unwrap();
        if step % 9 != 0 {
            continue;
        }
        let image = tempfile::tempdir().unwrap();
        copy_quiet(cluster.dir(ONE), image.path()).await;
        let net = Arc::new(Net::default());
        let copy = net.start(ONE, image.path(), timings).await;
        let state = copy.linearizable_state().await.unwrap();
        assert_eq!(*state, *handle.state(), "after {step} volumes");
        copy.shutdown().await;
    }
}

/// Copies the files as they are, once the background work (snapshot, purge) has come to rest.
async fn copy_quiet(from: &Path, to: &Path) {
    let stamps = || {
        let files = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap());
        // A file may vanish meanwhile: then it is not quiet yet.
        let mut stamps =
            files.map(|f| (f.file_name(), f.metadata().and_then(|m| m.modified()).ok())).collect::<Vec<_>>();
        stamps.sort();
        stamps
    };
    let mut before = stamps();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = stamps();
        if now == before {
            break;
        }
        before = now;
    }
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn create(number: u64) -> Command {
    Command::CreateVolume(CreateVolume {
        id: VolumeId::from_u128(u128::from(number) + 1),
        name: format!("v{number}"),
        labels: Default::default(),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 2 },
        replicas: 1,
        quorum: QuorumPolicy::Majority,
        in_sync_min: 1,
        spread: Spread::default(),
        locality: Locality::None,
        class: None,
        lanes: vec![vec![DeviceId::from_u128(1)]; 2],
        token: Some(format!("token-{number}")),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_noticed() {
    let timings = Timings { snapshot_after_entries: 20, log_keep_entries: 0, ..Timings::default() };
    let cluster = Cluster::new(1, timings).await;
    for step in 0..60 {
        cluster.handle(ONE).propose(setting(10_001 + step)).await.unwrap();
    }
    let handle = cluster.handle(ONE).clone();
    eventually("a snapshot", LIMIT, || handle.metrics().snapshot_index > 20).await;
    let image = tempfile::tempdir().unwrap();
    copy_quiet(cluster.dir(ONE), image.path()).await;
    let files = std::fs::read_dir(image.path()).unwrap().map(|entry| entry.unwrap().path());
    let snapshot = files.filter(|path| path.extension().is_some_and(|e| e == "bin")).max().unwrap();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() - 3;
    bytes[middle] ^= 0x40;
    std::fs::write(&snapshot, bytes).unwrap();
    let error = Arc::new(Net::default()).try_start(ONE, image.path(), timings).await.err().unwrap();
    assert!(matches!(&error, StartError::DamagedSnapshot { path, .. } if *path == snapshot), "{error}");
    // A lost one as well.
    std::fs::remove_file(&snapshot).unwrap();
    let error = Arc::new(Net::default()).try_start(ONE, image.path(), timings).await.err().unwrap();
    assert!(matches!(&error, StartError::DamagedSnapshot { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_belongs_to_one_node_of_one_cluster() {
    let cluster = Cluster::new(1, Timings::default()).await;
    let image = tempfile::tempdir().unwrap();
    copy_quiet(cluster.dir(ONE), image.path()).await;
    let net = Arc::new(Net::default());
    let error = net.try_start(NodeId(2), image.path(), Timings::default()).await.err().unwrap();
    assert!(matches!(error, StartError::WrongIdentity { .. }), "{error}");
    // A file that is no log store.
    std::fs::write(image.path().join("raft.redb"), b"something else").unwrap();
    let error = net.try_start(ONE, image.path(), Timings::default()).await.err().unwrap();
    assert!(matches!(error, StartError::LogStore { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_served() {
    let cluster = Cluster::new(2, Timings::default()).await;
    // A message for node 1 that arrives at node 2, bytes of no meaning, a truncated message.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let tap = Arc::new(Tap { sender: std::sync::Mutex::new(Some(sender)) });
    let dir = tempfile::tempdir().unwrap();
    let options = ashlar_raft::MetaOptions {
        node: NodeId(7),
        cluster: Some(ClusterId::from_u128(77)),
        dir: dir.path().to_owned(),
        timings: Timings::default(),
        faults: None,
    };
    let stranger = ashlar_raft::MetaService::start(options, tap).await.unwrap();
    stranger.init(ClusterId::from_u128(77), "strange", spec(NodeId(7))).await.unwrap();
    let other = tokio::spawn(async move { stranger.add_member(ONE, "one:1").await });
    let (kind, body) = receiver.await.unwrap();
    let served = cluster.handle(ONE).serve_rpc(kind, &body).await.unwrap_err();
    assert!(served.to_string().contains("not cluster"), "{served}");
    assert!(cluster.handle(NodeId(2)).serve_rpc(kind, &body).await.unwrap_err().to_string().contains("not node 1"));
    for length in [0, 1, 19, 20, body.len() - 1] {
        let error = cluster.handle(ONE).serve_rpc(kind, &body[..length]).await.unwrap_err();
        assert_eq!(error.code(), "bad_request");
    }
    other.abort();
}

type Message = (ashlar_raft::RpcKind, Vec<u8>);

/// A transport that hands out the first message and answers nobody.
struct Tap {
    sender: std::sync::Mutex<Option<tokio::sync::oneshot::Sender<Message>>>,
}

impl ashlar_raft::Transport for Tap {
    fn call<'a>(
        &'a self,
        _: NodeId,
        _: &'a str,
        kind: ashlar_raft::RpcKind,
        body: Vec<u8>,
        _: Duration,
    ) -> ashlar_raft::BoxFuture<'a, Result<Vec<u8>, ashlar_raft::TransportError>> {
        if let Some(sender) = self.sender.lock().unwrap().take() {
            let _ = sender.send((kind, body));
        }
        Box::pin(async { Err(ashlar_raft::TransportError::Timeout) })
    }
}
