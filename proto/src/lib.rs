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

include!(concat!(env!("OUT_DIR"), "/packages.rs"));

/// Every file with its comments and options, for reflection and code generation.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
