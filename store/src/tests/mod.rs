//! Tests of the engine as a whole.

mod crashes;
mod engine;
mod files;
mod rig;
