//! The committer on PostgreSQL, a task: it takes the turn, reads what the batch names, decides, writes, commits, and where that was not
//! answered asks what became of it.
//!
//! Replicas take turns: each batch holds an advisory lock of its schema from before it reads until it is committed, so that what
//! is decided is decided on what stands, and positions follow each other without a gap in the order of the commits. A transaction that
//! the server turns down, or loses with the connection, is made once more: the same writes, if all that they were decided on still stands.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use sqlx::PgConnection;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout_at},
};

use super::{
    AGGREGATES, Counters, MOST_ENTRIES, Named, Sets, Waiting, Written,
    apart::Suspects,
    codes::{is_of_own_table, is_passing, is_state, is_unwritable},
    decide_all,
    gather::Gathering,
    now_micros,
};
use crate::journal::{
    Committed,
    batch::World,
    cache::Cache,
    entry::{Forgotten, SubmitError},
    log::EVENTS,
    postgres::Server,
    requests::REQUESTS,
    session::Transaction,
    sql::{Error, Record, Write, postgres},
};

/// How often a batch is tried in all before those who wait are told to ask again.
const TRIES: u32 = 3;
/// Before it is tried once more where the way to the server fails, and twice as long before the last time: a server that turns everybody away
/// does so at once, and would be asked thousands of times a second. As long is one left alone that says it is in no state to write.
const REST: Duration = Duration::from_millis(100);
/// For how long after it was decided a batch is tried, by a clock that goes on while the process is stopped. What it was decided on may have
/// gone and come again: a saga that was undone, has ended and is forgotten since.
const YOUNG: Duration = Duration::from_secs(45);

/// The committer's side of the journal.
pub(in crate::journal) struct Committer {
    pub(in crate::journal) server: Server,
    pub(in crate::journal) cache: Arc<RwLock<Cache>>,
    pub(in crate::journal) waiting: mpsc::Receiver<Waiting>,
    pub(in crate::journal) head: watch::Sender<i64>,
    pub(in crate::journal) counters: Arc<Counters>,
    /// True while the server is in no state to write, as it said last.
    pub(in crate::journal) is_out: bool,
    /// Where the log ended last.
    pub(in crate::journal) tail: Tail,
}

/// The last event of a log, and what tells it from another that came to its position after it was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct Tail {
    /// 0 where there is none.
    pub(super) position: i64,
    pub(super) time: i64,
}

/// To whom it is told what became of an entry.
type Answer = oneshot::Sender<Result<Committed, SubmitError>>;

/// A transaction, and all that a batch is decided on.
struct Turn {
    transaction: Transaction,
    /// The transaction, as the server names it.
    id: String,
    seen: Seen,
    /// The log has no more what it ended with.
    has_lost: bool,
}

/// What was read for a batch.
#[derive(PartialEq)]
struct Seen {
    tail: Tail,
    requests: Vec<Record>,
    aggregates: Vec<Record>,
}

impl Seen {
    /// Reads all of it in one statement. Answers the transaction's id beside, and whether the log still has what it ended with.
    async fn read(connection: &mut PgConnection, named: &Named, ended: Tail) -> Result<(String, Self, bool), Error> {
        const SQL: &str = "
            SELECT 0, pg_current_xact_id()::text, NULL, NULL::bigint, NULL::bigint, NULL::bytea, NULL::bytea
            UNION ALL SELECT 1, key, NULL, outcome, time, hash, reply
                FROM UNNEST($1::text[]) AS wanted(k) JOIN requests ON key = k
            UNION ALL SELECT 2, kind, id, version, NULL, state, NULL
                FROM UNNEST($2::text[], $3::text[]) AS wanted(k, i) JOIN aggregates ON kind = k AND id = i
            UNION ALL (SELECT 3, NULL, NULL, position, time, NULL, NULL FROM events ORDER BY position DESC LIMIT 1)
            UNION ALL SELECT 4, NULL, NULL, position, time, NULL, NULL
                FROM events WHERE position = ANY($4::text[]::bigint[])";
        let end = vec![vec![ended.position.to_string().into()]];
        let texts = [(&*named.requests, 0), (&named.aggregates, 0), (&named.aggregates, 1), (&end, 0)];
        let (mut id, mut tail, mut found) = (None, Tail::default(), Tail::default());
        let (mut requests, mut aggregates) = (Vec::new(), Vec::new());
        for record in postgres::query_texts(connection, SQL, &texts).await? {
            match record.int(0)? {
                0 => id = Some(record.text(1)?),
                1 => requests.push(record.columns([1, 5, 3, 6, 4])),
                2 => aggregates.push(record.columns([1, 2, 3, 5])),
                3 => tail = Tail { position: record.int(3)?, time: record.int(4)? },
                _ => found = Tail { position: record.int(3)?, time: record.int(4)? },
            }
        }
        let id = id.ok_or_else(|| Error::Corrupt("no row".to_owned()))?;
        Ok((id, Self { tail, requests, aggregates }, found == ended))
    }

    fn world(&self, named: &Named) -> Result<World, Error> {
        let mut world = World::default();
        world.learn_requests(&self.requests)?;
        world.learn_aggregates(&named.kinds, &self.aggregates)?;
        Ok(world)
    }
}

impl Committer {
    /// Commits until the journal is closed and nothing waits.
    ///
    /// # Errors
    /// When it can't be found out what became of a commit. It must end the process: a restart reads what stands.
    pub(in crate::journal) async fn run(mut self) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(MOST_ENTRIES);
        let mut gathering = Gathering::default();
        while let Some(size) = gathering.next(&mut self.waiting, &mut batch).await {
            self.counters.waits_no_more(size);
            self.commit(&mut batch, &mut gathering.suspects).await?;
        }
        self.counters.told();
        Ok(())
    }

    async fn commit(&mut self, batch: &mut Vec<Waiting>, suspects: &mut Suspects) -> Result<(), Error> {
        let named = Named::of(batch, |_| None);
        let begun = self.begin_patiently(&named).await;
        let (turn, mut world) = match begun.and_then(|turn| Ok((turn.seen.world(&named)?, turn))) {
            Ok((world, turn)) => (turn, world),
            Err(error) => {
                self.refuse(batch.drain(..).map(|waiting| waiting.answer), &error).await;
                return Ok(());
            }
        };
        if turn.has_lost {
            self.counters.lost_tail(self.tail.position, turn.seen.tail.position);
        }
        self.tail = turn.seen.tail;
        let (mut head, now_micros) = (self.tail.position, now_micros());
        let (writes, ended) = decide_all(&mut world, &mut head, now_micros, batch, &self.counters);
        if writes.is_empty() {
            // There is nothing to roll back; the session is kept for the next batch.
            let _ = turn.transaction.rollback().await;
        } else {
            let sets = Sets::of(&world, writes, now_micros);
            match self.write_patiently(turn, &named, &sets, now_micros).await? {
                Written::Durable(forgotten) => {
                    self.cache.write().learn(&world, sets.changed);
                    self.counters.committed(forgotten);
                    if head > self.tail.position {
                        self.tail = Tail { position: head, time: now_micros };
                    }
                }
                Written::Nothing(error)
                    if is_unwritable(&error) && !sets.rows.is_empty() && !is_of_own_table(&error) =>
                {
                    self.is_out = false;
                    self.counters.unwritable(ended, &error, suspects);
                    return Ok(());
                }
                Written::Nothing(error) => {
                    self.refuse(ended.into_iter().map(|(_, answer)| answer), &error).await;
                    return Ok(());
                }
            }
        }
        self.is_out = false;
        self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
        self.counters.answer(ended);
        Ok(())
    }

    /// Tells those who wait that nothing of theirs was written. Where the server is in no state to write, it is left alone for a while;
    /// where it was in none the last time either, whoever comes meanwhile is told the same: else they would wait until the queue is full,
    /// and hear of that instead.
    async fn refuse(&mut self, waiting: impl Iterator<Item = Answer>, error: &Error) {
        for answer in waiting {
            let _ = answer.send(Err(SubmitError::Unavailable));
        }
        self.counters.refused(error);
        let was_out = std::mem::replace(&mut self.is_out, is_state(error));
        if !self.is_out {
            return;
        }
        if !was_out {
            return sleep(REST).await;
        }
        let rested = Instant::now() + REST;
        while let Ok(Some(Waiting { entry, answer })) = timeout_at(rested, self.waiting.recv()).await {
            self.counters.waits_no_more(entry.size);
            let _ = answer.send(Err(SubmitError::Unavailable));
        }
    }

    async fn begin_patiently(&self, named: &Named) -> Result<Turn, Error> {
        for tried in 1..TRIES {
            let error = match self.begin(named).await {
                // Who waits is told before they have no time left.
                Err(error @ (Error::OutOfReach(_) | Error::AllAtWork(_))) if tried > 1 => return Err(error),
                Err(error) if is_passing(&error) => error,
                begun => return begun,
            };
            if self.counters.told_of_retry.is_due() {
                tracing::warn!(%error, "a batch was not read: once more");
            }
            if matches!(error, Error::Postgres(sqlx::Error::Io(_))) {
                sleep(REST * tried).await;
            }
        }
        self.begin(named).await
    }

    /// Takes the turn, and reads all that the batch names, once.
    async fn begin(&self, named: &Named) -> Result<Turn, Error> {
        let mut transaction = self.server.begin("journal").await?;
        let (id, seen, has_all) = Seen::read(&mut transaction, named, self.tail).await?;
        Ok(Turn { transaction, id, seen, has_lost: !has_all })
    }

    /// Writes what was decided then, and commits it.
    ///
    /// # Errors
    /// When it can't be found out what became of the commit.
    async fn write_patiently(
        &self,
        turn: Turn,
        named: &Named,
        sets: &Sets,
        decided_micros: i64,
    ) -> Result<Written, Error> {
        let Turn { mut transaction, mut id, seen, .. } = turn;
        let mut tries = 1;
        loop {
            let error = match self.write(transaction, &id, sets).await? {
                Written::Nothing(error) => error,
                durable @ Written::Durable(_) => return Ok(durable),
            };
            if tries == TRIES || !is_passing(&error) {
                return Ok(Written::Nothing(error));
            }
            tries += 1;
            if self.counters.told_of_retry.is_due() {
                tracing::warn!(%error, "a batch was not committed: once more");
            }
            match self.begin(named).await {
                // From here on the server ends the turn of who is stopped.
                Ok(again) if again.seen == seen && is_young(decided_micros) => {
                    (transaction, id) = (again.transaction, again.id);
                }
                // Somebody came between or may have, and it might be decided otherwise now.
                Ok(_) => return Ok(Written::Nothing(error)),
                Err(error) => return Ok(Written::Nothing(error)),
            }
        }
    }

    /// The same, once.
    async fn write(&self, mut transaction: Transaction, id: &str, sets: &Sets) -> Result<Written, Error> {
        let forgotten = match write(&mut transaction, sets).await {
            Ok(forgotten) => forgotten,
            Err(error) => return Ok(Written::Nothing(error)),
        };
        match transaction.commit().await {
            Err(error) if !self.is_committed(id, sets, &error).await? => Ok(Written::Nothing(error.into())),
            Err(_) | Ok(()) => Ok(Written::Durable(forgotten)),
        }
    }
}

async fn write(connection: &mut PgConnection, sets: &Sets) -> Result<u64, Error> {
    let own = [
        (&AGGREGATES, Write::Upsert, &sets.aggregates),
        (&EVENTS, Write::Insert, &sets.events),
        (&REQUESTS, Write::Insert, &sets.requests),
    ];
    let own = own.map(|(table, how, rows)| (table, how, rows.iter().map(Vec::as_slice).collect()));
    let mut all = Vec::from(own);
    all.extend(postgres::upserts(&sets.rows));
    postgres::write(connection, &all).await?;
    let mut forgotten = 0;
    for Forgotten { keys, stored_before_micros } in &sets.forgotten {
        forgotten += postgres::delete_older(connection, &REQUESTS, keys, *stored_before_micros).await?;
    }
    Ok(forgotten)
}

fn is_young(decided_micros: i64) -> bool {
    // Of a clock that was put back since nobody knows.
    let age = u128::try_from(now_micros().saturating_sub(decided_micros));
    age.is_ok_and(|age| age <= YOUNG.as_micros())
}
