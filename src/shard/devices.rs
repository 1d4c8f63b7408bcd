//! Devices of this node: each a store engine, a replica engine, and the file that the reactor reads and writes.

use super::control::{DeviceStatus, LocalDevice, OpenFailure, ScrubStatus, ShardRequest};
use super::core::{Shard, Work};
use super::scrub::{Pace, Pacer};
use crate::replica::{self, Effect, ReplicaEngine};
use ashlar_model::cluster::VolumeSpec;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{AlignedBuffer, DeviceId, Epoch, VolumeId};
use ashlar_store::device::BlockingDevice;
use ashlar_store::engine::{self, IoError, IoId, OpenOptions, StoreEngine};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use tokio::sync::oneshot;

/// Requests in the stores above which peers are not read: they wait in their sockets. Each link's credits allow half of
/// it, so one shard of a node alone never gets here; this is for the sum over many.
const STORE_REQUESTS_MAX: usize = 8192;
/// Where a device's number is in an operation's key.
const DEVICE_SHIFT: u32 = 48;

/// Damaged blocks of one pass that are logged one by one; the end of the pass tells how many there were.
const DAMAGE_LOGGED_MAX: u64 = 16;

/// A device's background scrub as its shard sees it.
struct Scrub {
    pacer: Pacer,
    passes: u64,
    /// Damaged blocks and read bytes when this pass began.
    damaged_before: u64,
    bytes_before: u64,
}

/// One device.
pub(super) struct LocalStore {
    pub device: LocalDevice,
    /// None once a device that could not be opened has been let go.
    file: Option<BlockingDevice>,
    fd: RawFd,
    pub engine: StoreEngine,
    /// There once the store is open.
    pub replica: Option<ReplicaEngine>,
    opened: Option<oneshot::Sender<Result<DeviceId, OpenFailure>>>,
    pub id: DeviceId,
    /// Deletions under way.
    reclaims: BTreeMap<VolumeId, Vec<oneshot::Sender<()>>>,
    in_flight: usize,
    scrub: Scrub,
    reported_failed: bool,
    /// It could not be opened.
    dead: bool,
}

impl LocalStore {
    /// Nothing is on its way to the medium.
    pub fn is_quiet(&self) -> bool {
        self.in_flight == 0 && (self.dead || self.engine.failed().is_some() || self.engine.is_idle())
    }

    /// Nothing of it waits for time to pass, but the end of the scrub's rest.
    pub fn rests(&self) -> bool {
        let quiet = |replica: &ReplicaEngine| {
            !replica.lacks_space() && matches!(self.scrub.pacer.pace(), Pace::Off | Pace::Resting)
        };
        self.dead || self.engine.failed().is_some() || self.replica.as_ref().is_some_and(quiet)
    }

    /// Lets the background scrub read what it may, and notes when it is through.
    fn tend_scrub(&mut self, now_us: u64) {
        if self.replica.is_none() || self.engine.failed().is_some() {
            return;
        }
        let stats = self.engine.stats();
        let granted = self.scrub.pacer.grant(now_us, self.engine.foreground(), stats.scrub_passes);
        if stats.scrub_passes != self.scrub.passes {
            let damaged = stats.scrub_bad_blocks - self.scrub.damaged_before;
            let bytes = stats.scrubbed_bytes - self.scrub.bytes_before;
            if damaged > 0 || (bytes > 0 && self.scrub.pacer.pace() == Pace::Resting) {
                tracing::info!(device = %self.id, bytes, damaged, "the scrub has reached the end of the device");
            }
            self.scrub.passes = stats.scrub_passes;
            (self.scrub.damaged_before, self.scrub.bytes_before) = (stats.scrub_bad_blocks, stats.scrubbed_bytes);
        }
        if granted > 0 {
            self.engine.scrub(granted);
        }
    }

    fn log_damage(&self, volume: VolumeId, block: u64) {
        let met = self.engine.stats().scrub_bad_blocks - self.scrub.damaged_before;
        if met <= DAMAGE_LOGGED_MAX {
            tracing::error!(device = %self.id, %volume, block, "the scrub met a damaged block; its volume's writer is told");
        }
    }

    fn scrub_status(&self) -> ScrubStatus {
        let stats = self.engine.stats();
        let read = stats.scrubbed_bytes - self.scrub.bytes_before;
        let pace = self.scrub.pacer.pace();
        ScrubStatus {
            pace,
            rate_bytes_per_s: self.scrub.pacer.rate(),
            scrubbed_bytes: stats.scrubbed_bytes,
            percent: if pace == Pace::Resting { 100 } else { (read * 100 / stats.used_bytes.max(1)).min(99) },
            passes: stats.scrub_passes,
            ended_s_ago: self.scrub.pacer.ended_s_ago(),
            damaged_blocks: stats.scrub_bad_blocks,
        }
    }

    pub fn status(&self) -> Option<DeviceStatus> {
        let (stats, superblock) = (self.engine.stats(), self.engine.superblock());
        (!self.dead && self.replica.is_some()).then(|| DeviceStatus {
            id: self.id,
            path: self.device.path.clone(),
            used_bytes: stats.used_bytes,
            total_bytes: stats.total_bytes,
            written_bytes: stats.written_bytes,
            bad_blocks: stats.bad_blocks,
            repaired_blocks: stats.repaired_blocks,
            flushes: superblock.flushes,
            power_loss_protected: superblock.power_loss_protected || self.device.power_loss_protected,
            atomic: superblock.atomic,
            atomic_declared: superblock.atomic_declared || self.device.atomic_writes,
            scrub: self.scrub_status(),
            failed: self.engine.failed().map(str::to_owned),
        })
    }
}

/// The store takes a lock without waiting, so `WouldBlock` is that lock.
fn open_failure(device: &LocalDevice, error: &io::Error) -> OpenFailure {
    let why = format!("cannot open {}: {error}", device.path.display());
    if error.kind() == io::ErrorKind::WouldBlock { OpenFailure::InUse(why) } else { OpenFailure::Refused(why) }
}

/// What a device promises by itself, and what the operator declares besides.
fn open_options(device: &LocalDevice, file: &BlockingDevice) -> OpenOptions {
    let properties = file.properties();
    let flush_needed = properties.volatile_cache && !device.power_loss_protected;
    let promised = properties.block_device && properties.atomic_write_bytes as usize >= BLOCK_BYTES;
    let atomic = device.atomic_writes || promised;
    OpenOptions { atomic, ..OpenOptions::new(file.size_bytes(), flush_needed) }
}

/// Who a device is, before it is opened: that decides which shard opens it. Blocking; nobody else may have it open.
///
/// # Errors
/// Why it would not serve.
pub fn identify(device: &LocalDevice) -> Result<DeviceId, OpenFailure> {
    let file = BlockingDevice::open(&device.path).map_err(|error| open_failure(device, &error))?;
    let superblock = file.superblock();
    let refused = |error| OpenFailure::Refused(format!("{}: {error}", device.path.display()));
    superblock.map(|superblock| superblock.device).map_err(refused)
}

impl Shard {
    pub fn open_device(&mut self, device: LocalDevice, done: oneshot::Sender<Result<DeviceId, OpenFailure>>) {
        if let Some(store) = self.stores.iter().find(|store| store.device.path == device.path && !store.dead) {
            let _ = done.send(Ok(store.id));
            return;
        }
        let file = match BlockingDevice::open(&device.path) {
            Ok(file) => file,
            Err(error) => {
                let _ = done.send(Err(open_failure(&device, &error)));
                return;
            }
        };
        let cluster = Some(self.options.cluster);
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let options = OpenOptions { cluster, nonce, ..open_options(&device, &file) };
        let pacer = Pacer::new(self.options.scrub, self.now_us);
        self.stores.push(LocalStore {
            device,
            fd: file.file().as_raw_fd(),
            file: Some(file),
            engine: StoreEngine::open(options),
            replica: None,
            opened: Some(done),
            id: DeviceId::default(),
            reclaims: BTreeMap::new(),
            in_flight: 0,
            scrub: Scrub { pacer, passes: 0, damaged_before: 0, bytes_before: 0 },
            reported_failed: false,
            dead: false,
        });
    }

    /// Called with each tick.
    pub fn tend_scrubs(&mut self) {
        for store in &mut self.stores {
            store.tend_scrub(self.now_us);
        }
    }

    /// True while peers must wait: the devices have enough to do.
    pub fn replicas_are_full(&self) -> bool {
        let full = |store: &LocalStore| store.replica.as_ref().is_some_and(|r| r.in_flight() > STORE_REQUESTS_MAX);
        self.stores.iter().any(full)
    }

    pub fn store_of(&self, device: DeviceId) -> Option<usize> {
        self.stores.iter().position(|store| store.id == device && store.replica.is_some())
    }

    /// Deletes what a device holds of a volume; `promise`: the volume goes on elsewhere, in this epoch. Without an answer
    /// the caller asks again.
    pub fn reclaim(&mut self, device: DeviceId, volume: VolumeId, promise: Option<Epoch>, done: oneshot::Sender<()>) {
        let wants = |spec: &VolumeSpec| spec.lanes.iter().flatten().any(|member| *member == device);
        if self.specs.get(&volume).is_some_and(wants) {
            tracing::error!(%volume, %device, "not reclaimed: the volume wants the device");
            return;
        }
        if let Some(at) = self.store_of(device) {
            self.stores[at].reclaims.entry(volume).or_default().push(done);
            let event = match promise {
                Some(promise) => replica::Event::Release { volume, promise },
                None => replica::Event::Forget { volume },
            };
            self.work.push_back(Work::Replica(at, event));
        }
    }

    /// Volumes that have left devices here: all that is kept of them is the promise.
    pub fn left_volumes(&self) -> Vec<(DeviceId, VolumeId)> {
        let left_on = |store: &LocalStore| {
            let held: BTreeSet<VolumeId> = store.engine.lanes().map(|(key, _)| key.volume).collect();
            let promised = store.engine.promises().map(|(volume, _)| volume);
            promised.filter(|volume| !held.contains(volume)).map(|volume| (store.id, volume)).collect::<Vec<_>>()
        };
        self.stores.iter().filter(|store| store.replica.is_some()).flat_map(left_on).collect()
    }

    pub fn replica_event(&mut self, at: usize, event: replica::Event) {
        let mut effects = std::mem::take(&mut self.scratch.replica);
        if let Some(replica) = &mut self.stores[at].replica {
            replica.apply(event, &mut effects);
        }
        self.replica_effects(at, effects);
    }

    fn replica_effects(&mut self, at: usize, mut effects: Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Store { token, request } => self.stores[at].engine.submit(token, request),
                Effect::Send { link, envelope, message } => self.answer_writer(link, envelope, message),
                Effect::Forgotten { volume } => {
                    for done in self.stores[at].reclaims.remove(&volume).unwrap_or_default() {
                        let _ = done.send(());
                    }
                }
                Effect::Alarm(alarm) => tracing::error!(device = %self.stores[at].id, "{alarm}"),
            }
        }
        self.scratch.replica = effects;
    }

    /// Lets the replica acknowledge and the store submit what this round brought.
    pub fn settle_store(&mut self, at: usize) {
        let mut replies = std::mem::take(&mut self.scratch.replica);
        if let Some(replica) = &mut self.stores[at].replica {
            replica.settle(&mut replies);
        }
        self.replica_effects(at, replies);
        let mut effects = std::mem::take(&mut self.scratch.store);
        self.stores[at].engine.effects(&mut effects);
        for effect in effects.drain(..) {
            self.store_effect(at, effect);
        }
        self.scratch.store = effects;
        self.report_failure(at);
    }

    fn store_effect(&mut self, at: usize, effect: engine::Effect) {
        let fd = self.stores[at].fd;
        let key = |io: IoId| (at as u64) << DEVICE_SHIFT | io.0;
        match effect {
            engine::Effect::Read { io, offset, bytes } => {
                self.stores[at].in_flight += 1;
                self.reactor.read(key(io), fd, offset, AlignedBuffer::recycled(bytes));
            }
            engine::Effect::Write { io, offset, parts, durable } => {
                self.stores[at].in_flight += 1;
                self.reactor.write(key(io), fd, offset, parts, durable);
            }
            engine::Effect::Flush { io } => {
                self.stores[at].in_flight += 1;
                self.reactor.flush(key(io), fd);
            }
            engine::Effect::Reply { token, reply } => {
                self.work.push_back(Work::Replica(at, replica::Event::Stored { token, reply }));
            }
            engine::Effect::Damaged { volume, block, .. } => {
                self.stores[at].log_damage(volume, block);
                self.work.push_back(Work::Replica(at, replica::Event::Damaged { volume, block }));
            }
            engine::Effect::Opened => self.on_device_open(at),
            engine::Effect::OpenFailed(error) => {
                let store = &mut self.stores[at];
                store.dead = true;
                if store.in_flight == 0 {
                    store.file = None;
                }
                if let Some(done) = store.opened.take() {
                    let path = store.device.path.display();
                    let _ = done.send(Err(OpenFailure::Refused(format!("{path}: {error}"))));
                }
            }
        }
    }

    fn on_device_open(&mut self, at: usize) {
        let store = &mut self.stores[at];
        let id = store.engine.superblock().device;
        let lanes: Vec<_> = store.engine.lanes().map(|(key, state)| (key, state.clone())).collect();
        let stats = store.engine.stats();
        tracing::info!(
            device = %id,
            path = %store.device.path.display(),
            lanes = lanes.len(),
            used_bytes = stats.used_bytes,
            dropped_writes = stats.dropped_writes,
            "device is open"
        );
        if stats.damaged_chunks > 0 {
            tracing::error!(device = %id, "{} chunks have damaged metadata; their content is unknown here", stats.damaged_chunks);
        }
        store.replica = Some(ReplicaEngine::new(id, store.engine.promises(), lanes));
        store.id = id;
        self.siblings.homes.opened(id, self.siblings.number);
        if let Some(done) = store.opened.take() {
            let _ = done.send(Ok(id));
        }
        self.prefer_near_devices();
        self.announce_links();
    }

    /// Tells every writer which devices are of this node.
    pub fn prefer_near_devices(&mut self) {
        let near = self.near_devices();
        for attached in self.attached.values_mut() {
            attached.engine.prefer(near.iter().copied());
        }
    }

    fn report_failure(&mut self, at: usize) {
        let store = &mut self.stores[at];
        if store.reported_failed || store.dead {
            return;
        }
        let Some(reason) = store.engine.failed().map(str::to_owned) else { return };
        store.reported_failed = true;
        let device = store.id;
        tracing::error!(device = %device, "the device has failed and no longer serves: {reason}; replace it");
        self.ask_control(ShardRequest::DeviceFailed { device, reason });
    }

    fn device_done(&mut self, key: u64, result: Result<Option<AlignedBuffer>, IoError>) {
        let at = (key >> DEVICE_SHIFT) as usize;
        let io = IoId(key & ((1 << DEVICE_SHIFT) - 1));
        self.stores[at].in_flight -= 1;
        self.stores[at].engine.io_done(io, result);
        self.let_go_of_dead(at);
    }

    /// A device that could not be opened may be added again: its lock goes with its file.
    fn let_go_of_dead(&mut self, at: usize) {
        let store = &mut self.stores[at];
        if store.dead && store.in_flight == 0 {
            store.file = None;
        }
    }

    pub fn on_device_read(&mut self, key: u64, buffer: AlignedBuffer, result: io::Result<usize>) {
        let result = match result {
            Ok(bytes) if bytes == buffer.len() => Ok(Some(buffer)),
            Ok(bytes) => Err(IoError(format!("read {bytes} of {} bytes", buffer.len()))),
            Err(error) => Err(IoError(error.to_string())),
        };
        self.device_done(key, result);
    }

    pub fn on_device_written(&mut self, key: u64, result: io::Result<bool>) {
        let result = match result {
            Ok(true) => Ok(None),
            Ok(false) => Err(IoError("short write".into())),
            Err(error) => Err(IoError(error.to_string())),
        };
        self.device_done(key, result);
    }

    pub fn on_device_discarded(&mut self, key: u64, result: io::Result<bool>) {
        self.device_done(key, result.map(|_| None).map_err(|error| IoError(error.to_string())));
    }

    pub fn on_device_flushed(&mut self, key: u64, result: io::Result<()>) {
        self.device_done(key, result.map(|()| None).map_err(|error| IoError(error.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symptom: a daemon that starts right after a SIGKILL leaves its device out for good. Cause: the kernel still held
    /// the lock for the killed daemon's I/O, and that was taken for a device that never opens.
    #[test]
    fn a_device_in_use_is_told_from_one_that_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let failure = |name: &str| {
            let device = LocalDevice { path: dir.path().join(name), power_loss_protected: false, atomic_writes: false };
            BlockingDevice::open(&device.path).err().map(|error| open_failure(&device, &error))
        };
        let held = BlockingDevice::create(&dir.path().join("held"), 4096).unwrap();
        assert!(matches!(failure("held"), Some(OpenFailure::InUse(why)) if why.contains("another process")));
        assert!(matches!(failure("absent"), Some(OpenFailure::Refused(_))));
        drop(held);
        assert_eq!(failure("held"), None);
    }

    /// A file promises nothing by itself.
    #[test]
    fn what_the_operator_declares_of_a_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        let file = BlockingDevice::create(&path, 4096).unwrap();
        for (power_loss_protected, atomic_writes) in [(false, false), (true, false), (false, true), (true, true)] {
            let device = LocalDevice { path: path.clone(), power_loss_protected, atomic_writes };
            let options = open_options(&device, &file);
            assert_eq!((options.flush_needed, options.atomic), (!power_loss_protected, atomic_writes));
        }
    }
}
