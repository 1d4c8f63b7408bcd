//! Checksums: XXH3-64 (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>), seeded with the place of
//! what is summed, so that right bytes in a wrong place do not verify.

use crate::ids::VolumeId;
use crate::units::BLOCK_BYTES;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Checksum of one block: the low 32 bits of XXH3-64, seeded with volume and block number.
///
/// `data` is exactly [`BLOCK_BYTES`] long.
pub fn block_checksum(volume: VolumeId, block: u64, data: &[u8]) -> u32 {
    assert_eq!(data.len(), BLOCK_BYTES, "a block checksum covers one block");
    xxh3_64_with_seed(data, block_seed(volume, block)) as u32
}

/// Checksums of consecutive blocks of a volume; `data` is a multiple of [`BLOCK_BYTES`].
pub fn block_checksums(volume: VolumeId, first_block: u64, data: &[u8]) -> impl Iterator<Item = u32> {
    data.chunks_exact(BLOCK_BYTES).zip(first_block..).map(move |(bytes, block)| block_checksum(volume, block, bytes))
}

/// XXH3-128 of a block's bytes: equal digests are taken for equal bytes, which a 32-bit checksum does not allow. The seed is
/// the question's own, so that nobody can prepare two contents that look alike.
pub fn block_digest(seed: u64, data: &[u8]) -> u128 {
    assert_eq!(data.len(), BLOCK_BYTES, "a digest covers one block");
    xxh3_128_with_seed(data, seed)
}

/// XXH3-64 of metadata bytes, seeded with the identity and position of the place they belong to.
pub fn metadata_checksum(identity: u128, position: u64, data: &[u8]) -> u64 {
    xxh3_64_with_seed(data, mix(identity, position))
}

fn block_seed(volume: VolumeId, block: u64) -> u64 {
    mix(volume.as_u128(), block)
}

/// Folds 192 bits into a seed. The multiplier is 2^64 divided by the golden ratio, odd: consecutive positions spread.
fn mix(identity: u128, position: u64) -> u64 {
    (identity as u64) ^ ((identity >> 64) as u64).rotate_left(32) ^ position.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_elsewhere_do_not_verify() {
        let data = [7u8; BLOCK_BYTES];
        let (one, other) = (VolumeId::from_u128(1), VolumeId::from_u128(2));
        let sum = block_checksum(one, 5, &data);
        assert_eq!(sum, block_checksum(one, 5, &data));
        assert_ne!(sum, block_checksum(one, 6, &data));
        assert_ne!(sum, block_checksum(other, 5, &data));
    }

    /// The format on disk and on the wire depends on these values: they never change.
    #[test]
    fn golden_values() {
        let data: Vec<u8> = (0..BLOCK_BYTES).map(|i| i as u8).collect();
        let volume = VolumeId::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        assert_eq!(block_checksum(volume, 42, &data), 0xe197_68d0);
        assert_eq!(metadata_checksum(3, 9, b"ashlar"), 0x15e03f983a2bb448);
    }
}
