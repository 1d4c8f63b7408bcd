//! Replacement of a copyset member: what is wanted changes here, what is in sync only by the writer (M3).
//!
//! A lane wants the joining device at once and remembers the leaving one until the writer has recorded an in-sync set
//! with the former and without the latter. Until then both may be in the set, so the change is safe at every step. While
//! the joining device is not in sync the change may be taken back, or led to a third device: one that dies on its way
//! in bars nobody. Nor does a change under way bar another member that is not in sync: it gives its place to another
//! device at once, since no set counts it. A compare-and-set under way that names a device which is not wanted any more is refused, and its
//! writer records the former set anew.
//!
//! Who is not wanted any more is *parting*: the writer may not know yet that the record does without it, and may still
//! count it. So it frees what it holds only after the next compare-and-set or open of the lane (C4): a writer that sent
//! the former knew of the change before it, and the latter ends every earlier writer. Until then it may come back.
//!
//! Invariant: nothing here changes an in-sync set or a lane's version; a writer would take that for its own change.

use super::State;
use super::entities::{DeviceState, LEAVING_BIT, Lane, Node, Parting, Replacement, SpreadLevel, Volume};
use crate::command::Response;
use crate::placement::domain_of;
use crate::refusal::Refusal;
use crate::state::entities::Admin;
use ashlar_model::{DeviceId, VolumeId};
use std::sync::Arc;

impl State {
    pub(super) fn replace_device(
        &mut self,
        id: VolumeId,
        only: Option<&[u16]>,
        leaving: DeviceId,
        joining: DeviceId,
    ) -> Result<Response, Refusal> {
        let volume = Arc::clone(self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?);
        for device in [leaving, joining] {
            self.devices.get(&device).ok_or(Refusal::DeviceNotFound(device))?;
        }
        let meant = |number: &usize| only.is_none_or(|lanes| lanes.contains(&(*number as u16)));
        let numbered = volume.lanes.iter().enumerate().filter(|(number, _)| meant(number)).collect::<Vec<_>>();
        let on_it = |lane: &&(usize, &Lane)| self.members(lane.1.copyset).contains(&leaving);
        let concerned = numbered.iter().filter(on_it).map(|(number, _)| *number).collect::<Vec<_>>();
        if concerned.is_empty() {
            // Repeated: under way, or done. A volume that has neither device never was asked for this.
            let known = |lane: &(usize, &Lane)| self.members(lane.1.copyset).contains(&joining);
            return match numbered.iter().any(known) {
                true => Ok(Response::Done),
                false => Err(Refusal::NothingToReplace { volume: id, why: format!("is on device {leaving}") }),
            };
        }
        self.check_joining(&volume, joining)?;
        for number in &concerned {
            self.check_replacement(&volume, *number, leaving, joining)?;
        }
        for number in concerned {
            self.replace_in_lane(id, number, leaving, joining);
        }
        Ok(Response::Done)
    }

    fn check_joining(&self, volume: &Volume, joining: DeviceId) -> Result<(), Refusal> {
        let unfit = |why: String| Refusal::DeviceUnfit { device: joining, why };
        let device = self.devices.get(&joining).ok_or(Refusal::DeviceNotFound(joining))?;
        // An operator may choose a full device: what it lacks is said, not forbidden.
        if !matches!(device.state, DeviceState::In | DeviceState::Full) {
            return Err(unfit(format!("is {:?} and gets no lanes", device.state).to_lowercase()));
        }
        let node = self.node_of_device(joining).ok_or(Refusal::NodeNotFound(device.node))?;
        if node.admin != Admin::Active {
            return Err(unfit(format!("is on node {}, which is being emptied", node.name)));
        }
        if self.still_frees(volume.id, joining) {
            let why = format!("still frees what it held of volume '{}'; repeat this when it is done", volume.name);
            return Err(unfit(why));
        }
        Ok(())
    }

    fn check_replacement(
        &self,
        volume: &Volume,
        number: usize,
        leaving: DeviceId,
        joining: DeviceId,
    ) -> Result<(), Refusal> {
        let lane = &volume.lanes[number];
        if let Some(pending) = lane.replacement.as_deref().copied()
            && (pending.leaving == joining || self.in_sync(lane).contains(&leaving))
        {
            let Replacement { leaving, joining } = pending;
            return Err(Refusal::ReplacementPending { volume: volume.id, lane: number as u16, leaving, joining });
        }
        let members = self.members(lane.copyset);
        let unfit = |why: String| Refusal::DeviceUnfit { device: joining, why };
        if members.contains(&joining) {
            return Err(unfit(format!("is a member of lane {number} of volume '{}' already", volume.name)));
        }
        let node = self.node_of_device(joining).ok_or(Refusal::DeviceNotFound(joining))?;
        for other in members.iter().filter(|member| **member != leaving) {
            let Some(neighbour) = self.node_of_device(*other) else { continue };
            if let Some(shared) = shared_domain(volume, node, neighbour) {
                return Err(unfit(format!(
                    "is on {shared}, as is device {other}, which stays a member of lane {number} of volume '{}'",
                    volume.name
                )));
            }
        }
        let level = volume.spread.level;
        if !volume.spread.soft && domain_of(node, level).is_none() {
            let why = format!("is on node {}, which has no {level:?} label", node.name).to_lowercase();
            return Err(unfit(why));
        }
        Ok(())
    }

    /// Checked already. While a change is under way a device that is not in sync just gives its place: if it was to join
    /// for another one, who leaves stays the same.
    fn replace_in_lane(&mut self, id: VolumeId, number: usize, leaving: DeviceId, joining: DeviceId) {
        let under_way = self.volumes[&id].lanes[number].replacement.as_deref().copied();
        let Some(position) = self.change_member(id, number, leaving, joining) else { return };
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { return };
        let bytes = volume.lane_bytes();
        volume.parting.retain(|parting| *parting != Parting { lane: number as u16, device: joining });
        let lane = &mut volume.lanes[number];
        let bit = 1 << position;
        if lane.in_sync_mask & bit != 0 {
            assert!(under_way.is_none(), "a device in sync is not led aside");
            lane.in_sync_mask = lane.in_sync_mask & !bit | LEAVING_BIT;
        }
        assert!(lane.in_sync_mask != 0, "M4");
        let change = match under_way {
            None => Replacement { leaving, joining },
            Some(change) if change.joining == leaving => Replacement { joining, ..change },
            Some(other) => other,
        };
        lane.replacement = Some(Box::new(change));
        self.charge(joining, bytes);
        if under_way.is_some() {
            self.part(id, number, leaving);
        }
    }

    /// Wants a copyset with one device in the place of another; the answer is that place. The answer to the open stays.
    fn change_member(&mut self, id: VolumeId, number: usize, from: DeviceId, to: DeviceId) -> Option<usize> {
        let volume = &self.volumes[&id];
        let lane = &volume.lanes[number];
        let (copyset, grant) = (lane.copyset, self.lane_grant(volume, lane));
        let mut members = self.members(copyset).to_vec();
        let position = members.iter().position(|member| *member == from)?;
        members[position] = to;
        let new = self.use_copyset(&members);
        let volume = self.volumes.get_mut(&id).map(Arc::make_mut)?;
        let lane = &mut volume.lanes[number];
        lane.keep_grant(grant);
        lane.distrusted |= volume.restored; // it may have been a member in a life that was lost
        lane.copyset = new;
        self.release_copyset(copyset);
        Some(position)
    }

    /// A lane does without the device from now on; its writer may not know that yet.
    fn part(&mut self, id: VolumeId, number: usize, device: DeviceId) {
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { return };
        let bytes = volume.lane_bytes();
        volume.parting.push(Parting { lane: number as u16, device });
        self.discharge(device, bytes);
    }

    pub(super) fn cancel_replacement(
        &mut self,
        id: VolumeId,
        leaving: DeviceId,
        joining: DeviceId,
    ) -> Result<Response, Refusal> {
        let volume = Arc::clone(self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?);
        let wanted = Replacement { leaving, joining };
        let under_way = |lane: &Lane| lane.replacement.as_deref() == Some(&wanted);
        let still_out = |lane: &Lane| !self.in_sync(lane).contains(&joining);
        let lanes = volume.lanes.iter().enumerate();
        let concerned = lanes.filter(|(_, lane)| under_way(lane)).collect::<Vec<_>>();
        let open = concerned.iter().filter(|(_, lane)| still_out(lane)).map(|(number, _)| *number).collect::<Vec<_>>();
        if open.is_empty() {
            let is_back = |parting: &Parting| {
                let members = self.members(volume.lanes[usize::from(parting.lane)].copyset);
                parting.device == joining && members.contains(&leaving)
            };
            if volume.parting.iter().any(is_back) {
                return Ok(Response::Done); // repeated
            }
            let why = match concerned.is_empty() {
                true => format!("is replacing device {leaving} by {joining}"),
                false => format!("can be taken back: device {joining} is in sync"),
            };
            return Err(Refusal::NothingToReplace { volume: id, why });
        }
        for number in open {
            self.cancel_in_lane(id, number, wanted);
        }
        Ok(Response::Done)
    }

    /// The device that was to leave is an ordinary member again.
    fn cancel_in_lane(&mut self, id: VolumeId, number: usize, wanted: Replacement) {
        let Some(position) = self.change_member(id, number, wanted.joining, wanted.leaving) else { return };
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { return };
        let lane = &mut volume.lanes[number];
        let bit = 1 << position;
        assert!(lane.in_sync_mask & bit == 0, "a device in sync is not sent away");
        if lane.in_sync_mask & LEAVING_BIT != 0 {
            lane.in_sync_mask = lane.in_sync_mask & !LEAVING_BIT | bit;
        }
        lane.replacement = None;
        assert!(lane.in_sync_mask != 0, "M4");
        self.part(id, number, wanted.joining);
    }

    /// After a compare-and-set: the change is complete once the record has the one device and not the other. The writer
    /// may not have the answer yet and counts both, so the one that left keeps its data for now.
    pub(super) fn settle_replacement(&mut self, id: VolumeId, number: usize) {
        let lane = &self.volumes[&id].lanes[number];
        let Some(replacement) = lane.replacement.as_deref().copied() else { return };
        let in_sync = self.in_sync(lane);
        if !in_sync.contains(&replacement.joining) || in_sync.contains(&replacement.leaving) {
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) {
            volume.lanes[number].replacement = None;
        }
        self.part(id, number, replacement.leaving);
    }

    /// Before a compare-and-set or an open of the lane takes effect: nobody counts any more who had parted before it. A
    /// device that no lane of the volume needs frees what it holds.
    pub(super) fn free_parted(&mut self, id: VolumeId, number: usize) {
        let of_lane = |parting: &Parting| usize::from(parting.lane) == number;
        if !self.volumes[&id].parting.iter().any(of_lane) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else { return };
        let parted = volume.parting.extract_if(.., |parting| of_lane(parting)).collect::<Vec<_>>();
        let volume = Arc::clone(&self.volumes[&id]);
        for Parting { device, .. } in parted {
            let holds = |lane: &Lane| self.bits_of(lane).any(|(holder, _)| holder == device);
            let used = volume.lanes.iter().any(holds) || volume.parting.iter().any(|other| other.device == device);
            let is_gone = self.devices.get(&device).is_none_or(|device| device.state == DeviceState::Out);
            if !used && !is_gone {
                self.deleted.entry(id).or_default().insert(device);
            }
        }
    }
}

/// What two nodes share that members of one lane must not: always the node, for a hard spread its level.
fn shared_domain(volume: &Volume, one: &Node, other: &Node) -> Option<String> {
    if one.id == other.id {
        return Some(format!("node {}", one.name));
    }
    let level = volume.spread.level;
    let (domain, neighbour) = (domain_of(one, level)?, domain_of(other, level)?);
    let label = match level {
        SpreadLevel::Zone => one.labels.zone.as_ref().map(|zone| format!("zone {zone}")),
        SpreadLevel::Rack => one.labels.rack.as_ref().map(|rack| format!("rack {rack}")),
        SpreadLevel::Node => None,
    };
    if volume.spread.soft || domain != neighbour { None } else { label }
}
