//! Deterministic simulation: the shipping engines, under virtual time, a seed and every fault that the design allows
//! for.
//!
//! Real: the writer's engine, the replica's engine, the store's engine and the metadata's state machine. Simulated:
//! devices, connections, clocks, guests, and the order in which the metadata service commits.

mod beyond;
mod damage;
mod faults;
mod filler;
mod judge;
mod lies;
mod metadata;
mod moves;
mod network;
mod node;
mod options;
mod phases;
mod queue;
mod rollback;
mod script;
mod shadow;
mod stage;
mod traffic;
mod workload;
mod world;
mod writer;

pub use network::Way;
pub use options::Options;
pub use phases::{Report, run};
pub use script::{Class, Fault, draw};
pub use stage::{Backup, Kept, Stage};
