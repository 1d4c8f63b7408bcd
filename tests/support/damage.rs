//! Damage to the bytes of device files, behind the daemon's back.

use super::MIB;
use super::stamp::{BLOCK_BYTES, Content, Stamp};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where each stamped block of a writer lies in a device file. Data lies behind the log: the last place counts.
pub fn places(device: &Path, writer: u64) -> HashMap<u64, u64> {
    let file = File::open(device).unwrap_or_else(|error| panic!("{}: {error}", device.display()));
    let bytes = file.metadata().expect("its length").len();
    let (mut found, mut piece) = (HashMap::new(), vec![0; MIB as usize]);
    for at in (0..bytes).step_by(piece.len()) {
        file.read_exact_at(&mut piece, at).expect("a whole MiB");
        for (i, block) in piece.chunks_exact(BLOCK_BYTES).enumerate() {
            if let Content::Whole(stamp) = Stamp::read(block)
                && stamp.writer == writer
            {
                found.insert(stamp.block, at + (i * BLOCK_BYTES) as u64);
            }
        }
    }
    found
}

/// Flips one bit in each of these blocks; which bit differs from block to block.
pub fn flip(device: &Path, places: &HashMap<u64, u64>, blocks: &[u64]) {
    let file = File::options().read(true).write(true).open(device).expect("the device file");
    for block in blocks {
        let bit = block * 2711 % (8 * BLOCK_BYTES as u64);
        let at = places[block] + bit / 8;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte of it");
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, at).expect("a byte of it");
    }
    file.sync_all().expect("a sync of it");
}

/// The bytes on the medium are those of the writer's first write again.
#[track_caller]
pub fn assert_repaired(device: &Path, writer: u64, places: &HashMap<u64, u64>, blocks: &[u64]) {
    let file = File::open(device).expect("the device file");
    for block in blocks {
        let mut bytes = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, places[block]).expect("a block of it");
        let stamp = Stamp { block: *block, writer, sequence: 1 };
        assert_eq!(Stamp::read(&bytes), Content::Whole(stamp), "{} is not repaired", device.display());
    }
}
