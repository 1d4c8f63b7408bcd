//! Any bytes as a client's requests; see `ashlar_nbd::testing`.

#![no_main]

use ashlar_nbd::testing::check_requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_requests(input));
