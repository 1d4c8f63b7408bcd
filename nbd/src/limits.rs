//! The limits of one session, together, with their relations.
//!
//! Every queue and buffer of a session is bounded by one of these. They are the server's own
//! bounds; what a client is told is in [`crate::export::BlockSizes`].

use crate::wire;

/// Bounds of one session. `Default` gives the production values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Options a client may send before it must have chosen an export; then the session closes.
    pub options_max: u32,
    /// Longest option data that is buffered, in bytes; longer gets `ERR_TOO_BIG` and is skipped.
    pub option_data_bytes_max: u32,
    /// Longest option data that is skipped, in bytes; longer closes the session.
    pub option_skip_bytes_max: u32,
    /// Requests handed to the caller and not yet answered; when full, `receive` says `Busy`.
    pub requests_inflight_max: u32,
    /// Longest READ or WRITE that is served, in bytes; longer gets `EINVAL`. May exceed the
    /// advertised maximum: the reference project's own tester sends 48 MiB unasked.
    pub payload_bytes_max: u32,
    /// Longest payload of a refused WRITE that is skipped, in bytes; longer closes the session.
    pub payload_skip_bytes_max: u32,
}

impl Limits {
    /// The values for production.
    pub const PRODUCTION: Self = Self {
        options_max: 256,
        option_data_bytes_max: 32 << 10,
        option_skip_bytes_max: 1 << 20,
        requests_inflight_max: 128,
        payload_bytes_max: 64 << 20,
        payload_skip_bytes_max: 128 << 20,
    };

    /// Stops the program if the limits contradict each other.
    pub(crate) fn check(&self) {
        assert!(self.options_max >= 1);
        assert!(self.requests_inflight_max >= 1);
        // GO with the longest name and a few information requests must fit.
        assert!(self.option_data_bytes_max as usize >= wire::STRING_BYTES_MAX + 64);
        assert!(self.option_skip_bytes_max >= self.option_data_bytes_max);
        assert!(self.payload_skip_bytes_max >= self.payload_bytes_max);
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::PRODUCTION
    }
}
