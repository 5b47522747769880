//! A schema of a test's own on the PostgreSQL that `TEST_POSTGRES` names, where the server makes trouble when it is told to.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::time::Duration;

use libs::journal::{
    AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, NewEvent, RequestKey, Role, events_after,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::database;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Notes something, under a key.
pub(crate) fn note(key: &str) -> Entry {
    let aggregate = AggregateId::new("note", key);
    let event = NewEvent { name: "Noted", payload: key.to_owned().into() };
    let state = Some(key.to_owned().into());
    let change = Change { aggregate: aggregate.clone(), state, version: 1, events: vec![event] };
    let decide = move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() };
    let request = Some(RequestKey { key: key.to_owned(), hash: [1; 32], other_hash: None, role: Role::Action });
    Entry { request, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// Notes it once more, beside what there is.
pub(crate) fn change(id: &str) -> Entry {
    let aggregate = AggregateId::new("note", id);
    let event = NewEvent { name: "Noted", payload: id.to_owned().into() };
    let changed = aggregate.clone();
    let decide = move |loaded: &Loaded<'_>| {
        let before = loaded.aggregate("note", &changed.id).cloned().unwrap_or_default();
        let change =
            Change { aggregate: changed, state: Some(before.state), version: before.version + 1, events: vec![event] };
        Decided { changes: vec![change], ..Decided::default() }
    };
    Entry { request: None, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// Makes somebody the owner of something, if it has none. There is no event of it.
pub(crate) fn claim(by: &'static str) -> Entry {
    let owner = AggregateId::new("owner", "something");
    let owned = owner.clone();
    let decide = move |loaded: &Loaded<'_>| {
        let before = loaded.aggregate("owner", "something").cloned().unwrap_or_default();
        if before.version > 0 {
            return Decided { rejected: true, ..Decided::default() };
        }
        let change = Change { aggregate: owned, state: Some(by.into()), version: 1, events: Vec::new() };
        Decided { changes: vec![change], ..Decided::default() }
    };
    Entry { request: None, aggregates: vec![owner], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// What was noted, in order.
pub(crate) async fn noted(journal: &Journal) -> Vec<String> {
    let events = events_after(journal.reader(), 0, 1_000_000).await.unwrap();
    events.into_iter().map(|event| String::from_utf8(event.payload.to_vec()).unwrap()).collect()
}

/// A schema of this test's own.
pub(crate) struct Schema {
    folder: TempDir,
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Schema {
    /// None where no server is named.
    pub(crate) fn new() -> Option<Self> {
        if !database::has_server() {
            return None;
        }
        let folder = TempDir::new().unwrap();
        match database::location(folder.path(), "test") {
            Location::Postgres { url, schema } => Some(Self { folder, url, name: schema }),
            Location::Sqlite(_) => None,
        }
    }

    pub(crate) async fn open(&self) -> Journal {
        Journal::open(database::location(self.folder.path(), "test"), &[]).await.unwrap()
    }

    /// A connection beside the journal's.
    pub(crate) async fn connect(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        connection.execute(AssertSqlSafe(format!("SET search_path = {}", self.name))).await.unwrap();
        connection
    }

    /// Has the server do something so many times, and then no more. It counts by a sequence, which survives what is rolled back.
    pub(crate) async fn trouble(&self, when: When, times: u32, what: &str) {
        let mut connection = self.connect().await;
        let (trigger, deferred) = match when {
            When::Begun => ("CREATE TRIGGER trouble BEFORE INSERT ON requests", ""),
            When::Written => ("CREATE TRIGGER trouble AFTER INSERT ON events", ""),
            When::Changed => ("CREATE TRIGGER trouble AFTER INSERT OR UPDATE ON aggregates", ""),
            When::Committed => {
                ("CREATE CONSTRAINT TRIGGER trouble AFTER INSERT ON events", "DEFERRABLE INITIALLY DEFERRED")
            }
        };
        let sql = format!(
            "DROP TRIGGER IF EXISTS trouble ON events;
            DROP SEQUENCE IF EXISTS troubles;
            CREATE SEQUENCE troubles;
            CREATE OR REPLACE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('troubles') <= {times} THEN {what}; END IF;
                RETURN NEW;
            END $$;
            {trigger} {deferred} FOR EACH ROW EXECUTE FUNCTION trouble()"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    /// What has the server wait until somebody else of the schema waits for the turn.
    pub(crate) fn waits_for_another(&self) -> String {
        let key = format!("hashtextextended('trellis/{}/journal', 0)", self.name);
        format!(
            "WHILE NOT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = ({key} & 4294967295))
            LOOP PERFORM pg_sleep(0.005); END LOOP"
        )
    }

    /// How often there was occasion for it since then, in vain or not.
    pub(crate) async fn written(&self) -> i64 {
        let mut connection = self.connect().await;
        sqlx::query_scalar("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM troubles")
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// Waits until the journal waits for somebody else's transaction.
    pub(crate) async fn until_the_journal_waits(&self) {
        const SQL: &str = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = $1 AND wait_event_type = 'Lock' AND wait_event = 'transactionid'";
        let mut connection = self.connect().await;
        let waits = async {
            let name = format!("trellis {}", self.name);
            while sqlx::query_scalar::<_, i64>(SQL).bind(&name).fetch_one(&mut connection).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waits).await.unwrap();
    }
}

/// When the server makes trouble.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum When {
    /// A request is about to be written.
    Begun,
    /// An event is written.
    Written,
    /// An aggregate is.
    Changed,
    /// What an event was written by is in the midst of its COMMIT.
    Committed,
}
