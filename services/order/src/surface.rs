//! The command and query surfaces, generated from the contract.

include!(concat!(env!("OUT_DIR"), "/order.v1.surface.rs"));
