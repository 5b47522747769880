//! Where a broker is and who is let in there, as an operator types both.

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use super::BrokerError;

/// The servers of a broker.
pub(super) struct Servers {
    /// Where they are, without what is secret: whoever connects writes them to the log.
    pub(super) addresses: Vec<ServerAddr>,
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
    /// When one of them is no server, or what is before the hosts isn't the same: one that was told of another's password could use it.
    pub(super) fn read(list: &str) -> Result<Self, BrokerError> {
        let (addresses, mut entries) = list.split(',').map(apart).collect::<Result<(Vec<_>, Vec<_>), _>>()?;
        let entry = entries.pop().unwrap_or(Entry::Nothing);
        if entries.iter().any(|other| *other != entry) {
            return Err("the user and password before each server of a list are to be the same".into());
        }
        Ok(Self { addresses, entry })
    }

    /// Tells a client by what it is let in. It asks its options alone, not the addresses.
    pub(super) fn let_in_by(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.entry {
            Entry::Nothing => options,
            Entry::Token(token) => options.token(token.clone()),
            Entry::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
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
