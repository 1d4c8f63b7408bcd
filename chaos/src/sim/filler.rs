//! The other volume on a device: it takes all space, and gives it back.

use super::node::FILLER;
use ashlar_model::checksum::block_checksum;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS, GRANULE_BLOCKS, GRANULE_BYTES};
use ashlar_model::{BlockRange, Epoch, LaneKey, Payload, Stamp};
use ashlar_store::api::{Body, Request, Write};
use ashlar_store::engine::Stats;

const LANE: LaneKey = LaneKey { volume: FILLER, lane: 0 };

/// What to ask of the store: one block into each granule that is left, or the deletion of all of it once no fault
/// (`faults` of them remain) wants the device full.
pub(super) fn requests(stats: &Stats, full: bool, faults: u32) -> Vec<Request> {
    if !full {
        return if faults == 0 { vec![Request::Forget { volume: FILLER }] } else { Vec::new() };
    }
    let free = (stats.total_bytes - stats.used_bytes) / GRANULE_BYTES as u64;
    let used = stats.used_bytes / GRANULE_BYTES as u64;
    let start = Request::Start { key: LANE, epoch: Epoch(1), config: 0, base: 0 };
    let block = |granule: u64| {
        // Places that no earlier filling used: every granule of the device at most once.
        let chunk = granule / 64;
        chunk * CHUNK_BLOCKS as u64 + granule % 64 * GRANULE_BLOCKS as u64
    };
    std::iter::once(start).chain((used..used + free).map(|granule| write(block(granule)))).collect()
}

fn write(block: u64) -> Request {
    let payload = Payload::copied_from(&[0xFF; BLOCK_BYTES]);
    let checksums = [block_checksum(FILLER, block, &payload)].into();
    Request::Write(Write {
        key: LANE,
        stamp: Stamp { epoch: Epoch(1), index: 1 },
        range: BlockRange::new(block, 1),
        body: Body::Data { payload, checksums },
        // A copy at or below settled: neither list nor prefix grow.
        origin: EntryOrigin::Copy,
        listed: false,
        generation: 0,
    })
}
