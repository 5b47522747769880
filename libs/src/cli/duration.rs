//! Durations as people type them: `20s`, `500ms`, `15m`, `7d`.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// Reads a duration that is not negative.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "give a duration such as 20s, 500ms, 15m or 7d".to_owned();
    let span: Span = text.parse().map_err(|_| wrong())?;
    // A month is no number of seconds.
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(duration).map_err(|_| wrong())
}

/// Reads a duration that is more than nothing.
pub(super) fn parse_some(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}

/// Reads a duration of a second or more.
pub(super) fn parse_second(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration < Duration::from_secs(1) { Err("must be 1s or more".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(7 * 24 * 60 * 60)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert!(parse_some("0s").is_err() && parse_second("999ms").is_err() && parse_second("1s").is_ok());
        for wrong in ["", "20", "-1s", "soon", "1e9999s", "1mo"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
