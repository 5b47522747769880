//! Talking gRPC: what every server and client does.

pub mod verdict;
