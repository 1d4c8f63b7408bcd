//! What the pure engines ask of the allocator per 4 KiB request in steady state, counted: nothing for the request itself. The
//! fractions are nodes of ordered sets that grow and shrink with what is in flight.

#[path = "../benches/pure/rigs.rs"]
#[allow(dead_code, reason = "the benches use the rest")]
mod rigs;

use ashlar::wire::message::ToWriter;
use ashlar::wire::{FrameDecoder, encode_to_replica, encode_to_writer};
use ashlar_model::BlockRange;
use ashlar_nbd::session::Outcome;
use ashlar_store::api::{Request, Token};
use rigs::{ROUND, ReplicaBench, StoreBench, VOLUME, WriterBench, block_of, content, decode, envelope, write_message};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, and how often this thread has asked it for memory.
struct Counting;

// SAFETY: everything is the system allocator's; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

fn count() {
    // A thread that is ending counts nothing any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds before counting begins, and that are counted.
const ROUNDS: u64 = 512;

/// Allocations per request of `per_round` requests.
fn allocations(per_round: u64, mut round: impl FnMut()) -> f64 {
    (0..ROUNDS).for_each(|_| round());
    let before = COUNT.get();
    (0..ROUNDS).for_each(|_| round());
    (COUNT.get() - before) as f64 / (ROUNDS * per_round) as f64
}

#[track_caller]
fn at_most(what: &str, limit: f64, found: f64) {
    println!("{what}: {found:.3} allocations");
    assert!(found <= limit, "{what}: {found:.3} allocations, {limit} are the limit");
}

#[test]
fn the_counter_counts() {
    let found = allocations(1, || drop(std::hint::black_box(Box::new(7))));
    assert!((found - 1.0).abs() < f64::EPSILON, "{found}");
}

#[test]
fn nbd_session() {
    let mut session = rigs::nbd_session();
    for (what, command) in [("read", 0), ("write", 1)] {
        let header = rigs::nbd_header(command);
        let found = allocations(1, || {
            let (_, outcome) = session.receive(&header);
            let Outcome::Request(request) = outcome else { panic!("not accepted: {outcome:?}") };
            if command == 1 {
                session.payload_taken(request.length_bytes as u32);
                session.reply_done(request.handle());
            } else {
                session.reply_read(&request);
            }
        });
        at_most(&format!("nbd {what}"), 0.0, found);
    }
}

#[test]
fn wire() {
    let message = write_message(100, 7, &content(7));
    let mut out = Vec::with_capacity(64 << 10);
    let encoded = allocations(1, || {
        out.clear();
        encode_to_replica(envelope(1), &message, &mut out);
    });
    at_most("encode write", 0.0, encoded);
    out.clear();
    let payload = encode_to_replica(envelope(1), &message, &mut out).expect("a write has a payload");
    let bytes = [&out[..], &payload[..]].concat();
    let mut decoder = FrameDecoder::default();
    at_most("decode write", 0.0, allocations(1, || drop(decode(&mut decoder, &bytes))));
    let ack = ToWriter::Ack { prefix: 100, index: 0, sent_at_us: 5, full: false };
    let acknowledged = allocations(1, || {
        out.clear();
        encode_to_writer(envelope(1), &ack, &mut out);
        decode(&mut decoder, &out);
    });
    at_most("encode and decode ack", 0.0, acknowledged);
}

#[test]
fn volume() {
    let mut bench = WriterBench::new();
    at_most("volume write, three acks", 0.2, allocations(ROUND, || assert_eq!(bench.round(ROUND), ROUND)));
}

#[test]
fn replica() {
    let mut bench = ReplicaBench::new();
    at_most("replica write", 0.2, allocations(ROUND, || assert!(bench.round(ROUND) > 0)));
}

#[test]
fn store() {
    let (mut bench, bodies) = StoreBench::filled();
    let mut next = 0;
    let read = allocations(ROUND, || {
        for _ in 0..ROUND {
            next += 1;
            let range = BlockRange::new(block_of(next), 1);
            bench.engine.submit(Token(next), Request::Read { volume: VOLUME, range });
        }
        assert_eq!(bench.drive(), ROUND);
    });
    // The answer's lists of conditions and versions.
    at_most("store read", 2.0, read);
    bench.null = true; // nothing reads what is written from here on
    let written = allocations(ROUND, || {
        for _ in 0..ROUND {
            next += 1;
            bench.write(&bodies[block_of(next) as usize], block_of(next));
        }
        assert_eq!(bench.drive(), ROUND);
    });
    at_most("store overwrite", 0.3, written);
}
