//! Calls that no server has begun to work on: they may be sent again whatever they ask for.

use std::error::Error;

/// Whether the transport knows that nobody worked on the call: it was refused by a server that has too many (REFUSED_STREAM), came
/// after a connection's GOAWAY, or was never sent because its connection had just ended.
pub(super) fn was_not_processed(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            let left_out = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
            return refused || left_out;
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        next = error.source();
    }
    false
}
