//! The list of devices that this node serves: `DATA_DIR/devices.json`, replaced atomically, plus the configuration's.

use crate::config::DeviceConfig;
use crate::files::write_atomically;
use anyhow::{Context, Result};
use ashlar_model::DeviceId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What became of a device of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceOpen {
    /// Not tried yet, or being tried.
    Opening,
    /// It serves.
    Serving(DeviceId),
    /// It does not, and why.
    Failed(String),
}

/// The list.
#[derive(Debug)]
pub struct DeviceList {
    path: PathBuf,
    stored: Mutex<Vec<DeviceConfig>>,
    states: Mutex<BTreeMap<PathBuf, DeviceOpen>>,
    /// Given to devices that the metadata did not have at that time.
    ordinals: Mutex<BTreeMap<DeviceId, u32>>,
}

impl DeviceList {
    /// Reads the list of a data directory; a missing file is an empty list.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn load(data_dir: &Path, configured: &[DeviceConfig]) -> Result<Self> {
        let path = data_dir.join("devices.json");
        let stored: Vec<DeviceConfig> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut all = stored;
        // The configuration wins where both name a device.
        for device in configured {
            all.retain(|known| known.path != device.path);
            all.push(device.clone());
        }
        let states = all.iter().map(|device| (device.path.clone(), DeviceOpen::Opening)).collect();
        Ok(Self { path, stored: Mutex::new(all), states: Mutex::new(states), ordinals: Mutex::default() })
    }

    /// The devices.
    pub fn devices(&self) -> Vec<DeviceConfig> {
        lock(&self.stored).clone()
    }

    /// Adds a device and makes the list durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, device: DeviceConfig) -> Result<()> {
        let mut stored = lock(&self.stored);
        stored.retain(|known| known.path != device.path);
        stored.push(device);
        write_atomically(&self.path, &serde_json::to_vec_pretty(&*stored)?)
    }

    /// The ordinal of a device: as the metadata has recorded it, or the lowest that no other device of this node has. The
    /// same for as long as the daemon runs.
    pub fn ordinal(&self, device: DeviceId, recorded: &BTreeMap<DeviceId, u32>) -> u32 {
        let mut given = lock(&self.ordinals);
        if let Some(ordinal) = recorded.get(&device).or_else(|| given.get(&device)) {
            return *ordinal;
        }
        let used: BTreeSet<u32> = recorded.values().chain(given.values()).copied().collect();
        let ordinal = (0..).find(|ordinal| !used.contains(ordinal)).expect("devices are fewer than numbers");
        given.insert(device, ordinal);
        ordinal
    }

    /// Notes what became of a device.
    pub fn set_state(&self, path: &Path, state: DeviceOpen) {
        lock(&self.states).insert(path.to_owned(), state);
    }

    /// What became of each device.
    pub fn states(&self) -> BTreeMap<PathBuf, DeviceOpen> {
        lock(&self.states).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_survives_and_the_configuration_wins() {
        let dir = tempfile::tempdir().unwrap();
        let device = |path: &str, declared| DeviceConfig {
            path: path.into(),
            power_loss_protected: declared,
            atomic_writes: declared,
        };
        let list = DeviceList::load(dir.path(), &[]).unwrap();
        assert!(list.devices().is_empty());
        list.add(device("/a", false)).unwrap();
        list.add(device("/b", false)).unwrap();
        list.add(device("/a", true)).unwrap();
        let again = DeviceList::load(dir.path(), &[device("/b", true)]).unwrap();
        assert_eq!(again.devices(), vec![device("/a", true), device("/b", true)]);
        assert_eq!(again.states().len(), 2);
    }

    #[test]
    fn a_device_keeps_its_ordinal_and_a_new_one_gets_the_lowest_that_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let list = DeviceList::load(dir.path(), &[]).unwrap();
        let id = DeviceId::from_u128;
        let recorded = BTreeMap::from([(id(1), 0), (id(2), 2)]);
        assert_eq!(list.ordinal(id(2), &recorded), 2);
        assert_eq!(list.ordinal(id(3), &recorded), 1);
        assert_eq!(list.ordinal(id(4), &recorded), 3, "two that are added at a time get different ones");
        assert_eq!(list.ordinal(id(3), &recorded), 1, "asked again before it is recorded");
        // The first one has gone for good: its place, and so its shard, is free for the next.
        let recorded = BTreeMap::from([(id(2), 2), (id(3), 1), (id(4), 3)]);
        assert_eq!(list.ordinal(id(5), &recorded), 0);
    }

    #[test]
    fn a_list_from_before_atomic_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"[{"path":"/a","power_loss_protected":true}]"#;
        std::fs::write(dir.path().join("devices.json"), text).unwrap();
        let devices = DeviceList::load(dir.path(), &[]).unwrap().devices();
        assert_eq!(devices, [DeviceConfig { path: "/a".into(), power_loss_protected: true, atomic_writes: false }]);
    }
}
