//! The views that queries read: folded from this service's events, and from payment's and shipping's.

pub mod charges;
pub mod orders;
pub mod shipments;

pub use self::orders::OrdersView;
pub(crate) use self::{charges::ChargesOfOrders, shipments::ShipmentsOfOrders};
