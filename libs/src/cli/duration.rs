//! Durations as people type them: `20s`, `500ms`, `15m`.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads a duration that is not negative.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "give a duration such as 20s, 500ms or 15m".to_owned();
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).map_err(|_| wrong())
}

/// Reads a duration that is more than nothing.
pub(super) fn parse_some(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        assert!(parse_some("0s").is_err());
        for wrong in ["", "20", "-1s", "soon", "1e9999s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
