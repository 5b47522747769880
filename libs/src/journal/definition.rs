//! The statements that make tables and their indexes, as SQLite takes them: what they make, and the same in PostgreSQL's words.

/// The name of the table or index that a statement makes if it isn't there.
pub(super) fn made(statement: &str) -> Option<&str> {
    let (_, rest) = statement.split_once(" IF NOT EXISTS ")?;
    rest.split([' ', '(', '\n']).next()
}

/// A table's definition in PostgreSQL's words. Texts compare byte by byte, as SQLite's do.
pub(super) fn translate(statement: &str) -> String {
    statement
        .replace(" WITHOUT ROWID", "")
        .replace(" BLOB", " BYTEA")
        .replace(" INTEGER", " BIGINT")
        .replace(" TEXT", " TEXT COLLATE \"C\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_statement_makes_has_a_name() {
        let names = [
            ("CREATE TABLE IF NOT EXISTS notes (id TEXT)", Some("notes")),
            ("CREATE TABLE IF NOT EXISTS notes(id TEXT)", Some("notes")),
            ("CREATE UNIQUE INDEX IF NOT EXISTS notes_by_id ON notes (id)", Some("notes_by_id")),
            ("CREATE TABLE notes (id TEXT)", None),
        ];
        for (statement, name) in names {
            assert_eq!(made(statement), name, "{statement}");
        }
    }

    #[test]
    fn a_table_is_translated() {
        let sqlite = "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL, b BLOB) WITHOUT ROWID";
        let postgres = "CREATE TABLE t (id TEXT COLLATE \"C\" NOT NULL PRIMARY KEY, n BIGINT NOT NULL, b BYTEA)";
        assert_eq!(translate(sqlite), postgres);
    }
}
