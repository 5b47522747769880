//! The shipping service: what is on its way, and where to.
//!
//! - [`domain`]: the rules, pure.
//! - [`commands`]: which rule decides which command.
//! - [`projections`]: the views, folded from the events.
//! - [`queries`]: how each query is answered from the views.
//! - [`surface`]: the gRPC servers, generated from the contract.
//! - [`app`]: the one place that wires them all.

pub mod app;
pub mod commands;
pub mod domain;
pub mod projections;
pub mod queries;
pub mod surface;

pub use self::app::Service;
