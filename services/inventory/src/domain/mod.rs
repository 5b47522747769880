//! The rules of the stock: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod reservation;
pub mod stock;

pub use self::{reservation::Reservation, stock::Stock};
