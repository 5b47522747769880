//! How streams were when they were seen last. A stream is deleted to be filled anew; its operator's replicas and limits are not to go with it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use super::{KEPT, LOOK, forms::Forms};

/// What was seen of each stream, by its name. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Mutex<HashMap<String, Last>>>);

/// What was seen last.
#[derive(Debug)]
struct Last {
    /// When that was, or was asked.
    time: Instant,
    config: Option<Value>,
}

impl Seen {
    /// Remembers a stream's configuration, with what only a newer client knows of. As sealed it is none to go on with: then it stays how it
    /// was before, or as it is but for what the server changes as it seals one.
    pub(super) fn saw(&self, name: &str, mut config: Value) {
        const BY_SEALING: [&str; 6] =
            ["sealed", "max_age", "discard", "deny_delete", "deny_purge", "allow_rollup_hdrs"];
        let is_sealed = config.get("sealed").and_then(Value::as_bool).unwrap_or_default();
        let mut seen = self.0.lock();
        let before = seen.remove(name).and_then(|last| last.config).filter(|_| is_sealed);
        if let Some(fields) = config.as_object_mut().filter(|_| is_sealed) {
            fields.retain(|field, _| !BY_SEALING.contains(&field.as_str()));
            // How long it was to keep what it takes nobody knows any more.
            fields.insert("max_age".to_owned(), nanos(KEPT).into());
        }
        seen.insert(name.to_owned(), Last { time: Instant::now(), config: before.or(Some(config)) });
    }

    /// Whether it is to be looked at, as nobody has of late. From now on somebody does.
    pub(super) fn is_due(&self, name: &str) -> bool {
        let mut seen = self.0.lock();
        let time = Instant::now();
        match seen.get_mut(name) {
            Some(last) if time.duration_since(last.time) < LOOK => false,
            Some(last) => {
                last.time = time;
                true
            }
            None => {
                seen.insert(name.to_owned(), Last { time, config: None });
                true
            }
        }
    }

    /// The configuration by which a stream is to be made again; None if it was never seen.
    pub(super) fn again(&self, name: &str) -> Option<Value> {
        let mut config = self.0.lock().get(name)?.config.clone()?;
        let fields = config.as_object_mut()?;
        // It is filled from the log's first event on, by who tells of the old forms that there are by then.
        fields.remove("first_seq");
        if let Some(Value::String(description)) = fields.get_mut("description") {
            *description = Forms::left_out_of(description).to_owned();
        }
        Some(config)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stream_is_made_again_with_all_but_what_was_of_its_messages() {
        let seen = Seen::default();
        assert_eq!((seen.again("a"), seen.is_due("a"), seen.is_due("a")), (None, true, false));
        let mut config = json!({"name": "a", "num_replicas": 3, "compression": "s2", "sealed": false, "first_seq": 7,
            "description": "Ask Ann. Old forms: thing.Said=1"});
        seen.saw("a", json!({"name": "a", "num_replicas": 1}));
        seen.saw("a", config.clone());
        // The server changes more of one that is sealed.
        seen.saw("a", json!({"name": "a", "num_replicas": 3, "sealed": true, "max_age": 0, "deny_purge": true}));
        config.as_object_mut().unwrap().remove("first_seq");
        config["description"] = "Ask Ann.".into();
        assert_eq!((seen.again("a"), seen.is_due("a")), (Some(config), false));
        assert_eq!(seen.again("b"), None);
        seen.saw("b", json!({"name": "b", "num_replicas": 3, "sealed": true, "max_age": 0, "deny_purge": true}));
        assert_eq!(seen.again("b"), Some(json!({"name": "b", "num_replicas": 3, "max_age": 604_800_000_000_000_u64})));
    }
}
