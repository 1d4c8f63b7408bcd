//! Checksums: XXH3-64 (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>), seeded with the place of
//! what is summed, so that right bytes in a wrong place do not verify.

use crate::ids::VolumeId;
use crate::units::BLOCK_BYTES;
use std::ops::Deref;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Checksums of consecutive blocks, shared by all who have them. That of one block, the usual case, needs no memory of its
/// own.
#[derive(Clone, Debug)]
pub enum Checksums {
    /// Of one block.
    One([u32; 1]),
    /// Of any other number.
    Many(Arc<[u32]>),
}

impl Deref for Checksums {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        match self {
            Checksums::One(sum) => sum,
            Checksums::Many(sums) => sums,
        }
    }
}

impl PartialEq for Checksums {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Checksums {}

impl FromIterator<u32> for Checksums {
    fn from_iter<I: IntoIterator<Item = u32>>(sums: I) -> Self {
        let mut sums = sums.into_iter();
        let (first, second) = (sums.next(), sums.next());
        match (first, second) {
            (Some(sum), None) => Checksums::One([sum]),
            (first, second) => Checksums::Many(first.into_iter().chain(second).chain(sums).collect()),
        }
    }
}

impl From<&[u32]> for Checksums {
    fn from(sums: &[u32]) -> Self {
        sums.iter().copied().collect()
    }
}

impl From<Vec<u32>> for Checksums {
    fn from(sums: Vec<u32>) -> Self {
        sums.as_slice().into()
    }
}

impl<const N: usize> From<[u32; N]> for Checksums {
    fn from(sums: [u32; N]) -> Self {
        sums.as_slice().into()
    }
}

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

    #[test]
    fn one_checksum_is_kept_in_place_and_any_number_is_the_same_list() {
        for count in 0..4u32 {
            let list: Vec<u32> = (0..count).collect();
            let sums: Checksums = list.iter().copied().collect();
            assert_eq!((&sums[..], matches!(sums, Checksums::One(_))), (&list[..], count == 1));
            assert_eq!(sums, Checksums::from(list));
        }
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
