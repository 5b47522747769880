//! A database's memory and its disk: what was written, what of it is synced, what a crash leaves.
//!
//! Transactions go into a log. Until it is synced nobody sees what is in it, and a crash loses its end; which part of what was not
//! synced is left, the caller says. The tables are SQLite's, so that keys and SQL mean what they mean elsewhere.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::{Statement, Statements};
use crate::journal::{
    entry::Table,
    sql::{self, Error, Record, Value, Write},
};

/// One database.
#[derive(Debug)]
pub(crate) struct Engine {
    tables: Vec<&'static Table>,
    connection: Connection,
    /// What is committed, in order.
    log: Vec<(u64, Statements)>,
    /// How much of the log outlives a crash. All of it, on a server that keeps its word.
    durable: usize,
    /// Written, and neither synced nor seen by anybody.
    pending: Vec<(u64, Statements)>,
    /// Transactions that have begun and not ended.
    open: BTreeSet<u64>,
    next: u64,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It holds.
    Committed,
    /// Nothing of it holds, or ever will.
    Aborted,
    /// It has not ended.
    Open,
}

impl Engine {
    /// A database with these tables, all empty.
    pub(crate) fn new(tables: Vec<&'static Table>) -> Self {
        let connection = connect(&tables);
        let (log, pending, open) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { tables, connection, log, durable: 0, pending, open, next: 1 }
    }

    /// Begins a transaction, and answers its name. No name is given out twice.
    pub(crate) fn begin(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.open.insert(id);
        id
    }

    /// Ends a transaction with nothing. One that has ended stays as it is.
    pub(crate) fn roll_back(&mut self, id: u64) {
        if !self.pending.iter().any(|(pending, _)| *pending == id) {
            self.open.remove(&id);
        }
    }

    /// Writes a transaction to the log's end.
    pub(crate) fn write(&mut self, id: u64, statements: Statements) {
        self.pending.push((id, statements));
    }

    /// Syncs the log up to a transaction, and answers what everybody sees from now on.
    ///
    /// # Errors
    /// When a statement can't be carried out: its transaction is rolled back.
    pub(crate) fn sync(&mut self, id: u64) -> Result<Vec<(u64, Statements)>, Error> {
        let seen = self.show(id)?;
        self.durable = self.log.len();
        Ok(seen)
    }

    /// Shows a transaction before it is synced, which no honest server does.
    pub(crate) fn show(&mut self, id: u64) -> Result<Vec<(u64, Statements)>, Error> {
        let end = self.pending.iter().position(|(pending, _)| *pending == id).map_or(0, |at| at + 1);
        let mut seen = Vec::new();
        for (id, statements) in self.pending.drain(..end).collect::<Vec<_>>() {
            self.open.remove(&id);
            apply(&self.connection, &statements)?;
            seen.push((id, statements.clone()));
            self.log.push((id, statements));
        }
        Ok(seen)
    }

    /// Syncs what was shown.
    pub(crate) fn flush(&mut self) {
        self.durable = self.log.len();
    }

    /// A loss of power. Of so many transactions that were not synced, the first `left` are there when it comes back. Answers all that
    /// is committed then.
    pub(crate) fn crash(&mut self, left: impl FnOnce(usize) -> usize) -> Result<Vec<(u64, Statements)>, Error> {
        let left = left(self.log.len() - self.durable + self.pending.len());
        self.open.clear();
        let keep = self.durable + left;
        let pending = std::mem::take(&mut self.pending);
        self.log.extend(pending);
        self.log.truncate(keep);
        self.durable = keep;
        self.connection = connect(&self.tables);
        for (_, statements) in &self.log {
            apply(&self.connection, statements)?;
        }
        Ok(self.log.clone())
    }

    /// What became of a transaction.
    pub(crate) fn fate(&self, id: u64) -> Fate {
        if self.open.contains(&id) {
            Fate::Open
        } else if self.log.iter().any(|(committed, _)| *committed == id) {
            Fate::Committed
        } else {
            Fate::Aborted
        }
    }

    /// Runs a SELECT. `now` is the time that the database would tell, in microseconds since 1970.
    pub(crate) fn fetch(&self, now: i64, sql: &str, values: &[Value]) -> Result<Vec<Record>, Error> {
        sql::query(&self.connection, &translate(sql, now), values)
    }

    /// Reads the rows with these keys.
    pub(crate) fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, Error> {
        if keys.is_empty() { Ok(Vec::new()) } else { sql::fetch_keys(&self.connection, table, keys) }
    }
}

fn connect(tables: &[&'static Table]) -> Connection {
    let connection = Connection::open_in_memory().expect("memory is there");
    for statement in tables.iter().flat_map(|table| table.create) {
        connection.execute_batch(statement).expect("a table is made");
    }
    connection
}

fn apply(connection: &Connection, statements: &Statements) -> Result<(), Error> {
    sql::begin(connection)?;
    let applied = statements.iter().try_for_each(|statement| match statement {
        Statement::Insert(table, rows) => sql::write(connection, table, Write::Insert, rows),
        Statement::Upsert(table, rows) => sql::write(connection, table, Write::Upsert, rows),
        Statement::Execute(sql, values) => sql::execute(connection, sql, values),
    });
    match applied {
        Ok(()) => sql::commit(connection),
        Err(error) => {
            sql::execute(connection, "ROLLBACK", [])?;
            Err(error)
        }
    }
}

/// PostgreSQL's words in SQLite's, as far as the journal and the sagas use them.
pub(crate) fn translate(sql: &str, now: i64) -> String {
    sql.replace("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint", &now.to_string())
        .replace("''::bytea", "x''")
        .replace("convert_to(m.name, 'UTF8')", "CAST(m.name AS BLOB)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::members::MEMBERS;

    fn member(name: &str) -> Statements {
        vec![Statement::Insert(&MEMBERS, vec![vec![name.into(), 1.into()]])]
    }

    fn members(engine: &Engine) -> Vec<String> {
        let records = engine.fetch(0, "SELECT name FROM members ORDER BY name", &[]).unwrap();
        records.iter().map(|record| record.text(0).unwrap()).collect()
    }

    #[test]
    fn what_is_synced_outlives_a_crash_and_of_the_rest_what_the_disk_has() {
        let mut engine = Engine::new(vec![&MEMBERS]);
        let ids = [engine.begin(), engine.begin(), engine.begin(), engine.begin()];
        for (id, name) in ids.into_iter().zip(["a", "b", "c", "d"]) {
            engine.write(id, member(name));
        }
        engine.sync(ids[1]).unwrap();
        assert_eq!(members(&engine), ["a", "b"], "a sync takes in all that was written before");
        assert_eq!(engine.fate(ids[2]), Fate::Open);
        engine.crash(|unsynced| unsynced - 1).unwrap();
        assert_eq!(members(&engine), ["a", "b", "c"]);
        assert_eq!(ids.map(|id| engine.fate(id)), [Fate::Committed, Fate::Committed, Fate::Committed, Fate::Aborted]);
    }

    #[test]
    fn what_is_shown_before_it_is_synced_is_lost() {
        let mut engine = Engine::new(vec![&MEMBERS]);
        let id = engine.begin();
        engine.write(id, member("a"));
        engine.show(id).unwrap();
        assert_eq!(members(&engine), ["a"]);
        engine.crash(|_| 0).unwrap();
        assert!(members(&engine).is_empty());
    }
}
