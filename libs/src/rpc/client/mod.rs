//! Calling other services: one line a peer, and under it, from the outside in:
//!
//! | layer | why there |
//! |---|---|
//! | measured | what a caller waits for, as a metric and as a span, where anybody collects them |
//! | deadline | one budget over waiting, connecting, every attempt and the whole body |
//! | bulkhead | a slow peer takes a bounded number of calls with it |
//! | retry | each attempt is judged below; a breaker's refusal is final. Never on a saga's channel |
//! | breaker | counts attempts, not calls |
//! | endpoints | calls go round the addresses, also those that one name stands for; one that keeps failing is passed over |
//! | connections | made when first needed, so services start in any order |

mod address;
mod attempts;
mod bulkhead;
mod cut_off;
mod endpoints;
mod follow;
mod guarded;
mod http_status;
mod measured;
mod options;
#[cfg(test)]
mod outage;
mod peer;
mod peers;
mod place;
mod retry;
mod timeout;
mod unprocessed;

pub use self::{
    address::{PeerAddress, PeerAddresses, PeerError},
    attempts::Attempts,
    endpoints::EndpointFuture,
    measured::Measured,
    options::PeerOptions,
    peer::{Peer, PeerBody, PeerFuture},
    peers::{OnRequest, Peers},
    place::Lookup,
    retry::Retry,
    timeout::{TimeoutBody, TimeoutFuture},
};
/// What a call to a peer may end with that says nothing of the peer.
#[cfg(feature = "cqrs")]
pub(crate) use crate::breaker::{CircuitOpen, NOT_CAUGHT_UP, is_draining};
