//! The house: breakers, sagas and CQRS over gRPC, one feature a pattern.
//!
//! Rooms, from the top: services are assembled by `service` and `cli`; `saga` and `cqrs` hold the patterns of the write and
//! read sides; `journal` stores, `rpc` talks; `breaker` and `telemetry` stand below. A room uses rooms below it only.

#[cfg(feature = "types")]
pub mod address;
#[cfg(feature = "breaker")]
pub mod breaker;
#[cfg(feature = "rpc")]
pub mod cli;
#[cfg(feature = "cqrs")]
pub mod cqrs;
#[cfg(feature = "types")]
pub mod items;
#[cfg(feature = "journal")]
pub mod journal;
#[cfg(feature = "types")]
pub mod money;
pub mod refusal;
#[cfg(feature = "rpc")]
pub mod rpc;
#[cfg(feature = "saga")]
pub mod saga;
#[cfg(feature = "rpc")]
pub mod service;
#[cfg(feature = "telemetry")]
pub mod telemetry;
#[cfg(feature = "cqrs")]
pub mod testing;
pub mod time;
#[cfg(any(feature = "journal", feature = "rpc"))]
mod told;

/// The page on breakers: its recipes compile.
#[cfg(all(doctest, feature = "rpc"))]
#[doc = include_str!("../../docs/breaker.md")]
struct BreakerInTenMinutes;

/// The page on sagas: its recipes compile.
#[cfg(all(doctest, feature = "saga"))]
#[doc = include_str!("../../docs/saga.md")]
struct SagaInTenMinutes;
