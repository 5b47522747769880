//! How streams were when they were seen last. A stream is deleted to be filled anew; its operator's replicas and limits are not to go with it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use super::{LOOK, forms::Forms};

/// What was seen of each stream, by its name. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Mutex<HashMap<String, (Instant, Value)>>>);

impl Seen {
    /// Remembers a stream's configuration, with what only a newer client knows of.
    pub(super) fn saw(&self, name: &str, config: Value) {
        self.0.lock().insert(name.to_owned(), (Instant::now(), config));
    }

    /// Whether it was seen of late.
    pub(super) fn is_fresh(&self, name: &str) -> bool {
        self.0.lock().get(name).is_some_and(|(seen, _)| seen.elapsed() < LOOK)
    }

    /// The configuration by which a stream is to be made again; None if it was never seen.
    pub(super) fn again(&self, name: &str) -> Option<Value> {
        let mut config = self.0.lock().get(name).map(|(_, config)| config.clone())?;
        let fields = config.as_object_mut()?;
        // It is filled from the log's first event on, by who tells of the old forms that there are by then.
        fields.remove("sealed");
        fields.remove("first_seq");
        if let Some(Value::String(description)) = fields.get_mut("description") {
            *description = Forms::left_out_of(description).to_owned();
        }
        Some(config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_is_made_again_with_all_but_what_was_of_its_messages() {
        let seen = Seen::default();
        assert_eq!((seen.again("a"), seen.is_fresh("a")), (None, false));
        let mut config = json!({"name": "a", "num_replicas": 3, "compression": "s2", "sealed": true, "first_seq": 7,
            "description": "Ask Ann. Old forms: thing.Said=1"});
        seen.saw("a", json!({"name": "a", "num_replicas": 1}));
        seen.saw("a", config.clone());
        for of_messages in ["sealed", "first_seq"] {
            config.as_object_mut().unwrap().remove(of_messages);
        }
        config["description"] = "Ask Ann.".into();
        assert_eq!((seen.again("a"), seen.is_fresh("a")), (Some(config), true));
        assert_eq!(seen.again("b"), None);
    }
}
