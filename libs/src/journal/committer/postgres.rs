//! The committer on PostgreSQL, a task.
//!
//! Replicas take turns: each batch holds an advisory lock of its schema from before it reads until it is committed, so that what
//! is decided is decided on what stands, and positions follow each other without a gap in the order of the commits.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{AGGREGATES, Answer, Counters, MOST_BYTES, MOST_ENTRIES, Named, Sets, Waiting, decide_all, now_micros};
use crate::journal::{
    batch::World,
    entry::SubmitError,
    log::EVENTS,
    postgres::Server,
    requests::REQUESTS,
    sql::{Error, Write, postgres},
};

/// How long a lost commit is asked after before the process gives up.
const ASK: Duration = Duration::from_secs(30);
/// Between two such questions.
const PAUSE: Duration = Duration::from_millis(100);

/// The committer's side of the journal.
pub(in crate::journal) struct Committer {
    pub(in crate::journal) server: Server,
    pub(in crate::journal) waiting: mpsc::Receiver<Waiting>,
    pub(in crate::journal) head: watch::Sender<i64>,
    pub(in crate::journal) counters: Arc<Counters>,
}

/// A batch that was decided and written, and is about to be committed.
struct Decided {
    head: i64,
    wrote: bool,
    /// The transaction, as the server names it.
    id: String,
    ended: Vec<Answer>,
}

impl Committer {
    /// Commits until the journal is closed and nothing waits.
    ///
    /// # Errors
    /// When it can't be found out what became of a commit. It must end the process: a restart reads what stands.
    pub(in crate::journal) async fn run(mut self) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(MOST_ENTRIES);
        while let Some(first) = self.waiting.recv().await {
            let mut size = first.entry.size;
            batch.push(first);
            while batch.len() < MOST_ENTRIES && size < MOST_BYTES {
                let Ok(next) = self.waiting.try_recv() else { break };
                size += next.entry.size;
                batch.push(next);
            }
            self.commit(&mut batch).await?;
        }
        self.counters.told();
        Ok(())
    }

    async fn commit(&mut self, batch: &mut Vec<Waiting>) -> Result<(), Error> {
        let mut transaction = match self.server.begin("journal").await {
            Ok(transaction) => transaction,
            Err(error) => {
                refuse(batch.drain(..).map(|waiting| waiting.answer), &error);
                return Ok(());
            }
        };
        let Decided { head, wrote, id, ended } = match decide(&mut transaction, batch).await {
            Ok(decided) => decided,
            Err((error, ended)) => {
                let undecided = batch.drain(..).map(|waiting| waiting.answer);
                refuse(undecided.chain(ended.into_iter().map(|(_, answer)| answer)), &error);
                return Ok(());
            }
        };
        if wrote {
            if let Err(error) = transaction.commit().await
                && !self.is_committed(&id, &error).await?
            {
                refuse(ended.into_iter().map(|(_, answer)| answer), &error.into());
                return Ok(());
            }
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
        }
        self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
        self.counters.answer(ended);
        Ok(())
    }

    /// Finds out what became of a transaction whose commit was not answered.
    async fn is_committed(&self, id: &str, error: &sqlx::Error) -> Result<bool, Error> {
        tracing::warn!(transaction = id, %error, "a commit was not answered: asking what became of it");
        let deadline = Instant::now() + ASK;
        loop {
            let asked = self.server.fetch("SELECT pg_xact_status($1::xid8)", &[id.into()]).await;
            let status = asked.and_then(|records| records.first().map_or(Ok(String::new()), |record| record.text(0)));
            match status.as_deref() {
                Ok("committed") => return Ok(true),
                Ok("aborted") => return Ok(false),
                _ if Instant::now() < deadline => sleep(PAUSE).await,
                Ok(status) => return Err(Error::Corrupt(format!("transaction {id} is {status}"))),
                Err(_) => return status.map(|_| false),
            }
        }
    }
}

/// Reads, decides and writes a batch. With an error come those that were decided already: nothing of them holds.
async fn decide(connection: &mut PgConnection, batch: &mut Vec<Waiting>) -> Result<Decided, (Error, Vec<Answer>)> {
    const SQL: &str = "SELECT COALESCE(MAX(position), 0), pg_current_xact_id()::text FROM events";
    let named = Named::of(batch, |_| None);
    let begun = async {
        let records = postgres::query(connection, SQL, &[]).await?;
        let begun = records.first().ok_or_else(|| Error::Corrupt("no row".to_owned()))?;
        let (head, id) = (begun.int(0)?, begun.text(1)?);
        let mut world = World::default();
        if !named.requests.is_empty() {
            world.learn_requests(&postgres::fetch_keys(connection, &REQUESTS, &named.requests).await?)?;
        }
        if !named.aggregates.is_empty() {
            let records = postgres::fetch_keys(connection, &AGGREGATES, &named.aggregates).await?;
            world.learn_aggregates(&named.kinds, &records)?;
        }
        Ok((head, id, world))
    };
    let (mut head, id, mut world) = begun.await.map_err(|error| (error, Vec::new()))?;
    let now_micros = now_micros();
    let (writes, ended) = decide_all(&mut world, &mut head, now_micros, batch);
    if writes.is_empty() {
        return Ok(Decided { head, wrote: false, id, ended });
    }
    let sets = Sets::of(&world, writes, now_micros);
    let written = async {
        postgres::write(connection, &AGGREGATES, Write::Upsert, &sets.aggregates).await?;
        postgres::write(connection, &EVENTS, Write::Insert, &sets.events).await?;
        postgres::write(connection, &REQUESTS, Write::Insert, &sets.requests).await?;
        postgres::upsert(connection, &sets.rows).await
    };
    match written.await {
        Ok(()) => Ok(Decided { head, wrote: true, id, ended }),
        Err(error) => Err((error, ended)),
    }
}

/// Tells those who wait that nothing of theirs was written.
fn refuse(
    waiting: impl Iterator<Item = tokio::sync::oneshot::Sender<Result<crate::journal::Committed, SubmitError>>>,
    error: &Error,
) {
    tracing::warn!(%error, "a batch was not committed; nothing of it was written");
    for answer in waiting {
        let _ = answer.send(Err(SubmitError::Unavailable));
    }
}
