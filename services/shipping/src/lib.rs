//! The shipping service.

pub mod surface;
