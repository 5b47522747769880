//! Rows that are there and can't be read: a newer version wrote them before it was rolled back, or somebody harmed them.
//!
//! They say nothing about anything else. Whoever names one is refused alone, each time, and all others of the batch go on.

use std::{collections::HashMap, slice};

use rusqlite::Connection;

use super::{
    batch::World,
    committer::AGGREGATES,
    entry::{Entry, Role, Table},
    requests::REQUESTS,
    sql::{self, Error, Record, Value},
};

/// By table and key, why a row can't be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable(HashMap<(&'static str, Vec<Value>), String>);

/// A row that can't be read.
pub(super) struct Row<'w> {
    pub(super) table: &'static str,
    pub(super) key: String,
    pub(super) why: &'w str,
}

impl Unreadable {
    /// Reads the rows with these keys from a file: all at once, or one after another where one of them says something that no row does.
    pub(super) fn fetch(
        &mut self,
        connection: &Connection,
        table: &'static Table,
        keys: &[Vec<Value>],
    ) -> Result<Vec<Record>, Error> {
        match sql::fetch_keys(connection, table, keys) {
            Err(Error::Corrupt(_)) => {}
            found => return found,
        }
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            match sql::fetch_keys(connection, table, slice::from_ref(key)) {
                Err(Error::Corrupt(why)) => self.put(table, key.clone(), why),
                records => found.extend(records?),
            }
        }
        Ok(found)
    }

    /// Puts a row aside that was not understood.
    ///
    /// # Errors
    /// The one with which it was not, where nobody can tell whose row it is, or where that says nothing of the row.
    pub(super) fn put_aside(&mut self, table: &'static Table, record: &Record, error: Error) -> Result<(), Error> {
        let Error::Corrupt(why) = error else { return Err(error) };
        let key = (0..table.key).map(|column| record.text(column).map(Value::from)).collect::<Result<_, _>>()?;
        self.put(table, key, why);
        Ok(())
    }

    fn put(&mut self, table: &'static Table, key: Vec<Value>, why: String) {
        self.0.insert((table.name, key), why);
    }

    fn row(&self, table: &'static Table, key: &[&str]) -> Option<Row<'_>> {
        let why = self.0.get(&(table.name, key.iter().map(|&part| part.into()).collect()))?;
        Some(Row { table: table.name, key: key.join(" "), why })
    }
}

impl World {
    /// A row that can't be read and without which nobody can tell what an entry comes to.
    pub(super) fn unreadable_to(&self, entry: &Entry) -> Option<Row<'_>> {
        if self.unreadable.0.is_empty() {
            return None;
        }
        if let Some(request) = &entry.request {
            // Its answer is there, whatever has become since of what it was decided on.
            if self.requests.contains_key(&request.key) {
                return None;
            }
            let action = match &request.role {
                Role::Action => None,
                Role::Compensation { action, .. } => Some(action),
            };
            let row = [Some(&request.key), action].into_iter().flatten();
            if let Some(row) = row.filter_map(|key| self.unreadable.row(&REQUESTS, &[key])).next() {
                return Some(row);
            }
        }
        entry.aggregates.iter().find_map(|id| self.unreadable.row(&AGGREGATES, &[id.kind, &id.id]))
    }
}
