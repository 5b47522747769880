//! The views that queries read: folded from this service's events, and from shipping's.

pub mod shipped;
pub mod stock;

pub(crate) use self::{shipped::ShippedStock, stock::StockView};
