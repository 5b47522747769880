//! What is at the bottom of an error.

use std::error::Error;

/// The first cause: what transports say of it themselves is that they failed.
pub(crate) fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest
}
