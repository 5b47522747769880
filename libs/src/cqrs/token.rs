//! Consistency tokens: how far in which database, so that a query can wait for a write it knows of.

use std::fmt;

use crate::refusal::Refusal;

/// The metadata key under which a command answers a token and a query carries it.
pub const CONSISTENCY_TOKEN: &str = "consistency-token";
/// The metadata key under which a query says how far the views had come when it was answered.
pub const READ_POSITION: &str = "read-position";

/// A position in one service's journal. Its text is opaque to callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) service: &'a str,
    pub(super) position: i64,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}", self.service, self.position)
    }
}

impl<'a> Token<'a> {
    /// Reads a token that `service` gave.
    pub(super) fn parse(text: &'a str, service: &str) -> Result<Self, Refusal> {
        let read = |text: &'a str| {
            let (of, position) = text.split_once(':')?;
            Some(Token { service: of, position: i64::from_str_radix(position, 16).ok().filter(|p| *p >= 0)? })
        };
        match read(text) {
            Some(token) if token.service == service => Ok(token),
            Some(token) => {
                let of: String = token.service.chars().take(32).collect();
                let description = format!("is of {of}, this is {service}: send each service its own");
                Err(Refusal::invalid(CONSISTENCY_TOKEN, description))
            }
            None => Err(Refusal::invalid(CONSISTENCY_TOKEN, "is not a token that a command answered")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let token = Token { service: "inventory", position: 4711 };
        assert_eq!(Token::parse(&token.to_string(), "inventory"), Ok(token));
    }

    #[test]
    fn a_token_of_another_service_or_none_at_all_is_refused() {
        for text in ["payment:1", "inventory:-1", "inventory:zz", "", "🐌", "inventory"] {
            let refusal = Token::parse(text, "inventory").expect_err(text);
            assert_eq!(refusal.violations[0].field, CONSISTENCY_TOKEN);
        }
    }
}
