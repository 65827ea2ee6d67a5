//! A histogram that costs two additions per observation.
//!
//! The library's own takes a lock for each, which all calls would share. This one may be read between the two
//! additions, so that a sum can lack what the buckets have; the next scrape has both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Bounds for durations, in nanoseconds: 100 µs to 10 s.
pub const DURATIONS: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Bounds for numbers of things.
pub const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384];

/// Counts of what was observed, by upper bounds.
#[derive(Debug)]
pub struct Histogram {
    /// Inclusive, ascending.
    bounds: &'static [u64],
    /// One for each bound, and one for what is above all.
    buckets: Box<[AtomicU64]>,
    /// Of all that was observed.
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram with these bounds, ascending.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value.
    pub fn observe(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a duration, in nanoseconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        Reading {
            bounds: self.bounds,
            counts: self
                .buckets
                .iter()
                .map(|bucket| bucket.load(Ordering::Relaxed))
                .collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// What a histogram, or several, have counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    bounds: &'static [u64],
    counts: Vec<u64>,
    sum: u64,
}

impl Reading {
    /// How often something was observed.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another histogram with the same bounds has counted.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum = self.sum.wrapping_add(other.sum);
        self
    }

    /// Writes it, in units of `unit`.
    pub fn encode(&self, mut encoder: MetricEncoder<'_>, unit: f64) -> Result<(), std::fmt::Error> {
        let buckets: Vec<(f64, u64)> = self
            .bounds
            .iter()
            .map(|bound| float(*bound) / unit)
            .chain([f64::INFINITY])
            .zip(self.counts.iter().copied())
            .collect();
        encoder.encode_histogram::<NoLabelSet>(float(self.sum) / unit, self.count(), &buckets, None)
    }
}

/// The nearest floating point number, which is the exact one up to 2^53: about 104 days in nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating point numbers")]
pub fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_inclusive_upper_bounds() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, u64::from(u32::MAX)] {
            histogram.observe(value);
        }
        let reading = histogram.read();
        assert_eq!(reading.counts, [2, 2, 2]);
        assert_eq!((reading.count(), reading.sum), (6, 62 + u64::from(u32::MAX)));
        assert_eq!(reading.clone().and(&reading).counts, [4, 4, 4]);
    }
}
