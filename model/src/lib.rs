//! The nouns of Ashlar: ids, units, geometry, epochs, buffers, specifications and checksums.
//!
//! Every other room may use this one. It knows no I/O, no clock, no randomness and no async runtime:
//! identities and times arrive from outside.

pub mod buffer;
pub mod checksum;
pub mod cluster;
pub mod geometry;
pub mod ids;
pub mod lane;
pub mod limits;
pub mod mutation;
pub mod units;

pub use buffer::{AlignedBuffer, Payload, Pieces};
pub use geometry::{BlockRange, VolumeGeometry};
pub use ids::{ClusterId, DeviceId, NodeId, SessionId, ShardId, VolumeId};
pub use lane::{Epoch, LaneKey, Stamp};
