//! Checkers: one property a file. They know nothing of engines: plain records of what guests saw and of what devices
//! hold go in, a sentence that says what is wrong comes out.

pub mod checksums;
pub mod content;
pub mod durable;
pub mod equal;
pub mod fenced;
pub mod listed;
pub mod liveness;
pub mod members;
pub mod quorum;
pub mod register;
pub mod written_off;
