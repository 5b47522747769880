//! The methods that a server serves. A metric has their names alone: those that strangers ask for are without number.

use std::{collections::BTreeSet, sync::Arc};

/// What stands for a method that nobody serves.
const OTHER: &str = "_OTHER";

/// The methods that a server serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Methods(Arc<BTreeSet<String>>);

impl Methods {
    /// These methods, as `package.Service/Method`.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(Arc::new(names.into_iter().collect()))
    }

    /// The method itself if it is served.
    pub(super) fn label<'a>(&self, method: &'a str) -> &'a str {
        if self.0.contains(method) { method } else { OTHER }
    }
}
