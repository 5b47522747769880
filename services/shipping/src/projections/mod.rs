//! The views that queries read, folded from the events.

pub mod shipments;

pub(crate) use self::shipments::ShipmentsView;
