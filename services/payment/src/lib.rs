//! The payment service: what customers have, and what was taken from them.
//!
//! - [`domain`]: the rules, pure.

pub mod domain;
pub mod surface;
