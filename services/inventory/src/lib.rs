//! The inventory service: how much of what there is, what it costs, and who has set some aside.
//!
//! - [`domain`]: the rules, pure.

pub mod domain;
pub mod surface;
