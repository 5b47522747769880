//! Command and query responsibility segregation: surfaces generated from the contracts, each with its own model.
//!
//! `request → command surface → decider → journal → projection → query surface`. The command side is handed the journal and
//! never the views; the query side is handed the views and cannot write.

mod answers;
mod board;
mod checkpoints;
mod clocks;
pub mod command;
mod decider;
mod documents;
mod envelope;
mod folding;
mod forget_steps;
mod inbox;
mod jetstream;
mod log;
mod metrics;
mod outbox;
mod page;
mod projection;
mod projector;
mod query;
mod read;
mod reasons;
mod rebuild;
mod rebuild_error;
mod replace;
mod subscription;
pub mod testing;
mod token;
mod turns;
mod upcast;
mod views;

pub use self::{
    answers::{Answers, WalkError, Walked},
    board::{Board, ProjectionService},
    command::{CommandSide, Method, not_submitted},
    decider::{Aggregate, Decision, State},
    documents::Documents,
    forget_steps::Barrier,
    jetstream::{JetStream, Relay, UnknownEnd},
    log::Log,
    outbox::Outbox,
    page::{Column, Page, PageOrder, PageQuery},
    projection::{Decode, Projection, ProjectionError, Projections, events_of, events_of_kind},
    projector::ViewsError,
    query::{Changes, Outgoing},
    read::ReadSide,
    rebuild_error::RebuildError,
    subscription::OtherLog,
    token::{CONSISTENCY_TOKEN, READ_POSITION},
    upcast::Upcasters,
    views::Views,
};
pub use crate::journal::Event;
