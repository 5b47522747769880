//! What takes several services: one file a saga.

pub mod place_order;
