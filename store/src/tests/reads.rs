//! Reads that are on their way while other requests are taken.

use super::rig::{Rig, data, range, stamp, volume};
use super::snapshots::{ids, write};
use crate::api::{BlockState, Body, ReadResult, Reply, Request, Token};
use crate::engine::{Effect, IoError, IoId};
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

/// A read whose layer had been merged away asked the layer that has the block now whether it had changed, and believed that
/// nothing had: the numbers of changes of two layers were equal by chance.
#[test]
fn a_read_whose_layer_was_merged_away_reads_the_other_one() {
    let mut rig = Rig::new();
    write(&mut rig, 1, 0, range(0, 1), data(0, 1, 7));
    write(&mut rig, 2, 0, range(1, 1), data(1, 1, 8));
    let held = hold_read(&mut rig, range(0, 1));
    write(&mut rig, 3, 1, range(0, 1), data(0, 1, 9));
    assert_eq!(rig.ask(Request::DropGeneration { volume: volume(), generation: 0, into: 1 }), Reply::Done);
    let place = held.offset;
    write(&mut rig, 4, 1, range(1024, 1), data(1024, 1, 10));
    assert_eq!(rig.find(10), place, "the old place is used again");
    let Body::Data { payload, checksums } = data(0, 1, 9) else { unreachable!() };
    let read = release(&mut rig, held);
    assert_eq!((read.states, read.payload), (vec![BlockState::Data(checksums[0])], Some(payload)));
    assert_eq!((read.stamps, rig.engine.stats().bad_blocks), (vec![stamp(3)], 0));
    assert_eq!(ids(&mut rig, u32::MAX, range(0, 2)), [9, 8]);
}

/// Symptom: replicas repaired, and a recovery wrote off, what the medium had all the time.
#[test]
fn a_read_that_fails_once_is_no_damage() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 1), data(0, 1, 7));
    let Body::Data { payload, .. } = data(0, 1, 7) else { unreachable!() };
    for failure in [Err(IoError("passing".into())), Ok(Some(AlignedBuffer::zeroed(4096)))] {
        let Held { io, .. } = hold_read(&mut rig, range(0, 1));
        rig.engine.io_done(io, failure);
        let mut effects = rig.run().into_iter();
        let Some(Effect::Reply { token: READ, reply: Reply::Read(read) }) = effects.next() else { panic!("no answer") };
        assert_eq!((read.payload, rig.engine.stats().bad_blocks), (Some(payload.clone()), 0));
    }
}
