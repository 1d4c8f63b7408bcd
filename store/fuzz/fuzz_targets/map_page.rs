//! Any bytes as map page and checksum page, or as volume table; see `ashlar_store::testing::fuzz`.

#![no_main]

use ashlar_store::testing::fuzz::check_map_page;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_map_page(input));
