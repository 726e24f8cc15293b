//! Latencies in steps of one microsecond.

use std::time::Duration;

/// Latencies from here on (4 s) are counted together.
const STEPS: usize = 4_000_000;

/// Counts by microsecond.
pub(crate) struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; STEPS], total: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let step = usize::try_from(latency.as_micros()).unwrap_or(STEPS).min(STEPS - 1);
        self.counts[step] += 1;
        self.total += 1;
    }

    /// How many were counted.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Microseconds that this share of all does not exceed.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        });
        found.unwrap_or(0) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Histogram;

    #[test]
    fn quantiles_are_reached() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(
            [0.5, 0.99, 0.999, 1.0].map(|share| histogram.quantile(share)),
            [500.0, 990.0, 999.0, 1000.0]
        );
    }
}
