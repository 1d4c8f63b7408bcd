//! The contract on files and loop devices, and what is particular to them.

use super::*;
use crate::testing::{LoopDevice, check_device};
use ashlar_model::Payload;
use ashlar_model::units::MIB;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SIZE: u64 = 16 * MIB;

fn queue(path: &Path) -> BlockingQueue {
    BlockingQueue::new(BlockingDevice::open(path).unwrap())
}

#[test]
fn a_file_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    drop(BlockingDevice::create(&path, SIZE).unwrap());
    check_device(|| queue(&path));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
}

#[test]
fn a_file_promises_nothing_and_has_whole_pages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    let device = BlockingDevice::create(&path, SIZE + 1000).unwrap();
    assert_eq!(device.size_bytes(), SIZE + 1000);
    let expected = DeviceProperties {
        size_bytes: SIZE,
        volatile_cache: true,
        atomic_write_bytes: SECTOR_BYTES,
        block_device: false,
    };
    assert_eq!(device.properties(), expected);
}

#[test]
fn a_discard_keeps_the_space_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    let device = BlockingDevice::create(&path, SIZE).unwrap();
    device.write(0, &[Payload::copied_from(&[7; 1 << 20])]).unwrap();
    device.flush().unwrap();
    let blocks = |path| std::fs::metadata(path).unwrap().blocks();
    let before = blocks(&path);
    assert!(before * 512 >= SIZE);
    let told = device.discard(0, MIB).unwrap();
    device.flush().unwrap();
    assert!(blocks(&path) >= before, "the file gave space away");
    if told {
        assert!(device.read(0, 1 << 20).unwrap().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn errors_name_the_device_and_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    let mut queue = BlockingQueue::new(BlockingDevice::create(&path, SIZE).unwrap());
    queue.submit(DeviceOp::Read { io: IoId(3), offset: SIZE, bytes: 4096 });
    let mut done = Vec::new();
    queue.complete(&mut done);
    let [(IoId(3), Err(IoError(text)))] = &done[..] else { panic!("{done:?}") };
    let end = SIZE + 4096;
    let expected = format!("read of bytes {SIZE}..{end} is beyond the end of the device ({SIZE} bytes)");
    assert_eq!(*text, format!("{}: {expected}", path.display()));
}

#[test]
#[ignore = "needs root and loop devices: cargo xtask ci e2e"]
fn a_block_device_keeps_the_contract() {
    if let Some(why) = LoopDevice::unavailable() {
        println!("not checked: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("image"), SIZE).unwrap();
    let properties = queue(device.path()).properties();
    assert!(properties.block_device && properties.size_bytes == SIZE, "{properties:?}");
    check_device(|| queue(device.path()));
    assert!(queue(device.path()).device().discard(0, MIB).unwrap(), "loop devices can discard");
}

#[test]
#[ignore = "needs root and loop devices: cargo xtask ci e2e"]
fn a_loop_device_is_detached_even_by_a_panic() {
    if let Some(why) = LoopDevice::unavailable() {
        println!("not checked: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let result = std::panic::catch_unwind(|| {
        let device = LoopDevice::new(&image, SIZE).unwrap();
        panic!("{}", device.path().display());
    });
    assert!(result.unwrap_err().downcast::<String>().unwrap().starts_with("/dev/loop"));
    let attached = std::process::Command::new("losetup").arg("--associated").arg(&image).output().unwrap();
    assert!(attached.status.success() && attached.stdout.is_empty(), "{attached:?}");
}
