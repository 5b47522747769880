//! The payment service.

pub mod surface;
