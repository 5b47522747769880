//! Why a service does not start, and why it stops: each is one line for an operator.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::cli::BoxError;

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is taken, or not this machine's.
    #[error("can't listen on {address}: {}", why_not(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// A file that a flag names cannot be read.
    #[error("{flag} {}: {source}", path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Certificate, key or authority are no good.
    #[error("{0}")]
    Tls(String),
    /// The broker's address can't be used.
    #[error("--nats-url can't be used: {0}")]
    Broker(Box<dyn std::error::Error + Send + Sync>),
}

/// Why a service stops serving, other than being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Something that must go on has ended.
    #[error("{task}: {why}")]
    Task {
        /// What it was.
        task: String,
        /// Its last words.
        why: BoxError,
    },
    /// The contracts cannot be told to clients.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there, or calls from that port: stop it, or give another --listen".to_owned()
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; give another --listen".to_owned(),
        _ => error.to_string(),
    }
}
