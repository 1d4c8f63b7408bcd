//! The simulator: devices, writers, a network and a metadata register under one virtual clock and one seed.
//!
//! The engines are the ones that ship. First everything may fail (safety), then faults stop and the cluster must come
//! back whole (liveness).

mod faults;
mod meta;
mod network;
mod options;
mod store;
mod workload;
mod world;

pub use options::Options;
pub use world::{Report, run};
