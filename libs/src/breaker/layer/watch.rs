//! What the layer carries along with a call: one pointer, and the permit's few words.

use std::{ops::Deref, sync::Arc, time::Duration};

use super::super::{Breaker, Classes, Permit, rejection::Refusals};

/// What all calls through a layer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) breaker: Arc<Breaker>,
    pub(super) refusals: Refusals,
    pub(super) classes: Classes,
    pub(super) stream_commit: Duration,
}

/// A pointer to it, which stands for its breaker.
#[derive(Clone, Debug)]
pub(super) struct Handle(pub(super) Arc<Shared>);

impl Deref for Handle {
    type Target = Breaker;

    #[inline]
    fn deref(&self) -> &Breaker {
        &self.0.breaker
    }
}

/// A call under way.
pub(super) type Watch = Permit<Handle>;

/// How its result is judged.
#[inline]
pub(super) fn rules(watch: &Watch) -> &Shared {
    &watch.handle().0
}
