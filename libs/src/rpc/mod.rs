//! Talking gRPC: what every server and client does.

pub mod client;
pub mod deadline;
pub mod server;
pub mod verdict;
