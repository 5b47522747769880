//! The one way to assemble a service: a listener, its parts, and an orderly end.
//!
//! ```text
//! bind ─▶ open stores ─▶ start tasks ─▶ SERVING ─▶ serve ─▶ NOT_SERVING ─▶ accept no more ─▶ calls end ─▶ put away
//! ```
//!
//! An [`App`] installs nothing in its process, so one process may hold several: the shop has all of them.

mod app;
mod connection;
mod descriptors;
mod error;
mod greeting;
mod health;
mod places;
#[cfg(feature = "cqrs")]
mod rebuild;
mod reflection;
mod socket;
mod stall;
#[cfg(feature = "cqrs")]
mod stores;
mod tasks;
pub(crate) mod tls;

#[cfg(feature = "cqrs")]
pub use self::stores::{Sides, Source, Stores};
pub use self::{
    app::App,
    error::{ServeError, StartError},
};
