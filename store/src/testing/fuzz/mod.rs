//! What the fuzz targets of `store/fuzz` do with an input, here so that ordinary tests replay the same inputs.
//!
//! Bytes of a device are judged, never trusted: whatever they are, reading them ends in an answer. Most inputs carry a
//! first byte of flags; one of them seals what was made with the right checksum, so that a fuzzer gets past it. An input
//! that breaks a rule panics. It must never depend on anything but the input.

mod log;
pub(crate) mod memory;
mod pages;
pub mod seeds;
mod superblock;

pub use log::check_log;
pub use pages::check_map_page;
pub use superblock::check_superblock;

/// Name of a target in `store/fuzz`, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [("log", check_log), ("map_page", check_map_page), ("superblock", check_superblock)];

/// Takes the first `bytes` off an input, or what there is of them.
fn split<'a>(input: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (head, tail) = input.split_at(bytes.min(input.len()));
    *input = tail;
    head
}

/// Takes one number off an input; zero at its end.
fn number(input: &mut &[u8], bytes: usize) -> usize {
    split(input, bytes).iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// A page that begins with these bytes and goes on with zeroes.
fn page(bytes: &[u8]) -> Vec<u8> {
    let mut page = bytes.to_vec();
    page.resize(crate::layout::PAGE_BYTES as usize, 0);
    page
}
