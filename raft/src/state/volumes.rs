//! Volumes: create with a decided placement, grow, delete, reclaim.

use super::entities::{
    AttachMode, Copyset, CopysetId, DeviceState, Lane, SpreadLevel, TokenRecord, Volume, VolumeLabels, full_mask,
    lane_bytes,
};
use super::topology::check_text;
use super::{State, TOKENS_MAX, VOLUMES_MAX};
use crate::command::{CreateVolume, Response};
use crate::placement::domain_of;
use crate::refusal::Refusal;
use ashlar_model::limits::{LANES_MAX, REPLICAS_MAX, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, check_name};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{DeviceId, Epoch, VolumeGeometry, VolumeId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Labels of one volume.
const LABELS_MAX: usize = 32;
/// Bytes of an idempotency token.
const TOKEN_BYTES_MAX: usize = 128;

impl State {
    pub(super) fn create_volume(&mut self, create: &CreateVolume) -> Result<Response, Refusal> {
        if let Some(token) = &create.token {
            check_token(token)?;
            if let Some((name, volume)) = self.indexes.tokens.get(token) {
                return if *name == create.name { Ok(Response::Volume(*volume)) } else { Err(Refusal::TokenReused) };
            }
        }
        if self.volumes.get(&create.id).is_some_and(|known| known.name == create.name) {
            return Ok(Response::Volume(create.id)); // repeated: the identity is fresh for each create
        }
        self.check_create(create)?;
        for members in &create.lanes {
            self.check_members(create, members)?;
        }
        let bytes = lane_bytes(create.geometry);
        let lanes = create.lanes.iter().map(|members| self.new_lane(members, bytes)).collect();
        let volume = Volume {
            id: create.id,
            name: create.name.clone(),
            labels: create.labels.clone(),
            geometry: create.geometry,
            replicas: create.replicas,
            quorum: create.quorum,
            in_sync_min: create.in_sync_min,
            spread: create.spread,
            locality: create.locality,
            class: create.class.clone(),
            epoch: Epoch(0),
            attachment: None,
            attempts: Vec::new(),
            lanes,
            parting: Vec::new(),
            restored: false,
        };
        self.indexes.volume_names.insert(volume.name.clone(), volume.id);
        self.volumes.insert(volume.id, Arc::new(volume));
        if let Some(token) = &create.token {
            self.remember(token, &create.name, create.id);
        }
        Ok(Response::Volume(create.id))
    }

    fn check_create(&self, create: &CreateVolume) -> Result<(), Refusal> {
        check_name("volume", &create.name).map_err(Refusal::Invalid)?;
        check_labels(&create.labels)?;
        check_size(create.geometry.size_bytes)?;
        let VolumeGeometry { lane_count, .. } = create.geometry;
        if lane_count == 0 || lane_count > LANES_MAX || create.lanes.len() != usize::from(lane_count) {
            return Err(Refusal::Invalid(format!("a volume has 1 to {LANES_MAX} lanes, each with its members")));
        }
        if create.replicas == 0 || usize::from(create.replicas) > REPLICAS_MAX {
            return Err(Refusal::Invalid(format!("a volume has 1 to {REPLICAS_MAX} replicas")));
        }
        if create.in_sync_min == 0 || create.in_sync_min > create.replicas {
            return Err(Refusal::Invalid(format!(
                "the minimum of in-sync members is 1 to the number of replicas ({}), not {}",
                create.replicas, create.in_sync_min
            )));
        }
        if self.volumes.contains_key(&create.id) || self.deleted.contains_key(&create.id) {
            return Err(Refusal::IdTaken(format!("volume {}", create.id)));
        }
        if self.indexes.volume_names.contains_key(&create.name) {
            return Err(Refusal::NameTaken { what: "volume".to_owned(), name: create.name.clone() });
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(Refusal::Limit(format!("a cluster has at most {VOLUMES_MAX} volumes")));
        }
        Ok(())
    }

    /// The leader planned on an older state: what it decided must still hold.
    fn check_members(&self, create: &CreateVolume, members: &[DeviceId]) -> Result<(), Refusal> {
        if members.len() != usize::from(create.replicas) {
            return Err(Refusal::Placement(format!("{} members for {} replicas", members.len(), create.replicas)));
        }
        let (mut nodes, mut domains) = (BTreeSet::new(), BTreeSet::new());
        for member in members {
            let (Some(device), Some(node)) = (self.devices.get(member), self.node_of_device(*member)) else {
                return Err(Refusal::Placement(format!("there is no device {member}")));
            };
            if device.state != DeviceState::In {
                return Err(Refusal::Placement(format!("device {member} is not in use")));
            }
            if !nodes.insert(node.id) {
                return Err(Refusal::Placement(format!("two members on node {}", node.name)));
            }
            let Some(domain) = domain_of(node, create.spread.level) else {
                if create.spread.soft {
                    continue;
                }
                return Err(Refusal::Placement(format!("node {} has no {:?} label", node.name, create.spread.level)));
            };
            if !domains.insert(domain) && !create.spread.soft && create.spread.level != SpreadLevel::Node {
                return Err(Refusal::Placement(format!("two members in one {:?}", create.spread.level)));
            }
        }
        Ok(())
    }

    /// A lane that nobody has written: every member holds it, closed cleanly at index 0.
    fn new_lane(&mut self, members: &[DeviceId], bytes: u64) -> Lane {
        let copyset = self.use_copyset(members);
        for member in members {
            self.charge(*member, bytes);
        }
        assert!(!members.is_empty() && members.len() <= REPLICAS_MAX, "checked by check_members");
        Lane {
            copyset,
            replacement: None,
            in_sync_mask: full_mask(members.len()),
            version: 0,
            clean: Some(0),
            granted_clean: None,
            rows: Vec::new(),
            granted: None,
            unverified: false,
            distrusted: false,
        }
    }

    /// A device gets a lane of this size.
    pub(super) fn charge(&mut self, device: DeviceId, bytes: u64) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.committed_bytes = device.committed_bytes.saturating_add(bytes);
            device.lane_count += 1;
        }
    }

    /// A device loses a lane of this size.
    pub(super) fn discharge(&mut self, device: DeviceId, bytes: u64) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.committed_bytes = device.committed_bytes.saturating_sub(bytes);
            device.lane_count -= 1;
        }
    }

    pub(super) fn use_copyset(&mut self, members: &[DeviceId]) -> CopysetId {
        if let Some(id) = self.indexes.copysets_by_members.get(members) {
            if let Some(set) = self.copysets.get_mut(id) {
                set.lane_count += 1;
            }
            return *id;
        }
        self.copyset_next += 1;
        let id = CopysetId(self.copyset_next);
        self.indexes.copysets_by_members.insert(members.to_vec(), id);
        let set = Copyset { id, members: members.to_vec(), lane_count: 1 };
        self.indexes.copysets_by_device.insert(&set);
        self.copysets.insert(id, set);
        id
    }

    pub(super) fn release_copyset(&mut self, id: CopysetId) {
        let Some(set) = self.copysets.get_mut(&id) else { return };
        assert!(set.lane_count > 0, "a copyset is counted once per lane");
        set.lane_count -= 1;
        if set.lane_count == 0 {
            self.indexes.copysets_by_members.remove(&set.members);
            self.indexes.copysets_by_device.remove(set);
            self.copysets.remove(&id);
        }
    }

    fn remember(&mut self, token: &str, name: &str, volume: VolumeId) {
        while self.tokens.len() >= TOKENS_MAX {
            if let Some(oldest) = self.tokens.pop_front() {
                self.indexes.tokens.remove(&oldest.token);
            }
        }
        self.indexes.tokens.insert(token.to_owned(), (name.to_owned(), volume));
        self.tokens.push_back(TokenRecord { token: token.to_owned(), name: name.to_owned(), volume });
    }

    pub(super) fn delete_volume(&mut self, id: VolumeId) -> Result<Response, Refusal> {
        let Some(volume) = self.volumes.get(&id) else {
            return if self.deleted.contains_key(&id) { Ok(Response::Done) } else { Err(Refusal::VolumeNotFound(id)) };
        };
        if let Some(held) = volume.attachment
            && held.mode != AttachMode::Maintenance
        {
            return Err(Refusal::Attached { volume: id, holder_name: self.node_name(held.node) });
        }
        let volume = Arc::clone(volume);
        let mut holders = BTreeSet::new();
        for lane in &volume.lanes {
            let devices = self.devices_of(lane);
            for device in &devices {
                self.discharge(*device, volume.lane_bytes());
            }
            holders.extend(devices);
            self.release_copyset(lane.copyset);
        }
        let is_there =
            |device: &DeviceId| self.devices.get(device).is_some_and(|known| known.state != DeviceState::Out);
        holders.extend(volume.parting.iter().map(|parting| parting.device).filter(is_there));
        self.indexes.volume_names.remove(&volume.name);
        self.volumes.remove(&id);
        self.deleted.entry(id).or_default().extend(holders);
        Ok(Response::Done)
    }

    pub(super) fn resize_volume(&mut self, id: VolumeId, size_bytes: u64) -> Result<Response, Refusal> {
        check_size(size_bytes)?;
        let volume = self.volumes.get_mut(&id).ok_or(Refusal::VolumeNotFound(id))?;
        if size_bytes < volume.geometry.size_bytes {
            return Err(Refusal::Invalid(format!(
                "volume {id} has {} bytes; it can only grow",
                volume.geometry.size_bytes
            )));
        }
        let volume = Arc::make_mut(volume);
        let before = volume.lane_bytes();
        volume.geometry.size_bytes = size_bytes;
        let growth = volume.lane_bytes() - before;
        let volume = Arc::clone(&self.volumes[&id]);
        for holder in volume.lanes.iter().flat_map(|lane| self.devices_of(lane)).collect::<Vec<_>>() {
            if let Some(device) = self.devices.get_mut(&holder) {
                device.committed_bytes = device.committed_bytes.saturating_add(growth);
            }
        }
        Ok(Response::Done)
    }

    pub(super) fn reclaimed(&mut self, device: DeviceId, volumes: &[VolumeId]) -> Result<Response, Refusal> {
        if !self.devices.contains_key(&device) {
            return Err(Refusal::DeviceNotFound(device));
        }
        for volume in volumes {
            let Some(holders) = self.deleted.get_mut(volume) else { continue };
            holders.remove(&device);
            if holders.is_empty() {
                self.deleted.remove(volume);
            }
        }
        Ok(Response::Done)
    }

    pub(super) fn check_reclaim(&self, device: DeviceId, volume: VolumeId) -> Result<Response, Refusal> {
        let shall_go = self.deleted.get(&volume).is_some_and(|holders| holders.contains(&device));
        match self.volumes.get(&volume) {
            // Identities are never reused: what a device has of it is of no use to anybody.
            None => Ok(Response::Reclaim(None)),
            Some(volume) if shall_go => Ok(Response::Reclaim(Some(volume.epoch))),
            Some(_) => Err(Refusal::NothingToReclaim { volume, device }),
        }
    }

    /// Devices that are gone reclaim nothing any more.
    pub(super) fn forget_deleted_on(&mut self, devices: &[DeviceId]) {
        for holders in self.deleted.values_mut() {
            holders.retain(|holder| !devices.contains(holder));
        }
        self.deleted.retain(|_, holders| !holders.is_empty());
    }

    pub(super) fn node_name(&self, id: ashlar_model::NodeId) -> String {
        self.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.clone())
    }
}

fn check_size(size_bytes: u64) -> Result<(), Refusal> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size_bytes) || !size_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(Refusal::Invalid(format!(
            "a volume has {VOLUME_BYTES_MIN} to {VOLUME_BYTES_MAX} bytes, a multiple of {BLOCK_BYTES}; not {size_bytes}"
        )));
    }
    Ok(())
}

fn check_labels(labels: &VolumeLabels) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(Refusal::Limit(format!("a volume has at most {LABELS_MAX} labels")));
    }
    for (key, value) in labels {
        check_name("label", key).map_err(Refusal::Invalid)?;
        check_text("label value", value)?;
    }
    Ok(())
}

fn check_token(token: &str) -> Result<(), Refusal> {
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::Invalid(format!("an idempotency token has 1 to {TOKEN_BYTES_MAX} bytes")));
    }
    Ok(())
}
