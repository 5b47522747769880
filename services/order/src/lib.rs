//! The order service.

pub mod surface;
