//! Log records: what a commit group says, as bytes and back.
//!
//! Bytes come from a disk: decoding never panics. It must never know when a record is written.

use crate::disk::NO_GRANULE;
use crate::layout::CHUNKS_MAX;
use crate::map::GRANULE_PLACES;
use ashlar_model::checksum::Checksums;
use ashlar_model::lane::EntryOrigin;
use ashlar_model::units::{CHUNK_GRANULES, GRANULE_BLOCKS};
use ashlar_model::{BlockRange, Epoch, LaneKey, Stamp, VolumeId, limits::WRITE_BLOCKS_MAX};
use smallvec::SmallVec;

/// No slot.
pub const NO_SLOT: u32 = u32::MAX;

/// How one granule's part of a write reaches the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// In place, over nothing, in parallel with the record.
    Fresh,
    /// In the group's payload; written back later.
    Logged,
    /// In place, over older data, after the record is durable. One block at most, on a device that never tears one.
    Intent,
}

impl Class {
    fn tag(self) -> u8 {
        match self {
            Class::Fresh => 0,
            Class::Logged => 1,
            Class::Intent => 2,
        }
    }

    fn of_tag(tag: u8) -> Option<Self> {
        [Class::Fresh, Class::Logged, Class::Intent].into_iter().find(|class| class.tag() == tag)
    }
}

/// One granule's part of a data write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Physical granule.
    pub granule: u32,
    /// Class.
    pub class: Class,
    /// Place in the granule, of one block that lies elsewhere than its number says. Never of a logged one, which is written
    /// back to where it lies by then.
    pub place: Option<u8>,
}

impl Segment {
    /// The place in the granule where the write put a block that is not logged.
    pub fn place_of(self, block: u64) -> usize {
        self.place.map_or((block % GRANULE_BLOCKS as u64) as usize, usize::from)
    }
}

/// Bit of a segment's tag: its place follows.
const PLACED: u8 = 0x80;

/// One per touched granule: a write of usual size needs no list of its own.
pub type Segments = SmallVec<[Segment; 2]>;

/// What a write leaves behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Data: one segment per touched granule, one checksum per block.
    Data {
        /// In order of granules.
        segments: Segments,
        /// In order of blocks.
        checksums: Checksums,
    },
    /// Zeroes.
    Tombstone,
    /// Unknown content.
    Lost,
    /// No change of content: list entry and prefix only.
    Held,
}

/// A write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRecord {
    /// Lane.
    pub key: LaneKey,
    /// Version.
    pub stamp: Stamp,
    /// Blocks.
    pub range: BlockRange,
    /// Live or copy.
    pub origin: EntryOrigin,
    /// Joins the list.
    pub listed: bool,
    /// Snapshot generation.
    pub generation: u32,
    /// The chunk's slot ([`NO_SLOT`] only for `Held`).
    pub slot: u32,
    /// Content.
    pub content: Content,
}

impl WriteRecord {
    /// Parts of the range, one per granule: (granule of the chunk, part).
    pub fn parts(&self) -> impl Iterator<Item = (usize, BlockRange)> + use<> {
        granule_parts(self.range)
    }
}

/// Splits a range within one chunk by granules: (granule of the chunk, part).
pub fn granule_parts(range: BlockRange) -> impl Iterator<Item = (usize, BlockRange)> {
    let granule_blocks = GRANULE_BLOCKS as u64;
    let first = range.start / granule_blocks;
    let last = (range.end() - 1) / granule_blocks;
    (first..=last).map(move |granule| {
        let whole = BlockRange::new(granule * granule_blocks, GRANULE_BLOCKS as u32);
        let part = range.intersection(whole).expect("the granule is one of the range's");
        ((granule % CHUNK_GRANULES as u64) as usize, part)
    })
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A write.
    Write(WriteRecord),
    /// See `Request::Promise`.
    Promise(VolumeId, Epoch),
    /// See `Request::Start`: epoch, config, base.
    Start(LaneKey, Epoch, u64, u64),
    /// See `Request::Settle`: index, config, member.
    Settle(LaneKey, u64, u64, bool),
    /// See `Request::JoinStart`: epoch, config, join, base.
    JoinStart(LaneKey, Epoch, u64, u64, u64),
    /// See `Request::Forget`.
    Forget(VolumeId),
    /// See `Request::Release`: epoch.
    Release(VolumeId, Epoch),
    /// A layer takes over what it needs of a granule of the next older one; see `ChunkMap::absorb`.
    Absorb {
        /// Slot of the older layer.
        from: u32,
        /// Slot of the newer one.
        into: u32,
        /// Granule of the chunk.
        granule: u8,
        /// The newer layer had no granule there and got the older one's; otherwise the blocks were copied.
        moves: bool,
        /// The blocks that it takes over.
        mask: u16,
        /// One checksum for each of them.
        sums: Vec<u32>,
    },
    /// A layer belongs to a newer generation from now on.
    Relabel {
        /// Slot.
        slot: u32,
        /// The generation.
        generation: u32,
    },
    /// A layer that has nothing any more goes; its versions move into the next newer one.
    DropLayer {
        /// Slot.
        slot: u32,
        /// Slot of the newer one.
        into: u32,
    },
    /// Recovery found write number `ordinal` of group `lsn` torn: it never happened.
    Dropped {
        /// Group.
        lsn: u64,
        /// Number of the record in it.
        ordinal: u32,
    },
}

impl Record {
    /// True if data of the record is, or will be, in its place and not in the log.
    pub fn has_data_elsewhere(&self) -> bool {
        let Record::Write(WriteRecord { content: Content::Data { segments, .. }, .. }) = self else { return false };
        segments.iter().any(|segment| segment.class != Class::Logged)
    }

    /// Payload blocks that belong to the record.
    pub fn payload_blocks(&self) -> u32 {
        match self {
            Record::Write(write) => match &write.content {
                Content::Data { segments, .. } => write
                    .parts()
                    .zip(segments)
                    .filter(|(_, segment)| segment.class == Class::Logged)
                    .map(|((_, part), _)| part.count)
                    .sum(),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(out);
        match self {
            Record::Write(write) => encode_write(&mut w, write),
            Record::Promise(volume, epoch) => w.u8(2).volume(*volume).u64(epoch.0),
            Record::Start(key, epoch, config, base) => w.u8(3).key(*key).u64(epoch.0).u64(*config).u64(*base),
            Record::Settle(key, index, config, member) => {
                w.u8(4).key(*key).u64(*index).u64(*config).u8(u8::from(*member))
            }
            Record::JoinStart(key, epoch, config, join, base) => {
                w.u8(5).key(*key).u64(epoch.0).u64(*config).u64(*join).u64(*base)
            }
            Record::Forget(volume) => w.u8(6).volume(*volume),
            Record::Release(volume, epoch) => w.u8(11).volume(*volume).u64(epoch.0),
            Record::Absorb { from, into, granule, moves, mask, sums } => {
                w.u8(7).u32(*from).u32(*into).u8(*granule).u8(u8::from(*moves)).u16(*mask);
                sums.iter().fold(&mut w, |w, sum| w.u32(*sum))
            }
            Record::Dropped { lsn, ordinal } => w.u8(8).u64(*lsn).u32(*ordinal),
            Record::Relabel { slot, generation } => w.u8(9).u32(*slot).u32(*generation),
            Record::DropLayer { slot, into } => w.u8(10).u32(*slot).u32(*into),
        };
    }

    /// Reads one record; `None` if the bytes are none.
    pub fn decode(r: &mut Reader<'_>) -> Option<Self> {
        Some(match r.u8()? {
            1 => Record::Write(decode_write(r)?),
            2 => Record::Promise(r.volume()?, Epoch(r.u64()?)),
            3 => Record::Start(r.key()?, Epoch(r.u64()?), r.u64()?, r.u64()?),
            4 => Record::Settle(r.key()?, r.u64()?, r.u64()?, r.u8()? != 0),
            5 => Record::JoinStart(r.key()?, Epoch(r.u64()?), r.u64()?, r.u64()?, r.u64()?),
            6 => Record::Forget(r.volume()?),
            7 => {
                let (from, into, granule, moves, mask) = (r.u32()?, r.u32()?, r.u8()?, r.u8()?, r.u16()?);
                if usize::from(granule) >= CHUNK_GRANULES || moves > 1 {
                    return None;
                }
                let sums: Option<Vec<u32>> = (0..mask.count_ones()).map(|_| r.u32()).collect();
                Record::Absorb { from, into, granule, moves: moves == 1, mask, sums: sums? }
            }
            8 => Record::Dropped { lsn: r.u64()?, ordinal: r.u32()? },
            9 => Record::Relabel { slot: r.u32()?, generation: r.u32()? },
            10 => Record::DropLayer { slot: r.u32()?, into: r.u32()? },
            11 => Record::Release(r.volume()?, Epoch(r.u64()?)),
            _ => return None,
        })
    }
}

fn encode_write<'a, 'b>(w: &'a mut Writer<'b>, write: &WriteRecord) -> &'a mut Writer<'b> {
    let flags = u8::from(write.listed) | u8::from(write.origin == EntryOrigin::Copy) << 1;
    w.u8(1).key(write.key).u64(write.stamp.epoch.0).u64(write.stamp.index).range(write.range);
    w.u8(flags).u32(write.generation).u32(write.slot);
    match &write.content {
        Content::Data { segments, checksums } => {
            w.u8(0);
            for segment in segments {
                let placed = if segment.place.is_some() { PLACED } else { 0 };
                w.u32(segment.granule).u8(segment.class.tag() | placed);
                if let Some(place) = segment.place {
                    w.u8(place);
                }
            }
            for sum in checksums.iter() {
                w.u32(*sum);
            }
        }
        Content::Tombstone => {
            w.u8(1);
        }
        Content::Held => {
            w.u8(2);
        }
        Content::Lost => {
            w.u8(3);
        }
    }
    w
}

fn decode_write(r: &mut Reader<'_>) -> Option<WriteRecord> {
    let key = r.key()?;
    let stamp = Stamp { epoch: Epoch(r.u64()?), index: r.u64()? };
    let range = r.range()?;
    let (flags, generation, slot) = (r.u8()?, r.u32()?, r.u32()?);
    let content = match r.u8()? {
        0 => {
            if range.count > WRITE_BLOCKS_MAX {
                return None;
            }
            let mut segments = Segments::new();
            for (_, part) in granule_parts(range) {
                let (granule, tag) = (r.u32()?, r.u8()?);
                let class = Class::of_tag(tag & !PLACED)?;
                let place = if tag & PLACED == 0 { None } else { Some(r.u8()?) };
                let possible =
                    |place: u8| usize::from(place) < GRANULE_PLACES && part.count == 1 && class != Class::Logged;
                let bad_place = place.is_some_and(|place| !possible(place));
                if granule == NO_GRANULE || bad_place || (class == Class::Intent && range.count > 1) {
                    return None;
                }
                segments.push(Segment { granule, class, place });
            }
            let checksums: Option<Vec<u32>> = (0..range.count).map(|_| r.u32()).collect();
            Content::Data { segments, checksums: checksums?.into() }
        }
        1 => Content::Tombstone,
        2 => Content::Held,
        3 => Content::Lost,
        _ => return None,
    };
    let origin = if flags & 2 != 0 { EntryOrigin::Copy } else { EntryOrigin::Live };
    Some(WriteRecord { key, stamp, range, origin, listed: flags & 1 != 0, generation, slot, content })
}

/// Appends little-endian numbers.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

macro_rules! put {
    ($($name:ident: $type:ty),*) => { $(
        /// Appends a number.
        pub fn $name(&mut self, value: $type) -> &mut Self {
            self.0.extend_from_slice(&value.to_le_bytes());
            self
        }
    )* };
}

impl Writer<'_> {
    put!(u8: u8, u16: u16, u32: u32, u64: u64, u128: u128);

    /// Appends a volume id.
    pub fn volume(&mut self, volume: VolumeId) -> &mut Self {
        self.u128(volume.as_u128())
    }
    /// Appends a lane key.
    pub fn key(&mut self, key: LaneKey) -> &mut Self {
        self.volume(key.volume).u16(key.lane)
    }
    /// Appends a range.
    pub fn range(&mut self, range: BlockRange) -> &mut Self {
        self.u64(range.start).u32(range.count)
    }
}

/// Takes little-endian numbers; `None` at the end of the bytes.
pub struct Reader<'a>(pub &'a [u8]);

macro_rules! get {
    ($($name:ident: $type:ty),*) => { $(
        /// Takes a number.
        pub fn $name(&mut self) -> Option<$type> {
            let (head, tail) = self.0.split_first_chunk()?;
            self.0 = tail;
            Some(<$type>::from_le_bytes(*head))
        }
    )* };
}

impl Reader<'_> {
    get!(u8: u8, u16: u16, u32: u32, u64: u64, u128: u128);

    /// Takes a volume id.
    pub fn volume(&mut self) -> Option<VolumeId> {
        self.u128().map(VolumeId::from_u128)
    }
    /// Takes a lane key.
    pub fn key(&mut self) -> Option<LaneKey> {
        Some(LaneKey { volume: self.volume()?, lane: self.u16()? })
    }
    /// Takes a range within one chunk.
    pub fn range(&mut self) -> Option<BlockRange> {
        let range = self.any_range()?;
        (range.is_within_chunk() && range.chunk() < CHUNKS_MAX).then_some(range)
    }
    /// Takes a range of any length.
    pub fn any_range(&mut self) -> Option<BlockRange> {
        let (start, count) = (self.u64()?, self.u32()?);
        (count > 0 && start.checked_add(u64::from(count)).is_some()).then_some(BlockRange { start, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> WriteRecord {
        let key = LaneKey { volume: VolumeId::from_u128(7), lane: 3 };
        let segment = |granule, class| Segment { granule, class, place: None };
        WriteRecord {
            key,
            stamp: Stamp { epoch: Epoch(2), index: 9 },
            range: BlockRange::new(1024 + 14, 20),
            origin: EntryOrigin::Copy,
            listed: true,
            generation: 5,
            slot: 4,
            content: Content::Data {
                segments: smallvec::smallvec![
                    segment(1, Class::Fresh),
                    segment(2, Class::Logged),
                    segment(9, Class::Fresh)
                ],
                checksums: (0..20).collect(),
            },
        }
    }

    /// One block at a place of its granule.
    fn placed(class: Class, place: u8) -> WriteRecord {
        let segments = smallvec::smallvec![Segment { granule: 1, class, place: Some(place) }];
        let content = Content::Data { segments, checksums: [7].into() };
        WriteRecord { range: BlockRange::new(1024 + 14, 1), content, ..sample() }
    }

    #[test]
    fn impossible_places_are_refused() {
        let decoded = |write: WriteRecord| {
            let mut bytes = Vec::new();
            Record::Write(write).encode(&mut bytes);
            Record::decode(&mut Reader(&bytes))
        };
        assert!(decoded(placed(Class::Fresh, 16)).is_some());
        assert_eq!(decoded(placed(Class::Fresh, 17)), None);
        assert_eq!(decoded(placed(Class::Logged, 3)), None);
        let two = BlockRange::new(1024 + 14, 2);
        let Content::Data { segments, .. } = placed(Class::Fresh, 3).content else { unreachable!() };
        let content = Content::Data { segments, checksums: [7, 8].into() };
        assert_eq!(decoded(WriteRecord { range: two, content, ..sample() }), None);
    }

    #[test]
    fn records_read_as_written_and_no_prefix_panics() {
        let key = sample().key;
        let records = [
            Record::Write(sample()),
            Record::Write(placed(Class::Fresh, 16)),
            Record::Write(placed(Class::Intent, 0)),
            Record::Write(WriteRecord { content: Content::Tombstone, ..sample() }),
            Record::Write(WriteRecord { content: Content::Lost, ..sample() }),
            Record::Write(WriteRecord { content: Content::Held, slot: NO_SLOT, ..sample() }),
            Record::Promise(key.volume, Epoch(4)),
            Record::Start(key, Epoch(4), 5, 6),
            Record::Settle(key, 4, 5, true),
            Record::JoinStart(key, Epoch(4), 5, 6, 7),
            Record::Forget(key.volume),
            Record::Release(key.volume, Epoch(4)),
            Record::Absorb { from: 3, into: 4, granule: 63, moves: true, mask: 0x8001, sums: vec![1, 2] },
            Record::Absorb { from: 3, into: 4, granule: 0, moves: false, mask: 0, sums: vec![] },
            Record::Dropped { lsn: 1, ordinal: 2 },
            Record::Relabel { slot: 3, generation: 4 },
            Record::DropLayer { slot: 3, into: 4 },
        ];
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(Record::decode(&mut Reader(&bytes)), Some(record));
            for end in 0..bytes.len() {
                assert_eq!(Record::decode(&mut Reader(&bytes[..end])), None);
            }
        }
        assert_eq!(Record::Write(sample()).payload_blocks(), 16);
    }
}
