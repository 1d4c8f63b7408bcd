//! The adversary: a simulator that drives the shipping engines under virtual time, faults and one seed, and the
//! checkers that judge what guests saw.
//!
//! Nothing depends on this room.

pub mod check;
pub mod prng;
pub mod sim;
