//! The names that a process's tables, indexes and checkpoints have. On a server all of them are in one schema, where one that comes twice
//! would be made once: whatever made it second would read and write another's, and in the end drop it.

use std::collections::{HashMap, HashSet};

use super::{
    committer::AGGREGATES, definition::made, entry::Table, location::Location, log::EVENTS, members::MEMBERS,
    requests::REQUESTS, sqlite::OpenError,
};

/// The names that are there, in small letters: of each index the table that it is on, of anything else nothing.
pub(super) type There = HashMap<String, String>;

/// Checks that what is there under the names of these tables and their indexes is theirs. An index that another table has would count as
/// made, and the one that is to have it would have none.
pub(super) fn check_names(location: Location, tables: &[&'static Table], there: &There) -> Result<(), OpenError> {
    let named = |on: &str| if on.is_empty() { "a table".to_owned() } else { format!("an index on {on}") };
    for table in tables {
        for name in table.create.iter().filter_map(|statement| made(statement)) {
            let on = if name.eq_ignore_ascii_case(table.name) { "" } else { table.name };
            let found = there.get(&name.to_lowercase()).filter(|found| !found.eq_ignore_ascii_case(on));
            if let Some(found) = found {
                let (name, found, wanted) = (name.to_lowercase(), named(found), named(on));
                let mend = format!("drop {name} there");
                return Err(OpenError::OtherOwner { location, name, found, wanted, mend });
            }
        }
    }
    Ok(())
}

/// The names that are taken. They are so on either database, or a service would find out on its first server.
#[derive(Clone, Debug)]
pub struct Names {
    /// Of tables and indexes, as both databases compare them.
    tables: HashSet<String>,
    checkpoints: HashSet<&'static str>,
}

impl Names {
    /// Those of a journal, with these tables kept beside its own.
    ///
    /// # Errors
    /// When one of them comes twice.
    pub fn of_journal(beside: &[&'static Table]) -> Result<Self, OpenError> {
        let mut names = Self { tables: HashSet::new(), checkpoints: HashSet::new() };
        names.take(&[&AGGREGATES, &EVENTS, &REQUESTS, &MEMBERS])?;
        names.take(beside)?;
        Ok(names)
    }

    /// Takes those of tables and of their indexes.
    ///
    /// # Errors
    /// When one of them is taken, or a table has no key.
    pub fn take(&mut self, tables: &[&'static Table]) -> Result<(), OpenError> {
        for table in tables {
            if !(1..=table.columns.len()).contains(&table.key) {
                return Err(OpenError::NoKey { table: table.name, key: table.key, columns: table.columns.len() });
            }
            let indexes = table.create.iter().filter_map(|statement| made(statement));
            let indexes = indexes.filter(|name| !name.eq_ignore_ascii_case(table.name));
            for name in std::iter::once(table.name).chain(indexes) {
                if !self.tables.insert(name.to_lowercase()) {
                    return Err(OpenError::SameName { name: name.to_owned() });
                }
            }
        }
        Ok(())
    }

    /// Takes the name under which it is kept how far a projection is.
    ///
    /// # Errors
    /// When it is taken.
    pub fn take_checkpoint(&mut self, projection: &'static str) -> Result<(), OpenError> {
        match self.checkpoints.insert(projection) {
            true => Ok(()),
            false => Err(OpenError::SameProjection { projection }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NOTES: Table = Table {
        name: "notes",
        create: &["CREATE TABLE IF NOT EXISTS notes (id TEXT)", "CREATE INDEX IF NOT EXISTS notes_by_id ON notes (id)"],
        columns: &["id"],
        key: 1,
        fixed: &[],
    };
    static OTHERS: Table =
        Table { name: "others", create: &["CREATE INDEX IF NOT EXISTS Notes_by_ID ON others (id)"], ..NOTES };
    static EVENTS_TOO: Table = Table { name: "Events", create: &[], ..NOTES };
    static MEMBERS_TOO: Table = Table { name: "members", create: &[], ..NOTES };
    static NO_KEYS: [Table; 2] = [Table { name: "none", key: 0, ..NOTES }, Table { name: "two", key: 2, ..NOTES }];

    #[test]
    fn no_table_or_index_comes_twice() {
        let mut names = Names::of_journal(&[&NOTES]).unwrap();
        let mut refused = |table: &'static Table| names.take(&[table]).unwrap_err().to_string();
        assert!(refused(&NOTES).starts_with("notes is the name"));
        assert!(refused(&OTHERS).starts_with("Notes_by_ID is the name"));
        assert!(refused(&EVENTS_TOO).starts_with("Events is the name"));
        assert!(refused(&MEMBERS_TOO).starts_with("members is the name"), "SQLite has none");
        assert!(Names::of_journal(&[&EVENTS_TOO]).is_err());
        assert!(NO_KEYS.iter().all(|table| refused(table).contains(" of its 1 columns")));
        names.take_checkpoint("notes").unwrap();
        assert!(names.take_checkpoint("notes").is_err());
    }
}
