//! The simulated device keeps the contract, and each of its faults does exactly what it says.

mod faults;
mod sim;

use super::SimDevice;
use crate::device::{Device, DeviceOp, IoResult};
use crate::engine::IoId;
use ashlar_model::Payload;
use smallvec::smallvec;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

fn blank(volatile: bool) -> SimDevice {
    SimDevice::blank(PAGES * PAGE, volatile, 1)
}

fn run(device: &mut SimDevice, op: DeviceOp) -> IoResult {
    let io = op.io();
    device.submit(op);
    let mut done = Vec::new();
    while device.in_flight() > device.stuck() {
        device.complete(&mut done);
    }
    let at = done.iter().position(|(one, _)| *one == io).expect("it completes");
    done.swap_remove(at).1
}

fn content(byte: u8, pages: u64) -> Vec<u8> {
    vec![byte; (pages * PAGE) as usize]
}

fn write_op(io: u64, page: u64, byte: u8, pages: u64) -> DeviceOp {
    let parts = smallvec![Payload::copied_from(&content(byte, pages))];
    DeviceOp::Write { io: IoId(io), offset: page * PAGE, parts, durable: false }
}

fn try_write(device: &mut SimDevice, page: u64, byte: u8, pages: u64) -> IoResult {
    run(device, write_op(1, page, byte, pages))
}

fn write(device: &mut SimDevice, page: u64, byte: u8, pages: u64) {
    assert!(matches!(try_write(device, page, byte, pages), Ok(None)));
}

fn try_read(device: &mut SimDevice, page: u64, pages: u64) -> IoResult {
    run(device, DeviceOp::Read { io: IoId(1), offset: page * PAGE, bytes: (pages * PAGE) as usize })
}

fn read(device: &mut SimDevice, page: u64, pages: u64) -> Vec<u8> {
    try_read(device, page, pages).unwrap().unwrap().to_vec()
}

fn flush(device: &mut SimDevice) {
    assert!(matches!(run(device, DeviceOp::Flush { io: IoId(1) }), Ok(None)));
}

/// Pages that hold only this byte.
fn pages_of(device: &SimDevice, byte: u8) -> Vec<u64> {
    (0..PAGES).filter(|page| device.bytes(page * PAGE, PAGE as usize).iter().all(|one| *one == byte)).collect()
}
