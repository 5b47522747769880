//! The rules of shipping: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod region;
pub mod shipment;

pub use self::shipment::Shipment;
