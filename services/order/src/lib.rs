//! The order service: what customers want, and the saga that gets it for them.
//!
//! - [`domain`]: the rules, pure.

pub mod domain;
pub mod surface;
