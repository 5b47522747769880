//! What is at the bottom of an error, and what a panic said.

#[cfg(feature = "cqrs")]
use std::any::Any;
use std::error::Error;

/// The first cause: what transports say of it themselves is that they failed.
pub(crate) fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest
}

/// What a panic said; nothing if that was no text.
#[cfg(feature = "cqrs")]
pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref().cloned());
    said.unwrap_or_default()
}
