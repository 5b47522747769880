//! The shop: the services in one process, to try, to show and to develop against.
//!
//! - [`config`]: what can be asked of it.
//! - [`shop`](mod@shop): the services, opened and closed together.
//! - [`serve`], [`demo`], [`order`], [`watch`], [`sagas`], [`breakers`]: what it does, one file a word.
//! - [`follow`], [`timeline`]: an order on its way, line by line.
//! - [`books`]: what must add up, from the queries.
//! - [`recipes`]: lines to paste.
//! - [`clients`], [`screen`]: the services as any caller sees them, and where people read.

pub mod books;
pub mod breakers;
pub mod clients;
pub mod config;
pub mod demo;
pub mod follow;
pub mod order;
pub mod recipes;
pub mod sagas;
pub mod screen;
pub mod serve;
pub mod shop;
pub mod timeline;
pub mod watch;
