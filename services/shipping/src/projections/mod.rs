//! The views that queries read, folded from the events.

pub mod shipments;

pub use self::shipments::ShipmentsView;
