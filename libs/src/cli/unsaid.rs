//! What is not repeated of a line that is wrong.

use clap::error::{ContextKind, ContextValue};

/// Clap tells a wrong value, and a URL that is wrong may hold a password all the same.
pub(super) fn without_passwords(mut error: clap::Error) -> clap::Error {
    let of = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let holds_one = ["--database-url", "--nats-url"].iter().any(|flag| of(ContextKind::InvalidArg).starts_with(flag));
    // What has an @ in it may hold one by mistake.
    if holds_one || of(ContextKind::InvalidValue).contains('@') {
        error.insert(ContextKind::InvalidValue, ContextValue::String("…".to_owned()));
    }
    error
}
