//! The order service: what customers want, and the saga that gets it for them.
//!
//! - [`domain`]: the rules, pure.
//! - [`projections`]: the views, folded from the events.
//! - [`queries`]: how each query is answered from the views.
//! - [`surface`]: the gRPC servers, generated from the contract.

pub mod domain;
pub mod projections;
pub mod queries;
pub mod surface;
