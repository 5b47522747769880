//! The committer of a simulation, a task: PostgreSQL's turns and lost commits, in two exchanges a batch.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{AGGREGATES, Answer, Counters, MOST_ENTRIES, Named, Sets, Waiting, decide_all, gather::Gathering};
use crate::journal::{
    batch::World,
    entry::{Forgotten, SubmitError},
    log::EVENTS,
    requests::REQUESTS,
    simulated::{Begun, Database, Fate, Statement, Statements},
    sql::Error,
};

/// How long a lost commit is asked after before the process gives up.
const ASK: Duration = Duration::from_secs(30);
/// Between two such questions.
const PAUSE: Duration = Duration::from_millis(100);

/// The committer's side of the journal.
pub(in crate::journal) struct Committer {
    pub(in crate::journal) database: Arc<dyn Database>,
    pub(in crate::journal) waiting: mpsc::Receiver<Waiting>,
    pub(in crate::journal) head: watch::Sender<i64>,
    pub(in crate::journal) counters: Arc<Counters>,
}

impl Committer {
    /// Commits until the journal is closed and nothing waits.
    ///
    /// # Errors
    /// When it can't be found out what became of a commit. It must end the process.
    pub(in crate::journal) async fn run(mut self) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(MOST_ENTRIES);
        let mut gathering = Gathering::default();
        while let Some(size) = gathering.next(&mut self.waiting, &mut batch).await {
            self.counters.waits_no_more(size);
            self.commit(&mut batch).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, batch: &mut Vec<Waiting>) -> Result<(), Error> {
        let named = Named::of(batch, |_| None);
        let (requests, aggregates) = (named.requests, named.aggregates);
        let Ok(begun) = self.database.begin(requests, aggregates).await else {
            batch.drain(..).for_each(|waiting| refuse(waiting.answer));
            return Ok(());
        };
        let Begun { mut head, id, requests, aggregates, turn } = begun;
        let mut world = World::default();
        world.learn_requests(&requests)?;
        world.learn_aggregates(&named.kinds, &aggregates)?;
        let now_micros = self.database.now_micros();
        let (writes, ended) = decide_all(&mut world, &mut head, now_micros, batch, &self.counters);
        if !writes.is_empty() {
            let sets = Sets::of(&world, writes, now_micros);
            if turn.commit(statements(sets)).await.is_err() && !self.is_committed(id).await? {
                ended.into_iter().for_each(|(_, answer): Answer| refuse(answer));
                return Ok(());
            }
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
        }
        self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
        self.counters.answer(ended);
        Ok(())
    }

    /// Finds out what became of a transaction whose commit was not answered.
    async fn is_committed(&self, id: u64) -> Result<bool, Error> {
        let deadline = Instant::now() + ASK;
        loop {
            match self.database.fate(id).await {
                Ok(Fate::Committed) => return Ok(true),
                Ok(Fate::Aborted) => return Ok(false),
                _ if Instant::now() < deadline => sleep(PAUSE).await,
                Ok(Fate::Open) => return Err(Error::Corrupt(format!("transaction {id} has not ended"))),
                Err(error) => return Err(error),
            }
        }
    }
}

fn statements(sets: Sets) -> Statements {
    let mut statements = vec![
        Statement::Upsert(&AGGREGATES, sets.aggregates),
        Statement::Insert(&EVENTS, sets.events),
        Statement::Insert(&REQUESTS, sets.requests),
    ];
    // A row at a time, in order: the last of two with one key stays.
    let rows = sets.rows.into_iter();
    statements.extend(rows.map(|row| Statement::Upsert(row.table, vec![row.values])));
    for Forgotten { keys, stored_before_micros } in sets.forgotten {
        let delete = |key: String| {
            let sql = format!("DELETE FROM {} WHERE key=$1 AND time<$2", REQUESTS.name);
            Statement::Execute(sql, vec![key.into(), stored_before_micros.into()])
        };
        statements.extend(keys.into_iter().map(delete));
    }
    statements
}

/// Tells somebody who waits that nothing of theirs was written.
fn refuse(answer: tokio::sync::oneshot::Sender<Result<crate::journal::Committed, SubmitError>>) {
    let _ = answer.send(Err(SubmitError::Unavailable));
}
