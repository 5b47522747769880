//! The inventory service: how much of what there is, what it costs, and who has set some aside.
//!
//! - [`domain`]: the rules, pure.
//! - [`commands`]: which rule decides which command.
//! - [`projections`]: the views, folded from the events.
//! - [`queries`]: how each query is answered from the views; [`neighbours`]: what shipping's events say of the stock.
//! - [`surface`]: the gRPC servers, generated from the contract.
//! - [`app`]: the one place that wires them all.

pub mod app;
pub mod commands;
pub mod domain;
pub mod neighbours;
pub mod projections;
pub mod queries;
pub mod surface;

pub use self::app::Service;
