//! Nodes and devices: how they come, change and go.

use super::entities::{Admin, Device, DeviceState, Labels, Liveness, Node};
use super::{DEVICES_MAX, NODES_MAX, State};
use crate::command::{NodeSpec, Response};
use crate::refusal::Refusal;
use ashlar_model::limits::{SHARDS_MAX, check_name};
use ashlar_model::units::CHUNK_BYTES;
use ashlar_model::{DeviceId, NodeId, SessionId};

/// Longest address or path in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// Earlier sessions of a node that are remembered, so that a late duplicate cannot bring one back.
const PAST_SESSIONS_MAX: usize = 8;

/// Where a device is.
#[derive(Clone, Copy)]
pub(super) struct DevicePlace {
    pub node: NodeId,
    pub ordinal: u32,
}

impl State {
    pub(super) fn add_node(&mut self, id: Option<NodeId>, spec: &NodeSpec) -> Result<Response, Refusal> {
        check_node(spec)?;
        if let Some(known) = self.node_by_name(&spec.name) {
            return self.add_known_node(known.id, id, spec);
        }
        let next = self.nodes.last_key_value().map_or(1, |(last, _)| last.0 + 1);
        let id = id.unwrap_or(NodeId(next));
        if id.0 == 0 || id.0 >= u64::MAX / 2 {
            return Err(Refusal::Invalid(format!("{id} is no node number")));
        }
        if self.nodes.contains_key(&id) {
            return Err(Refusal::IdTaken(format!("node number {id}")));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::Limit(format!("a cluster has at most {NODES_MAX} nodes")));
        }
        self.indexes.node_names.insert(spec.name.clone(), id);
        self.nodes.insert(id, node_of(id, spec, Admin::Active));
        Ok(Response::Node(id))
    }

    /// The same daemon repeats itself; another one must not take its name. A daemon that died between joining and
    /// noting its number comes back with a new session, the same addresses and nothing in its charge.
    fn add_known_node(&mut self, known: NodeId, id: Option<NodeId>, spec: &NodeSpec) -> Result<Response, Refusal> {
        let taken = Refusal::NameTaken { what: "node".to_owned(), name: spec.name.clone() };
        let node = self.nodes.get(&known).ok_or(Refusal::NodeNotFound(known))?;
        if id.is_some_and(|id| id != known) {
            return Err(taken);
        }
        if node.session == spec.session {
            return Ok(Response::Node(known));
        }
        let idle =
            !self.devices.values().any(|device| device.node == known) && self.attached_to(known).next().is_none();
        if !idle || node.api_address != spec.api_address || node.data_address != spec.data_address {
            return Err(taken);
        }
        self.update_node(known, spec)?;
        Ok(Response::Node(known))
    }

    pub(super) fn update_node(&mut self, id: NodeId, spec: &NodeSpec) -> Result<Response, Refusal> {
        check_node(spec)?;
        let node = self.nodes.get_mut(&id).ok_or(Refusal::NodeNotFound(id))?;
        if node.admin == Admin::Removed {
            return Err(Refusal::NodeRemoved(id));
        }
        if node.name != spec.name {
            return Err(Refusal::Invalid(format!("node {id} is named '{}'; a node keeps its name", node.name)));
        }
        if node.past_sessions.contains(&spec.session) {
            return Err(Refusal::StaleSession(id)); // a late duplicate of an earlier run
        }
        let mut past_sessions = std::mem::take(&mut node.past_sessions);
        if node.session != spec.session {
            past_sessions.push(node.session);
            let excess = past_sessions.len().saturating_sub(PAST_SESSIONS_MAX);
            past_sessions.drain(..excess);
        }
        *node = node_of(id, spec, node.admin);
        node.past_sessions = past_sessions;
        Ok(Response::Done)
    }

    pub(super) fn set_node_liveness(
        &mut self,
        id: NodeId,
        session: SessionId,
        liveness: Liveness,
    ) -> Result<Response, Refusal> {
        let node = self.nodes.get_mut(&id).ok_or(Refusal::NodeNotFound(id))?;
        if node.admin == Admin::Removed {
            return Err(Refusal::NodeRemoved(id));
        }
        if node.session != session {
            return Err(Refusal::StaleSession(id));
        }
        node.liveness = liveness;
        Ok(Response::Done)
    }

    pub(super) fn set_node_admin(&mut self, id: NodeId, admin: Admin) -> Result<Response, Refusal> {
        let node = self.nodes.get(&id).ok_or(Refusal::NodeNotFound(id))?;
        match (node.admin, admin) {
            (Admin::Removed, Admin::Removed) => return Ok(Response::Done),
            (Admin::Removed, _) => return Err(Refusal::NodeRemoved(id)),
            (_, Admin::Removed) => self.check_node_unused(id)?,
            _ => {}
        }
        let node = self.nodes.get_mut(&id).ok_or(Refusal::NodeNotFound(id))?;
        node.admin = admin;
        if admin == Admin::Removed {
            node.liveness = Liveness::Down;
            self.indexes.node_names.remove(&node.name);
            for device in self.devices.values_mut().filter(|device| device.node == id) {
                device.state = DeviceState::Out;
            }
            let gone = self.devices.values().filter(|d| d.node == id).map(|d| d.id).collect::<Vec<_>>();
            self.forget_deleted_on(&gone);
        }
        Ok(Response::Done)
    }

    fn check_node_unused(&self, id: NodeId) -> Result<(), Refusal> {
        let what = format!("node {id}");
        if let Some(device) = self.devices.values().find(|device| device.node == id && device.lane_count > 0) {
            let why = format!("its device {} holds {} lanes; drain it first", device.id, device.lane_count);
            return Err(Refusal::InUse { what, why });
        }
        if let Some(volume) = self.attached_to(id).next() {
            return Err(Refusal::InUse { what, why: format!("it holds volume '{}'; detach it first", volume.name) });
        }
        Ok(())
    }

    pub(super) fn add_device(
        &mut self,
        id: DeviceId,
        place: DevicePlace,
        name: &str,
        class: &str,
        capacity_bytes: u64,
    ) -> Result<Response, Refusal> {
        let DevicePlace { node, ordinal } = place;
        check_text("device name", name)?;
        check_name("device class", class).map_err(Refusal::Invalid)?;
        if capacity_bytes < CHUNK_BYTES as u64 {
            return Err(Refusal::Invalid(format!("a device has room for at least {CHUNK_BYTES} bytes of data")));
        }
        let owner = self.nodes.get(&node).ok_or(Refusal::NodeNotFound(node))?;
        if owner.admin == Admin::Removed {
            return Err(Refusal::NodeRemoved(node));
        }
        if !owner.roles.store {
            return Err(Refusal::NodeUnfit { node, why: "has no store role".to_owned() });
        }
        self.check_ordinal(id, place)?;
        if let Some(known) = self.devices.get_mut(&id) {
            if known.state == DeviceState::Out {
                return Err(Refusal::IdTaken(format!("device {id}")));
            }
            let moved_from = self.nodes.get(&known.node).filter(|old| old.id != node);
            if moved_from.is_some_and(|old| old.liveness == Liveness::Up) && known.state != DeviceState::Failed {
                let why = format!("by node {}, which is up; is this a copy of its disk?", known.node);
                return Err(Refusal::InUse { what: format!("device {id}"), why });
            }
            // The node says again what it has. A device may move into another machine with its data.
            (known.node, known.ordinal, known.capacity_bytes) = (node, ordinal, capacity_bytes);
            name.clone_into(&mut known.name);
            class.clone_into(&mut known.class);
            return Ok(Response::Done);
        }
        if self.devices.len() >= DEVICES_MAX {
            return Err(Refusal::Limit(format!("a cluster has at most {DEVICES_MAX} devices")));
        }
        let device = Device {
            id,
            node,
            name: name.to_owned(),
            class: class.to_owned(),
            capacity_bytes,
            committed_bytes: 0,
            lane_count: 0,
            state: DeviceState::In,
            ordinal,
        };
        self.devices.insert(id, device);
        Ok(Response::Done)
    }

    /// Two devices at one place would be told apart by nobody who asks which shard has them.
    fn check_ordinal(&self, id: DeviceId, place: DevicePlace) -> Result<(), Refusal> {
        let DevicePlace { node, ordinal } = place;
        if ordinal as usize >= DEVICES_MAX {
            return Err(Refusal::Limit(format!("the ordinal of a device is below {DEVICES_MAX}")));
        }
        let has_it = |device: &&Device| {
            device.node == node && device.ordinal == ordinal && device.id != id && device.state != DeviceState::Out
        };
        match self.devices.values().find(has_it) {
            None => Ok(()),
            Some(device) => {
                let what = format!("ordinal {ordinal} of node {node}");
                Err(Refusal::InUse { what, why: format!("by device {}", device.id) })
            }
        }
    }

    pub(super) fn mark_full(&mut self, id: DeviceId, full: bool) -> Result<Response, Refusal> {
        let device = self.devices.get_mut(&id).ok_or(Refusal::DeviceNotFound(id))?;
        device.state = match (device.state, full) {
            (DeviceState::In, true) => DeviceState::Full,
            (DeviceState::Full, false) => DeviceState::In,
            (other, _) => other,
        };
        Ok(Response::Done)
    }

    pub(super) fn set_device_state(&mut self, id: DeviceId, state: DeviceState) -> Result<Response, Refusal> {
        let device = self.devices.get_mut(&id).ok_or(Refusal::DeviceNotFound(id))?;
        match (device.state, state) {
            (DeviceState::Out, DeviceState::Out) => return Ok(Response::Done),
            (DeviceState::Out, _) => return Err(Refusal::IdTaken(format!("device {id}"))),
            // What is on it cannot be trusted any more, whoever asks; a state that was read before it failed must not win.
            (DeviceState::Failed, DeviceState::In | DeviceState::Full | DeviceState::Draining) => {
                let why = "has failed and stays so; replace it, or format it anew and add it: it gets a new identity";
                return Err(Refusal::DeviceUnfit { device: id, why: why.to_owned() });
            }
            (_, DeviceState::Out) if device.lane_count > 0 => {
                let why = format!("it holds {} lanes; drain it first", device.lane_count);
                return Err(Refusal::InUse { what: format!("device {id}"), why });
            }
            _ => device.state = state,
        }
        if state == DeviceState::Out {
            self.forget_deleted_on(&[id]);
        }
        Ok(Response::Done)
    }
}

fn node_of(id: NodeId, spec: &NodeSpec, admin: Admin) -> Node {
    let NodeSpec { name, api_address, data_address, labels, roles, session, shards } = spec.clone();
    Node {
        id,
        name,
        api_address,
        data_address,
        labels,
        roles,
        session,
        liveness: Liveness::Up,
        admin,
        past_sessions: Vec::new(),
        shards,
    }
}

fn check_node(spec: &NodeSpec) -> Result<(), Refusal> {
    check_name("node", &spec.name).map_err(Refusal::Invalid)?;
    check_text("API address", &spec.api_address)?;
    check_text("data address", &spec.data_address)?;
    if spec.shards == 0 || spec.shards > SHARDS_MAX {
        return Err(Refusal::Invalid(format!("a node has 1 to {SHARDS_MAX} shards, not {}", spec.shards)));
    }
    let Labels { region, zone, rack } = &spec.labels;
    for (what, label) in [("region", region), ("zone", zone), ("rack", rack)] {
        if let Some(label) = label {
            check_name(what, label).map_err(Refusal::Invalid)?;
        }
    }
    Ok(())
}

/// Free text of people and machines: not empty, not endless, printable.
pub(super) fn check_text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(Refusal::Invalid(format!("{what} has 1 to {TEXT_BYTES_MAX} printable characters")));
    }
    Ok(())
}
