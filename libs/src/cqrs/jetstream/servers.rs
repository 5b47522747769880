//! Where a broker is and who is let in there, as an operator types both.

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use super::BrokerError;

/// The servers of a broker.
pub(super) struct Servers {
    /// Where they are, without what is secret: whoever connects writes them to the log.
    pub(super) addresses: Vec<ServerAddr>,
    /// Whether all of them are to be reached by TLS; else none is.
    by_tls: bool,
    entry: Entry,
}

/// By what somebody is let in.
#[derive(PartialEq, Eq)]
enum Entry {
    Nothing,
    /// What stands alone before the host, as NATS' own clients take it.
    Token(String),
    Password {
        user: String,
        password: String,
    },
}

impl Servers {
    /// Reads a list with commas between its servers.
    ///
    /// # Errors
    /// When one of them is no server, or they aren't reached alike: one that is told another's password could use it, and what is reached in
    /// plain text is told it before everybody on the way.
    pub(super) fn read(list: &str) -> Result<Self, BrokerError> {
        let (addresses, mut entries) = list.split(',').map(apart).collect::<Result<(Vec<_>, Vec<_>), _>>()?;
        let entry = entries.pop().unwrap_or(Entry::Nothing);
        if entries.iter().any(|other| *other != entry) {
            return Err("the user and password before each server of a list are to be the same".into());
        }
        let by_tls = addresses.iter().any(ServerAddr::tls_required);
        if by_tls && !addresses.iter().all(ServerAddr::tls_required) {
            return Err("one server of a list is tls://, so all are to be".into());
        }
        Ok(Self { addresses, by_tls, entry })
    }

    /// Tells a client how they are reached: it looks for that in its options, and not in each address.
    pub(super) fn reached_by(&self, options: ConnectOptions) -> ConnectOptions {
        let options = match &self.entry {
            Entry::Nothing => options,
            Entry::Token(token) => options.token(token.clone()),
            Entry::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        };
        match self.by_tls {
            // Where others of the cluster are, a server says before its TLS, so that anybody on the way may have said it; and those would be
            // told the password in plain text.
            true => options.require_tls(true).ignore_discovered_servers(),
            false => options,
        }
    }
}

/// A server's address, and what was before its host.
fn apart(server: &str) -> Result<(ServerAddr, Entry), BrokerError> {
    let mut url = server.parse::<ServerAddr>()?.into_inner();
    let entry = match (url.username(), url.password()) {
        ("", None) => Entry::Nothing,
        (token, None) => Entry::Token(decoded(token)?),
        (user, Some(password)) => Entry::Password { user: decoded(user)?, password: decoded(password)? },
    };
    let bare = url.set_username("").and_then(|()| url.set_password(None));
    bare.map_err(|()| "a server has no host")?;
    Ok((ServerAddr::from_url(url)?, entry))
}

fn decoded(text: &str) -> Result<String, BrokerError> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| "what is before a server's host is no UTF-8 once each %… is read")?.into_owned())
}
