//! A shop of real processes to test against: started on free ports and fresh data, killed and restarted at will, and
//! judged only by what its queries answer.

pub mod chaos;
pub mod clients;
pub mod collector;
pub mod disk;
pub mod facts;
pub mod grpcurl;
pub mod invariants;
pub mod load;
pub mod manifests;
pub mod outage;
pub mod port;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod refusal;
pub mod server;
pub mod shop;
pub mod tls;
pub mod wish;

pub use self::{clients::Clients, server::Server, shop::Shop};
