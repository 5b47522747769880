//! The shipping service: what is on its way, and where to.
//!
//! - [`domain`]: the rules, pure.

pub mod domain;
pub mod surface;
