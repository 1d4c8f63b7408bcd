//! Doubles for tests, of other rooms too: a simulated device with every fault a disk can have, a workload that crashes
//! it, and the contract that every device keeps.
//!
//! It must never know what the engine wants with its bytes.

mod cached;
pub mod contract;
mod faults;
pub mod fuzz;
mod lies;
pub mod loop_device;
mod sim;
#[cfg(test)]
mod tests;
pub mod workload;

pub use contract::check_device;
pub use faults::{FaultCounts, Faults};
pub use lies::Lies;
pub use loop_device::LoopDevice;
pub use sim::SimDevice;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Prng(pub u64);

impl Prng {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
