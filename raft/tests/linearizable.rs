//! Reads that decide something are linearizable, whoever is cut off meanwhile: a register that only rises, one writer, readers
//! at every node. A read shows no less than what was completed, or seen by any reader, before it began.

mod common;

use ashlar_model::NodeId;
use ashlar_raft::service::Timings;
use ashlar_raft::settings::DOWN_AFTER_MS;
use ashlar_raft::{Command, MetaHandle, Response};
use common::{CLUSTER, Net, spec};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const NODES: u64 = 3;
const FIRST: u64 = 10_001;
const CUTS: u64 = 5;
const CUT_FOR: Duration = Duration::from_millis(1_800);
const WHOLE_FOR: Duration = Duration::from_millis(700);

/// What everybody knows.
#[derive(Default)]
struct Seen {
    /// Highest value that a completed write or read has shown.
    highest: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    over: AtomicBool,
}

impl Seen {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

fn setting(value: u64) -> Command {
    Command::SetSetting { key: DOWN_AFTER_MS.key.to_owned(), value }
}

/// Writes rising values at one node after the other. One that is not answered may be there or not, and is not repeated.
async fn write(handles: Vec<MetaHandle>, seen: Arc<Seen>) {
    for value in FIRST.. {
        if seen.is_over() {
            return;
        }
        let handle = &handles[(value % NODES) as usize];
        if handle.propose_anywhere(setting(value)).await == Ok(Response::Done) {
            seen.highest.fetch_max(value, Ordering::SeqCst);
            seen.writes.fetch_add(1, Ordering::SeqCst);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn read(handle: MetaHandle, seen: Arc<Seen>) {
    while !seen.is_over() {
        let floor = seen.highest.load(Ordering::SeqCst);
        if let Ok(state) = handle.linearizable_state().await {
            let value = state.setting(&DOWN_AFTER_MS);
            assert!(value >= floor || floor == 0, "read {value} at {} after {floor} was seen", handle.node());
            if value >= FIRST {
                seen.highest.fetch_max(value, Ordering::SeqCst);
            }
            seen.reads.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_goes_back_while_leaders_are_cut_off() {
    let (net, timings) = (Arc::new(Net::default()), Timings { request_ms_max: 3_000, ..Timings::default() });
    let mut dirs = Vec::new();
    let mut handles = Vec::new();
    for node in (1..=NODES).map(NodeId) {
        dirs.push(tempfile::tempdir().unwrap());
        handles.push(net.start(node, dirs.last().unwrap().path(), timings).await);
    }
    handles[0].init(CLUSTER, "test", spec(NodeId(1))).await.unwrap();
    for node in (2..=NODES).map(NodeId) {
        handles[0].propose(Command::AddNode { id: Some(node), node: spec(node) }).await.unwrap();
        handles[0].add_member(node, &spec(node).api_address).await.unwrap();
    }

    let seen = Arc::new(Seen::default());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(write(handles.clone(), seen.clone()));
    for handle in &handles {
        tasks.spawn(read(handle.clone(), seen.clone()));
    }
    let term = handles[0].metrics().term;
    for cut in 0..CUTS {
        // Mostly the leader; a follower now and then.
        let leader = handles.iter().find(|handle| handle.is_leader()).map(MetaHandle::node);
        let victim = leader.filter(|_| cut % 3 != 2).unwrap_or(NodeId(1 + cut % NODES));
        net.cut(victim);
        tokio::time::sleep(CUT_FOR).await;
        net.heal(victim);
        tokio::time::sleep(WHOLE_FOR).await;
    }
    seen.over.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no read goes back");
    }
    let (writes, reads) = (seen.writes.load(Ordering::SeqCst), seen.reads.load(Ordering::SeqCst));
    let terms = handles[0].metrics().term - term;
    println!("{writes} writes, {reads} reads, {terms} further terms");
    assert!(writes > 100 && reads > 100 && terms >= 2, "{writes} writes, {reads} reads, {terms} terms");
}
