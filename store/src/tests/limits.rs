//! What is bounded stays bounded: the table, reads after an open, the log, what is kept in memory.

use super::rig::{Rig, data, range};
use crate::api::Body;
use ashlar_model::BlockRange;

const CHUNK: u64 = 1024;

#[test]
fn an_open_remembers_nothing_of_writes_that_need_no_look() {
    let mut rig = Rig::new();
    rig.write(1, range(0, 4), data(0, 4, 1));
    for index in 2..202 {
        let chunk = index % 50;
        rig.write(index, BlockRange::new(chunk * CHUNK, 1024), Body::Tombstone);
    }
    rig.reopen();
    assert_eq!(rig.engine.stats().replayed_blocks, 0, "tombstones, and a write that is proven");
    for granule in 0..2 {
        rig.write(202 + granule, range(granule * 16, 16), data(granule * 16, 16, 3));
    }
    rig.write(204, range(3, 2), data(3, 2, 4));
    rig.write(205, range(4, 1), Body::Tombstone);
    rig.write(206, range(16, 16), data(16, 16, 5));
    rig.reopen();
    assert_eq!(rig.engine.stats().replayed_blocks, 1 + 16, "one that only the log holds, and the last write");
}
