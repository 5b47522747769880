//! The rules of the money: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod account;
pub mod charge;

pub use self::{account::Account, charge::Charge};
