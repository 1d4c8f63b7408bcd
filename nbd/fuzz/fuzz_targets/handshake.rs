//! Any bytes as a client's handshake; see `ashlar_nbd::testing`.

#![no_main]

use ashlar_nbd::testing::check_handshake;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_handshake(input));
