//! Any bytes as superblocks; see `ashlar_store::testing::fuzz`.

#![no_main]

use ashlar_store::testing::fuzz::check_superblock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_superblock(input));
