//! The Ashlar daemon and its command line.
//!
//! Rooms inside point one way: `wire < peer < replica, volume < front < agent < api < daemon`. The engines in
//! `replica` and `volume` are pure: they take events and return effects, and the simulator drives the same code.

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod files;
pub mod front;
pub mod observe;
pub mod peer;
pub mod reactor;
pub mod replica;
pub mod shard;
pub mod tls;
pub mod volume;
pub mod wire;
