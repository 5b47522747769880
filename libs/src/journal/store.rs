//! Tables that somebody else keeps beside the journal, such as views: one writer, many readers, on either database.

use super::{
    entry::Table,
    location::Location,
    postgres::{Server, quoted},
    sql::{Error, Reader, Transaction},
    sqlite::{self, Durability, OpenError, Writer},
};

/// Writes tables that can be made again from the log.
#[derive(Debug)]
pub struct Store(Kind);

#[derive(Debug)]
enum Kind {
    Sqlite(Writer),
    Postgres(Server),
}

/// Opens read-only connections on a database that somebody else writes.
///
/// # Errors
/// When it isn't there or can't be read.
pub fn readers(location: &Location, count: usize) -> Result<Reader, OpenError> {
    match location {
        Location::Sqlite(path) => sqlite::readers(path, count),
        Location::Postgres { .. } => Server::readers(location, count).map(Reader::postgres),
    }
}

/// The same on a journal, whose events others are told of: in a file they are on the disk by then, whatever became of who wrote them.
///
/// # Errors
/// As [`readers`], and when the disk doesn't take them.
pub fn reader_of_journal(location: &Location) -> Result<Reader, OpenError> {
    match location {
        Location::Sqlite(path) => sqlite::settled_reader(path),
        Location::Postgres { .. } => Server::readers(location, 1).map(Reader::postgres),
    }
}

/// How a table that was made at `beside` is named here. On SQLite `beside` is attached.
#[must_use]
pub fn name_beside(table: &Table, beside: &Location) -> String {
    match beside {
        Location::Postgres { schema, .. } => format!("{}.{}", quoted(schema), table.name),
        Location::Sqlite(_) => format!("{BESIDE}.{}", table.name),
    }
}

/// What puts a table that was made at `beside` in the place of the one of its name that is here. On SQLite `beside` is attached; on
/// PostgreSQL whoever has rights on the old one or on columns of it has them on the new one, and it fails soon where somebody goes on
/// reading either: [`Error::is_in_the_way`]. Nothing else that was added to the old one comes along: it fails where that has row security,
/// or anything depends on it as a view in SQL does, and a publication that names it doesn't name the new one.
#[must_use]
pub fn replacing(table: &Table, here: &Location, beside: &Location) -> Vec<String> {
    let name = table.name;
    let drop = format!("DROP TABLE IF EXISTS {name}");
    match (here, beside) {
        (Location::Postgres { schema: here, .. }, Location::Postgres { schema: beside, .. }) => {
            let (here, beside) = (quoted(here), quoted(beside));
            let (old, new) = (format!("{here}.{name}"), format!("{beside}.{name}"));
            // While it waits for who reads on, whoever wants to read waits behind it. But a vacuum makes way only to who has waited for as
            // long as it takes to be looked at for a deadlock.
            let briefly = "SELECT set_config('lock_timeout', LEAST(EXTRACT(EPOCH FROM \
                 current_setting('deadlock_timeout')::interval) * 1000 + 500, 10000)::int::text, true)"
                .to_owned();
            let move_here = format!("ALTER TABLE {new} SET SCHEMA {here}");
            vec![briefly, refusing_secured(&old), granting(&old, &new), drop, move_here]
        }
        _ => {
            let mut statements = vec![drop];
            statements.extend(table.create.iter().map(ToString::to_string));
            // In this form SQLite copies the pages of table and indexes as they are.
            statements.push(format!("INSERT INTO main.{name} SELECT * FROM {BESIDE}.{name}"));
            statements
        }
    }
}

/// What fails where the rows of a table are not for everybody who has rights on it: those of one that is made anew would be.
fn refusing_secured(old: &str) -> String {
    let old = literal(old);
    format!(
        "DO $refusing$ BEGIN
            IF (SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass({old})) THEN
                RAISE EXCEPTION '% has row security, which a table that is made anew would lack: revoke the rights of those whom its \
                    policies are for, disable it (ALTER TABLE % DISABLE ROW LEVEL SECURITY), make the views anew, then make the policies, \
                    enable it and grant those rights again', {old}, {old};
            END IF;
        END $refusing$"
    )
}

/// What gives everybody the rights on a table that they have on another, and on columns that both have. A role without a name is everybody.
/// Until anything is granted on a table its owner's rights are written nowhere.
fn granting(old: &str, new: &str) -> String {
    let (old, new) = (literal(old), literal(new));
    format!(
        "DO $granting$ DECLARE given text; BEGIN
            FOR given IN
                SELECT 'GRANT ' || privilege_type || columns || ' ON ' || {new} || ' TO ' || COALESCE(quote_ident(rolname), 'PUBLIC')
                    || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
                FROM (
                    SELECT '' AS columns, COALESCE(relacl, acldefault('r', relowner)) AS acl
                    FROM pg_class WHERE oid = to_regclass({old})
                    UNION ALL
                    SELECT '(' || quote_ident(attname) || ')', had.attacl
                    FROM pg_attribute AS had JOIN pg_attribute AS has USING (attname)
                    WHERE had.attrelid = to_regclass({old}) AND has.attrelid = to_regclass({new})
                ) AS granted, aclexplode(acl) LEFT JOIN pg_roles ON pg_roles.oid = grantee
            LOOP EXECUTE given; END LOOP;
        END $granting$"
    )
}

/// A text in a statement.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The name under which another file is attached.
const BESIDE: &str = "beside";

impl Store {
    /// Opens the database for writing, and makes these tables where they are missing.
    ///
    /// # Errors
    /// When it is in use, can't be opened, or can't promise the durability.
    pub async fn open(location: &Location, tables: &[&'static Table]) -> Result<Self, OpenError> {
        match location {
            Location::Sqlite(path) => Writer::open(path, Durability::Rebuildable, tables).map(Kind::Sqlite).map(Self),
            Location::Postgres { .. } => Server::open(location, 1, tables).await.map(Kind::Postgres).map(Self),
        }
    }

    /// True if other processes may write the tables too, in turn.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.0, Kind::Postgres(_))
    }

    /// Begins a transaction, when it is this writer's turn.
    ///
    /// # Errors
    /// When the database can't be written.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        match &mut self.0 {
            Kind::Sqlite(writer) => writer.begin(),
            Kind::Postgres(server) => server.begin("views").await.map(Transaction::postgres),
        }
    }

    /// Lets transactions read another file, under a name of its own. A server needs nothing for that.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn attach(&mut self, beside: &Location) -> Result<(), Error> {
        match (&self.0, beside) {
            (Kind::Sqlite(writer), Location::Sqlite(path)) => writer.attach(path, BESIDE),
            _ => Ok(()),
        }
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// When it is still read.
    pub async fn detach(&mut self) -> Result<(), Error> {
        match &self.0 {
            Kind::Sqlite(writer) => writer.detach(BESIDE),
            Kind::Postgres(_) => Ok(()),
        }
    }

    /// Has what was written take no room in a file's log any more. Who reads on is waited for a moment, and it stays there then.
    pub fn empty_log(&self) {
        if let Kind::Sqlite(writer) = &self.0 {
            writer.empty_log();
        }
    }

    /// Puts it away.
    pub async fn close(self) {
        match self.0 {
            Kind::Sqlite(writer) => writer.close(),
            Kind::Postgres(server) => server.close().await,
        }
    }
}
