//! Talking gRPC: what every server and client does.

pub mod carried;
pub(crate) mod cause;
pub mod client;
pub(crate) mod coalesce;
pub mod deadline;
pub mod in_flight;
pub mod principal;
pub mod server;
pub mod shed;
pub mod verdict;
