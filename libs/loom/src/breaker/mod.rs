//! The sources themselves, not a copy.

#[path = "../../../src/breaker/core/mod.rs"]
pub mod core;
#[path = "../../../src/breaker/window/mod.rs"]
pub(crate) mod window;
