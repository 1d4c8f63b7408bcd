//! The adversary: a simulator that drives the shipping engines under virtual time, faults and one seed, and the
//! checkers that judge what guests saw.
//!
//! ```text
//! check      properties, one a file: plain records in, a verdict out
//! sim        the world of one run: engines, devices, network, clocks, faults
//! directed   written scenarios over the same world
//! batch      many seeds on many cores
//! replay     the line that replays a run; shrink makes it smaller
//! campaign   rules broken on purpose, each of which must be noticed
//! ```
//!
//! Nothing depends on this room.

pub mod batch;
pub mod campaign;
pub mod check;
pub mod child;
pub mod directed;
pub mod kept;
pub mod marks;
pub mod prng;
pub mod replay;
pub mod shrink;
pub mod sim;
