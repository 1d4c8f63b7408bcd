//! The checksums of one chunk's blocks: a page of them, or those of its blocks that were written since it was needed.
//!
//! It must never know where the page lies.

use ashlar_model::units::CHUNK_BLOCKS;

const WORDS: usize = CHUNK_BLOCKS / 64;

/// One checksum per block of a chunk.
#[derive(Debug)]
pub struct Sums {
    values: [u32; CHUNK_BLOCKS],
    /// One bit per block whose value is here, while the page itself is not. `None`: all are.
    known: Option<Box<[u64; WORDS]>>,
}

impl Sums {
    /// Of a chunk without data.
    pub fn empty() -> Box<Self> {
        Box::new(Self { values: [0; CHUNK_BLOCKS], known: None })
    }

    /// Of a chunk whose page is still on the device.
    pub fn absent() -> Box<Self> {
        Box::new(Self { values: [0; CHUNK_BLOCKS], known: Some(Box::new([0; WORDS])) })
    }

    /// True if every block's value is here.
    pub fn is_complete(&self) -> bool {
        self.known.is_none()
    }

    /// True if the value of a block is here.
    pub fn knows(&self, block: usize) -> bool {
        self.known.as_ref().is_none_or(|known| known[block / 64] & 1 << (block % 64) != 0)
    }

    /// A block's checksum, if it is here.
    pub fn get(&self, block: usize) -> Option<u32> {
        self.knows(block).then(|| self.values[block])
    }

    /// Sets a block's checksum.
    pub fn set(&mut self, block: usize, value: u32) {
        self.values[block] = value;
        if let Some(known) = &mut self.known {
            known[block / 64] |= 1 << (block % 64);
        }
    }

    /// The page came: it fills in what was not written meanwhile. Without a page (it is damaged) the rest is zero.
    pub fn complete(&mut self, page: Option<&[u8]>) {
        let Some(known) = self.known.take() else { return };
        let Some(page) = page else { return };
        for (block, bytes) in page.chunks_exact(4).enumerate().take(CHUNK_BLOCKS) {
            if known[block / 64] & 1 << (block % 64) == 0 {
                self.values[block] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
    }

    /// The page's bytes.
    pub fn encode(&self, page: &mut [u8]) {
        assert!(self.is_complete(), "a checksum page is written only when all of it is here");
        for (bytes, value) in page.chunks_exact_mut(4).zip(&self.values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fills_in_only_what_was_not_written_meanwhile() {
        let mut page = Sums::empty();
        for block in 0..CHUNK_BLOCKS {
            page.set(block, block as u32 + 7);
        }
        let mut bytes = [0; CHUNK_BLOCKS * 4];
        page.encode(&mut bytes);
        let mut sums = Sums::absent();
        assert_eq!((sums.get(3), sums.is_complete()), (None, false));
        sums.set(3, 99);
        assert_eq!((sums.get(3), sums.get(4)), (Some(99), None));
        sums.complete(Some(&bytes));
        assert_eq!((sums.get(3), sums.get(4), sums.get(1023)), (Some(99), Some(11), Some(1030)));
        assert!(sums.is_complete());
    }
}
