//! The rules of orders: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod order;

pub use self::order::Order;
