//! The methods that a server serves. A metric has their names alone: those that strangers ask for are without number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What stands for a method that nobody serves.
const OTHER: &str = "_OTHER";

/// The most bytes of what a stranger has sent that are repeated.
const MOST_SHOWN: usize = 256;

/// As much of a path, a method or of a text that holds either as belongs in a line or an answer: a stranger's may be as long as a header
/// list, or a message.
pub(in crate::rpc) fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(MOST_SHOWN)]
}

/// The methods that a server serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Methods(Arc<Known>);

#[derive(Debug)]
struct Known {
    methods: BTreeSet<String>,
    /// Those of them whose answer is a stream. They are few.
    streams: Vec<String>,
    /// What stands for all methods of a service whose contract is not known.
    undescribed: BTreeMap<String, String>,
}

impl Methods {
    /// These methods, as `package.Service/Method`, each with whether its answer is a stream, and all that services of these names may have.
    #[must_use]
    pub fn new(
        methods: impl IntoIterator<Item = (String, bool)>,
        undescribed: impl IntoIterator<Item = String>,
    ) -> Self {
        let label = |service: String| (service.clone(), format!("{service}/{OTHER}"));
        let undescribed = undescribed.into_iter().map(label).collect();
        let (mut names, mut streams) = (BTreeSet::new(), Vec::new());
        for (name, is_stream) in methods {
            if is_stream {
                streams.push(name.clone());
            }
            names.insert(name);
        }
        Self(Arc::new(Known { methods: names, streams, undescribed }))
    }

    /// Whether the answer may be a stream: it is none where that is known.
    #[must_use]
    pub fn may_stream(&self, method: &str) -> bool {
        let Known { streams, undescribed, .. } = &*self.0;
        streams.iter().any(|stream| stream == method)
            || (!undescribed.is_empty() && undescribed.contains_key(service_of(method)))
    }

    /// The method itself if it is served.
    pub(super) fn label<'a>(&'a self, method: &'a str) -> &'a str {
        let Known { methods, undescribed, .. } = &*self.0;
        if methods.contains(method) {
            return method;
        }
        undescribed.get(service_of(method)).map_or(OTHER, String::as_str)
    }
}

fn service_of(method: &str) -> &str {
    method.rsplit_once('/').map_or(method, |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_has_no_name_of_its_own() {
        let tea = [("tea.v1.Tea/Brew", false), ("tea.v1.Tea/Watch", true)].map(|(name, is)| (name.to_owned(), is));
        let methods = Methods::new(tea, ["milk.v1.Milk".to_owned()]);
        let asked = ["tea.v1.Tea/Brew", "tea.v1.Tea/Spill", "milk.v1.Milk/Pour", "milk.v1.Milk/Spill", "x"];
        let labels = asked.map(|method| methods.label(method));
        assert_eq!(["tea.v1.Tea/Watch", "milk.v1.Milk/Pour"].map(|method| methods.may_stream(method)), [true; 2]);
        assert_eq!(["tea.v1.Tea/Brew", "tea.v1.Tea/Spill", "x"].map(|method| methods.may_stream(method)), [false; 3]);
        assert_eq!(labels, ["tea.v1.Tea/Brew", OTHER, "milk.v1.Milk/_OTHER", "milk.v1.Milk/_OTHER", OTHER]);
    }
}
