//! What the layer carries along with a call: one pointer, and the permit's few words.

use std::{fmt, ops::Deref, sync::Arc};

use tonic::Status;

use super::super::{Breaker, Class, Classes, Permit, rejection::Refusals};

/// What all calls through a layer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) breaker: Arc<Breaker>,
    pub(super) refusals: Refusals,
    pub(super) rules: Rules,
}

/// How results are judged.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) classes: Classes,
    pub(super) judge: Option<Judge>,
    /// Whether calls are given up when their deadlines come, unless whoever makes them is stopped.
    pub(super) punctual: bool,
}

/// Looks closer at an error than its code, and may know better.
#[derive(Clone)]
pub(crate) struct Judge(Arc<Look>);

type Look = dyn Fn(&Status) -> Option<Class> + Send + Sync;

impl Judge {
    pub(crate) fn new(judge: impl Fn(&Status) -> Option<Class> + Send + Sync + 'static) -> Self {
        Self(Arc::new(judge))
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judge")
    }
}

impl Rules {
    /// What the judge says, if there is one and it knows better than the code.
    pub(super) fn judged(&self, status: impl FnOnce() -> Option<Status>) -> Option<Class> {
        let Judge(judge) = self.judge.as_ref()?;
        judge(&status()?)
    }
}

/// A pointer to it, which stands for its breaker.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(super) Arc<Shared>);

impl Deref for Handle {
    type Target = Breaker;

    #[inline]
    fn deref(&self) -> &Breaker {
        &self.0.breaker
    }
}

/// A call under way.
pub(crate) type Watch = Permit<Handle>;

/// How its result is judged.
#[inline]
pub(super) fn rules(watch: &Watch) -> &Rules {
    &watch.handle().0.rules
}
