//! Sagas over gRPC: steps taken in order, undone in reverse when one is refused, surviving any crash.
//!
//! [`Definition`] says what a saga is made of; a pure state machine says what follows from what happens; the [`Coordinator`] commits
//! each transition before it acts on it, and starts again where the log ends. A saga stands above CQRS: it starts inside a decision,
//! ends in one, and is shown by a projection.

mod builder;
mod coordinator;
mod definition;
mod definitions;
#[cfg(test)]
mod exploration;
mod ids;
mod local;
mod machine;
mod metrics;
mod operation;
mod parked;
mod plan;
mod projection;
mod record;
mod replies;
mod reply;
mod service;
mod shape;
#[cfg(test)]
mod simulation;
mod store;
pub mod testing;
mod transport;

pub use self::{
    builder::Builder,
    coordinator::{Clock, Coordinator, Options, RecoverError},
    definition::Definition,
    local::{DecideLocally, LocalWork},
    operation::{Compensated, Operation},
    parked::ParkedSagas,
    plan::Retry,
    projection::SagasView,
    record::fold,
    replies::{Handle, Replies, Undo},
    service::{SagaCommands, SagaQueries},
    shape::{DefinitionError, Fault},
    store::TABLES,
    transport::{Attempt, Grpc, Transport},
};
