//! Latencies in buckets of about 1.6 %: bounded memory, whatever the number of operations.

/// Buckets per power of two.
const STEPS: u64 = 64;
const STEPS_LOG: u32 = 6;

/// Counts of latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket_of(u64::MAX) + 1], total: 0 }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let power = value.ilog2() - STEPS_LOG;
    (u64::from(power) * STEPS + (value >> power)) as usize
}

/// The middle of a bucket.
fn value_of(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket as f64;
    }
    let power = bucket / STEPS - 1;
    let first = (bucket % STEPS + STEPS) << power;
    first as f64 + (1u64 << power) as f64 / 2.0
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, nanoseconds: u64) {
        self.counts[bucket_of(nanoseconds)] += 1;
        self.total += 1;
    }

    /// Counts what another one has.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(one, more)| *one += more);
        self.total += other.total;
    }

    /// The latency that `fraction` of all are at or below, in microseconds; zero without any.
    pub fn percentile_us(&self, fraction: f64) -> f64 {
        let wanted = ((self.total as f64 * fraction).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return value_of(bucket) / 1e3;
            }
        }
        0.0
    }
}
