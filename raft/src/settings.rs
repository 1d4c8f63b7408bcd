//! The cluster's settings: each with its default, its range and the reason to change it.

use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known about a setting.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
pub struct SettingInfo {
    /// Key, ending in its unit.
    pub key: &'static str,
    /// Value unless set.
    pub default: u64,
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// When to change it.
    pub reason: &'static str,
}

/// A node without a renewal for this long is suspect.
pub const SUSPECT_AFTER_MS: SettingInfo = SettingInfo {
    key: "suspect_after_ms",
    default: 3_000,
    min: 500,
    max: 600_000,
    reason: "raise it where pauses of a few seconds are normal; writers do not wait for it",
};
/// A node without a renewal for this long is down.
pub const DOWN_AFTER_MS: SettingInfo = SettingInfo {
    key: "down_after_ms",
    default: 10_000,
    min: 1_000,
    max: 3_600_000,
    reason: "lower it for faster detach of volumes of dead nodes; raise it on unsteady networks",
};
/// Bytes promised to volumes, in percent of a device's capacity.
pub const OVERCOMMIT_PERCENT: SettingInfo = SettingInfo {
    key: "overcommit_percent",
    default: 400,
    min: 50,
    max: 100_000,
    reason: "volumes are thin; lower it if they are filled, raise it if they stay mostly empty",
};
/// Other devices that one device shares copysets with.
pub const SCATTER_WIDTH: SettingInfo = SettingInfo {
    key: "scatter_width",
    default: 12,
    min: 2,
    max: 1_000,
    reason: "raise it for faster rebuilds, lower it so that losing three devices at once rarely loses data",
};
/// A voter of the metadata service that is down for this long gives its vote to another node.
pub const VOTER_OUT_MS: SettingInfo = SettingInfo {
    key: "voter_out_ms",
    default: 300_000,
    min: 1_000,
    max: 86_400_000,
    reason: "raise it if meta nodes are often away for longer and come back; lower it to be ready for a second loss sooner",
};

/// A node without a renewal for this long is out: its replicas are rebuilt elsewhere.
pub const DOWN_OUT_MS: SettingInfo = SettingInfo {
    key: "down_out_ms",
    default: 600_000,
    min: 1_000,
    max: 30 * 24 * 3_600_000,
    reason: "raise it above the longest restart of a machine; lower it where a second failure is likely soon",
};
/// Most nodes that may be out at a time, in percent of those that keep replicas; one always may.
pub const OUT_PERCENT_MAX: SettingInfo = SettingInfo {
    key: "out_percent_max",
    default: 20,
    min: 0,
    max: 100,
    reason: "so many nodes lost at once are rather a network or a room; 0 means that no node goes out by itself",
};
/// Most lanes of the cluster that change a member at a time on the planner's word.
pub const MOVES_MAX: SettingInfo = SettingInfo {
    key: "moves_max",
    default: 256,
    min: 0,
    max: 100_000,
    reason: "0 stops rebuilds, drains and rebalancing that have not begun",
};
/// The same, of lanes that come to one device.
pub const MOVES_PER_DEVICE_MAX: SettingInfo = SettingInfo {
    key: "moves_per_device_max",
    default: 4,
    min: 1,
    max: 1_000,
    reason: "raise it where devices are fast and guests idle",
};
/// Devices are even if no one is fuller or emptier than their mean by more than this share of it.
pub const BALANCE_PERCENT: SettingInfo = SettingInfo {
    key: "balance_percent",
    default: 5,
    min: 0,
    max: 100,
    reason: "raise it to move less; 0 means that nothing is moved for evenness",
};

/// A volume that wants a copy where it is attached gets one there when it has been attached for this long.
pub const LOCALITY_AFTER_MS: SettingInfo = SettingInfo {
    key: "locality_after_ms",
    default: 600_000,
    min: 0,
    max: 30 * 24 * 3_600_000,
    reason: "raise it where guests wander: each move copies the volume's lanes once",
};

/// Capacity kept free for the loss of the largest failure domain, in percent of that domain.
pub const RESERVE_DOMAIN_PERCENT: SettingInfo = SettingInfo {
    key: "reserve_domain_percent",
    default: 100,
    min: 0,
    max: 100,
    reason: "lower it if less need be rebuilt when a zone, rack or node is lost; 0 keeps nothing for that",
};
/// Of every device, the share that is promised to no volume.
pub const RESERVE_PERCENT: SettingInfo = SettingInfo {
    key: "reserve_percent",
    default: 5,
    min: 0,
    max: 90,
    reason: "room for writes in flight and snapshots; raise it where snapshots are many",
};
/// A device that holds this share of what it can hold is full: it keeps what it has and gets nothing new.
pub const FULL_PERCENT: SettingInfo = SettingInfo {
    key: "full_percent",
    default: 90,
    min: 50,
    max: 100,
    reason: "lower it where thin volumes grow fast: writes to new places of a device without room wait",
};

/// All settings.
pub const ALL: [SettingInfo; 14] = [
    SUSPECT_AFTER_MS,
    DOWN_AFTER_MS,
    OVERCOMMIT_PERCENT,
    SCATTER_WIDTH,
    DOWN_OUT_MS,
    OUT_PERCENT_MAX,
    MOVES_MAX,
    MOVES_PER_DEVICE_MAX,
    BALANCE_PERCENT,
    LOCALITY_AFTER_MS,
    VOTER_OUT_MS,
    RESERVE_DOMAIN_PERCENT,
    RESERVE_PERCENT,
    FULL_PERCENT,
];

/// The settings that differ from their defaults.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Settings(BTreeMap<String, u64>);

impl Settings {
    /// The value in force.
    pub fn get(&self, info: &SettingInfo) -> u64 {
        self.0.get(info.key).copied().unwrap_or(info.default)
    }

    /// Every setting with the value in force.
    pub fn list(&self) -> impl Iterator<Item = (SettingInfo, u64)> + '_ {
        ALL.into_iter().map(|info| (info, self.get(&info)))
    }

    pub(crate) fn set(&mut self, key: &str, value: u64) -> Result<(), Refusal> {
        let info = ALL.iter().find(|info| info.key == key).ok_or_else(|| Refusal::SettingNotFound(key.to_owned()))?;
        if value < info.min || value > info.max {
            return Err(Refusal::Invalid(format!("{key} is between {} and {}, not {value}", info.min, info.max)));
        }
        if value == info.default {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_are_not_stored() {
        for info in ALL {
            assert!(info.min <= info.default && info.default <= info.max, "{}", info.key);
            let mut settings = Settings::default();
            settings.set(info.key, info.max).unwrap();
            assert_eq!(settings.get(&info), info.max);
            settings.set(info.key, info.default).unwrap();
            assert_eq!(settings, Settings::default());
            assert_eq!(settings.set(info.key, info.max + 1).unwrap_err().code(), "invalid");
        }
        assert_eq!(Settings::default().set("no_such_key", 1).unwrap_err().code(), "setting_not_found");
    }
}
