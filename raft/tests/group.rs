//! Groups whose members change while they run: a vote goes to another node, and the leader gives up its own.

mod common;

use ashlar_model::NodeId;
use ashlar_raft::members::Change;
use ashlar_raft::service::Timings;
use ashlar_raft::{Command, MetaHandle, Response};
use common::{CLUSTER, Net, eventually, spec};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(15);

fn setting(value: u64) -> Command {
    Command::SetSetting { key: "down_after_ms".to_owned(), value }
}

fn voters(numbers: &[u64]) -> Change {
    Change::Voters(numbers.iter().copied().map(NodeId).collect())
}

struct Group {
    net: Arc<Net>,
    _dirs: Vec<TempDir>,
    handles: Vec<MetaHandle>,
}

impl Group {
    /// Founds a cluster on node 1, takes in the others as learners, and gives the first three a vote.
    async fn new(count: u64) -> Self {
        let net = Arc::new(Net::default());
        let (mut dirs, mut handles) = (Vec::new(), Vec::new());
        for node in 1..=count {
            dirs.push(tempfile::tempdir().unwrap());
            handles.push(net.start(NodeId(node), dirs[node as usize - 1].path(), Timings::default()).await);
        }
        handles[0].init(CLUSTER, "test", spec(NodeId(1))).await.unwrap();
        for node in (2..=count).map(NodeId) {
            let added = Command::AddNode { id: Some(node), node: spec(node) };
            assert_eq!(handles[0].propose(added).await, Ok(Response::Node(node)));
            let change = Change::AddLearner(node);
            handles[0].change_members(&change, &spec(node).api_address).await.unwrap();
        }
        let group = Self { net, _dirs: dirs, handles };
        group.caught_up(count).await;
        let changed = group.handles[0].change_members(&voters(&[1, 2, 3]), "").await.unwrap();
        assert_eq!(changed.voters, [1, 2, 3].map(NodeId));
        group
    }

    async fn caught_up(&self, count: u64) {
        let lag = || self.handles[0].metrics().lag;
        let all = || (1..=count).all(|node| lag().get(&NodeId(node)) == Some(&0));
        eventually("all have the whole log", LIMIT, all).await;
    }

    fn handle(&self, node: u64) -> &MetaHandle {
        &self.handles[node as usize - 1]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_takes_the_vote_of_a_dead_voter_and_counts() {
    let group = Group::new(4).await;
    group.net.kill(NodeId(3)).await;
    let changed = group.handle(1).change_members(&voters(&[1, 2, 4]), "").await.unwrap();
    assert_eq!((changed.voters, changed.learners), ([1, 2, 4].map(NodeId).to_vec(), vec![NodeId(3)]));
    // Without the replacement two deaths of three would end it.
    group.net.kill(NodeId(2)).await;
    assert_eq!(group.handle(1).propose(setting(11_000)).await, Ok(Response::Done));
    let gone = Change::RemoveLearner(NodeId(3));
    let changed = group.handle(1).change_members(&gone, "").await.unwrap();
    assert_eq!((changed.voters, changed.learners), ([1, 2, 4].map(NodeId).to_vec(), vec![]));
    // A voter is not just dropped, and a node that does not lead changes nothing.
    let refused = group.handle(1).change_members(&Change::RemoveLearner(NodeId(4)), "").await;
    assert_eq!(refused.unwrap_err().code(), "bad_request");
    assert!(group.handle(4).change_members(&voters(&[4]), "").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_gives_up_its_own_vote_and_the_others_go_on() {
    let group = Group::new(4).await;
    group.handle(1).change_members(&voters(&[2, 3, 4]), "").await.unwrap();
    let successor = || group.handle(2).leader().map(|(id, _)| id).filter(|id| *id != NodeId(1));
    eventually("another one leads", LIMIT, || successor().is_some()).await;
    assert_eq!(group.handle(2).propose_anywhere(setting(12_000)).await, Ok(Response::Done));
    let leader = successor().unwrap().0;
    let left = group.handle(leader).membership();
    assert_eq!((left.voters, left.learners), ([2, 3, 4].map(NodeId).to_vec(), vec![]));
    // It follows again without a vote, and knows who leads.
    let change = Change::AddLearner(NodeId(1));
    group.handle(leader).change_members(&change, &spec(NodeId(1)).api_address).await.unwrap();
    assert_eq!(group.handle(1).propose_anywhere(setting(12_500)).await, Ok(Response::Done));
    group.net.kill(NodeId(1)).await;
    assert_eq!(group.handle(2).propose_anywhere(setting(13_000)).await, Ok(Response::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_never_answered_is_not_taken_for_one_that_keeps_up() {
    let group = Group::new(3).await;
    let (silent, address) = (NodeId(9), spec(NodeId(9)).api_address);
    group.handle(1).propose(Command::AddNode { id: Some(silent), node: spec(silent) }).await.unwrap();
    let changed = group.handle(1).change_members(&Change::AddLearner(silent), &address).await.unwrap();
    assert_eq!(changed.learners, [silent]);
    group.caught_up(3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(group.handle(1).metrics().lag.get(&silent), None, "the log is short, and it has nothing of it");
}
