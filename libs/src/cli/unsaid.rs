//! What is not repeated of a line that is wrong.

use clap::error::{ContextKind, ContextValue};

/// Clap tells a wrong value or word, and a URL that is wrong, or stands where none belongs, may hold a password all the same.
pub(super) fn without_passwords(mut error: clap::Error) -> clap::Error {
    let of = |error: &clap::Error, kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let holds_one =
        ["--database-url", "--nats-url"].iter().any(|flag| of(&error, ContextKind::InvalidArg).starts_with(flag));
    if holds_one {
        hide(&mut error, ContextKind::InvalidValue);
    }
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidSubcommand, ContextKind::InvalidArg] {
        if may_hold_one(&of(&error, kind)) {
            hide(&mut error, kind);
            // How to write the same word so that it is taken for a value.
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

/// A URL, or what PostgreSQL's own programs take in the place of one.
fn may_hold_one(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    word.contains('@') || word.contains("://") || word.contains("password") || word.starts_with("postgres")
}

fn hide(error: &mut clap::Error, kind: ContextKind) {
    error.insert(kind, ContextValue::String("…".to_owned()));
}
