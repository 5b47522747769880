//! A journal whose database is a simulation's: the same decisions, batches and SQL, over a store that the simulation can crash, cut
//! off and stop.

mod engine;

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use self::engine::{Engine, Fate, translate};
use super::{
    AGGREGATES, CommitError, EVENTS, Journal, Location, MOST_WAITING, REQUESTS, Reader, Recent, Shared,
    committer::SimulatedCommitter,
    entry::Table,
    log,
    members::MEMBERS,
    postgres::Server,
    sql::{Error, Record, Value},
};

/// What a transaction does, in order.
pub(crate) type Statements = Vec<Statement>;

/// One thing that a transaction does.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// Inserts a set of rows; a row whose key is there is an error.
    Insert(&'static Table, Vec<Vec<Value>>),
    /// Inserts a set of rows, or replaces those whose key is there.
    Upsert(&'static Table, Vec<Vec<Value>>),
    /// Runs a statement in SQL.
    Execute(String, Vec<Value>),
}

/// A key of a row to look up.
pub(crate) type Keys = Vec<Vec<Value>>;

/// What a batch finds when its turn has come.
pub(crate) struct Begun {
    /// The last position given out.
    pub(crate) head: i64,
    /// The transaction, as the database names it.
    pub(crate) id: u64,
    /// The requests that are known of those asked for.
    pub(crate) requests: Vec<Record>,
    /// The aggregates that are there of those asked for.
    pub(crate) aggregates: Vec<Record>,
    /// Ends the turn. Dropped, it rolls back.
    pub(crate) turn: Box<dyn Turn>,
}

/// A turn that was begun.
pub(crate) trait Turn: Send {
    /// Commits. An error leaves open whether it was.
    fn commit(self: Box<Self>, statements: Statements) -> BoxFuture<'static, Result<(), Error>>;
}

/// What the journal asks of a simulated database.
pub(crate) trait Database: fmt::Debug + Send + Sync + 'static {
    /// Runs a statement in a transaction of its own.
    fn execute(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<(), Error>>;
    /// Runs a SELECT.
    fn fetch(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<Vec<Record>, Error>>;
    /// Reads the rows with these keys.
    fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> BoxFuture<'static, Result<Vec<Record>, Error>>;
    /// Waits for a turn, and reads the requests and the aggregates with these keys.
    fn begin(&self, requests: Keys, aggregates: Keys) -> BoxFuture<'static, Result<Begun, Error>>;
    /// What became of a transaction.
    fn fate(&self, id: u64) -> BoxFuture<'static, Result<Fate, Error>>;
    /// A name for this process that nobody had before.
    fn new_name(&self) -> String;
    /// This process's clock, in microseconds since 1970.
    fn now_micros(&self) -> i64;
}

impl Journal {
    /// A journal over a simulated database, and its committer, to be run as a task.
    pub(crate) async fn simulated(
        database: Arc<dyn Database>,
    ) -> Result<(Self, impl Future<Output = Result<(), CommitError>> + Send + 'static), Error> {
        let (queue, waiting) = mpsc::channel(MOST_WAITING);
        let server = Server::simulated(Arc::clone(&database));
        let reader = Reader::postgres(server.clone());
        let (head, watched) = watch::channel(log::head(&reader).await?);
        let location = Location::Postgres { url: String::new(), schema: "simulated".to_owned() };
        let counters = Arc::default();
        let committer = SimulatedCommitter { database, waiting, head, counters: Arc::clone(&counters) };
        let (tell, ended) = oneshot::channel();
        let journal = Self(Arc::new(Shared {
            location: location.clone(),
            queue: Mutex::new(Some(queue)),
            head: watched,
            reader,
            cache: Arc::default(),
            recent: Recent::default(),
            server: Some(server),
            counters,
            ended: Mutex::new(Some(ended)),
        }));
        let run = async move {
            let end = committer.run().await;
            let message = end.as_ref().err().map(ToString::to_string);
            // Nobody may be waiting for the end.
            let _ = tell.send(end);
            message.map_or(Ok(()), |message| Err(CommitError::Failed { location, message }))
        };
        Ok((journal, run))
    }
}

/// The tables that every journal keeps.
pub(crate) fn tables() -> Vec<&'static Table> {
    vec![&AGGREGATES, &EVENTS, &REQUESTS, &MEMBERS]
}

/// The table of what was asked before.
pub(crate) fn requests() -> &'static Table {
    &REQUESTS
}

/// The table of aggregates.
pub(crate) fn aggregates() -> &'static Table {
    &AGGREGATES
}
