//! Criterion benches of the hot pure parts: what one 4 KiB request costs in user code, room by room. No socket, no
//! disk, no clock. `cargo bench --bench pure [-- FILTER]`
//!
//! Where a part has a queue in front of it, `x32` handles 32 requests in one round, as a busy shard does; its figures
//! are per request as well.

mod rigs;

use ashlar::wire::message::ToWriter;
use ashlar::wire::{FrameDecoder, encode_to_replica, encode_to_writer};
use ashlar_model::BlockRange;
use ashlar_model::checksum::block_checksum;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_nbd::session::Outcome as NbdOutcome;
use ashlar_store::api::{Request, Token};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rigs::{
    BLOCK, ROUND, ReplicaBench, StoreBench, VOLUME, WriterBench, block_of, content, decode, envelope, nbd_header,
    nbd_session, write_message,
};
use std::hint::black_box;

fn checksum(criterion: &mut Criterion) {
    let data = vec![0x5A; BLOCK_BYTES];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(BLOCK));
    group.bench_function("block", |bencher| bencher.iter(|| block_checksum(VOLUME, 7, black_box(&data))));
}

fn wire(criterion: &mut Criterion) {
    let message = write_message(100, 7, &content(7));
    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(64 << 10);
    group.bench_function("encode write", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_to_replica(envelope(1), black_box(&message), &mut out)
        });
    });
    out.clear();
    let payload = encode_to_replica(envelope(1), &message, &mut out).expect("a write has a payload");
    let bytes = [&out[..], &payload[..]].concat();
    let mut decoder = FrameDecoder::default();
    // Copies the payload and verifies its checksum.
    group.bench_function("decode write", |bencher| bencher.iter(|| decode(&mut decoder, black_box(&bytes))));
    let acknowledgement = ToWriter::Ack { prefix: 100, index: 0, sent_at_us: 5, full: false };
    group.bench_function("encode and decode ack", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_to_writer(envelope(1), black_box(&acknowledgement), &mut out);
            decode(&mut decoder, &out)
        });
    });
}

fn nbd(criterion: &mut Criterion) {
    let mut session = nbd_session();
    let mut group = criterion.benchmark_group("nbd");
    group.throughput(Throughput::Elements(1));
    for (name, command) in [("parse and answer read", 0), ("parse and answer write", 1)] {
        let header = nbd_header(command);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (_, outcome) = session.receive(black_box(&header));
                let NbdOutcome::Request(request) = outcome else { panic!("not accepted: {outcome:?}") };
                if command == 0 {
                    return session.reply_read(&request);
                }
                session.payload_taken(request.length_bytes as u32);
                session.reply_done(request.handle())
            });
        });
    }
}

fn writer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("volume");
    for (name, count) in [("write, three acks", 1), ("write, three acks x32", ROUND)] {
        group.throughput(Throughput::Elements(count));
        let mut bench = WriterBench::new();
        group.bench_function(name, |bencher| bencher.iter(|| assert_eq!(bench.round(count), count)));
    }
}

fn replica_engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replica");
    for (name, count) in [("write", 1), ("write x32", ROUND)] {
        group.throughput(Throughput::Elements(count));
        let mut bench = ReplicaBench::new();
        group.bench_function(name, |bencher| bencher.iter(|| assert!(bench.round(count) > 0)));
    }
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    let (mut bench, bodies) = StoreBench::filled();
    let mut next = 0;
    for (name, count) in [("read", 1), ("read x32", ROUND)] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..count {
                    next += 1;
                    let range = BlockRange::new(block_of(next), 1);
                    bench.engine.submit(Token(next), Request::Read { volume: VOLUME, range });
                }
                assert_eq!(bench.drive(), count);
            });
        });
    }
    bench.null = true; // nothing reads what is written from here on
    for (name, count) in [("overwrite", 1), ("overwrite x32", ROUND)] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..count {
                    next += 1;
                    let block = block_of(next);
                    bench.write(&bodies[block as usize], block);
                }
                assert_eq!(bench.drive(), count);
            });
        });
    }
}

criterion_group!(benches, checksum, wire, nbd, writer, replica_engine, store);
criterion_main!(benches);
