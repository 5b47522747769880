//! What of a request's metadata goes on with the work that it begins: headers and baggage that are named, nothing else.

use http::HeaderName;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

/// W3C Baggage: members `key=value;property`, parted by commas.
const BAGGAGE: &str = "baggage";
/// The most bytes that go on, keys and values together: they are kept in every record, and sent with every call.
const MOST_BYTES: usize = 2048;
/// Kept and sent again for days, a secret would be neither secret nor valid; the others say something about one call.
const RESERVED: [&str; 10] = [
    "authorization",
    BAGGAGE,
    "content-type",
    "cookie",
    "host",
    "proxy-authorization",
    "te",
    "traceparent",
    "tracestate",
    "user-agent",
];

/// The metadata that may go on. Nothing unless named.
///
/// ```
/// use libs::rpc::carried::CarriedKeys;
///
/// let keys = CarriedKeys::new(&["x-tenant"], &["session"])?; // a header, and a member of W3C baggage
/// assert!(CarriedKeys::new(&["authorization"], &[]).is_err());
/// # let mut metadata = tonic::metadata::MetadataMap::new();
/// # metadata.insert("x-tenant", "acme".parse().unwrap());
/// # metadata.insert("baggage", "user=ada, session=7;ttl=1".parse().unwrap());
/// # let carried = keys.take(&metadata).unwrap();
/// # assert_eq!(carried, [("x-tenant".into(), "acme".into()), ("baggage".into(), "session=7;ttl=1".into())]);
/// # Ok::<(), libs::rpc::carried::CarriedKeysError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarriedKeys {
    headers: &'static [&'static str],
    members: &'static [&'static str],
}

/// A key that can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata {0:?} can't be carried: {1}")]
pub struct CarriedKeysError(&'static str, &'static str);

/// What is wrong with the metadata of a request: the key, and why.
pub type Unfit = (&'static str, &'static str);

impl CarriedKeys {
    /// Headers by their keys, and members of W3C baggage by theirs.
    ///
    /// # Errors
    /// For a key that is no ASCII key of metadata, or whose value is a secret or belongs to one call.
    pub fn new(headers: &'static [&'static str], members: &'static [&'static str]) -> Result<Self, CarriedKeysError> {
        for key in headers {
            if RESERVED.contains(key) || key.starts_with("grpc-") || key.starts_with("saga-") {
                return Err(CarriedKeysError(key, "it is secret, or belongs to one call"));
            }
            // Binary keys, which end in -bin, are none of these.
            if AsciiMetadataKey::from_bytes(key.as_bytes()).is_err()
                || key.bytes().any(|byte| byte.is_ascii_uppercase())
            {
                return Err(CarriedKeysError(key, "it must be an ASCII key in lower case"));
            }
        }
        // A baggage key is a token of RFC 7230, as a header's name is.
        match members.iter().find(|key| HeaderName::from_bytes(key.as_bytes()).is_err()) {
            Some(key) => Err(CarriedKeysError(key, "it must be a W3C baggage key")),
            None => Ok(Self { headers, members }),
        }
    }

    /// True if nothing goes on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.members.is_empty()
    }

    /// Whether an entry under this key may go on.
    #[must_use]
    pub fn contain(&self, key: &str) -> bool {
        self.headers.contains(&key) || (key == BAGGAGE && !self.members.is_empty())
    }

    /// Takes out of a request's metadata what goes on.
    ///
    /// # Errors
    /// When that is not visible ASCII, or more than 2,048 bytes.
    pub fn take(&self, metadata: &MetadataMap) -> Result<Vec<(String, String)>, Unfit> {
        let mut carried = Vec::new();
        for key in self.headers {
            for value in metadata.get_all(*key) {
                let value = value.to_str().map_err(|_| (*key, "must be visible ASCII characters"))?;
                carried.push(((*key).to_owned(), value.to_owned()));
            }
        }
        let members = self.members(metadata)?;
        if !members.is_empty() {
            carried.push((BAGGAGE.to_owned(), members));
        }
        let bytes: usize = carried.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MOST_BYTES {
            return Err(("metadata", "what is carried on must be at most 2,048 bytes"));
        }
        Ok(carried)
    }

    fn members(&self, metadata: &MetadataMap) -> Result<String, Unfit> {
        let mut members: Vec<&str> = Vec::new();
        if self.members.is_empty() {
            return Ok(String::new());
        }
        for value in metadata.get_all(BAGGAGE) {
            let value = value.to_str().map_err(|_| (BAGGAGE, "must be visible ASCII characters"))?;
            let named = |member: &&str| {
                let key = member.split_once('=').map(|(key, _)| key.trim());
                key.is_some_and(|key| self.members.contains(&key))
            };
            members.extend(value.split(',').map(str::trim).filter(named));
        }
        Ok(members.join(","))
    }
}

/// Writes what was taken before into a request.
pub fn write<'a>(carried: impl IntoIterator<Item = (&'a str, &'a str)>, metadata: &mut MetadataMap) {
    for (key, value) in carried {
        // What was read from metadata fits into it.
        if let (Ok(key), Ok(value)) = (key.parse::<AsciiMetadataKey>(), AsciiMetadataValue::try_from(value)) {
            metadata.append(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in entries {
            metadata.append(*key, value.parse().expect("ASCII"));
        }
        metadata
    }

    const KEYS: CarriedKeys = CarriedKeys { headers: &["x-tenant"], members: &["session", "user"] };

    #[test]
    fn what_is_named_goes_on_and_nothing_else() {
        let sent = metadata(&[
            ("x-tenant", "acme"),
            ("x-other", "no"),
            ("authorization", "Bearer secret"),
            ("baggage", "region=eu, session = 7 ;ttl=1,users=all"),
            ("baggage", "user=ada%20l,broken"),
        ]);
        let carried = KEYS.take(&sent).expect("it fits");
        let expected = [("x-tenant", "acme"), ("baggage", "session = 7 ;ttl=1,user=ada%20l")];
        assert_eq!(carried, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let mut written = MetadataMap::new();
        write(carried.iter().map(|(key, value)| (&**key, &**value)), &mut written);
        assert_eq!(KEYS.take(&written), Ok(carried));
        assert_eq!(CarriedKeys::default().take(&sent), Ok(Vec::new()));
    }

    #[test]
    fn what_is_too_long_or_not_text_is_told() {
        assert_eq!(KEYS.take(&metadata(&[("x-tenant", &"x".repeat(2041))])).expect_err("too long").0, "metadata");
        let mut opaque = MetadataMap::new();
        opaque.insert("x-tenant", AsciiMetadataValue::try_from(&b"caf\xe9"[..]).expect("opaque bytes"));
        assert_eq!(KEYS.take(&opaque).expect_err("not ASCII").0, "x-tenant");
    }

    #[test]
    fn a_key_that_must_not_go_on_is_refused() {
        for key in ["authorization", "saga-id", "grpc-timeout", "baggage", "X-Tenant", "trace-bin", "a b"] {
            let keys: &'static [&'static str] = Box::leak(Box::new([key]));
            assert!(CarriedKeys::new(keys, &[]).is_err(), "{key}");
        }
        assert!(CarriedKeys::new(&["x-tenant"], &["a=b"]).is_err());
    }
}
