//! What a server says about calling again, as gRPC's retry design (A6) has it.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// What a server says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushback {
    /// Nothing.
    None,
    /// After so long.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
        let Some(value) = headers.get(PUSHBACK) else { return Self::None };
        // What cannot be read means "do not": so gRPC has it.
        let digits = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        // A signed word of 32 bits.
        let millis = value.to_str().ok().filter(digits).and_then(|text| text.parse::<i32>().ok());
        millis.map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis.unsigned_abs().into())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_pushback_is_a_time_or_a_no(
            value in prop_oneof![prop::collection::vec(any::<u8>(), 0..12), "[-+]?[0-9]{1,11}".prop_map(String::into_bytes)],
        ) {
            let Ok(header) = http::HeaderValue::from_bytes(&value) else { return Ok(()) };
            let text = String::from_utf8_lossy(&value);
            let digits = !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit());
            // A signed word of 32 bits, says gRPC.
            let plain = text.parse::<u64>().ok().filter(|millis| digits && *millis < 1 << 31);
            let plain = plain.map_or(Pushback::Never, |millis| Pushback::After(Duration::from_millis(millis)));
            let headers = HeaderMap::from_iter([("grpc-retry-pushback-ms".parse().unwrap(), header)]);
            prop_assert_eq!(Pushback::of(&headers), plain);
        }
    }

    #[test]
    fn the_server_says_when_and_whether() {
        let headers =
            |value: &str| HeaderMap::from_iter([("grpc-retry-pushback-ms".parse().unwrap(), value.parse().unwrap())]);
        assert_eq!(Pushback::of(&HeaderMap::<http::HeaderValue>::default()), Pushback::None);
        assert_eq!(Pushback::of(&headers("250")), Pushback::After(Duration::from_millis(250)));
        for never in ["-1", "soon", "99999999999999"] {
            assert_eq!(Pushback::of(&headers(never)), Pushback::Never);
        }
    }
}
