//! What other services do for an order, generated from their contracts.

/// Inventory's operations.
pub mod inventory {
    include!(concat!(env!("OUT_DIR"), "/inventory.v1.steps.rs"));
}

/// Payment's operations.
pub mod payment {
    include!(concat!(env!("OUT_DIR"), "/payment.v1.steps.rs"));
}

/// Shipping's operations.
pub mod shipping {
    include!(concat!(env!("OUT_DIR"), "/shipping.v1.steps.rs"));
}
