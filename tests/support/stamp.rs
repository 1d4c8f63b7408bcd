//! Blocks whose content names the write that made them, whole: a torn, foreign or stale block shows at once.

/// Bytes of a block, the unit of atomicity.
pub const BLOCK_BYTES: usize = 4096;
const MAGIC: u64 = 0x5354_414D_5045_4421;

/// The write that made a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Number of the block in the volume.
    pub block: u64,
    /// Who wrote.
    pub writer: u64,
    /// Which of its writes, from 1.
    pub sequence: u64,
}

/// What a block turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// All zeroes.
    Zero,
    /// Every byte is as this write left it.
    Whole(Stamp),
    /// It begins like this write and goes on otherwise.
    Torn(Stamp),
    /// Nothing that any writer wrote.
    Foreign,
}

impl Stamp {
    /// The bytes of the block.
    pub fn bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        let Stamp { block, writer, sequence } = self;
        let mut state =
            block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ writer.rotate_left(40) ^ sequence.rotate_left(17) ^ MAGIC;
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            let value = match i {
                0 => MAGIC,
                1 => block,
                2 => writer,
                3 => sequence,
                _ => next(&mut state),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Reads a block.
    pub fn read(bytes: &[u8]) -> Content {
        assert_eq!(bytes.len(), BLOCK_BYTES, "a stamp fills one block");
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        if word(0) != MAGIC {
            return if bytes.iter().all(|byte| *byte == 0) { Content::Zero } else { Content::Foreign };
        }
        let stamp = Stamp { block: word(1), writer: word(2), sequence: word(3) };
        if stamp.bytes() == bytes { Content::Whole(stamp) } else { Content::Torn(stamp) }
    }
}

/// Bytes of consecutive blocks of one write.
pub fn run_of(first_block: u64, count: u64, writer: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count as usize * BLOCK_BYTES);
    for block in first_block..first_block + count {
        // Whole blocks: the tests are not optimised, and byte by byte they would be slower than what they test.
        bytes.extend_from_slice(&Stamp { block, writer, sequence }.bytes());
    }
    bytes
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
