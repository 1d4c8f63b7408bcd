//! The metadata service as one linearizable object: the shipping state machine behind one door.
//!
//! It must never know the network: what is lost, late or repeated is decided by the caller.

use super::options::Options;
use ashlar_model::cluster::{AttachGrant, LaneCas, LaneCasReply, QuorumPolicy, VolumeSpec};
use ashlar_model::units::GIB;
use ashlar_model::{ClusterId, DeviceId, Epoch, NodeId, SessionId, VolumeGeometry, VolumeId};
use ashlar_raft::command::{Attach, CreateVolume, DetachBy, LaneScope, NodeSpec};
use ashlar_raft::state::entities::{AttachMode, Labels, Lane, Replacement, Roles, Volume};
use ashlar_raft::{Command, Refusal, Response, State};

/// Machines that run writers and have no device.
pub const DISKLESS: usize = 2;

/// A run of a writer as the metadata knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its machine, from zero.
    pub machine: usize,
    /// Run of the machine's daemon.
    pub session: u64,
    /// Number within the session.
    pub attempt: u64,
}

/// Metadata of a cluster with one volume.
#[derive(Debug)]
pub struct Metadata {
    state: State,
    volume: VolumeId,
    /// Per machine: the daemon's present run, and its last attempt to attach.
    machines: Vec<(u64, u64)>,
    /// Counts restores: what was asked before one is never answered.
    pub life: u64,
}

fn node_id(machine: usize) -> NodeId {
    NodeId(machine as u64 + 1)
}

fn session_id(machine: usize, session: u64) -> SessionId {
    SessionId::from_u128((machine as u128 + 1) << 64 | u128::from(session))
}

fn node_spec(machine: usize, session: u64) -> NodeSpec {
    NodeSpec {
        name: format!("node{machine}"),
        api_address: format!("10.0.0.{machine}:80"),
        data_address: format!("10.0.0.{machine}:81"),
        labels: Labels::default(),
        roles: Roles { store: true, target: true, meta: true },
        session: session_id(machine, session),
        shards: 1,
    }
}

impl Metadata {
    /// A new cluster: one device on each machine but the last ones, and a new volume on the first of them.
    pub fn new(options: &Options, volume: VolumeId, size_bytes: u64, devices: &[DeviceId]) -> Self {
        let machines = vec![(1, 0); devices.len() + DISKLESS];
        let mut metadata = Self { state: State::default(), volume, machines, life: 0 };
        let copyset = &devices[..options.devices];
        let cluster = ClusterId::from_u128(0xC1);
        metadata.must(&Command::InitCluster {
            cluster,
            name: "sim".into(),
            node_id: node_id(0),
            node: node_spec(0, 1),
        });
        for machine in 1..metadata.machines.len() {
            metadata.must(&Command::AddNode { id: Some(node_id(machine)), node: node_spec(machine, 1) });
        }
        for (machine, device) in devices.iter().enumerate() {
            metadata.add_device(machine, *device);
        }
        metadata.must(&Command::CreateVolume(CreateVolume {
            id: volume,
            name: "vol".into(),
            labels: Default::default(),
            geometry: VolumeGeometry { size_bytes, lane_count: options.lanes },
            replicas: copyset.len() as u8,
            quorum: QuorumPolicy::Majority,
            in_sync_min: 1,
            spread: Default::default(),
            locality: Default::default(),
            class: None,
            lanes: vec![copyset.to_vec(); usize::from(options.lanes)],
            token: None,
        }));
        metadata
    }

    fn must(&mut self, command: &Command) {
        self.state.apply(command).expect("set-up commands are accepted");
    }

    /// Registers a formatted device.
    pub fn add_device(&mut self, machine: usize, id: DeviceId) {
        let ordinal = self.state.devices().filter(|device| device.node == node_id(machine)).count() as u32;
        self.must(&Command::AddDevice {
            id,
            node: node_id(machine),
            name: "/dev/sim".into(),
            class: "ssd".into(),
            capacity_bytes: GIB,
            ordinal,
        });
    }

    /// Applies a command.
    ///
    /// # Errors
    /// The refusal.
    pub fn apply(&mut self, command: &Command) -> Result<Response, Refusal> {
        self.state.apply(command)
    }

    /// The daemon of a machine is a new one from now on.
    pub fn restart_daemon(&mut self, machine: usize) {
        self.machines[machine].0 += 1;
        let node = node_spec(machine, self.machines[machine].0);
        self.must(&Command::UpdateNode { id: node_id(machine), node });
    }

    /// Names a new writer on a machine.
    pub fn new_owner(&mut self, machine: usize) -> Owner {
        let (session, attempt) = &mut self.machines[machine];
        *attempt += 1;
        Owner { machine, session: *session, attempt: *attempt }
    }

    /// M1; `None`: refused.
    pub fn attach(&mut self, owner: Owner) -> Option<AttachGrant> {
        let attach = Attach {
            volume: self.volume,
            node: node_id(owner.machine),
            session: session_id(owner.machine, owner.session),
            attempt: owner.attempt,
            mode: AttachMode::ReadWrite,
            takeover: true,
        };
        match self.apply(&Command::Attach(attach)) {
            Ok(Response::Attached(grant)) => Some(grant),
            _ => None,
        }
    }

    /// M2; `None`: refused, because the lane's members have changed.
    ///
    /// # Errors
    /// A refusal that no correct writer provokes.
    pub fn cas(&mut self, cas: LaneCas) -> Result<Option<LaneCasReply>, String> {
        let Ok(Response::LaneCas(mut replies)) = self.apply(&Command::LaneCas(vec![cas])) else {
            return Err("a compare-and-set was not answered as one".into());
        };
        match replies.pop() {
            Some(Ok(reply)) => Ok(Some(reply)),
            Some(Err(Refusal::NotMember { .. })) => Ok(None), // members changed meanwhile
            Some(Err(refusal)) => Err(format!("a compare-and-set was refused: {refusal}")),
            None => Err("a compare-and-set got no answer".into()),
        }
    }

    /// The writer says that it is over.
    pub fn detach(&mut self, owner: Owner) {
        let (node, session) = (node_id(owner.machine), session_id(owner.machine, owner.session));
        let by = DetachBy::Holder { node, session, attempt: owner.attempt };
        self.must(&Command::Detach { volume: self.volume, by });
    }

    /// Wants a new, empty device of the same machine in the place of one that is gone; false: refused.
    pub fn replace(&mut self, machine: usize, leaving: DeviceId, joining: DeviceId) -> bool {
        self.add_device(machine, joining);
        self.replace_by(leaving, joining)
    }

    /// Makes the volume larger.
    pub fn resize(&mut self, size_bytes: u64) {
        self.must(&Command::ResizeVolume { volume: self.volume, size_bytes });
    }

    /// Wants some lanes on another device; false: refused.
    pub fn move_lanes(&mut self, lanes: Vec<u16>, leaving: DeviceId, joining: DeviceId) -> bool {
        self.apply(&Command::MoveLanes { volume: self.volume, lanes, leaving, joining }).is_ok()
    }

    /// Takes the change of a lane's members back; false: there is none, or it is too late.
    pub fn cancel_move(&mut self, lane: u16) -> bool {
        let Some(change) = self.lane(lane).replacement.as_deref().copied() else { return false };
        let Replacement { leaving, joining } = change;
        self.apply(&Command::CancelReplacement { volume: self.volume, leaving, joining }).is_ok()
    }

    /// Leave for a device to free what it holds of the volume, with the promise that stays.
    pub fn may_free(&mut self, device: DeviceId) -> Option<Epoch> {
        match self.apply(&Command::CheckReclaim { device, volume: self.volume }) {
            Ok(Response::Reclaim(promise)) => promise,
            _ => None,
        }
    }

    /// A device says that it holds nothing of the volume any more.
    pub fn freed(&mut self, device: DeviceId) {
        self.must(&Command::Reclaimed { device, volumes: vec![self.volume] });
    }

    /// The device was told to free what it holds of the volume.
    pub fn shall_free(&self, device: DeviceId) -> bool {
        self.state.deleted_on(device).any(|volume| volume == self.volume)
    }

    /// What a backup would hold.
    pub fn backup(&self) -> State {
        self.state.clone()
    }

    /// All metadata is lost, and is what this backup says from now on. Every daemon is a new one.
    pub fn restore(&mut self, backup: State) {
        self.life += 1;
        self.state = backup;
        self.state.restore(self.life << 21).expect("a backup can be restored");
        for machine in 0..self.machines.len() {
            self.restart_daemon(machine);
        }
    }

    /// The restore did not happen.
    pub fn take_back(&mut self, state: State) {
        self.state = state;
        self.life -= 1;
        for machine in &mut self.machines {
            machine.0 -= 1;
        }
    }

    /// Wants a device of the same machine, which is known, in the place of one that is gone; false: refused.
    pub fn replace_by(&mut self, leaving: DeviceId, joining: DeviceId) -> bool {
        self.apply(&Command::ReplaceDevice { volume: self.volume, leaving, joining }).is_ok()
    }

    /// An operator says that a lane does not have to wait for this device.
    pub fn disregard(&mut self, device: DeviceId, lane: u16) {
        let scope = LaneScope { volume: Some(self.volume), lane: Some(lane) };
        self.must(&Command::Disregard { device, scope });
    }

    /// The metadata knows the device.
    pub fn knows(&self, device: DeviceId) -> bool {
        self.state.device(device).is_some()
    }

    /// No writer has looked at this lane since the metadata was restored.
    pub fn is_unverified(&self, lane: u16) -> bool {
        self.lane(lane).unverified
    }

    /// Wanted members of a lane.
    pub fn members(&self, lane: u16) -> Vec<DeviceId> {
        self.state.lane_view(self.lane(lane)).members
    }

    /// Members of a lane and the device that leaves it.
    pub fn devices_of(&self, lane: u16) -> Vec<DeviceId> {
        self.state.devices_of(self.lane(lane))
    }

    /// The members of a lane are being changed.
    pub fn is_changing(&self, lane: u16) -> bool {
        self.lane(lane).replacement.is_some()
    }

    fn lane(&self, lane: u16) -> &Lane {
        &self.volume().lanes[usize::from(lane)]
    }

    fn volume(&self) -> &Volume {
        self.state.volume(self.volume).expect("the volume is never deleted")
    }

    /// Number of the latest reign.
    pub fn epoch(&self) -> u64 {
        self.volume().epoch.0
    }

    /// The volume as it is wanted now.
    pub fn spec(&self) -> VolumeSpec {
        self.state.volume_spec(self.volume())
    }

    /// The recorded set of a lane.
    pub fn in_sync(&self, lane: u16) -> Vec<DeviceId> {
        self.state.in_sync(self.lane(lane))
    }

    /// Version of a lane's record.
    pub fn version(&self, lane: u16) -> u64 {
        self.lane(lane).version
    }
}
