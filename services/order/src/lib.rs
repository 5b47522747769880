//! The order service: what customers want, and the saga that gets it for them.
//!
//! - [`domain`]: the rules, pure.
//! - [`commands`]: which rule decides which command; `cancel`: the one that its saga answers.
//! - [`sagas`]: what takes several services, and the way back.
//! - [`completion`]: waiting for an order's end.
//! - [`projections`]: the views, folded from the events.
//! - [`queries`]: how each query is answered from the views; [`neighbours`]: what other services' events say of orders; and
//!   [`standing`]: what shipping says when it is asked, or said last.
//! - [`surface`], [`steps`]: the gRPC servers and the other services' operations, generated from the contracts.
//! - [`app`]: the one place that wires them all.

pub mod app;
mod cancel;
pub mod commands;
pub mod completion;
pub mod domain;
pub mod neighbours;
pub mod projections;
pub mod queries;
pub mod sagas;
pub mod standing;
pub mod steps;
pub mod surface;

pub use self::app::Service;
