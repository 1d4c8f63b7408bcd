//! Lists of a lane: what they hold is settled and read at a cost that does not grow with them.

use super::rig::{key, range, stamp, volume};
use crate::map::ChunkMap;
use crate::record::{Content, NO_SLOT, WriteRecord};
use crate::table::VolumeTable;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::{Epoch, Stamp};

fn record(index: u64, origin: EntryOrigin) -> WriteRecord {
    WriteRecord {
        key: key(),
        stamp: stamp(index),
        range: range(index % 7, 1),
        origin,
        listed: true,
        generation: 0,
        slot: NO_SLOT,
        content: Content::Held,
    }
}

#[test]
fn a_list_is_in_order_of_index_whatever_the_order_of_arrival() {
    let mut table = VolumeTable::default();
    table.start(key(), Epoch(1), 1, 0);
    for (index, origin) in
        [(4, EntryOrigin::Live), (2, EntryOrigin::Copy), (5, EntryOrigin::Live), (4, EntryOrigin::Copy)]
    {
        table.add_entry(&record(index, origin));
    }
    let order = |table: &VolumeTable| -> Vec<(u64, bool)> {
        let list = &table.lane(key()).expect("started").list;
        list.iter().map(|entry| (entry.stamp.index, entry.origin == EntryOrigin::Live)).collect()
    };
    assert_eq!(order(&table), [(2, false), (4, true), (4, false), (5, true)]);
    let bytes = table.encode(0, std::iter::empty(), &[]);
    let again = VolumeTable::decode(&bytes).expect("its own bytes").table;
    assert_eq!((order(&again), again.encode(0, std::iter::empty(), &[]) == bytes), (order(&table), true));
    let mut gone = Vec::new();
    table.settle(key(), 4, 1, true, &mut gone);
    let indices = gone.iter().map(|entry| entry.stamp.index).collect();
    assert_eq!((indices, order(&table)), (vec![2, 4, 4], vec![(5, true)]));
    table.settle(key(), 4, 1, true, &mut gone);
    assert_eq!(gone.len(), 3, "nothing more leaves");
    assert_eq!(table.bytes(0, 0), again.bytes(0, 0) - 3 * 34, "the bound of its bytes goes down with it");
}

/// As the engine does for each write, read and settle.
#[test]
fn fifty_thousand_listed_overwrites_of_a_block_settle_one_by_one() {
    const COUNT: u64 = 50_000;
    let mut gone = Vec::new();
    let (mut table, mut map) = (VolumeTable::default(), ChunkMap::new(4));
    table.start(key(), Epoch(1), 1, 0);
    for index in 1..=COUNT {
        let write = WriteRecord { range: range(0, 1), ..record(index, EntryOrigin::Live) };
        table.add_entry(&write);
        map.list(volume(), write.stamp, write.range, 0);
        assert_eq!(map.stamps(volume(), range(0, 1), 0), [stamp(index)]);
    }
    for index in 1..=COUNT {
        table.settle(key(), index, 1, true, &mut gone);
        assert_eq!(gone.len(), 1);
        gone.drain(..).for_each(|entry| map.unlist(volume(), &entry));
        assert_eq!(map.stamps(volume(), range(0, 1), 0), [if index < COUNT { stamp(COUNT) } else { Stamp::default() }]);
    }
}

#[test]
fn a_table_whose_list_is_out_of_order_is_refused() {
    let mut table = VolumeTable::default();
    table.start(key(), Epoch(1), 1, 0);
    table.add_entry(&record(105, EntryOrigin::Live));
    table.add_entry(&record(106, EntryOrigin::Live));
    let mut bytes = table.encode(0, std::iter::empty(), &[]);
    assert!(VolumeTable::decode(&bytes).is_some());
    let first = bytes.windows(8).position(|eight| eight == 105u64.to_le_bytes()).unwrap();
    bytes[first] = 109;
    assert!(VolumeTable::decode(&bytes).is_none());
}
