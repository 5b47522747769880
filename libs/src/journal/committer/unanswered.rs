//! What became of a commit that was not answered: the server is asked.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    Sets,
    codes::code,
    postgres::{Committer, Tail},
};
use crate::journal::{
    entry::Table,
    log::EVENTS,
    requests::REQUESTS,
    sql::{Error, Record, Value},
};

/// How long a lost commit is asked after before the process gives up.
const ASK: Duration = Duration::from_secs(30);
/// From when on to tell that the server has yet to end it: one that never got the COMMIT ends it sooner, with its turn.
const TELL: Duration = Duration::from_secs(5);
/// How often to tell that from then on.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Between two such questions.
const PAUSE: Duration = Duration::from_millis(100);
/// How a server is asked what became of a transaction. A standby that is to take over may have the commit, and has yet to replay it.
const BECAME: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN 'in recovery' ELSE pg_xact_status($1::xid8) END";
/// What a standby says.
const IN_RECOVERY: &str = "in recovery";
/// What the server says of a transaction that it has never heard of.
const UNHEARD_OF: &str = "22023";

impl Committer {
    /// Finds out what became of a transaction whose commit was not answered. A server that fell before the transaction was on its disk
    /// gives the same id again, so what is said to be committed is looked for, too.
    pub(super) async fn is_committed(&self, id: &str, sets: &Sets, error: &sqlx::Error) -> Result<bool, Error> {
        tracing::warn!(transaction = id, %error, "a commit was not answered: asking what became of it");
        let mut deadline = Instant::now() + ASK;
        let mut next_told = Instant::now() + TELL;
        loop {
            let said = |records: &[Record]| records.first().map_or(Ok(String::new()), |record| record.text(0));
            let is_primary = |records: &[Record]| !said(records).is_ok_and(|said| said == IN_RECOVERY);
            let asked = self.server.fetch_believing(BECAME, &[id.into()], is_primary).await;
            let status = asked.and_then(|records| said(&records));
            let became = match status.as_deref() {
                Ok("committed") => self.stands(sets).await,
                Ok("aborted") => Ok(false),
                // It waits for the server's disk or for a standby, and there is an answer as long as that takes.
                Ok("in progress") => {
                    if Instant::now() >= next_told {
                        let why = "it waits for the server's disk or for a standby";
                        tracing::warn!(transaction = id, why, "a commit that was not answered is still in progress");
                        next_told = Instant::now() + TELL_AGAIN;
                    }
                    deadline = Instant::now() + ASK;
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) if code(error).as_deref() == Some(UNHEARD_OF) => Ok(false),
                Ok(IN_RECOVERY) => Err(Error::NotPromoted(id.to_owned())),
                Ok(status) => Err(Error::Corrupt(format!("transaction {id} is {status}"))),
                Err(_) => status.map(|_| false),
            };
            match became {
                Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
                // Whoever begins with a log that has lost its last events can't know that it had more.
                became => {
                    let Tail { position: ended, time } = self.tail;
                    let unanswered = |why| Error::Unanswered { ended, time, why: Box::new(why) };
                    return became.map_err(|why| if ended > 0 { unanswered(why) } else { why });
                }
            }
        }
    }

    /// Whether what a batch writes is there.
    async fn stands(&self, sets: &Sets) -> Result<bool, Error> {
        let Some((table, row)) = sets.witness() else { return Ok(true) };
        let found = self.server.fetch_keys(table, &[row[..table.key].to_vec()]).await?;
        Ok(found.first().is_some_and(|found| found.is(row)))
    }
}

impl Sets {
    /// A row that nobody else writes and nobody changes. Without one, whatever claims what the batch writes finds out by itself what stands.
    fn witness(&self) -> Option<(&'static Table, &[Value])> {
        let event = self.events.last().map(|row| (&EVENTS, &**row));
        event.or_else(|| self.requests.last().map(|row| (&REQUESTS, &**row)))
    }
}
