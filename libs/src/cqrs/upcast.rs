//! Old forms of events, brought into the form of today as a log is read. The log itself is never rewritten.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use prost::{DecodeError, Message as _};

use super::Aggregate;
use crate::journal::Event;

/// How to bring a service's old events into the form of today, by the kind of their aggregate.
#[derive(Clone, Default)]
pub struct Upcasters(BTreeMap<&'static str, Upcaster>);

#[derive(Clone, Copy)]
struct Upcaster {
    names: &'static [&'static str],
    upcast: fn(Bytes) -> Result<Bytes, DecodeError>,
}

impl Upcasters {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds those of an aggregate.
    #[must_use]
    pub fn with<A: Aggregate>(mut self) -> Self {
        if !A::OLD_FORMS.is_empty() {
            self.0.insert(A::KIND, Upcaster { names: A::OLD_FORMS, upcast: upcast::<A> });
        }
        self
    }

    /// Brings events into the form of today. One that can't be read stays as it is: whoever folds it says so.
    pub(super) fn apply(&self, mut events: Vec<Event>) -> Vec<Event> {
        if self.0.is_empty() {
            return events;
        }
        for event in &mut events {
            let Some(upcaster) = self.0.get(&*event.kind) else { continue };
            if upcaster.names.contains(&&*event.name)
                && let Ok(today) = (upcaster.upcast)(event.payload.clone())
            {
                event.payload = today;
            }
        }
        events
    }
}

fn upcast<A: Aggregate>(payload: Bytes) -> Result<Bytes, DecodeError> {
    let mut event = A::Event::decode(payload)?;
    A::upcast(&mut event);
    Ok(event.encode_to_vec().into())
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(kind, upcaster)| (kind, upcaster.names))).finish()
    }
}
