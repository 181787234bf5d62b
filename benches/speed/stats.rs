//! Medians and spreads: a figure is never shown without its least and its most.

use std::time::Duration;

use serde::Serialize;

/// Of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of no values it is not a number, which JSON writes as null.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted: Vec<f64> = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Self { min: at(0.0), median: at(0.5), max: at(1.0) }
    }
}

/// The value below which this share of the sorted ones lies: the nearest that was measured, none made up in between.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "counts of samples are far below 2^52, and the share is between 0 and 1"
)]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    sorted[((last as f64) * share).round() as usize]
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The median and the 99th percentile, in milliseconds.
pub fn median_and_p99(durations: &[Duration]) -> (f64, f64) {
    let mut sorted: Vec<f64> = durations.iter().copied().map(millis).collect();
    sorted.sort_by(f64::total_cmp);
    (quantile(&sorted, 0.5), quantile(&sorted, 0.99))
}
