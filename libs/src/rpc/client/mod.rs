//! Calling other services: one line a peer, and under it a deadline, a breaker and a connection that is made when needed.

mod address;
mod options;
mod peer;
mod peers;
mod timeout;

pub use self::{
    address::{PeerAddress, PeerError},
    options::PeerOptions,
    peer::{Peer, PeerBody, PeerFuture},
    peers::{OnRequest, Peers},
    timeout::{TimeoutBody, TimeoutFuture},
};
