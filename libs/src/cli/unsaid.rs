//! What is not repeated of a line that is wrong.

use clap::error::{ContextKind, ContextValue};

/// Clap tells a wrong value or word, and a URL that is wrong, or stands where none belongs, may hold a password all the same.
pub(super) fn without_passwords(mut error: clap::Error) -> clap::Error {
    let of = |error: &clap::Error, kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let holds_one =
        ["--database-url", "--nats-url"].iter().any(|flag| of(&error, ContextKind::InvalidArg).starts_with(flag));
    // A URL of another flag, by mistake. Those of PostgreSQL say the password in either place.
    let value = of(&error, ContextKind::InvalidValue);
    if holds_one || value.contains('@') || value.contains("password=") || value.starts_with("postgres") {
        hide(&mut error, ContextKind::InvalidValue);
    }
    for kind in [ContextKind::InvalidSubcommand, ContextKind::InvalidArg] {
        let word = of(&error, kind);
        if word.contains('@') || word.contains("://") {
            hide(&mut error, kind);
            // How to write the same word so that it is taken for a value.
            error.remove(ContextKind::Suggested);
        }
    }
    error
}

fn hide(error: &mut clap::Error, kind: ContextKind) {
    error.insert(kind, ContextValue::String("…".to_owned()));
}
