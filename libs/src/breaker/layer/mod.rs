//! A tower layer that puts a breaker before a gRPC channel.
//!
//! It reads the status where gRPC puts it, which is mostly *after* the body: in headers (trailers-only), in trailers, in the
//! HTTP status when a proxy answers, or nowhere when a stream is cut short. A call that nobody waits for to the end is judged
//! by its deadline, the `grpc-timeout` header, and by how long it was under way.

mod body;
mod ending;
mod future;
mod grpc_timeout;
mod methods;
mod pushback;
mod service;
mod watch;

#[cfg(feature = "rpc")]
pub(crate) use self::{
    ending::{has_waited, retry_info, was_refused_on_the_way},
    pushback::Pushback,
    watch::Judge,
};

pub use self::{
    body::CircuitBody,
    ending::{code_of_http, drop_unreadable_details, grpc_status},
    future::ResponseFuture,
    grpc_timeout::{GRPC_TIMEOUT, format_grpc_timeout, grpc_timeout},
    methods::Methods,
    service::{BreakerLayer, Circuit},
};

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
