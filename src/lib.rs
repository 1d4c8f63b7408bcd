//! The Ashlar daemon.
