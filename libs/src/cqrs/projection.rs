//! Projections: folds of the log into tables that queries read.
//!
//! A projection's checkpoint moves in the transaction of its tables, so each event counts once although it may be delivered
//! again. On SQLite the tables live in a file of their own beside the journal's, on PostgreSQL in its schema: reads and folds never wait
//! for a commit of the write side, and a lost tail is folded again.

use std::{any::type_name, collections::BTreeSet, future::Future, sync::Arc};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::Aggregate;
use crate::journal::{
    Event, Names, OpenError, Table,
    sql::{self, Transaction},
};

/// A fold of events into its own tables.
pub trait Projection: Send + Sync + 'static {
    /// Its name, under which its checkpoint is kept, stable for ever. No other of the service has it, over whichever log.
    const NAME: &'static str;
    /// Its tables. Nobody else writes them, and no other table or index of the service has their names: on a server all are in one schema,
    /// and the journal's are in it.
    const TABLES: &'static [&'static Table];

    /// Folds events, in the log's order, each once. It may wait for nothing but the transaction.
    fn project(
        &self,
        events: &[Event],
        transaction: &mut Transaction<'_>,
    ) -> impl Future<Output = Result<(), ProjectionError>> + Send;
}

/// Why events can't be folded.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// An event, or a row it changes, can't be read.
    #[error("can't read {what}: {source}")]
    Decode {
        /// Which event or row.
        what: String,
        /// What is wrong with it.
        source: prost::DecodeError,
    },
    /// Nothing of an event is known here. Folded into nothing it would be passed for good.
    #[error("{0} was written by a newer version of its service: update this program")]
    Newer(String),
    /// The fold changes a document that it had not loaded.
    #[error(
        "the fold changes {id} in {table}, which it had not loaded, and what is there would be lost: have it load that id"
    )]
    NotLoaded {
        /// Where the document is.
        table: &'static str,
        /// Its id.
        id: String,
    },
    /// The fold panicked, and said this.
    #[error("the fold panicked: {0}")]
    Panicked(String),
    /// The database's error.
    #[error(transparent)]
    Database(#[from] sql::Error),
}

/// Reads an event as its aggregate's.
pub trait Decode {
    /// The event, or None if it is of another kind of aggregate.
    ///
    /// # Errors
    /// When it is of that kind and can't be read, or nothing of it is known.
    fn decode<A: Aggregate>(&self) -> Result<Option<A::Event>, ProjectionError>;
}

impl Decode for Event {
    fn decode<A: Aggregate>(&self) -> Result<Option<A::Event>, ProjectionError> {
        if self.kind != A::KIND {
            return Ok(None);
        }
        read(self).map(Some)
    }
}

fn read<E: prost::Message + Default>(event: &Event) -> Result<E, ProjectionError> {
    let what = E::decode(event.payload.clone())
        .map_err(|source| ProjectionError::Decode { what: event.describe(), source })?;
    // A field that isn't known is left out, and so is a kind of event: it is a field of a oneof.
    let known = what.encoded_len();
    if known == 0 && !event.payload.is_empty() {
        return Err(ProjectionError::Newer(event.describe()));
    }
    // The view may not want the rest. Whether it does, only a person can tell.
    if known < event.payload.len() && TOLD.lock().insert(type_name::<E>()) {
        tracing::warn!(
            event = event.describe(),
            "a newer version wrote more than is known here, and such events are folded without it: update this program, and have it make \
             its views anew (RebuildProjections) if they need that"
        );
    }
    Ok(what)
}

/// The events of which it was told that there is more of them than is known here.
static TOLD: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The events of one kind of aggregate, decoded, in order.
///
/// # Errors
/// When one can't be read, or nothing of it is known.
pub fn events_of<A: Aggregate>(events: &[Event]) -> Result<Vec<(&Event, A::Event)>, ProjectionError> {
    let mut decoded = Vec::with_capacity(events.iter().filter(|event| event.kind == A::KIND).count());
    for event in events {
        if let Some(what) = event.decode::<A>()? {
            decoded.push((event, what));
        }
    }
    Ok(decoded)
}

/// The events of one kind of aggregate, as another service's contract encodes them, in order.
///
/// # Errors
/// When one can't be read, or nothing of it is known.
pub fn events_of_kind<'e, E: prost::Message + Default>(
    kind: &str,
    events: &'e [Event],
) -> Result<Vec<(&'e Event, E)>, ProjectionError> {
    let of_kind = || events.iter().filter(|event| event.kind == kind);
    let mut decoded = Vec::with_capacity(of_kind().count());
    for event in of_kind() {
        decoded.push((event, read(event)?));
    }
    Ok(decoded)
}

/// A projection behind a pointer: one boxed future a batch of events.
pub(super) trait Fold: Send + Sync {
    fn name(&self) -> &'static str;
    fn tables(&self) -> &'static [&'static Table];
    fn fold<'a>(
        &'a self,
        events: &'a [Event],
        transaction: &'a mut Transaction<'_>,
    ) -> BoxFuture<'a, Result<(), ProjectionError>>;
}

impl<P: Projection> Fold for P {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn tables(&self) -> &'static [&'static Table] {
        P::TABLES
    }

    fn fold<'a>(
        &'a self,
        events: &'a [Event],
        transaction: &'a mut Transaction<'_>,
    ) -> BoxFuture<'a, Result<(), ProjectionError>> {
        Box::pin(self.project(events, transaction))
    }
}

/// The projections of a service, in no order.
#[derive(Clone, Default)]
pub struct Projections(pub(super) Vec<Arc<dyn Fold>>);

impl std::fmt::Debug for Projections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|fold| fold.name())).finish()
    }
}

impl Projections {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    #[must_use]
    pub fn with(mut self, projection: impl Projection) -> Self {
        self.0.push(Arc::new(projection));
        self
    }

    /// Takes the names of these projections, their tables and indexes.
    pub(crate) fn take_names(&self, names: &mut Names) -> Result<(), OpenError> {
        for fold in &self.0 {
            names.take_checkpoint(fold.name())?;
            names.take(fold.tables())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Note {}

    impl Aggregate for Note {
        const KIND: &'static str = "note";
        type State = ();
        type Event = String;

        fn evolve((): &mut (), _: &String) {}

        fn event_name(_: &String) -> &'static str {
            "Noted"
        }
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_taken_for_nothing() {
        let event = |payload: &'static [u8]| Event {
            kind: Note::KIND.into(),
            name: "Noted".into(),
            payload: payload.into(),
            ..Event::default()
        };
        // A text, a field more than is known here, and nothing at all.
        let known = [event(b"\x0a\x01a"), event(b"\x0a\x01b\x12\x01x"), event(b"")];
        let texts = |of: Vec<(&Event, String)>| of.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(events_of::<Note>(&known).unwrap()), ["a", "b", ""]);
        assert_eq!(texts(events_of_kind(Note::KIND, &known).unwrap()), ["a", "b", ""]);
        let newer = [event(b"\x0a\x01a"), event(b"\x12\x01x")];
        for refused in [events_of::<Note>(&newer), events_of_kind(Note::KIND, &newer)] {
            assert!(refused.unwrap_err().to_string().contains("by a newer version"));
        }
        assert!(events_of::<Note>(&[Event { kind: "other".into(), ..event(b"\x12\x01x") }]).unwrap().is_empty());
    }
}
