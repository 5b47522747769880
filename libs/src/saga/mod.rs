//! Sagas over gRPC: steps taken in order, undone in reverse when one is refused, surviving any crash.
//!
//! [`Definition`] says what a saga is made of; a pure state machine says what follows from what happens; the [`Coordinator`] commits
//! each transition before it acts on it, and starts again where the log ends. A saga stands above CQRS: it starts inside a decision,
//! ends in one, and is shown by a projection.

mod coordinator;
mod definition;
mod driver;
mod machine;
mod projection;
mod reply;
mod service;
mod store;
mod transport;

pub use self::{
    coordinator::{Coordinator, Options, RecoverError},
    definition::{
        Builder, Compensated, DecideLocally, Definition, DefinitionError, Handle, LocalWork, MOST_STEPS, Missing,
        Operation, Replies, Retry, Undo,
    },
    projection::SagasView,
    service::{SagaCommands, SagaQueries},
    store::TABLES,
    transport::{Attempt, Grpc, Transport},
};
