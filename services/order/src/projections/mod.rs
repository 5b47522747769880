//! The views that queries read, folded from the events.

pub mod orders;

pub use self::orders::OrdersView;
