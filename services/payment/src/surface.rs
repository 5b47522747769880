//! The command and query surfaces, generated from the contract.
#![allow(clippy::vec_init_then_push, reason = "generated: one push a declared aggregate")]

include!(concat!(env!("OUT_DIR"), "/payment.v1.surface.rs"));
