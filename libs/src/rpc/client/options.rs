//! How a peer is called.

use std::time::Duration;

use crate::breaker::{Classes, Config};

/// How a peer is called.
#[derive(Clone, Debug)]
#[must_use]
pub struct PeerOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) connect_timeout: Duration,
    pub(super) connections: usize,
    pub(super) breaker: Config,
    pub(super) classes: Classes,
}

impl PeerOptions {
    /// For a saga's steps: a long timeout, and nothing below the saga ever sends a call twice.
    pub fn saga() -> Self {
        Self {
            timeout: Some(Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(2),
            connections: 1,
            breaker: Config::default(),
            classes: Classes::default(),
        }
    }

    /// For queries: a person may be waiting.
    pub fn query() -> Self {
        Self { timeout: Some(Duration::from_secs(5)), ..Self::saga() }
    }

    /// Ends a call that carries no timeout of its own after so long; `None` never does. For a call that does, that one holds.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Gives up connecting after so long.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Spreads calls over so many connections, at least one.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Configures the breaker, unless the peer already has one.
    pub fn breaker(mut self, config: Config) -> Self {
        self.breaker = config;
        self
    }

    /// Judges codes by other classes.
    pub fn classes(mut self, classes: Classes) -> Self {
        self.classes = classes;
        self
    }
}

impl Default for PeerOptions {
    /// As [`PeerOptions::saga`].
    fn default() -> Self {
        Self::saga()
    }
}
