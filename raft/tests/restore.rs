//! A state that may be older than the devices, and groups that are founded with one.

mod common;
mod fixture;

use ashlar_model::cluster::LaneCas;
use ashlar_model::{Epoch, NodeId};
use ashlar_raft::command::LaneScope;
use ashlar_raft::offline::{self, Founding};
use ashlar_raft::service::Timings;
use ashlar_raft::state::entities::Liveness;
use ashlar_raft::state::{VolumeHealth, decode_snapshot};
use ashlar_raft::{Command, Response, State, codec};
use common::{CLUSTER, Net, eventually, spec};
use fixture::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);
const FLOOR: u64 = 1 << 28;
const STEP: u64 = 1 << 20;

fn cas(state: &State, lane: u16, in_sync: &[u64], clean: Option<u64>) -> Command {
    let volume = state.volume(VOLUME).unwrap();
    Command::LaneCas(vec![LaneCas {
        volume: VOLUME,
        lane,
        epoch: volume.epoch,
        version: volume.lanes[usize::from(lane)].version,
        in_sync: in_sync.iter().map(|number| device(*number)).collect(),
        clean,
        base: None,
    }])
}

/// A volume that was written, lost a member in lane 0 and was closed in lane 1, as its backup has it.
fn used() -> State {
    let mut state = with_volume();
    state.apply(&Command::Attach(attach(1, 1, false))).unwrap();
    state.apply(&cas(&state.clone(), 0, &[1, 2], None)).unwrap();
    state.apply(&cas(&state.clone(), 1, &[1, 2, 3], Some(100))).unwrap();
    state
}

#[test]
fn nobody_is_taken_for_in_sync_and_epochs_rise_above_every_promise() {
    let mut state = used();
    let restored = state.restore(FLOOR).unwrap();
    assert_eq!((restored.volumes, restored.attached, restored.lanes), (1, 1, 2));
    let volume = state.volume(VOLUME).unwrap();
    assert_eq!((volume.epoch, volume.attachment), (Epoch(FLOOR + STEP), None));
    assert_eq!(state.unverified_lanes(VOLUME), 2);
    let Ok(Response::Attached(grant)) = state.apply(&Command::Attach(attach(2, 1, false))) else { panic!("attached") };
    assert_eq!(grant.epoch, Epoch(FLOOR + STEP + 1));
    for lane in &grant.lanes {
        assert_eq!(lane.in_sync, [1, 2, 3].map(device), "whoever may hold it");
        assert!(lane.unverified && lane.clean.is_none());
        assert!(!lane.rows.is_empty(), "that it was opened is known");
    }
    // The first set that its writer records ends it, lane by lane; the same attempt gets the same grant all the same.
    state.apply(&cas(&state.clone(), 0, &[1, 3], None)).unwrap();
    assert_eq!(state.unverified_lanes(VOLUME), 1);
    assert_eq!(state.apply(&Command::Attach(attach(2, 1, false))), Ok(Response::Attached(grant)));
    state.apply(&Command::Attach(attach(2, 2, false))).unwrap();
    assert_eq!(state.unverified_lanes(VOLUME), 1, "an open alone proves nothing");
}

/// Who has been in a set since the restore is believed about what it has, and nobody who comes later.
#[test]
fn devices_are_trusted_from_their_first_set_after_the_restore() {
    let mut state = cluster(&[None; 4]);
    state.apply(&Command::CreateVolume(create(VOLUME, "v", vec![[1, 2, 3].map(device).to_vec()]))).unwrap();
    let mut attempt = 0;
    let mut trusted = |state: &mut State| {
        attempt += 1;
        open(state, &attach(1, attempt, false)).unwrap().lanes[0].trusted.clone()
    };
    assert_eq!(trusted(&mut state), [], "nobody asks before a restore");
    state.restore(FLOOR).unwrap();
    assert_eq!(trusted(&mut state), [], "nobody has looked yet");
    state.apply(&cas(&state.clone(), 0, &[1, 2], None)).unwrap();
    assert_eq!(trusted(&mut state), [1, 2].map(device));
    state.apply(&cas(&state.clone(), 0, &[1, 2, 3], None)).unwrap();
    state.apply(&cas(&state.clone(), 0, &[1, 2], None)).unwrap();
    assert_eq!(trusted(&mut state), [1, 2, 3].map(device), "it has followed since");
    let granted = open(&mut state, &attach(1, 9, false)).unwrap();
    let (leaving, joining) = (device(3), device(4));
    state.apply(&Command::ReplaceDevice { volume: VOLUME, leaving, joining }).unwrap();
    assert_eq!(open(&mut state, &attach(1, 9, false)), Ok(granted), "the same attempt: it does not know device 4");
    let next = open(&mut state, &attach(1, 10, false)).unwrap();
    assert_eq!(next.lanes[0].trusted, [1, 2].map(device));
}

#[test]
fn a_later_restore_of_the_same_backup_has_higher_epochs() {
    let epoch = |floor: u64| {
        let mut state = used();
        state.restore(floor).unwrap();
        state.volume(VOLUME).unwrap().epoch.0
    };
    assert!(epoch(FLOOR + 100) == epoch(FLOOR) + 100);
    let mut twice = used();
    twice.restore(FLOOR).unwrap();
    twice.restore(FLOOR).unwrap();
    assert_eq!(twice.volume(VOLUME).unwrap().epoch.0, FLOOR + 2 * STEP, "nor do epochs that were used come again");
    assert!(used().restore(u64::from(u32::MAX)).is_err());
    assert!(State::default().restore(FLOOR).is_err());
}

#[test]
fn the_writer_of_before_changes_nothing_any_more() {
    let mut state = used();
    let late = cas(&state, 0, &[1], None);
    state.restore(FLOOR).unwrap();
    let before = state.clone();
    let Ok(Response::LaneCas(replies)) = state.apply(&late) else { panic!("a reply") };
    assert_eq!(replies[0].as_ref().unwrap().epoch, Epoch(FLOOR + STEP), "it learns that it is over");
    assert_eq!(state.volume(VOLUME), before.volume(VOLUME));
}

#[test]
fn what_left_a_volume_is_not_freed_and_a_deleted_volume_stays_deleted() {
    let mut state = cluster(&[None; 4]);
    let lanes = vec![[1, 2, 3].map(device).to_vec()];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    state.apply(&Command::Attach(attach(1, 1, false))).unwrap();
    state.apply(&cas(&state.clone(), 0, &[1, 2], None)).unwrap();
    let (leaving, joining) = (device(3), device(4));
    state.apply(&Command::ReplaceDevice { volume: VOLUME, leaving, joining }).unwrap();
    state.apply(&cas(&state.clone(), 0, &[1, 2, 4], None)).unwrap();
    state.apply(&cas(&state.clone(), 0, &[1, 2, 4], None)).unwrap();
    assert_eq!(state.deleted_on(leaving).count(), 1);
    let mut deleted = state.clone();
    deleted.apply(&detach_holder(1, 1)).unwrap();
    deleted.apply(&Command::DeleteVolume { volume: VOLUME }).unwrap();

    assert_eq!(state.restore(FLOOR).unwrap().kept, 1, "it may have come back since");
    assert_eq!(state.deleted_on(leaving).count(), 0);
    deleted.restore(FLOOR).unwrap();
    assert_eq!(deleted.deleted_on(joining).count(), 1);
}

#[test]
fn an_operator_can_do_without_a_device_but_not_without_all() {
    let mut state = used();
    state.restore(FLOOR).unwrap();
    let health = |state: &State| state.volume_health(state.volume(VOLUME).unwrap());
    state.apply(&set_liveness(3, Liveness::Down)).unwrap();
    assert_eq!(health(&state), VolumeHealth::Unavailable, "all are needed once");
    state.apply(&Command::Attach(attach(1, 2, false))).unwrap();
    let epoch = state.volume(VOLUME).unwrap().epoch;
    let late = cas(&state, 0, &[1, 2, 3], None);
    assert_eq!(state.unverified_on(device(3), LaneScope::default()), (2, 0));
    assert_eq!(state.apply(&Command::Disregard { device: device(3), scope: LaneScope::default() }), Ok(Response::Done));
    let volume = state.volume(VOLUME).unwrap();
    assert_eq!(volume.epoch, Epoch(epoch.0 + 1));
    assert!(volume.lanes.iter().all(|lane| state.in_sync(lane) == [device(1), device(2)] && lane.unverified));
    assert_eq!(health(&state), VolumeHealth::Degraded);
    let before = state.volume(VOLUME).cloned();
    state.apply(&late).unwrap();
    state.apply(&Command::Disregard { device: device(3), scope: LaneScope::default() }).unwrap();
    assert_eq!(state.volume(VOLUME).cloned(), before, "a repetition and a late writer change nothing");

    state.apply(&Command::Disregard { device: device(2), scope: LaneScope::default() }).unwrap();
    assert_eq!(state.unverified_on(device(1), LaneScope::default()), (0, 2));
    let before = state.volume(VOLUME).cloned();
    state.apply(&Command::Disregard { device: device(1), scope: LaneScope::default() }).unwrap();
    assert_eq!(state.volume(VOLUME).cloned(), before, "the last one stays");
    assert_eq!(
        code(state.apply(&Command::Disregard { device: device(99), scope: LaneScope::default() })),
        "device_not_found"
    );
    // A lane that a writer has looked at needs nobody's word.
    let mut verified = used();
    verified.apply(&Command::Disregard { device: device(1), scope: LaneScope::default() }).unwrap();
    assert_eq!(verified.volume(VOLUME), used().volume(VOLUME));
}

fn setting(value: u64) -> Command {
    Command::SetSetting { key: "down_after_ms".to_owned(), value }
}

fn founding(incarnation: u64) -> Founding {
    let node = NodeId(1);
    Founding { node, api_address: spec(node).api_address, cluster: CLUSTER, incarnation }
}

/// Founds a cluster on node 1 and gives nodes 2 and 3 a vote.
async fn group(net: &Arc<Net>, dirs: &[&Path]) -> Vec<ashlar_raft::MetaHandle> {
    let mut handles = Vec::new();
    for (node, dir) in (1..).map(NodeId).zip(dirs) {
        handles.push(net.start(node, dir, Timings::default()).await);
    }
    handles[0].init(CLUSTER, "test", spec(NodeId(1))).await.unwrap();
    for node in [NodeId(2), NodeId(3)] {
        handles[0].propose(Command::AddNode { id: Some(node), node: spec(node) }).await.unwrap();
        handles[0].add_member(node, &spec(node).api_address).await.unwrap();
    }
    eventually("three vote", LIMIT, || handles[0].membership().voters.len() == 3).await;
    handles
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_founds_a_new_group_and_members_of_the_old_one_end() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let net = Arc::new(Net::default());
    let mut handles = group(&net, &[dirs[0].path(), dirs[1].path(), dirs[2].path()]).await;
    handles[0].propose(setting(11_000)).await.unwrap();
    let backup = handles[1].backup().await.unwrap();
    handles[0].propose(setting(12_000)).await.unwrap();
    net.kill(NodeId(1)).await;

    // Node 1 goes back to the backup; nodes 2 and 3 still have a majority of what was.
    let mut state = decode_snapshot(&backup).unwrap();
    state.restore(FLOOR).unwrap();
    offline::found(dirs[3].path(), &founding(77), &state).unwrap();
    assert!(offline::found(dirs[3].path(), &founding(78), &state).is_err(), "not twice");
    let restored = net.start(NodeId(1), dirs[3].path(), Timings::default()).await;
    eventually("it leads alone", LIMIT, || restored.is_leader()).await;
    assert_eq!(restored.membership().voters, [NodeId(1)]);
    assert_eq!(*restored.linearizable_state().await.unwrap(), state, "exactly this state");
    eventually("the old group has ended", LIMIT, || handles[1].has_stopped() && handles[2].has_stopped()).await;
    assert_eq!(handles[1].propose_anywhere(setting(13_000)).await.unwrap_err().code(), "stopped");

    // Also after a restart: several of its kind could find a quorum of their own.
    net.kill(NodeId(2)).await;
    handles.clear();
    let again = net.start(NodeId(2), dirs[1].path(), Timings::default()).await;
    assert!(again.has_stopped());
    assert_eq!(again.propose_anywhere(setting(13_000)).await.unwrap_err().code(), "stopped");
    drop(again);

    // With an empty directory they are members like any other, and stay with this group.
    let fresh = [(); 2].map(|()| tempfile::tempdir().unwrap());
    net.kill(NodeId(2)).await;
    net.kill(NodeId(3)).await;
    let two = net.start(NodeId(2), fresh[0].path(), Timings::default()).await;
    let three = net.start(NodeId(3), fresh[1].path(), Timings::default()).await;
    for node in [NodeId(2), NodeId(3)] {
        restored.add_member(node, &spec(node).api_address).await.unwrap();
    }
    eventually("three vote", LIMIT, || restored.membership().voters.len() == 3).await;
    restored.propose(setting(14_000)).await.unwrap();
    let seen = two.linearizable_state().await.unwrap();
    assert_eq!(seen.setting(&ashlar_raft::settings::DOWN_AFTER_MS), 14_000);
    net.kill(NodeId(3)).await;
    drop(three);
    let found = offline::read(fresh[1].path(), NodeId(3)).unwrap();
    assert_eq!((found.incarnation, found.cluster), (77, Some(CLUSTER)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_has_lost_its_log_elects_nobody_until_it_has_another_one() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let net = Arc::new(Net::default());
    let mut handles = group(&net, &[dirs[0].path(), dirs[1].path(), dirs[2].path()]).await;
    net.cut(NodeId(3));
    handles[0].propose(setting(12_000)).await.unwrap();
    for node in [1, 2] {
        net.kill(NodeId(node)).await;
    }
    // Node 2 forgot what it had acknowledged, and node 3 never got it. A vote of node 2 would undo it.
    let three = handles.remove(2);
    handles.clear();
    let two = net.start_of(Some(CLUSTER), NodeId(2), dirs[3].path(), Timings::default()).await.unwrap();
    net.heal(NodeId(3));
    let patience = Duration::from_millis(4 * Timings::default().election_ms_max);
    tokio::time::sleep(patience).await; // nothing can be waited for: nothing must happen
    assert!(!two.is_leader() && !three.is_leader());

    let one = net.start(NodeId(1), dirs[0].path(), Timings::default()).await;
    // Node 3 gives node 1 its vote. Then node 2 gets the log, and its vote counts again.
    eventually("node 2 follows", LIMIT, || {
        two.metrics().applied_index == one.metrics().applied_index && one.is_leader()
    })
    .await;
    net.kill(NodeId(3)).await;
    drop(three);
    one.propose(setting(13_000)).await.unwrap();
    net.kill(NodeId(1)).await;
    let three = net.start(NodeId(3), dirs[2].path(), Timings::default()).await;
    eventually("node 2 leads with node 3", LIMIT, || two.is_leader()).await;
    let seen = three.linearizable_state().await.unwrap();
    assert_eq!(seen.setting(&ashlar_raft::settings::DOWN_AFTER_MS), 13_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_member_has_is_read_with_all_of_its_log() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let net = Arc::new(Net::default());
    let handles = group(&net, &[dirs[0].path(), dirs[1].path(), dirs[2].path()]).await;
    for step in 0..5 {
        handles[0].propose(setting(11_000 + step)).await.unwrap();
    }
    handles[2].linearizable_state().await.unwrap();
    let expected = handles[2].state();
    for node in [1, 2, 3] {
        net.kill(NodeId(node)).await;
    }
    drop(handles);
    let found = offline::read(dirs[2].path(), NodeId(3)).unwrap();
    assert_eq!(found.state, *expected);
    assert_eq!((found.incarnation, found.voters), (0, [1, 2, 3].map(NodeId).to_vec()));
    let other = offline::read(dirs[2].path(), NodeId(2)).unwrap_err();
    assert!(other.to_string().contains("belongs to node 3"), "{other}");
    let empty = tempfile::tempdir().unwrap();
    assert!(offline::read(empty.path(), NodeId(1)).is_err());
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "looking leaves nothing behind");
}

#[test]
fn a_backup_that_was_changed_is_no_backup() {
    let mut record = codec::encode(codec::Kind::State, &used()).unwrap();
    assert_eq!(decode_snapshot(&record).unwrap(), used());
    let middle = record.len() / 2;
    record[middle] ^= 1;
    assert!(decode_snapshot(&record).is_err());
    assert!(decode_snapshot(&record[..middle]).is_err());
}
