//! Tests of the engine as a whole.

mod crashes;
mod damage;
mod engine;
mod files;
mod fuzz_seeds;
mod limits;
mod lists;
mod merges;
mod reads;
mod rig;
mod scrub;
mod snapshots;
mod spares;
