//! What the layer carries along with a call.

use std::{sync::Arc, time::Duration};

use super::super::{Breaker, Classes, Permit};

/// How the layer judges. Small and copied, so that a call borrows nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) classes: Classes,
    pub(super) stream_commit: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { classes: Classes::default(), stream_commit: Duration::from_secs(5) }
    }
}

/// A call under way: the permit, and how to judge.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) permit: Permit<Arc<Breaker>>,
    pub(super) rules: Rules,
}
