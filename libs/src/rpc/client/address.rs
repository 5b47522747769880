//! Where peers are: `NAME=URI`, `NAME=URI,URI…` and lists of these, as typed by an operator.

use std::str::FromStr;

use http::Uri;

/// A peer's name and addresses, read from `NAME=URI` or `NAME=URI,URI…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The name, such as `inventory`; or `inventory.queries`, where processes of its own answer queries and tell of events.
    pub name: String,
    /// The addresses, such as `http://localhost:50051`: at least one. Calls go to them in turn.
    pub uris: Vec<Uri>,
}

/// What is wrong with a peer: one line that says what and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// There is no `=`, or nothing before it.
    #[error("peer {0:?} is not NAME=URI, such as inventory=http://localhost:50051")]
    NotNamed(String),
    /// The address is no URI.
    #[error("peer {name:?} has the address {uri:?}, which is no URI: {why}")]
    NoUri {
        /// The peer.
        name: String,
        /// What was given.
        uri: String,
        /// The parser's word.
        why: String,
    },
    /// The scheme is neither http nor https.
    #[error("peer {name:?} has the address {uri:?}, which must begin with http:// or https:// and name a host")]
    Scheme {
        /// The peer.
        name: String,
        /// What was given.
        uri: String,
    },
    /// What is behind the host is no port.
    #[error("peer {name:?} has the address {uri:?}, whose port is no number up to 65535")]
    Port {
        /// The peer.
        name: String,
        /// What was given.
        uri: String,
    },
    /// There is an `@` or a `password=`, so what was given may hold a password and is not told.
    #[error("a peer's address has neither @ nor password= in it: no user and no password is sent to a peer")]
    User,
    /// There is something after host and port.
    #[error("peer {name:?} has the address {uri:?}, which must end after the port: gRPC knows no base path")]
    Path {
        /// The peer.
        name: String,
        /// What was given.
        uri: String,
    },
    /// This service calls no such peer.
    #[error("there is no peer {name:?} here; the peers are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A peer is called that was not declared, so nobody could type an address for it: the program's mistake, not a flag's.
    #[error("peer {name:?} is called but not declared: add it to the program's PEERS, which has: {known}")]
    Undeclared {
        /// Who is called.
        name: String,
        /// The names there are.
        known: String,
    },
    /// TLS is asked for, and it cannot be had.
    #[error("peer {name:?} has the address {uri:?}, but TLS cannot be set up for it: {why}")]
    Tls {
        /// The peer.
        name: String,
        /// Its address.
        uri: String,
        /// What is missing or wrong.
        why: String,
    },
}

impl FromStr for PeerAddress {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        nobodys(text)?;
        let not_named = || PeerError::NotNamed(text.to_owned());
        let (name, uri) = text.split_once('=').ok_or_else(not_named)?;
        if name.is_empty() || !name.bytes().all(is_of_name) {
            return Err(not_named());
        }
        let uris = uri.split(',').map(|uri| parse_uri(name, uri)).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), uris })
    }
}

/// Peers and their addresses, read from `NAME=URI,URI…,NAME=URI…`: an address without a name is one more of the peer before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAddresses(pub Vec<PeerAddress>);

impl FromStr for PeerAddresses {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        // Before it is taken apart: a comma or a = may be the password's.
        nobodys(text)?;
        let mut peers: Vec<String> = Vec::new();
        for part in text.split(',') {
            match peers.last_mut() {
                // No address that is allowed has a = in it.
                Some(peer) if !part.contains('=') => {
                    peer.push(',');
                    peer.push_str(part);
                }
                _ => peers.push(part.to_owned()),
            }
        }
        peers.iter().map(|peer| peer.parse()).collect::<Result<_, _>>().map(Self)
    }
}

const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Refuses a user and a password, which would be left out of calls and told in logs.
fn nobodys(text: &str) -> Result<(), PeerError> {
    let lower = text.to_ascii_lowercase();
    let is_said = |(at, word): (usize, &str)| {
        let (before, after) = (&lower[..at], &lower[at + word.len()..]);
        let begun = before.rsplit(',').next().unwrap_or_default();
        // The end of a peer's name.
        let is_name =
            begun.bytes().all(is_of_name) && ["=http://", "=https://"].iter().any(|uri| after.starts_with(uri));
        // PostgreSQL's own programs take blanks before the =.
        after.trim_start().starts_with('=') && !is_name
    };
    match text.contains('@') || lower.match_indices("password").any(is_said) {
        true => Err(PeerError::User),
        false => Ok(()),
    }
}

fn parse_uri(name: &str, text: &str) -> Result<Uri, PeerError> {
    let (name, given) = (name.to_owned(), text.to_owned());
    let uri = match Uri::from_str(text) {
        Ok(uri) => uri,
        Err(error) => return Err(PeerError::NoUri { name, uri: given, why: error.to_string() }),
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(PeerError::Scheme { name, uri: given });
    }
    // `http` takes any text for a port, and tonic calls port 80 then.
    let port = uri.authority().and_then(|authority| authority.as_str().strip_prefix(authority.host()));
    if port != Some("") && uri.port_u16().is_none() {
        return Err(PeerError::Port { name, uri: given });
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(PeerError::Path { name, uri: given });
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_name_and_a_uri() {
        let address: PeerAddress = "inventory=http://stock.example:50051".parse().expect("well formed");
        assert_eq!((&*address.name, address.uris[0].host()), ("inventory", Some("stock.example")));
        let two: PeerAddress = "inventory=http://a:1,http://b:1".parse().expect("well formed");
        assert_eq!(two.uris.len(), 2);
        assert!("payment=https://[::1]:50052/".parse::<PeerAddress>().is_ok());
    }

    #[test]
    fn a_list_names_peers_and_more_addresses_of_each() {
        let text = "a=http://a:1,http://a:2,b.queries=https://b:1";
        let PeerAddresses(peers) = text.parse().expect("well formed");
        let seen: Vec<_> = peers.iter().map(|peer| (&*peer.name, peer.uris.len())).collect();
        assert_eq!(seen, [("a", 2), ("b.queries", 1)]);
        for wrong in ["", "http://a:1", "a=http://a:1,", "a=http://a:1,,b=http://b:1", ",a=http://a:1"] {
            assert!(wrong.parse::<PeerAddresses>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_addresses_say_what_and_why_in_a_line() {
        let wrong = [
            ("inventory", "not NAME=URI"),
            ("=http://localhost:1", "not NAME=URI"),
            ("in ventory=http://localhost:1", "not NAME=URI"),
            ("inventory=", "no URI"),
            ("inventory=http://a:1,", "no URI"),
            ("inventory=http://", "no URI"),
            ("inventory=http://local host:1", "no URI"),
            ("inventory=localhost:50051", "must begin with http://"),
            ("inventory=ftp://localhost:50051", "must begin with http://"),
            ("inventory=http://localhost:50051/api", "must end after the port"),
            ("inventory=http://localhost:5005l", "no number"),
            ("inventory=http://localhost:99999", "no number"),
            ("inventory=http://localhost:", "no number"),
            ("inventory=https://[::1]:abc", "no number"),
        ];
        for (text, says) in wrong {
            let message = text.parse::<PeerAddress>().expect_err(text).to_string();
            assert!(message.contains(says) && !message.contains('\n'), "{text}: {message}");
        }
    }

    #[test]
    fn a_password_is_refused_and_never_shown() {
        let wrong = [
            "inventory=http://me:secret@a:1",
            "a=http://a:1,b=http://me:secret,secret=@b:1",
            "http://secret@a",
            "inventory=postgres:///x?host=a,b&password=secret",
            "inventory=host=db password=secret",
            "inventory=host=db password = secret",
            "inventory=host=db\tsslpassword\t= http://secret",
            "inventory=Server=db;Password=secret",
            "host=db,password=secret",
            "password=secret",
        ];
        for text in wrong {
            assert_eq!(text.parse::<PeerAddresses>(), Err(PeerError::User), "{text}");
            assert_eq!(text.parse::<PeerAddress>(), Err(PeerError::User), "{text}");
            assert!(!PeerError::User.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_peer_may_have_a_name_with_a_password_in_it() {
        let text = "password=http://a:1,reset-password=https://b:1,http://b:2,password-store=http://c:1";
        let PeerAddresses(peers) = text.parse().expect("well formed");
        let seen: Vec<_> = peers.iter().map(|peer| (&*peer.name, peer.uris.len())).collect();
        assert_eq!(seen, [("password", 1), ("reset-password", 2), ("password-store", 1)]);
    }
}
