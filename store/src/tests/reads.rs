//! Reads that are on their way while other requests are taken.

use super::rig::{Rig, data, range, stamp, volume};
use crate::api::{Body, ReadResult, Reply, Request, Token};
use crate::engine::{Effect, IoId};
use ashlar_model::{AlignedBuffer, BlockRange};

const READ: Token = Token(1 << 40);

/// A device read that has not been carried out.
struct Held {
    io: IoId,
    offset: u64,
    bytes: usize,
}

/// Submits a read; keeps its device read back.
fn hold_read(rig: &mut Rig, range: BlockRange) -> Held {
    rig.engine.submit(READ, Request::Read { volume: volume(), range });
    let mut effects = Vec::new();
    rig.engine.effects(&mut effects);
    match effects[..] {
        [Effect::Read { io, offset, bytes }] => Held { io, offset, bytes },
        ref other => panic!("one device read, not {other:?}"),
    }
}

/// Lets the device read go; gives the answer.
fn release(rig: &mut Rig, Held { io, offset, bytes }: Held) -> ReadResult {
    let buffer = AlignedBuffer::copied_from(rig.device.bytes(offset, bytes));
    rig.engine.io_done(io, Ok(Some(buffer)));
    let mut answers = rig.run().into_iter().filter_map(|effect| match effect {
        Effect::Reply { token: READ, reply: Reply::Read(result) } => Some(result),
        _ => None,
    });
    answers.next().expect("the read is answered")
}

/// Versions were looked up when the device had answered: a write accepted meanwhile gave its version to the data before it.
#[test]
fn a_read_gives_the_version_of_the_data_that_it_gives() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 1), data(0, 1, 7));
    let held = hold_read(&mut rig, range(0, 1));
    rig.write(2, range(0, 1), data(0, 1, 8));
    let Body::Data { payload, .. } = data(0, 1, 7) else { unreachable!() };
    let read = release(&mut rig, held);
    assert_eq!((read.payload, read.stamps), (Some(payload), vec![stamp(1)]));
    assert_eq!(rig.read(range(0, 1)).stamps, [stamp(2)]);
}
