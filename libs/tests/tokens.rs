//! Consistency tokens that no command was answered with: they are as new as what is known of the state.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use libs::{
    cqrs::CommandSide,
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, NewEvent},
};
use tempfile::TempDir;
use tonic::metadata::MetadataMap;

fn noted(state: &'static str) -> Entry {
    let aggregate = AggregateId::new("note", state);
    let event = NewEvent { name: "Noted", payload: state.into() };
    let change = Change { aggregate: aggregate.clone(), state: Some(state.into()), version: 1, events: vec![event] };
    let decide = move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() };
    Entry { request: None, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

#[tokio::test]
async fn a_token_is_as_new_as_a_state_that_was_read_before_the_committer_has_told_of_it() {
    let folder = TempDir::new().unwrap();
    let location = database::location(folder.path(), "test");
    let Location::Sqlite(path) = location.clone() else { return };
    let journal = Journal::open(location, &[]).await.unwrap();
    journal.submit(noted("first")).await.unwrap();
    // As the file is after the next commit, of which the committer has yet to tell.
    let commit =
        "INSERT INTO events SELECT 2, kind, 'second', version, name, payload, cause, traceparent, time FROM events;
        INSERT INTO aggregates SELECT kind, 'second', version, state FROM aggregates";
    rusqlite::Connection::open(path).unwrap().execute_batch(commit).unwrap();
    let second = journal.aggregate(&AggregateId::new("note", "second")).await.unwrap();
    assert_eq!(second.state, "first");

    let mut metadata = MetadataMap::new();
    CommandSide::new("test", journal).stamp(&mut metadata).await.unwrap();
    assert_eq!(metadata.get("consistency-token").unwrap().to_str().unwrap(), "test:2");
}
