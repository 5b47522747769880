//! What rounds come to.

use hdrhistogram::Histogram;

/// The round in the middle, by a figure.
///
/// # Panics
/// When there was no round.
pub fn median<R>(mut rounds: Vec<R>, figure: impl Fn(&R) -> f64) -> R {
    rounds.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    rounds.swap_remove(rounds.len() / 2)
}

/// `p50/p99` in milliseconds of what was recorded in microseconds.
#[must_use]
pub fn latencies(recorded: &Histogram<u64>) -> String {
    let at = |quantile| recorded.value_at_quantile(quantile) as f64 / 1_000.0;
    format!("{:.2}/{:.2} ms", at(0.5), at(0.99))
}
