//! Any bytes as a server's; see `ashlar_nbd::testing`.

#![no_main]

use ashlar_nbd::testing::check_client;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_client(input));
