//! Old forms of events, brought into the form of today as a log is read. The log itself is never rewritten.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;
use prost::{DecodeError, Message as _};

use super::Aggregate;
use crate::journal::Event;

/// What no message can be read from: no field has this tag.
const UNREADABLE: Bytes = Bytes::from_static(&[0]);

/// Whether the upcast of an event panicked.
pub(super) fn is_unreadable(event: &Event) -> bool {
    event.payload == UNREADABLE
}

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

    /// The names of events that have old forms, by the kind of their aggregate.
    pub(super) fn old_forms(&self) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
        self.0.iter().map(|(kind, upcaster)| (*kind, upcaster.names))
    }

    /// Brings events into the form of today. One that can't be read stays as it is: whoever folds it says so. So does whoever reads one
    /// whose upcast panics, which becomes unreadable: taken in its old form it would be folded to something else than it means.
    pub(super) fn apply(&self, mut events: Vec<Event>) -> Vec<Event> {
        if self.0.is_empty() {
            return events;
        }
        for event in &mut events {
            let Some(upcaster) = self.0.get(&*event.kind) else { continue };
            if !upcaster.names.contains(&&*event.name) {
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| (upcaster.upcast)(event.payload.clone()))) {
                Ok(Ok(today)) => event.payload = today,
                Ok(Err(_)) => {}
                Err(_) => {
                    tracing::error!(
                        event = event.describe(),
                        "its upcast panicked: nobody can read it until that is mended"
                    );
                    event.payload = UNREADABLE;
                }
            }
        }
        events
    }
}

/// What needs nothing stays as it came, with what a newer version knows of it and this one doesn't. So does what nothing is known of:
/// whoever folds it says so.
fn upcast<A: Aggregate>(payload: Bytes) -> Result<Bytes, DecodeError> {
    let mut event = A::Event::decode(payload.clone())?;
    let before = event.encode_to_vec();
    if before.is_empty() && !payload.is_empty() {
        return Ok(payload);
    }
    A::upcast(&mut event);
    let today = event.encode_to_vec();
    Ok(if today == before { payload } else { today.into() })
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(kind, upcaster)| (kind, upcaster.names))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Decode as _, ProjectionError},
        *,
    };

    #[derive(Debug)]
    enum Note {}

    impl Aggregate for Note {
        const KIND: &'static str = "note";
        type State = ();
        type Event = String;

        const OLD_FORMS: &'static [&'static str] = &["Noted"];

        fn evolve((): &mut (), _: &String) {}

        fn upcast(event: &mut String) {
            assert_ne!(event, "poison");
            if !event.ends_with('!') {
                event.push('!');
            }
        }

        fn event_name(_: &String) -> &'static str {
            "Noted"
        }
    }

    #[test]
    fn an_event_whose_upcast_panics_can_be_read_by_nobody_and_the_others_are_brought_up() {
        let noted = |text: &str| Event {
            kind: Note::KIND.into(),
            name: "Noted".into(),
            payload: text.to_owned().encode_to_vec().into(),
            ..Event::default()
        };
        let events = Upcasters::new().with::<Note>().apply(vec![noted("a"), noted("poison"), noted("b")]);
        let read: Vec<_> = events.into_iter().map(|event| String::decode(event.payload).ok()).collect();
        assert_eq!(read, [Some("a!".to_owned()), None, Some("b!".to_owned())]);
    }

    #[test]
    fn what_a_newer_version_wrote_comes_as_it_was_written() {
        let noted = |payload: &'static [u8]| Event {
            kind: Note::KIND.into(),
            name: "Noted".into(),
            payload: payload.into(),
            ..Event::default()
        };
        // A text of today's form with a field more, and a field alone that is not known here.
        let newer = [noted(b"\x0a\x02a!\x12\x01x"), noted(b"\x12\x01x")];
        let events = Upcasters::new().with::<Note>().apply(newer.to_vec());
        let payloads = |events: &[Event]| events.iter().map(|event| event.payload.clone()).collect::<Vec<_>>();
        assert_eq!(payloads(&events), payloads(&newer));
        assert_eq!(events[0].decode::<Note>().unwrap().as_deref(), Some("a!"));
        let refused = events[1].decode::<Note>().unwrap_err();
        assert!(matches!(refused, ProjectionError::Newer(_)), "{refused}");
    }
}
