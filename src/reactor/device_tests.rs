//! The reactor on a file or block device keeps the contract of the store's devices.

use super::{Completion, Reactor};
use ashlar_model::AlignedBuffer;
use ashlar_store::device::{BlockingDevice, Device, DeviceOp, DeviceProperties, IoResult};
use ashlar_store::testing::{LoopDevice, check_device};
use ashlar_store::{IoError, IoId};
use std::os::fd::AsRawFd;
use std::path::Path;

const SIZE: u64 = 16 << 20;

/// A reactor that does nothing but one device's operations.
struct UringDevice {
    /// Dropped first: it waits for the kernel to be done with the file.
    reactor: Reactor,
    device: BlockingDevice,
    /// What was refused, and never reached the kernel.
    refused: Vec<(IoId, IoResult)>,
    in_flight: usize,
    /// Discards that the kernel really carried out.
    discards: usize,
}

impl UringDevice {
    fn open(path: &Path) -> Self {
        let device = BlockingDevice::open(path).unwrap();
        let reactor = Reactor::new(std::time::Duration::ZERO).unwrap();
        Self { reactor, device, refused: Vec::new(), in_flight: 0, discards: 0 }
    }

    /// As the shard takes completions.
    fn result(&mut self, completion: Completion) -> Option<(IoId, IoResult)> {
        let failed = |error: std::io::Error| IoError(error.to_string());
        let (key, result) = match completion {
            Completion::Read { key, buffer, result } => match result {
                Ok(bytes) if bytes == buffer.len() => (key, Ok(Some(buffer))),
                Ok(bytes) => (key, Err(IoError(format!("read {bytes} of {} bytes", buffer.len())))),
                Err(error) => (key, Err(failed(error))),
            },
            Completion::Written { key, result: Ok(false) } => (key, Err(IoError("short write".into()))),
            Completion::Written { key, result } => (key, result.map(|_| None).map_err(failed)),
            Completion::Flushed { key, result } => (key, result.map(|()| None).map_err(failed)),
            Completion::Discarded { key, result } => {
                self.discards += usize::from(matches!(result, Ok(true)));
                (key, result.map(|_| None).map_err(failed))
            }
            Completion::Rung | Completion::Expired => return None,
            other => panic!("not of a device: {other:?}"),
        };
        Some((IoId(key), result))
    }
}

impl Device for UringDevice {
    fn properties(&self) -> DeviceProperties {
        self.device.properties()
    }

    fn submit(&mut self, op: DeviceOp) {
        self.in_flight += 1;
        let properties = self.properties();
        if let Err(error) = op.check(properties.size_bytes) {
            self.refused.push((op.io(), Err(error)));
            return;
        }
        let (key, fd) = (op.io().0, self.device.file().as_raw_fd());
        match op {
            DeviceOp::Read { offset, bytes, .. } => self.reactor.read(key, fd, offset, AlignedBuffer::zeroed(bytes)),
            DeviceOp::Write { offset, parts, durable, .. } => self.reactor.write(key, fd, offset, parts, durable),
            DeviceOp::Flush { .. } => self.reactor.flush(key, fd),
            DeviceOp::Discard { offset, bytes, .. } => {
                self.reactor.discard(key, fd, offset, bytes, properties.block_device);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn complete(&mut self, out: &mut Vec<(IoId, IoResult)>) {
        let before = out.len();
        out.append(&mut self.refused);
        while out.len() == before && self.in_flight > 0 {
            let mut completions = Vec::new();
            self.reactor.wait(&mut completions).unwrap();
            for completion in completions {
                out.extend(self.result(completion));
            }
        }
        self.in_flight -= out.len() - before;
    }
}

/// Discards the first pages; true if the kernel did it.
fn discards(path: &Path) -> bool {
    let mut device = UringDevice::open(path);
    device.submit(DeviceOp::Discard { io: IoId(1), offset: 0, bytes: 1 << 20 });
    let mut done = Vec::new();
    device.complete(&mut done);
    assert!(matches!(done[..], [(IoId(1), Ok(None))]), "{done:?}");
    device.discards == 1
}

#[test]
fn the_reactor_on_a_file_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    drop(BlockingDevice::create(&path, SIZE).unwrap());
    check_device(|| UringDevice::open(&path));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
    let by_call = BlockingDevice::open(&path).unwrap().discard(0, 1 << 20).unwrap();
    assert_eq!(discards(&path), by_call, "the same file system, the same answer");
}

#[test]
#[ignore = "needs root and loop devices: cargo xtask ci e2e"]
fn the_reactor_on_a_block_device_keeps_the_contract() {
    if let Some(why) = LoopDevice::unavailable() {
        println!("not checked: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("image"), SIZE).unwrap();
    check_device(|| UringDevice::open(device.path()));
    println!("discards by io_uring: {}", discards(device.path()));
}
