//! The breaker's core and windows, compiled with loom's atomics, and every order of two threads in each of a few meetings in them.
//!
//! A crate of its own: the same `cfg(loom)` would turn tokio's sockets off, and the core needs none. Without it this is empty.
#![cfg(loom)]
#![expect(dead_code, reason = "the registry, which watches breakers, is not here")]

pub mod breaker;

#[cfg(test)]
mod breakers;
#[cfg(test)]
mod windows;
