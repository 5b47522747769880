//! The inventory service.

pub mod surface;
