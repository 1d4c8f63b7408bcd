//! A device whose log was written over; see `ashlar_store::testing::fuzz`.

#![no_main]

use ashlar_store::testing::fuzz::check_log;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| check_log(input));
