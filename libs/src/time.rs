//! Points in time, as the journal counts them and as messages carry them.

use prost_types::Timestamp;

const MICROS_PER_SECOND: i64 = 1_000_000;

/// Microseconds since 1970 as a `google.protobuf.Timestamp`.
#[must_use]
pub fn timestamp(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(MICROS_PER_SECOND) * 1_000).unwrap_or_default();
    Timestamp { seconds: micros.div_euclid(MICROS_PER_SECOND), nanos }
}

/// A `google.protobuf.Timestamp` as microseconds since 1970. What is none, since it is too far away, is the last there is on its side.
#[must_use]
pub fn micros(time: &Timestamp) -> i64 {
    time.seconds.saturating_mul(MICROS_PER_SECOND).saturating_add(i64::from(time.nanos) / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micros_count_forwards_before_1970_too() {
        assert_eq!(timestamp(1_700_000_000_000_005), Timestamp { seconds: 1_700_000_000, nanos: 5_000 });
        assert_eq!(timestamp(-1), Timestamp { seconds: -1, nanos: 999_999_000 });
        assert_eq!([1_700_000_000_000_005, -1].map(|at| micros(&timestamp(at))), [1_700_000_000_000_005, -1]);
    }
}
