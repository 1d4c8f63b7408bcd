//! The writer's side of a volume: one attached engine that sequences writes, routes reads, and opens, closes and
//! changes the in-sync sets of its lanes (sections 6 to 9 of the replication protocol).
//!
//! Invariant: nothing here reads a clock, opens a socket or spawns a task. Time arrives with each event in
//! microseconds of a clock that counts through suspend; everything else leaves as an [`Effect`].
//! Invariant: a volume does not know whether it is served over NBD or ublk, nor where the metadata lives.

mod asking;
mod change;
mod close;
mod engine;
mod join;
mod lane;
mod lost;
mod open;
mod operator;
mod pace;
mod range_lock;
mod reads;
mod repair;
mod rest;
mod service;
mod settings;
mod slow;
mod status;
#[cfg(test)]
mod tests;
mod verify;

pub use engine::{
    ClientRequest, Counters, Effect, Event, Failure, Operation, Outcome, ReadRun, RequestId, VolumeEngine,
};
pub use rest::Wake;
pub use settings::Settings;
pub use status::{Health, LaneStatus, MemberState, MemberStatus, VolumeStatus};
