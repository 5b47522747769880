//! Sessions with a server, lent one after another.
//!
//! sqlx's own pool asks a connection whether it is still there when it is lent and again when it comes back: that is two round trips more
//! for every statement, where one is all there is to do. Here a session is asked after a silence, or where somebody has left in the
//! midst of a statement.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, timeout, timeout_at},
};

use super::sql::{Error, postgres::answered};

/// How long somebody waits for a session before the server counts as out of reach.
const WAIT: Duration = Duration::from_secs(5);
/// After such a silence a session is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(1);
/// How long it may take to say so: well within [`WAIT`], so that another one can be begun yet.
const ASK: Duration = Duration::from_secs(1);
/// Has the server look so often, in the midst of a statement, whether the link to whoever asked is still there: else it finds out when it
/// answers.
const LOOKS: &str = "SET client_connection_check_interval = '500ms'";
/// So long after a link is closed the server has looked, and ended the statement.
const GONE: Duration = Duration::from_secs(1);

/// Up to so many sessions. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: PgConnectOptions,
    /// The last one is lent first: it came back last, and its statements are prepared.
    idle: Mutex<Vec<Idle>>,
    turns: Arc<Semaphore>,
}

#[derive(Debug)]
struct Idle {
    session: PgConnection,
    /// Since when it has nothing to do.
    since: Instant,
}

impl Sessions {
    /// Sessions that are begun when they are needed.
    pub(super) fn new(options: PgConnectOptions, most: usize) -> Self {
        Self(Arc::new(Shared { options, idle: Mutex::default(), turns: Arc::new(Semaphore::new(most)) }))
    }

    /// A session of its own, not to come back.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        let begun = timeout(WAIT, PgConnection::connect_with(&self.0.options)).await;
        Ok(begun.map_err(|_| Error::OutOfReach(WAIT))??)
    }

    /// Lends a session for a statement.
    ///
    /// # Errors
    /// When the server can't be reached, or all sessions are at work for too long.
    pub(super) async fn lend(&self) -> Result<Lent, Error> {
        let (turn, session, fresh) = self.ready().await?;
        Ok(Lent { session: Some(session), fresh, done: false, of: Arc::clone(&self.0), turn: Some(turn) })
    }

    /// Begins a transaction and waits for a turn in it, by its name.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn begin(&self, turn_name: &str) -> Result<Transaction, Error> {
        let sql = format!("BEGIN; {}", turn(turn_name));
        loop {
            let (turn, mut session, fresh) = self.ready().await?;
            match answered(sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(&mut session)).await {
                Ok(_) => return Ok(Transaction { session, of: Arc::clone(&self.0), _turn: turn }),
                // It ended just now. Nothing was asked of it yet that could have had an effect.
                Err(error) if !fresh && is_lost(&error) && !is_late(&error) => {
                    tracing::info!(%error, "a session was lost: another one");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The same for a turn that others may have for long, as while they make an index: it is waited for as long as that takes, and asked for
    /// again and again. A server that is gone without a word would be waited for, too.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn begin_patiently(&self, turn_name: &str) -> Result<Transaction, Error> {
        loop {
            match self.begin(turn_name).await {
                Err(Error::Postgres(error)) if is_anothers(&error) => {
                    tracing::info!("waiting for another process that makes tables here")
                }
                begun => return begun,
            }
        }
    }

    /// A session that is there, as far as one can know, and true if it was begun for this.
    async fn ready(&self) -> Result<(OwnedSemaphorePermit, PgConnection, bool), Error> {
        let deadline = time::Instant::now() + WAIT;
        let turn = timeout_at(deadline, Arc::clone(&self.0.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| Error::AllAtWork(WAIT))?.map_err(|_| sqlx::Error::PoolClosed)?;
        let session = async {
            if let Some(session) = self.idle_session().await {
                return Ok((session, false));
            }
            Ok::<_, sqlx::Error>((self.0.new_session().await?, true))
        };
        let (session, fresh) = timeout_at(deadline, session).await.map_err(|_| Error::OutOfReach(WAIT))??;
        Ok((turn, session, fresh))
    }

    async fn idle_session(&self) -> Option<PgConnection> {
        loop {
            let Idle { mut session, since } = self.0.idle.lock().pop()?;
            if since.elapsed() < SILENCE {
                return Some(session);
            }
            let asked = Instant::now();
            match timeout(ASK, session.ping()).await {
                Ok(Ok(())) => return Some(session),
                Ok(Err(error)) => tracing::info!(%error, "an idle session was lost"),
                Err(_) => {
                    let dropped = 1 + self.drop_unused_since(asked);
                    tracing::info!(
                        dropped,
                        "an idle session says nothing: it is dropped, and those that were idle beside it"
                    );
                }
            }
        }
    }

    /// Drops those that have come back before: what goes silent is a host or a way, and to ask each of them would take a second each. Answers
    /// how many.
    fn drop_unused_since(&self, time: Instant) -> usize {
        let suspect = |idle: &mut Idle| idle.since < time;
        let dropped: Vec<Idle> = self.0.idle.lock().extract_if(.., suspect).collect();
        dropped.len()
    }

    /// Ends all sessions, and begins no more.
    pub(super) async fn close(&self) {
        self.0.turns.close();
        let idle = std::mem::take(&mut *self.0.idle.lock());
        for Idle { session, .. } in idle {
            if let Err(error) = answered(session.close()).await {
                tracing::info!(%error, "a session was lost before it was closed");
            }
        }
    }
}

impl Shared {
    /// Begins a session.
    async fn new_session(&self) -> Result<PgConnection, sqlx::Error> {
        let mut session = PgConnection::connect_with(&self.options).await?;
        match sqlx::raw_sql(LOOKS).execute(&mut session).await {
            // There are systems on which it can't look. Asked for among the options, it would have everybody turned away there.
            Err(sqlx::Error::Database(said)) if said.code().is_some_and(|code| code == "22023") => Ok(session),
            set => set.map(|_| session),
        }
    }

    fn take_back(&self, session: PgConnection) {
        if !self.turns.is_closed() {
            self.idle.lock().push(Idle { session, since: Instant::now() });
        }
    }

    /// Takes a session back that may be in the midst of a statement once that has ended, or else closes it. Its place is free only then: else
    /// a server that is slow had one more at work for each that nobody waits for any more, and more than there may be.
    async fn take_back_from(self: Arc<Self>, mut session: PgConnection, turn: OwnedSemaphorePermit) {
        // What is left of the statement is read on the way.
        match timeout(ASK, session.ping()).await {
            Ok(Ok(())) => self.take_back(session),
            Ok(Err(error)) => tracing::info!(%error, "a session was lost"),
            Err(_) => {
                drop(session);
                time::sleep(GONE).await;
            }
        }
        drop(turn);
    }
}

/// Waits for a turn, by its name.
fn turn(name: &str) -> String {
    format!("SELECT pg_advisory_xact_lock(hashtextextended('{}', 0))", name.replace('\'', "''"))
}

/// Whether a lock or a turn was another's for as long as it may be waited for.
fn is_anothers(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(said) if said.code().is_some_and(|code| code == "55P03"))
}

/// Whether there was no answer in time. Another session would be asked for the same, and the server may still be at work on it.
fn is_late(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// Whether a session is of no use any more: the way to it is gone, the server has ended it, or takes no writes, for that one stays a
/// standby, whomever the way leads to since; or a statement that it keeps prepared was about a table that has other types since.
fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        // Operator intervention, a broken connection, a turn that was kept for too long, a write where none is taken, a plan that can't be
        // carried out any more.
        sqlx::Error::Database(said) => said.code().is_some_and(|code| {
            code.starts_with("57P") || code.starts_with("08") || matches!(&*code, "25P03" | "25006" | "0A000")
        }),
        _ => false,
    }
}

/// A session for a statement. It goes back when this is dropped, or after that where the statement has yet to end.
#[derive(Debug)]
pub(super) struct Lent {
    session: Option<PgConnection>,
    /// True if it was begun for this.
    fresh: bool,
    done: bool,
    of: Arc<Shared>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Lent {
    /// The session.
    ///
    /// # Errors
    /// Never, before it is dropped.
    pub(super) fn session(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.session.as_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Says how the statement has ended. None if it found the session lost that had been idle: if it may be asked twice, it is to be asked on
    /// another one.
    pub(super) fn ended<T>(mut self, end: Result<T, Error>) -> Option<Result<T, Error>> {
        match &end {
            // The server may be at work on it yet.
            Err(Error::Postgres(error)) if is_late(error) => Some(end),
            Err(Error::Postgres(error)) if is_lost(error) => {
                self.session = None;
                self.fresh.then_some(end)
            }
            _ => {
                self.done = end.is_ok();
                Some(end)
            }
        }
    }

    /// Says how the statement has ended at a server that is none to believe, such as a standby. The session is over: the way may lead to
    /// another one. None if it had been idle: then a new one is to be asked.
    pub(super) fn ended_astray<T>(mut self, end: Result<T, Error>) -> Option<Result<T, Error>> {
        self.session = None;
        self.fresh.then_some(end)
    }

    /// Says how the statement has ended, whose answer is None at a server that is none to believe.
    pub(super) fn ended_unless_astray<T>(self, end: Result<Option<T>, Error>) -> Option<Result<Option<T>, Error>> {
        if matches!(end, Ok(None)) { self.ended_astray(end) } else { self.ended(end) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if self.done {
            return self.of.take_back(session);
        }
        // Where there is no runtime any more the process ends.
        if let (Some(turn), Ok(runtime)) = (self.turn.take(), Handle::try_current()) {
            runtime.spawn(Arc::clone(&self.of).take_back_from(session, turn));
        }
    }
}

/// A transaction, and the session that it is in. Dropped before its end, it ends the session: nothing of it holds, and what the server
/// is in the midst of ends when it looks.
#[derive(Debug)]
pub(super) struct Transaction {
    session: PgConnection,
    of: Arc<Shared>,
    _turn: OwnedSemaphorePermit,
}

impl Transaction {
    /// Makes all of it durable.
    ///
    /// # Errors
    /// When the server doesn't say so: it may have, all the same.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Makes none of it.
    ///
    /// # Errors
    /// When the server can't be told. Then the session is over, and the transaction with it.
    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), sqlx::Error> {
        answered(sqlx::raw_sql(how).execute(&mut self.session)).await?;
        self.of.take_back(self.session);
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.session
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.session
    }
}
