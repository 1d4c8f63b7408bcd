//! Bytes that a device calls good match the checksum that it records for them, and no block is damaged.

use ashlar_model::VolumeId;
use ashlar_model::checksum::block_checksum;
use ashlar_store::api::{BlockState, ReadResult};

/// Judges what a device's store read.
///
/// # Errors
/// The block that is damaged or does not match.
pub fn check(volume: VolumeId, read: &ReadResult) -> Result<(), String> {
    for (i, (block, state)) in read.range.blocks().zip(&read.states).enumerate() {
        match (state, &read.payload) {
            (BlockState::Zero, _) => {}
            (BlockState::Data(recorded), Some(payload)) => {
                if block_checksum(volume, block, payload.block(i)) != *recorded {
                    return Err(format!("block {block} is called good, and does not match its checksum {recorded:#x}"));
                }
            }
            (BlockState::Data(_), None) => return Err(format!("block {block} has data, but none was read")),
            (BlockState::Bad(_) | BlockState::Unknown, _) => return Err(format!("block {block} is {state:?}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::units::BLOCK_BYTES;
    use ashlar_model::{BlockRange, Payload};

    #[test]
    fn bytes_must_match_what_is_recorded() {
        let volume = VolumeId::from_u128(3);
        let bytes = [7u8; BLOCK_BYTES];
        let good = BlockState::Data(block_checksum(volume, 9, &bytes));
        let read = |states: Vec<BlockState>, payload: Option<&[u8]>| ReadResult {
            range: BlockRange::new(9, 1),
            payload: payload.map(Payload::copied_from),
            states,
            stamps: vec![Default::default()],
        };
        assert!(check(volume, &read(vec![good], Some(&bytes))).is_ok());
        assert!(check(volume, &read(vec![BlockState::Zero], None)).is_ok());
        assert!(check(volume, &read(vec![good], Some(&[8u8; BLOCK_BYTES]))).is_err());
        assert!(check(volume, &read(vec![good], None)).is_err());
        assert!(check(volume, &read(vec![BlockState::Bad(1)], None)).is_err());
        assert!(check(volume, &read(vec![BlockState::Unknown], None)).is_err());
    }
}
