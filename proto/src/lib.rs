//! The contracts of every service, as Rust: one module a package, as in the folders beside this one.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::large_futures,
    clippy::unwrap_used,
    rustdoc::all,
    reason = "generated"
)]

macro_rules! package {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => { $(
        $(#[$doc])*
        pub mod $name {
            /// Version 1.
            pub mod v1 { tonic::include_proto!($path); }
        }
    )* };
}

package! {
    /// Options that drive the generation of command surfaces.
    libs = "libs.v1";
    /// Stock and reservations.
    inventory = "inventory.v1";
    /// Accounts and charges.
    payment = "payment.v1";
    /// Shipments.
    shipping = "shipping.v1";
    /// Orders.
    order = "order.v1";
    /// Sagas as operators see them.
    saga = "saga.v1";
    /// Circuit breakers as operators see them.
    breaker = "breaker.v1";
    /// A service's events, for the views of others.
    events = "events.v1";
    /// Projections as operators see them.
    projections = "projections.v1";
}

/// Types that Google publishes for everybody.
pub mod google {
    /// `google.type`: Money, PostalAddress.
    pub mod r#type {
        tonic::include_proto!("google.r#type");
    }
}

/// Every file with its comments and options, for reflection and code generation.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
