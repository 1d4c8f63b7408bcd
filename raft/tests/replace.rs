//! Replacement of copyset members: exact answers, and any interleaving against a naive model of one lane.

mod fixture;

use ashlar_model::cluster::LaneCas;
use ashlar_model::{DeviceId, Epoch, NodeId};
use ashlar_raft::state::entities::{AttachMode, DeviceState, Liveness, Replacement, Spread, SpreadLevel};
use ashlar_raft::{Command, Response, State};
use fixture::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn replace(leaving: u64, joining: u64) -> Command {
    Command::ReplaceDevice { volume: VOLUME, leaving: device(leaving), joining: device(joining) }
}

fn cancel(leaving: u64, joining: u64) -> Command {
    Command::CancelReplacement { volume: VOLUME, leaving: device(leaving), joining: device(joining) }
}

fn devices(numbers: &[u64]) -> Vec<DeviceId> {
    numbers.iter().map(|number| device(*number)).collect()
}

/// Four nodes; a volume of two lanes on the first three.
fn with_spare() -> State {
    let mut state = cluster(&[None; 4]);
    let created = state.apply(&Command::CreateVolume(create(VOLUME, "v", vec![devices(&[1, 2, 3]); 2])));
    assert_eq!(created, Ok(Response::Volume(VOLUME)));
    state
}

fn lane(state: &State, number: usize) -> ashlar_raft::state::LaneView {
    state.lane_view(&state.volume(VOLUME).unwrap().lanes[number])
}

#[test]
fn the_writer_swaps_and_the_leaving_device_frees_its_space_when_no_lane_has_it() {
    let mut state = with_spare();
    open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(state.apply(&replace(3, 4)), Ok(Response::Done));
    for number in 0..2 {
        let view = lane(&state, number);
        assert_eq!((view.members, view.in_sync), (devices(&[1, 2, 4]), devices(&[1, 2, 3])), "the set stays");
        assert_eq!((view.version, view.replacement.unwrap().leaving), (0, device(3)));
    }
    assert_eq!(state.volume_spec(state.volume(VOLUME).unwrap()).lanes, vec![devices(&[1, 2, 4]); 2]);
    assert_eq!(state.device(device(3)).unwrap().lane_count, 2, "it still holds them");
    assert_eq!(state.device(device(4)).unwrap().lane_count, 2);
    // Repeated, it changes nothing.
    assert_eq!(state.apply(&replace(3, 4)), Ok(Response::Done));
    // Both in one step.
    assert_eq!(cas(&mut state, change(1, 0, &[1, 2, 4])), Ok(record(1, 1, &[1, 2, 4])));
    assert_eq!(lane(&state, 0).replacement, None);
    assert_eq!(state.deleted_on(device(3)).count(), 0, "the other lane is not done");
    assert_eq!(code(cas(&mut state, change(1, 1, &[1, 2, 3]))), "not_a_member");
    cas(&mut state, LaneCas { lane: 1, ..change(1, 0, &[1, 2, 4]) }).unwrap();
    assert_eq!(state.device(device(3)).unwrap().lane_count, 0);
    // The writer may not have the answers yet and counts it: a change that it sends afterwards says that it has.
    assert_eq!(state.deleted_on(device(3)).count(), 0);
    cas(&mut state, LaneCas { lane: 1, ..change(1, 1, &[1, 2, 4]) }).unwrap();
    assert_eq!(state.deleted_on(device(3)).count(), 0, "the other lane's writer may count it");
    cas(&mut state, change(1, 1, &[1, 2, 4])).unwrap();
    assert_eq!(state.deleted_on(device(3)).collect::<Vec<_>>(), vec![VOLUME]);
    assert_eq!(state.apply(&replace(3, 4)), Ok(Response::Done), "it is done");
    // Not back before its space is free.
    let check = Command::CheckReclaim { device: device(3), volume: VOLUME };
    assert_eq!(state.apply(&check), Ok(Response::Reclaim(Some(Epoch(1)))), "whoever knows less is fenced");
    assert_eq!(code(state.apply(&replace(4, 3))), "device_unfit");
    state.apply(&Command::Reclaimed { device: device(3), volumes: vec![VOLUME] }).unwrap();
    assert_eq!(code(state.apply(&check)), "nothing_to_reclaim");
    assert_eq!(state.apply(&replace(4, 3)), Ok(Response::Done));
}

#[test]
fn a_set_has_three_devices_at_most_and_the_leaving_one_counts() {
    let mut state = with_spare();
    open(&mut state, &attach(1, 1, false)).unwrap();
    state.apply(&replace(2, 4)).unwrap();
    assert_eq!(code(cas(&mut state, change(1, 0, &[1, 2, 3, 4]))), "invalid");
    // The leaving one alone may hold the lane: sets are never empty, whoever is wanted.
    assert_eq!(cas(&mut state, change(1, 0, &[2])), Ok(record(1, 1, &[2])));
    // It may still come back while the joining one is not there: the writer may have asked before it knew.
    assert_eq!(cas(&mut state, change(1, 1, &[1, 3])), Ok(record(1, 2, &[1, 3])));
    assert_eq!(cas(&mut state, change(1, 2, &[1, 2, 3])), Ok(record(1, 3, &[1, 3, 2])));
    assert!(lane(&state, 0).replacement.is_some());
    cas(&mut state, change(1, 3, &[1, 4])).unwrap();
    assert_eq!(lane(&state, 0).replacement, None);
    // The record of the open answers as before.
    assert_eq!(open(&mut state, &attach(1, 1, false)).unwrap().lanes[0].in_sync, devices(&[1, 2, 3]));
}

#[test]
fn a_replacement_is_taken_back_until_the_joining_device_is_in_sync() {
    let mut state = with_spare();
    open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(code(state.apply(&cancel(3, 4))), "nothing_to_replace");
    state.apply(&replace(3, 4)).unwrap();
    cas(&mut state, change(1, 0, &[1, 2, 4])).unwrap();
    // Lane 0 has swapped; lane 1 goes back.
    assert_eq!(state.apply(&cancel(3, 4)), Ok(Response::Done));
    assert_eq!(state.apply(&cancel(3, 4)), Ok(Response::Done), "repeated");
    assert_eq!(lane(&state, 0).members, devices(&[1, 2, 4]));
    assert_eq!((lane(&state, 1).members, lane(&state, 1).in_sync), (devices(&[1, 2, 3]), devices(&[1, 2, 3])));
    assert_eq!(lane(&state, 1).replacement, None);
    // A swap that the writer asks for before it knows is refused; that it takes it back is a change like any.
    let late = LaneCas { lane: 1, ..change(1, 0, &[1, 2, 4]) };
    assert_eq!(code(cas(&mut state, late)), "not_a_member");
    cas(&mut state, LaneCas { lane: 1, ..change(1, 0, &[1, 2, 3]) }).unwrap();
    assert_eq!(state.deleted_on(device(4)).count(), 0, "lane 0 has it");
    // A change of mind again, at once.
    assert_eq!(state.apply(&replace(3, 4)), Ok(Response::Done));
}

#[test]
fn the_answer_to_an_open_stays_when_a_replacement_is_taken_back() {
    let mut state = with_spare();
    state.apply(&replace(1, 4)).unwrap();
    let granted = open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(granted.lanes[0].in_sync, devices(&[2, 3, 1]));
    state.apply(&cancel(1, 4)).unwrap();
    assert_eq!(lane(&state, 0).in_sync, devices(&[1, 2, 3]));
    assert_eq!(open(&mut state, &attach(1, 1, false)), Ok(granted));
}

#[test]
fn an_open_frees_what_was_sent_away() {
    let mut state = with_spare();
    state.apply(&replace(3, 4)).unwrap();
    state.apply(&cancel(3, 4)).unwrap();
    assert_eq!(lane(&state, 0).replacement, None);
    assert_eq!(state.deleted_on(device(4)).count(), 0, "a writer that was there may still name it");
    open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(state.deleted_on(device(4)).count(), 1);
}

#[test]
fn who_has_parted_may_come_back_until_it_frees_its_space() {
    let mut state = with_spare();
    open(&mut state, &attach(1, 1, false)).unwrap();
    state.apply(&replace(3, 4)).unwrap();
    for number in 0..2 {
        cas(&mut state, LaneCas { lane: number, ..change(1, 0, &[1, 2, 4]) }).unwrap();
    }
    assert_eq!(state.apply(&replace(4, 3)), Ok(Response::Done));
    for number in 0..2 {
        cas(&mut state, LaneCas { lane: number, ..change(1, 1, &[1, 2, 4]) }).unwrap();
    }
    assert_eq!(state.deleted_on(device(3)).count(), 0, "it is wanted");
    // A device that is gone frees nothing.
    let mut gone = with_spare();
    gone.apply(&replace(3, 4)).unwrap();
    gone.apply(&cancel(3, 4)).unwrap();
    gone.apply(&Command::SetDeviceState { id: device(4), state: DeviceState::Out }).unwrap();
    open(&mut gone, &attach(1, 1, false)).unwrap();
    assert_eq!(gone.deleted_on(device(4)).count(), 0);
}

/// Both the leaving and the joining device are dead: a third one takes the place at once, whoever is attached.
#[test]
fn a_joining_device_that_dies_bars_nobody() {
    let mut state = with_spare();
    state.apply(&add_device(5, 4)).unwrap();
    open(&mut state, &attach(1, 1, false)).unwrap();
    state.apply(&replace(3, 4)).unwrap();
    cas(&mut state, change(1, 0, &[1, 2])).unwrap();
    let mut other = state.clone();
    assert_eq!(state.apply(&replace(4, 5)), Ok(Response::Done));
    assert_eq!(state.apply(&replace(4, 5)), Ok(Response::Done), "repeated");
    let view = lane(&state, 0);
    assert_eq!((view.members, view.in_sync, view.version), (devices(&[1, 2, 5]), devices(&[1, 2]), 1));
    assert_eq!(view.replacement, Some(Replacement { leaving: device(3), joining: device(5) }));
    assert_eq!(lane(&state, 1).in_sync, devices(&[1, 2, 3]), "who leaves counts as before");
    assert_eq!(state.device(device(4)).unwrap().lane_count, 0);
    // A writer that had caught the former one up is refused, and records its set anew.
    assert_eq!(code(cas(&mut state, change(1, 1, &[1, 2, 4]))), "not_a_member");
    cas(&mut state, change(1, 1, &[1, 2])).unwrap();
    cas(&mut state, LaneCas { lane: 1, ..change(1, 0, &[1, 2, 5]) }).unwrap();
    cas(&mut state, change(1, 2, &[1, 2, 5])).unwrap();
    assert_eq!((lane(&state, 0).replacement, lane(&state, 1).replacement), (None, None));
    assert_eq!(state.deleted_on(device(4)).count(), 1);
    // Or it is taken back, and the leaving one replaced by another.
    other.apply(&cancel(3, 4)).unwrap();
    assert_eq!(other.apply(&replace(3, 5)), Ok(Response::Done));
    assert_eq!(lane(&other, 0).members, devices(&[1, 2, 5]));
}

/// Symptom: a member that is dead for good can neither be replaced nor can the replacement of another one end or be taken
/// back. Cause: the leaving device stays for as long as a wanted one is missing, and that one waited for it to go.
#[test]
fn a_dead_member_is_replaced_while_another_one_is_being_replaced() {
    let mut state = with_spare();
    state.apply(&add_device(5, 3)).unwrap();
    open(&mut state, &attach(1, 1, false)).unwrap();
    cas(&mut state, change(1, 0, &[1, 2])).unwrap();
    cas(&mut state, LaneCas { lane: 1, ..change(1, 0, &[1, 2]) }).unwrap();
    state.apply(&replace(1, 4)).unwrap();
    let mut early = state.clone();
    // Device 4 has everything; device 1 stays, so that there are as many copies as before.
    cas(&mut state, change(1, 1, &[1, 2, 4])).unwrap();
    for state in [&mut early, &mut state] {
        assert_eq!(state.apply(&replace(3, 5)), Ok(Response::Done));
        assert_eq!(state.apply(&replace(3, 5)), Ok(Response::Done), "repeated");
        let view = lane(state, 0);
        assert_eq!(view.members, devices(&[4, 2, 5]));
        assert_eq!(view.replacement, Some(Replacement { leaving: device(1), joining: device(4) }));
        assert_eq!((state.device(device(3)).unwrap().lane_count, state.deleted_on(device(3)).count()), (0, 0));
        // It may come back meanwhile, but not in the place of one that counts.
        assert_eq!(code(state.apply(&replace(2, 3))), "replacement_pending");
    }
    assert_eq!(code(cas(&mut state, change(1, 2, &[1, 2, 3]))), "not_a_member", "a writer that does not know yet");
    cas(&mut state, change(1, 2, &[2, 4, 5])).unwrap();
    assert_eq!((lane(&state, 0).replacement, lane(&state, 0).in_sync), (None, devices(&[4, 2, 5])));
    assert_eq!(early.apply(&cancel(1, 4)), Ok(Response::Done), "the first one can still be taken back");
    assert_eq!(lane(&early, 0).members, devices(&[1, 2, 5]));
}

#[test]
fn one_change_at_a_time() {
    let mut state = with_spare();
    state.apply(&add_device(5, 3)).unwrap();
    state.apply(&replace(3, 4)).unwrap();
    let refused = state.apply(&replace(2, 5)).unwrap_err();
    assert_eq!(refused.code(), "replacement_pending");
    assert!(refused.to_string().contains(&device(4).to_string()), "{refused}");
    assert_eq!(code(state.apply(&replace(4, 3))), "replacement_pending", "that is to cancel it");
    // A joining device that is in sync is led nowhere else while the leaving one is there.
    open(&mut state, &attach(1, 1, false)).unwrap();
    cas(&mut state, change(1, 0, &[2, 3, 4])).unwrap();
    assert_eq!(code(state.apply(&replace(4, 5))), "replacement_pending");
}

#[test]
fn the_joining_device_must_be_fit() {
    let mut state = cluster(&[Some("a"), Some("b"), Some("c"), Some("b"), Some("d"), None]);
    let mut spread = create(VOLUME, "v", vec![devices(&[1, 2, 3])]);
    spread.spread = Spread { level: SpreadLevel::Zone, soft: false };
    state.apply(&Command::CreateVolume(spread)).unwrap();
    state.apply(&add_device(7, 1)).unwrap();
    let before = state.clone();
    let mut refused = |leaving, joining| state.apply(&replace(leaving, joining)).unwrap_err();
    assert_eq!(refused(3, 9).code(), "device_not_found");
    assert_eq!(refused(9, 4).code(), "device_not_found");
    assert_eq!(refused(4, 5).code(), "nothing_to_replace");
    assert_eq!((refused(3, 2).code(), refused(3, 3).code()), ("device_unfit", "device_unfit"));
    let shared = refused(3, 4).to_string();
    assert!(shared.contains("zone b") && shared.contains(&device(2).to_string()), "{shared}");
    assert!(refused(3, 7).to_string().contains("node n1"), "the same node, always");
    assert!(refused(3, 6).to_string().contains("no zone label"));
    assert_eq!(before, state);
    for (given, accepted) in [(DeviceState::Draining, false), (DeviceState::Full, true), (DeviceState::Failed, false)] {
        state.apply(&Command::SetDeviceState { id: device(5), state: given }).unwrap();
        assert_eq!(state.clone().apply(&replace(3, 5)).is_ok(), accepted, "{given:?}");
    }
    // In the zone of the one that leaves it is welcome.
    assert_eq!(state.apply(&replace(2, 4)), Ok(Response::Done));
}

#[test]
fn a_deleted_volume_is_reclaimed_from_every_device_of_a_replacement() {
    let mut state = with_spare();
    state.apply(&replace(3, 4)).unwrap();
    state.apply(&Command::DeleteVolume { volume: VOLUME }).unwrap();
    for number in 1..=4 {
        assert_eq!(state.deleted_on(device(number)).count(), 1, "device {number}");
        let check = Command::CheckReclaim { device: device(number), volume: VOLUME };
        assert_eq!(state.apply(&check), Ok(Response::Reclaim(None)));
        assert_eq!(state.device(device(number)).unwrap().lane_count, 0);
        state.apply(&Command::Reclaimed { device: device(number), volumes: vec![VOLUME] }).unwrap();
    }
    // A device that the volume had left before keeps a promise of it, and nobody remembers that.
    let check = Command::CheckReclaim { device: device(4), volume: VOLUME };
    assert_eq!(state.apply(&check), Ok(Response::Reclaim(None)));
}

#[test]
fn maintenance_gives_way_to_everybody_else() {
    let mut state = with_spare();
    let maintain = |node, attempt| {
        let mut attach = attach(node, attempt, false);
        attach.mode = AttachMode::Maintenance;
        attach
    };
    let mode = |state: &State| state.volume(VOLUME).unwrap().attachment.unwrap().mode;
    open(&mut state, &maintain(1, 1)).unwrap();
    assert_eq!(code(open(&mut state, &maintain(2, 1))), "attached_elsewhere");
    // A dead caretaker is followed by another.
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    open(&mut state, &maintain(2, 1)).unwrap();
    // Its own guests make it an ordinary attachment: same writer, same grant, and a late duplicate changes nothing.
    let granted = open(&mut state, &attach(2, 1, false)).unwrap();
    assert_eq!((granted.epoch.0, mode(&state)), (2, AttachMode::ReadWrite));
    assert_eq!(open(&mut state, &maintain(2, 1)), Ok(granted));
    assert_eq!(mode(&state), AttachMode::ReadWrite);
    assert_eq!(code(open(&mut state, &attach(3, 1, false))), "attached_elsewhere");
    assert_eq!(code(open(&mut state, &maintain(3, 1))), "attached_elsewhere");
    state.apply(&detach_holder(2, 1)).unwrap();
    // Anybody's attach wins over maintenance, and deleting does not wait for it.
    open(&mut state, &maintain(2, 2)).unwrap();
    assert_eq!(open(&mut state, &attach(3, 1, false)).unwrap().epoch.0, 4);
    state.apply(&detach_holder(3, 1)).unwrap();
    open(&mut state, &maintain(2, 3)).unwrap();
    assert_eq!(state.apply(&Command::DeleteVolume { volume: VOLUME }), Ok(Response::Done));
}

/// Symptom: nobody brings a volume in sync whose guests died with their daemon. Guests of a node that is only said to be down
/// are left alone.
#[test]
fn maintenance_takes_a_volume_from_a_daemon_that_has_ended() {
    let mut state = with_spare();
    let mut maintain = attach(2, 1, false);
    maintain.mode = AttachMode::Maintenance;
    open(&mut state, &attach(1, 1, false)).unwrap();
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(code(open(&mut state, &maintain)), "attached_elsewhere");
    let mut restarted = node_spec(1, None);
    restarted.session = session(101);
    state.apply(&Command::UpdateNode { id: NodeId(1), node: restarted }).unwrap();
    assert_eq!(open(&mut state, &maintain).unwrap().epoch, Epoch(2));
    assert_eq!(state.volume(VOLUME).unwrap().attachment.unwrap().mode, AttachMode::Maintenance);
}

/// What must be remembered of one lane, without masks or positions.
#[derive(Clone, Debug, PartialEq)]
struct Naive {
    wanted: BTreeSet<u64>,
    change: Option<(u64, u64)>,
    in_sync: BTreeSet<u64>,
    granted: BTreeSet<u64>,
    version: u64,
    epoch: u64,
    parting: BTreeSet<u64>,
    reclaims: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Replace(u64, u64),
    Cancel(u64, u64),
    /// Epochs and versions behind the current ones, and the set.
    Cas(u64, u64, BTreeSet<u64>),
    Open,
    Reclaimed(u64),
}

impl Naive {
    fn settle(&mut self) {
        if let Some((leaving, joining)) = self.change
            && self.in_sync.contains(&joining)
            && !self.in_sync.contains(&leaving)
        {
            self.change = None;
            self.parting.insert(leaving);
        }
    }

    fn swap(&mut self, from: u64, to: u64) {
        self.wanted.remove(&from);
        self.wanted.insert(to);
        self.parting.remove(&to);
    }

    /// True if the step is accepted.
    fn apply(&mut self, step: &Step) -> bool {
        match step {
            Step::Replace(leaving, joining) => {
                if !self.wanted.contains(leaving) {
                    return self.wanted.contains(joining);
                }
                if self.wanted.contains(joining) || self.reclaims.contains(joining) {
                    return false;
                }
                match self.change {
                    None => self.change = Some((*leaving, *joining)),
                    Some((first, second)) => {
                        if self.in_sync.contains(leaving) || first == *joining {
                            return false;
                        }
                        if second == *leaving {
                            self.change = Some((first, *joining));
                        }
                        self.parting.insert(*leaving);
                    }
                }
                self.swap(*leaving, *joining);
                true
            }
            Step::Cancel(leaving, joining) => {
                if self.change != Some((*leaving, *joining)) {
                    return self.parting.contains(joining) && self.wanted.contains(leaving);
                }
                if self.in_sync.contains(joining) {
                    return false;
                }
                self.swap(*joining, *leaving);
                self.parting.insert(*joining);
                self.change = None;
                true
            }
            Step::Cas(epochs, versions, set) => {
                if (*epochs, *versions) != (0, 0) {
                    return true;
                }
                let known = |device: &u64| {
                    self.wanted.contains(device) || self.change.is_some_and(|(leaving, _)| leaving == *device)
                };
                if set.is_empty() || set.len() > 3 || !set.iter().all(known) {
                    return false;
                }
                self.in_sync.clone_from(set);
                self.version += 1;
                self.reclaims.append(&mut self.parting);
                self.settle();
                true
            }
            Step::Open => {
                self.epoch += 1;
                self.reclaims.append(&mut self.parting);
                self.granted.clone_from(&self.in_sync);
                true
            }
            Step::Reclaimed(device) => {
                self.reclaims.remove(device);
                true
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 1u64..6;
    prop_oneof![
        3 => (n(), n()).prop_map(|(leaving, joining)| Step::Replace(leaving, joining)),
        2 => (n(), n()).prop_map(|(leaving, joining)| Step::Cancel(leaving, joining)),
        6 => (0u64..8, 0u64..8, proptest::collection::btree_set(n(), 0..5)).prop_map(|(epochs, versions, set)| {
            Step::Cas(epochs.saturating_sub(6), versions.saturating_sub(6), set)
        }),
        1 => Just(Step::Open),
        1 => n().prop_map(Step::Reclaimed),
    ]
}

fn numbers(devices: &[DeviceId]) -> BTreeSet<u64> {
    devices.iter().map(|device| device.as_u128() as u64).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_interleaving_ends_as_in_the_naive_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut state = cluster(&[None; 5]);
        state.apply(&Command::CreateVolume(create(VOLUME, "v", vec![devices(&[1, 2, 3])]))).unwrap();
        let first: BTreeSet<u64> = (1..=3).collect();
        let mut naive = Naive {
            wanted: first.clone(),
            change: None,
            in_sync: first.clone(),
            granted: first,
            version: 0,
            epoch: 0,
            parting: BTreeSet::new(),
            reclaims: BTreeSet::new(),
        };
        for (attempt, step) in (1..).zip(std::iter::once(&Step::Open).chain(&steps)) {
            let mut expected = naive.clone();
            let accepted = expected.apply(step);
            let done = match step {
                Step::Replace(leaving, joining) => state.apply(&replace(*leaving, *joining)).is_ok(),
                Step::Cancel(leaving, joining) => state.apply(&cancel(*leaving, *joining)).is_ok(),
                Step::Cas(epochs, versions, set) => {
                    let set = set.iter().copied().collect::<Vec<_>>();
                    let (epoch, version) = (naive.epoch.saturating_sub(*epochs), naive.version + versions);
                    cas(&mut state, change(epoch, version, &set)).is_ok()
                }
                Step::Open => {
                    open(&mut state, &attach(1, attempt, false)).is_ok()
                }
                Step::Reclaimed(number) => {
                    state.apply(&Command::Reclaimed { device: device(*number), volumes: vec![VOLUME] }).is_ok()
                }
            };
            prop_assert_eq!(done, accepted, "{:?} in {:?}", step, naive);
            naive = if accepted { expected } else { naive };
            let view = lane(&state, 0);
            prop_assert_eq!(numbers(&view.members), naive.wanted.clone());
            prop_assert_eq!(numbers(&view.in_sync), naive.in_sync.clone());
            prop_assert!(!view.in_sync.is_empty() && view.in_sync.len() <= 3);
            let change = view.replacement.map(|r| (r.leaving.as_u128() as u64, r.joining.as_u128() as u64));
            prop_assert_eq!(change, naive.change);
            prop_assert_eq!(view.version, naive.version);
            let reclaims = (1..6).filter(|number| state.deleted_on(device(*number)).count() > 0).collect::<BTreeSet<_>>();
            prop_assert_eq!(&reclaims, &naive.reclaims);
            let kept = state.volume(VOLUME).unwrap().lanes[0].granted.as_ref();
            let granted = kept.map_or_else(|| numbers(&view.in_sync), |granted| numbers(&granted.in_sync));
            prop_assert_eq!(granted, naive.granted.clone(), "the answer to the open stays");
        }
    }
}
