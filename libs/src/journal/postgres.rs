//! Reaching PostgreSQL so that what is committed stays: `fsync`, `full_page_writes` and `synchronous_commit` read back, each
//! service in a schema of its own.

use std::{str::FromStr as _, time::Duration};

use sqlx::{ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

#[cfg(test)]
use super::simulated::Database;
use super::{
    definition::{made, translate},
    entry::Table,
    location::Location,
    names::{There, check_names},
    session::{Sessions, Transaction},
    sql::{Error, Record, Value, postgres},
    sqlite::OpenError,
};

/// How long a turn is kept for a process that says nothing in the midst of it, because it is stopped or out of reach. Then the server
/// ends its session: nothing of the transaction holds, and the next one has its turn. Well within [`Member::LEASE`](super::members::Member::LEASE),
/// so that whoever takes over from such a process doesn't have to wait for it.
const TURN: Duration = Duration::from_secs(4);
/// How long a statement waits for a lock or a turn. A little less than anybody here waits for the statement.
const LOCK: &str = "14s";
/// How long the server goes on with what somebody reads: a little more than anybody here waits for it, who hears of their own clock. Where
/// it can't look whether they are there yet, nothing else would end it. Of who writes a COMMIT is a statement, too: cut off while it waits
/// for a standby, it would be answered as if that had it.
const READ: &str = "16s";
/// The turn that is held for as long as somebody is at work in a schema of its own.
const OCCUPIED: &str = "occupied";
/// How rows are found. Tables are read by key or in the order of an index, but a plan is made while a table is small, when to read all of it
/// is as quick as any, and is kept when it has grown: the other ways are never meant. A plan made once serves whatever is bound, and none is
/// worth being compiled, however dear the server thinks a way is that it has no other for.
const PLANS: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
];
/// What durability stands on.
const SETTINGS: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Connections to one schema. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Server {
    way: Way,
    schema: String,
}

/// The way to a server.
#[derive(Clone, Debug)]
enum Way {
    Postgres(Sessions),
    #[cfg(test)]
    #[cfg_attr(not(feature = "saga"), allow(dead_code, reason = "only sagas are simulated"))]
    Simulated(std::sync::Arc<dyn Database>),
}

impl Server {
    /// Reaches a schema for writing: makes it and these tables where they are missing, and asks what durability is promised.
    ///
    /// # Errors
    /// When the server can't be reached, doesn't promise that a commit outlives a crash, or is reached by a way that loses the schema.
    pub(super) async fn open(
        location: &Location,
        connections: usize,
        tables: &[&'static Table],
    ) -> Result<Self, OpenError> {
        let server = Self::connect(location, connections, false)?;
        let failed = |source| OpenError::Database { location: location.clone(), source };
        // Two that begin at once would both find nothing, and both make it.
        let mut transaction = server.begin_to_create().await.map_err(failed)?;
        server.check(&mut transaction, location).await?;
        let there = server.create_schema(&mut transaction).await.map_err(failed)?;
        // Elsewhere they were another service's, too, or may not be made.
        let asked = "SELECT COALESCE(current_schema()::text, 'no schema')";
        let schema = postgres::query(&mut transaction, asked, &[]).await.map_err(failed)?;
        let found = schema.first().map_or(Ok(String::new()), |record| record.text(0)).map_err(failed)?;
        if found != server.schema {
            return Err(OpenError::OtherSchema { location: location.clone(), found });
        }
        check_names(location.clone(), tables, &there)?;
        server.create(&mut transaction, tables, &there).await.map_err(failed)?;
        transaction.commit().await.map_err(|error| failed(error.into()))?;
        Ok(server)
    }

    /// Reaches a schema for reading alone.
    ///
    /// # Errors
    /// When the address is wrong.
    pub(super) fn readers(location: &Location, connections: usize) -> Result<Self, OpenError> {
        Self::connect(location, connections, true)
    }

    fn connect(location: &Location, connections: usize, read_only: bool) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Database { location: location.clone(), source };
        // A file has no server.
        let Location::Postgres { url, schema } = location else { return Err(failed(Error::Closed)) };
        let name = format!("trellis {schema}");
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| failed(error.into()))?
            .application_name(&name)
            .disable_statement_logging();
        let turn = TURN.as_millis().to_string();
        // Unquoted it would be the schema of that name in small letters.
        let path = quoted(schema);
        let options = options.options([("search_path", &path), ("idle_in_transaction_session_timeout", &turn)]);
        let options = options.options(PLANS).options([
            // Or what is read in a turn is as old as the wait for it, where the server's own default is a stricter one.
            ("default_transaction_isolation", "read committed"),
            // The turn's limit counts while the process is to speak; this one while it is to listen.
            ("tcp_user_timeout", &turn),
            // A session that waits for an index or another's turn says nothing meanwhile, and what is on the way forgets who is silent for
            // some minutes. Then nobody is told.
            ("tcp_keepalives_idle", "60"),
            ("tcp_keepalives_interval", "10"),
            // Sooner than it is given up here: the server knows nothing of that, and one who waits for a lock would stay.
            ("lock_timeout", LOCK),
            // A session that keeps a place for others' work says nothing for as long as that takes.
            ("idle_session_timeout", "0"),
        ]);
        let reading = [("default_transaction_read_only", "on"), ("statement_timeout", READ)];
        let options = if read_only { options.options(reading) } else { options };
        Ok(Self { way: Way::Postgres(Sessions::new(options, connections)), schema: schema.clone() })
    }

    /// Asks for the settings that durability stands on. A server that doesn't sync loses what it answered.
    async fn check(&self, connection: &mut PgConnection, location: &Location) -> Result<(), OpenError> {
        let failed = |source| OpenError::Database { location: location.clone(), source };
        for pragma in SETTINGS {
            let sql = format!("SELECT current_setting('{pragma}')");
            let records = postgres::query(connection, &sql, &[]).await.map_err(failed)?;
            let found = records.first().map_or(Ok(String::new()), |record| record.text(0)).map_err(failed)?;
            if matches!(&*found, "off" | "") {
                return Err(OpenError::NotDurable { location: location.clone(), pragma, found, wanted: "on" });
            }
            tracing::info!(schema = self.schema, setting = pragma, value = found, "database open");
        }
        Ok(())
    }

    /// Makes the schema if it is missing, and answers the names of all that is in it, that of an index with its table's. Of what is there
    /// nothing is asked: even with IF NOT EXISTS a schema takes the right to make one, a table the schema's, and an index its owner's, and
    /// whoever serves may have none of them.
    async fn create_schema(&self, connection: &mut PgConnection) -> Result<There, Error> {
        const THERE: &str = "SELECT COALESCE(named.relname::text, ''), COALESCE(indexed.relname::text, '')
            FROM pg_namespace AS schema LEFT JOIN pg_class AS named ON named.relnamespace = schema.oid
            LEFT JOIN pg_index ON indexrelid = named.oid LEFT JOIN pg_class AS indexed ON indexed.oid = indrelid
            WHERE nspname = $1";
        let there = postgres::query(connection, THERE, &[self.schema.clone().into()]).await?;
        let there =
            there.iter().map(|record| Ok((record.text(0)?, record.text(1)?))).collect::<Result<There, Error>>()?;
        // One that is empty has a row all the same.
        if there.is_empty() {
            let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(&self.schema));
            postgres::answered(postgres::execute(connection, &schema, &[])).await?;
        }
        Ok(there)
    }

    /// Makes what is missing.
    async fn create(
        &self,
        connection: &mut PgConnection,
        tables: &[&'static Table],
        there: &There,
    ) -> Result<(), Error> {
        let missing = |statement: &&&str| made(statement).is_none_or(|name| !there.contains_key(&name.to_lowercase()));
        for table in tables {
            let is_there = there.contains_key(&table.name.to_lowercase());
            for statement in table.create.iter().filter(missing) {
                let statement = translate(statement);
                if !is_there {
                    // Whoever makes one of that name is waited for no longer than for an answer: the server would go on, and have the turn.
                    postgres::answered(postgres::execute(connection, &statement, &[])).await?;
                    continue;
                }
                // An index on all that a table has by now takes as long as it does, and those who write to the table are waited for.
                let tell = || tracing::info!(schema = self.schema, statement, "this takes long");
                let set = "SET LOCAL lock_timeout = 0";
                postgres::answered(postgres::execute(connection, set, &[])).await?;
                postgres::patiently(postgres::execute(connection, &statement, &[]), tell).await?;
                let set = "SET LOCAL lock_timeout TO DEFAULT";
                postgres::answered(postgres::execute(connection, set, &[])).await?;
            }
        }
        Ok(())
    }

    /// Says that somebody is at work in a schema, for as long as this session lasts.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(super) async fn occupy(location: &Location) -> Result<PgConnection, OpenError> {
        let failed = |source| OpenError::Database { location: location.clone(), source };
        let server = Self::connect(location, 1, false)?;
        let mut session = match &server.way {
            Way::Postgres(sessions) => sessions.connect().await.map_err(failed)?,
            #[cfg(test)]
            Way::Simulated(_) => return Err(failed(Error::Closed)),
        };
        let sql = "SELECT pg_advisory_lock(hashtextextended($1, 0))";
        let turn = [turn_of(&server.schema, OCCUPIED).into()];
        postgres::answered(postgres::execute(&mut session, sql, &turn)).await.map_err(failed)?;
        Ok(session)
    }

    /// Removes the schemas whose names begin so and in which nobody is at work.
    ///
    /// # Errors
    /// When the server can't be asked for them. One that can't be removed stays.
    pub(super) async fn remove_abandoned(session: &mut PgConnection, prefix: &str) -> Result<(), Error> {
        let named = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)";
        for record in postgres::query(session, named, &[prefix.to_owned().into()]).await? {
            let schema = record.text(0)?;
            let mut transaction = postgres::answered(session.begin()).await?;
            let free = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))::int";
            let free = postgres::query(&mut transaction, free, &[turn_of(&schema, OCCUPIED).into()]).await?;
            if !free.first().is_some_and(|free| matches!(free.int(0), Ok(1))) {
                // Dropped, it would stay open until the session is asked for something again, and the server ends that after a turn.
                postgres::answered(transaction.rollback()).await?;
                continue;
            }
            match postgres::answered(Self::remove(&mut transaction, &schema)).await {
                Ok(()) => {
                    postgres::answered(transaction.commit()).await?;
                    tracing::info!(schema, "removed: whoever made tables anew there came to no end");
                }
                // Nothing is to be asked of this session any more.
                Err(error @ Error::Postgres(sqlx::Error::Io(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(schema, %error, "what was left there can't be removed");
                    postgres::answered(transaction.rollback()).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes a schema with all that is in it, if it is there.
    pub(super) async fn remove(connection: &mut PgConnection, schema: &str) -> Result<(), Error> {
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", quoted(schema));
        postgres::execute(connection, &sql, &[]).await
    }

    /// The way to a database of a simulation.
    #[cfg(test)]
    #[cfg_attr(not(feature = "saga"), allow(dead_code, reason = "only sagas are simulated"))]
    pub(super) fn simulated(database: std::sync::Arc<dyn Database>) -> Self {
        Self { way: Way::Simulated(database), schema: "simulated".to_owned() }
    }

    /// A name for this process that nobody had before.
    pub(super) fn new_name(&self) -> String {
        match &self.way {
            Way::Postgres(_) => {
                // In a cluster the host's name is the pod's: that is what somebody looks for at night.
                let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
                format!("{}/{}", host.as_deref().unwrap_or("local"), Uuid::now_v7())
            }
            #[cfg(test)]
            Way::Simulated(database) => database.new_name(),
        }
    }

    /// Begins a transaction in which nobody else of this schema has the same turn.
    pub(super) async fn begin(&self, turn: &str) -> Result<Transaction, Error> {
        match &self.way {
            Way::Postgres(sessions) => sessions.begin(&turn_of(&self.schema, turn)).await,
            #[cfg(test)]
            Way::Simulated(_) => Err(Error::Closed),
        }
    }

    /// The same, for what makes tables and may take long: the turn is waited for as long as that takes.
    async fn begin_to_create(&self) -> Result<Transaction, Error> {
        match &self.way {
            Way::Postgres(sessions) => sessions.begin_patiently(&turn_of(&self.schema, "create")).await,
            #[cfg(test)]
            Way::Simulated(_) => Err(Error::Closed),
        }
    }

    /// Runs a statement that may be run twice.
    pub(super) async fn execute(&self, sql: &str, values: &[Value]) -> Result<(), Error> {
        match &self.way {
            Way::Postgres(sessions) => loop {
                let mut lent = sessions.lend().await?;
                let end = postgres::answered(postgres::execute(lent.session()?, sql, values)).await;
                if let Some(end) = lent.ended(end) {
                    break end;
                }
            },
            #[cfg(test)]
            Way::Simulated(database) => database.execute(sql, values).await,
        }
    }

    pub(super) async fn fetch(&self, sql: &str, values: &[Value]) -> Result<Vec<Record>, Error> {
        self.fetch_believing(sql, values, |_| true).await
    }

    /// The same, of a server that is to be believed, as its answer says. Where there is none such it is the answer of another.
    pub(super) async fn fetch_believing(
        &self,
        sql: &str,
        values: &[Value],
        is_believed: impl Fn(&[Record]) -> bool + Send,
    ) -> Result<Vec<Record>, Error> {
        match &self.way {
            Way::Postgres(sessions) => loop {
                let mut lent = sessions.lend().await?;
                let end = postgres::query(lent.session()?, sql, values).await;
                let is_astray = end.as_ref().is_ok_and(|records| !is_believed(records));
                if let Some(end) = if is_astray { lent.ended_astray(end) } else { lent.ended(end) } {
                    break end;
                }
            },
            #[cfg(test)]
            Way::Simulated(database) => database.fetch(sql, values).await,
        }
    }

    /// The same, if who answers is no standby.
    pub(super) async fn fetch_of_primary(&self, sql: &str, values: &[Value]) -> Result<Option<Vec<Record>>, Error> {
        match &self.way {
            Way::Postgres(sessions) => of_primary(sessions, Asked::Rows(sql, values)).await,
            #[cfg(test)]
            Way::Simulated(database) => database.fetch(sql, values).await.map(Some),
        }
    }

    pub(super) async fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, Error> {
        match &self.way {
            Way::Postgres(sessions) => loop {
                let mut lent = sessions.lend().await?;
                let end = postgres::fetch_keys(lent.session()?, table, keys).await;
                if let Some(end) = lent.ended(end) {
                    break end;
                }
            },
            #[cfg(test)]
            Way::Simulated(database) => database.fetch_keys(table, keys).await,
        }
    }

    /// The same, if who answers is no standby.
    pub(super) async fn fetch_keys_of_primary(
        &self,
        table: &'static Table,
        keys: &[Vec<Value>],
    ) -> Result<Option<Vec<Record>>, Error> {
        match &self.way {
            Way::Postgres(sessions) => of_primary(sessions, Asked::Keys(table, keys)).await,
            #[cfg(test)]
            Way::Simulated(database) => database.fetch_keys(table, keys).await.map(Some),
        }
    }

    pub(super) async fn close(&self) {
        match &self.way {
            Way::Postgres(sessions) => sessions.close().await,
            #[cfg(test)]
            Way::Simulated(_) => {}
        }
    }
}

/// What a session is asked for.
enum Asked<'a> {
    Rows(&'a str, &'a [Value]),
    Keys(&'static Table, &'a [Vec<Value>]),
}

/// What a session answers that is with no standby. Whether it is, is asked before, in the same session: who is none doesn't become one.
async fn of_primary(sessions: &Sessions, asked: Asked<'_>) -> Result<Option<Vec<Record>>, Error> {
    loop {
        let mut lent = sessions.lend().await?;
        let session = lent.session()?;
        let answer = async {
            if is_standby(session).await? {
                return Ok(None);
            }
            match asked {
                Asked::Rows(sql, values) => postgres::query(session, sql, values).await.map(Some),
                Asked::Keys(table, keys) => postgres::fetch_keys(session, table, keys).await.map(Some),
            }
        };
        let end = answer.await;
        if let Some(end) = lent.ended_unless_astray(end) {
            return end;
        }
    }
}

/// Whether a session is with a standby.
async fn is_standby(session: &mut PgConnection) -> Result<bool, Error> {
    let asked = postgres::query(session, "SELECT pg_is_in_recovery()::int::int8", &[]).await?;
    asked.first().map_or(Ok(false), |record| Ok(record.int(0)? != 0))
}

/// A turn's name, of which the server makes a number: the same one for every version of this program.
fn turn_of(schema: &str, turn: &str) -> String {
    format!("trellis/{schema}/{turn}")
}

/// A name, as SQL writes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
