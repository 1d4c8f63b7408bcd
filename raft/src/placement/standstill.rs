//! Lanes that nobody can change now: a change begun there would stay under way for ever, in the place of one that can be
//! carried out. Pure.

use crate::state::entities::{AttachMode, Lane, Volume};
use crate::state::{State, VolumeHealth};
use ashlar_model::VolumeId;

/// Why lanes stand still. Lanes are asked for in the order of their volumes: what holds for a volume is found once.
pub(super) struct Standstills<'a> {
    state: &'a State,
    last: Option<(VolumeId, Option<String>)>,
}

impl<'a> Standstills<'a> {
    pub fn of(state: &'a State) -> Self {
        Self { state, last: None }
    }

    /// What a lane waits for before anybody can change it, for people.
    pub fn why(&mut self, volume: &Volume, lane: &Lane) -> Option<String> {
        match self.state.open_quorum(volume, lane) {
            (0, _) => Some("no copy of it answers; start a node that has one".into()),
            (alive, needed) if alive < needed => Some(format!(
                "too few copies of it answer: {alive} of the {needed} that an open needs; start the nodes that have them"
            )),
            _ => self.why_volume(volume),
        }
    }

    fn why_volume(&mut self, volume: &Volume) -> Option<String> {
        match &self.last {
            Some((id, why)) if *id == volume.id => why.clone(),
            _ => {
                let why = why_no_writer(self.state, volume);
                self.last = Some((volume.id, why.clone()));
                why
            }
        }
    }
}

/// Guests of a silent node may still run behind a partition, so nobody takes the volume from there unasked. What nobody has
/// is opened as a whole or not at all.
fn why_no_writer(state: &State, volume: &Volume) -> Option<String> {
    let held = volume.attachment.filter(|held| held.mode == AttachMode::ReadWrite);
    match held.filter(|held| !state.has_holder_ended(held)) {
        Some(held) if state.is_holder_alive(&held) => None,
        Some(held) => {
            let node = state.node(held.node).map_or("?", |node| &node.name);
            Some(format!(
                "node {node}, to which the volume is attached, is silent; start it, or attach the volume elsewhere or detach it"
            ))
        }
        None => (state.volume_health(volume) == VolumeHealth::Unavailable).then(|| {
            "nobody can open the volume: too few copies of another lane answer; start the nodes that have them".into()
        }),
    }
}
