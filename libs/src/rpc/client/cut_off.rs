//! Calls that a transport cut off: in gRPC they are UNAVAILABLE, and tonic has a code for each way in which it happens.

use std::error::Error;

use tonic::Status;

/// Whether a call ended without any status of gRPC's, because its connection broke or its server let go of it.
///
/// What a reset says of one call by any other reason than CANCEL is left to tonic, which has gRPC's own table. That has CANCELLED for CANCEL,
/// which a caller takes for its own doing, or that of whom it serves: proxies say it when a server behind them is gone, and a server that
/// means CANCELLED has a status for it.
pub(super) fn was_cut_off(error: &(dyn Error + 'static)) -> bool {
    let (mut next, mut by_transport) = (Some(error), false);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_io() || error.is_go_away() || is_let_go(error);
        }
        match error.downcast_ref::<hyper::Error>() {
            // What we send is at fault.
            Some(error) if error.is_user() => return false,
            found => by_transport |= found.is_some() || error.is::<tonic::transport::Error>(),
        }
        // tonic wraps what the transport reports into a status: what it wraps says more.
        if error.downcast_ref::<Status>().is_some_and(|status| status.source().is_none()) {
            return false;
        }
        next = error.source();
    }
    by_transport
}

/// Whether a server let go of a call: when the call's deadline is there, that is how some tell of it.
pub(super) fn was_let_go(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<h2::Error>())
        .is_some_and(is_let_go)
}

fn is_let_go(error: &h2::Error) -> bool {
    !error.is_go_away() && error.reason() == Some(h2::Reason::CANCEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::{CircuitOpen, Reason};

    #[test]
    fn a_status_of_ones_own_is_left_as_it_is() {
        let open = CircuitOpen {
            breaker: "payment".into(),
            reason: Reason::Open,
            cause: None,
            retry_after: std::time::Duration::from_secs(1),
            generation: 1,
        };
        for status in [open.into_status(), Status::cancelled("by a handler"), Status::unknown("why")] {
            assert!(!was_cut_off(&status), "{status:?}");
        }
    }

    #[test]
    fn of_resets_one_says_nothing_and_the_others_are_grpcs_to_name() {
        for (reason, cut_off) in [
            (h2::Reason::CANCEL, true),
            (h2::Reason::INTERNAL_ERROR, false),
            (h2::Reason::ENHANCE_YOUR_CALM, false),
            (h2::Reason::REFUSED_STREAM, false),
        ] {
            let status = Status::from_error(Box::new(h2::Error::from(reason)));
            assert_eq!((was_cut_off(&status), was_let_go(&status)), (cut_off, cut_off), "{reason:?}");
        }
    }
}
