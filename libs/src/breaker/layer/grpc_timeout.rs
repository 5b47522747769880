//! The `grpc-timeout` header: up to eight digits and a unit.

use std::{io::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header's name.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
// A constant is made anew wherever it is used.
static NAME: HeaderName = GRPC_TIMEOUT;

/// The timeout a request carries, if it carries one that can be read.
#[inline]
#[must_use]
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get(&NAME)?.as_bytes())
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 {
        return None;
    }
    // Nobody should write a plus, but tonic reads one: what it holds a call to is no less than what we do.
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    if digits.is_empty() {
        return None;
    }
    let mut amount = 0_u64;
    for digit in digits {
        amount = amount * 10 + u64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    match unit {
        b'n' => Some(Duration::from_nanos(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'S' => Some(Duration::from_secs(amount)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'H' => Some(Duration::from_secs(amount * 3600)),
        _ => None,
    }
}

/// A timeout as the header's value, in the finest unit that fits eight digits.
#[must_use]
pub fn format_grpc_timeout(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60_000_000_000, 'M'),
        (3_600_000_000_000, 'H'),
    ];
    let nanos = timeout.as_nanos();
    let fits = units.into_iter().find(|(size, _)| nanos / size <= MOST);
    let (amount, unit) = fits.map_or((MOST, 'H'), |(size, unit)| (nanos / size, unit));
    let mut text = [0_u8; 9];
    let mut rest = &mut text[..];
    // Eight digits and a unit always fit.
    let _ = write!(rest, "{amount}{unit}");
    let length = 9 - rest.len();
    let mut value = HeaderValue::from_bytes(&text[..length]).unwrap_or(HeaderValue::from_static("0n"));
    // Never the same again: out of HPACK's table, where it would push out what comes with every call.
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read_as_tonic_reads_it(
            value in prop_oneof![prop::collection::vec(any::<u8>(), 0..12), "[+]{0,2}[0-9]{0,10}[HMSmunx]?".prop_map(String::into_bytes)],
        ) {
            let plain = || {
                let text = std::str::from_utf8(&value).ok()?;
                let unit = text.chars().last()?;
                let digits = text.strip_suffix(unit)?;
                let (_, nanos) = [('H', 3_600_000_000_000), ('M', 60_000_000_000), ('S', 1_000_000_000), ('m', 1_000_000), ('u', 1_000), ('n', 1)]
                    .into_iter()
                    .find(|(name, _)| *name == unit)?;
                let amount = digits.parse::<u128>().ok().filter(|_| digits.len() <= 8)? * nanos;
                Some(Duration::new((amount / 1_000_000_000) as u64, (amount % 1_000_000_000) as u32))
            };
            prop_assert_eq!(parse(&value), plain());
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for timeout in [0, 1, 99_999_999, 100_000_000, 5_000_000_000, 86_400_000_000_000, u64::MAX] {
            let timeout = Duration::from_nanos(timeout);
            let value = format_grpc_timeout(timeout);
            let read = parse(value.as_bytes()).expect("well formed");
            assert!(read <= timeout && timeout - read <= timeout / 1_000_000, "{value:?}");
            assert!(value.len() <= 9);
        }
        assert_eq!(format_grpc_timeout(Duration::MAX).as_bytes(), b"99999999H");
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for wrong in ["", "n", "5", "5x", "-5m", "123456789m", "1.5S", "５m", "+S", "++1S"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
