//! Records: what is written is read, and any other bytes are an error.

mod fixture;

use ashlar_raft::codec::{self, CodecError, HEADER_BYTES, Kind};
use ashlar_raft::{Command, State};
use fixture::*;
use proptest::prelude::*;

fn sample() -> Vec<u8> {
    codec::encode(Kind::Command, &Command::Attach(attach(1, 2, true))).unwrap()
}

#[test]
fn every_damage_of_one_byte_is_noticed() {
    let record = sample();
    for position in 0..record.len() {
        for bit in 0..8 {
            let mut damaged = record.clone();
            damaged[position] ^= 1 << bit;
            assert!(codec::decode::<Command>(Kind::Command, &damaged).is_err(), "byte {position} bit {bit}");
        }
    }
    for length in 0..record.len() {
        assert!(codec::decode::<Command>(Kind::Command, &record[..length]).is_err());
    }
}

#[test]
fn the_reason_is_said() {
    let record = sample();
    let decode = |bytes: &[u8]| codec::decode::<Command>(Kind::Command, bytes).unwrap_err();
    let with = |position: usize, byte: u8| {
        let mut bytes = record.clone();
        bytes[position] = byte;
        bytes
    };
    assert_eq!(decode(&with(0, 0)), CodecError::Magic);
    assert_eq!(decode(&with(4, 9)), CodecError::Version { found: 9 });
    assert_eq!(decode(&with(6, 2)), CodecError::Kind { expected: Kind::Command, found: 2 });
    assert_eq!(
        decode(&with(11, 0xff)),
        CodecError::TooLarge { kind: Kind::Command, bytes: 0xff00_0000 | (record.len() - HEADER_BYTES) }
    );
    assert_eq!(decode(&with(HEADER_BYTES, 0xff)), CodecError::Checksum);
    let longer = [record.as_slice(), &[0]].concat();
    assert_eq!(decode(&longer), CodecError::Length { expected: record.len(), found: record.len() + 1 });
    let huge = Command::SetSetting { key: "x".repeat(codec::COMMAND_BYTES_MAX), value: 0 };
    assert!(matches!(codec::encode(Kind::Command, &huge), Err(CodecError::TooLarge { .. })));
}

/// The log and the snapshots of running clusters depend on these bytes. A change needs a new version.
#[test]
fn golden_record() {
    let state = codec::encode(Kind::State, &with_volume()).unwrap();
    let sums = [xxhash_rust::xxh3::xxh3_64(&sample()), xxhash_rust::xxh3::xxh3_64(&state)];
    assert_eq!(sums, [0x1592_6516_cf2a_8a1c, 0xf176_b329_205e_2813], "{sums:#x?}");
}

proptest! {
    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..3) {
        let kind = [Kind::Command, Kind::State, Kind::Outcome][kind];
        let _ = codec::decode::<Command>(kind, &bytes);
        // With a sound header around them, so that they reach the payload decoder.
        let mut record = codec::encode(kind, &RawBytes(bytes)).unwrap();
        let _ = codec::decode::<Command>(kind, &record);
        let _ = codec::decode::<State>(kind, &record);
        record.pop();
        prop_assert!(codec::decode::<Command>(kind, &record).is_err());
    }
}

/// Encodes as the bytes alone, without a length.
struct RawBytes(Vec<u8>);

impl serde::Serialize for RawBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in &self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}
