//! The views that queries read, folded from the events.

pub mod stock;

pub use self::stock::StockView;
