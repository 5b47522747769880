//! Where a broker is, as an operator types it.

use std::{fmt, str::FromStr};

/// NATS servers, read from `nats://HOST:PORT` or `tls://HOST:PORT`, several with commas between them. Before a host may be the
/// `USER:PASSWORD@` or the `TOKEN@` that it is reached by: of these whoever connects makes out what they are.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(String);

/// Not `nats://…` or `tls://…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a broker is nats://HOST:PORT or tls://HOST:PORT, several with commas between them, each with the USER:PASSWORD@ it may ask for; a \
     sign such as @, / or a comma that is part of a password is %40, %2F or %2C"
)]
pub struct WrongBroker;

impl NatsUrl {
    /// What was typed, a password included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NatsUrl {
    type Err = WrongBroker;

    fn from_str(text: &str) -> Result<Self, WrongBroker> {
        let server = |text: &str| {
            let uri: http::Uri = text.parse().ok()?;
            let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
            let host = authority.host();
            // Behind the host is nothing, or a port that is a number: `http` takes any text for one.
            let port = authority.as_str().rsplit('@').next()?.strip_prefix(host)?;
            let addressed = !host.is_empty() && (port.is_empty() || authority.port_u16().is_some());
            let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
            (matches!(scheme, "nats" | "tls") && addressed && bare).then_some(())
        };
        match text.split(',').all(|text| server(text).is_some()) {
            true => Ok(Self(text.to_owned())),
            false => Err(WrongBroker),
        }
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What follows may hold a password.
        f.write_str("nats://…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_one_server_or_several() {
        for right in ["nats://localhost", "nats://me:secret@a:4222", "tls://a:4222,tls://b:4222"] {
            assert_eq!(right.parse::<NatsUrl>().as_ref().map(NatsUrl::as_str), Ok(right));
        }
        for wrong in ["", "localhost:4222", "http://a:4222", "nats://", "nats://a,", "nats://a/b", "nats://a:x"] {
            assert_eq!(wrong.parse::<NatsUrl>(), Err(WrongBroker), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: NatsUrl = "nats://me:secret@host".parse().expect("well formed");
        assert!(!format!("{url:?}").contains("secret"));
    }
}
