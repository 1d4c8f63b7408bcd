//! What an operator may turn, with the default and what it trades.

/// Limits and periods of the writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How long a read grant lasts. Longer: fewer heartbeats; a takeover after a crash waits longer.
    pub grant_us: u64,
    /// Assumed bound on the drift between two machines' clocks.
    pub clock_drift_percent: u64,
    /// Assumed bound on the pause between the grant check and the reply reaching the client.
    pub slack_us: u64,
    /// How long to wait for further seals once enough have come: cheaper than a rejoin.
    pub seal_patience_us: u64,
    /// How long the lanes of a volume wait for one that gets too few seals, before they serve without it.
    pub open_patience_us: u64,
    /// How long recovery waits for a sealed member that went away before it leaves it out.
    pub recovery_patience_us: u64,
    /// How long recovery waits for a member that was not there when the lane was sealed, if what every other one holds of
    /// a block is damaged. Longer: it may come and have the block; meanwhile the lane is not served.
    pub lost_patience_us: u64,
    /// A member that lacks writes for this long is ejected, if the others can go on.
    pub eject_after_us: u64,
    /// A member that lacks this much is ejected, if the others can go on. At twice this, writes wait. At half of this they
    /// go at the pace of a member that gets on, so that one that is a little slower is kept; one that is
    /// slower than that is given up there (`catch_up_us_max`).
    pub eject_lag_bytes: usize,
    /// A member that lacks half of those bytes and would need longer than this to catch up, and twice as long as it took to
    /// fall behind, is ejected, if the others can go on and it is no copy that is needed. Longer: guests go at its pace.
    pub catch_up_us_max: u64,
    /// The same of a member that lacks a write which is older than this, if it would need eight times as long. Longer: it
    /// is fed in vain for longer.
    pub behind_us_max: u64,
    /// A member that was ejected because it was slow is taken back after this, twice as long each time, at most the other,
    /// unless it is needed. Longer: guests feel it more rarely; one that is well again counts later.
    pub slow_pause_us: u64,
    /// The longest of these pauses.
    pub slow_pause_us_max: u64,
    /// A member that has not got further for this long is not waited for.
    pub hung_after_us: u64,
    /// A member without which nothing can be acknowledged or read, and which is away or has not got further for this long,
    /// is ejected, if the others can go on.
    pub eject_blocked_after_us: u64,
    /// Writes of a lane that are kept for members that lack them; more wait.
    pub retained_writes_max: usize,
    /// Ejections of this volume in any minute.
    pub ejections_per_minute: usize,
    /// Reads and copies that a join keeps in flight.
    pub join_window: usize,
    /// Compare digests before data is copied to a joiner: it may hold the same bytes.
    pub join_compares: bool,
    /// Lanes of the volume that join at the same time.
    pub joins_max: usize,
    /// Damaged blocks repaired at a time; one at a time while guests have work, none for 0.
    pub repairs_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grant_us: 1_000_000,
            clock_drift_percent: 1,
            slack_us: 50_000,
            seal_patience_us: 500_000,
            open_patience_us: 5_000_000,
            recovery_patience_us: 2_000_000,
            lost_patience_us: 300_000_000,
            eject_after_us: 5_000_000,
            eject_lag_bytes: 64 << 20,
            behind_us_max: 1_000_000,
            catch_up_us_max: 500_000,
            slow_pause_us: 5_000_000,
            slow_pause_us_max: 300_000_000,
            hung_after_us: 200_000,
            eject_blocked_after_us: 1_000_000,
            retained_writes_max: 32_768,
            ejections_per_minute: 8,
            join_window: 8,
            join_compares: true,
            joins_max: 2,
            repairs_max: 4,
        }
    }
}

impl Settings {
    /// How long a new writer waits for the grants of an older one to run out, from the last seal (W7).
    pub fn grant_wait_us(&self) -> u64 {
        self.grant_us + self.grant_us * 2 * self.clock_drift_percent / 100 + self.slack_us
    }

    /// Period of heartbeats and of settled while something goes on; idle it is ten times that, and at rest see `rest`.
    pub fn heartbeat_us(&self) -> u64 {
        self.grant_us / 5
    }

    /// What a member may lack before new writes go at its pace.
    pub fn throttle_lag_bytes(&self) -> u64 {
        self.eject_lag_bytes as u64 / 2
    }

    /// Retained bytes of a lane at which new writes wait.
    pub fn retained_bytes_max(&self) -> usize {
        self.eject_lag_bytes * 2
    }
}
