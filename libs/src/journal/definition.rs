//! The statements that make tables and their indexes, as SQLite takes them: what they make, and the same in PostgreSQL's words.

/// The name of the table or index that a statement makes if it isn't there.
pub(super) fn made(statement: &str) -> Option<&str> {
    let words: Vec<&str> = words(statement).map(|(_, word)| word).collect();
    let is_said = |said: &[&str]| ["IF", "NOT", "EXISTS"].iter().zip(said).all(|(word, said)| is(said, word));
    let at = words.windows(3).position(is_said)?;
    words.get(at + 3).map(|name| name.trim_matches('"'))
}

/// A table's definition in PostgreSQL's words. Texts compare byte by byte, as SQLite's do.
pub(super) fn translate(statement: &str) -> String {
    let mut translated = String::with_capacity(statement.len());
    // What comes in a column's place: its name, which may be a type's, then its type.
    let (mut depth, mut place, mut before) = (0_usize, 0, "");
    for (space, word) in words(statement) {
        let is_of_column = depth == 1 && place == 1;
        let is_type = is_of_column || is(before, "AS");
        let said = match word {
            _ if is_type && (is(word, "INTEGER") || is(word, "INT")) => "BIGINT",
            _ if is_type && is(word, "BLOB") => "BYTEA",
            _ if is_of_column && is(word, "TEXT") => "TEXT COLLATE \"C\"",
            _ if depth == 0 && (is(word, "WITHOUT") || is(word, "ROWID")) => "",
            _ => word,
        };
        if !said.is_empty() {
            translated.push_str(space);
            translated.push_str(said);
        }
        place += 1;
        match word {
            "(" => (depth, place) = (depth + 1, 0),
            ")" => depth = depth.saturating_sub(1),
            "," => place = 0,
            _ => {}
        }
        before = word;
    }
    translated
}

/// Whether a word is this one: neither database minds how it is written.
fn is(word: &str, other: &str) -> bool {
    word.eq_ignore_ascii_case(other)
}

/// The words and signs of a statement, each with the space and the comments before it. What is quoted is one word.
fn words(statement: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = statement;
    std::iter::from_fn(move || {
        let (space, word) = rest.split_at(space(rest));
        let first = word.chars().next()?;
        let is_of_word = |sign: char| sign.is_alphanumeric() || sign == '_';
        let length = match first {
            '"' | '\'' => word[1..].find(first).map(|end| end + 2),
            _ if is_of_word(first) => word.find(|sign| !is_of_word(sign)),
            _ => Some(first.len_utf8()),
        };
        let (word, after) = word.split_at(length.unwrap_or(word.len()));
        rest = after;
        Some((space, word))
    })
}

/// How much of a statement's rest is space and comments, before its next word.
fn space(rest: &str) -> usize {
    let mut words = rest.trim_start();
    loop {
        let end = match words {
            _ if words.starts_with("--") => "\n",
            _ if words.starts_with("/*") => "*/",
            _ => break,
        };
        words = words.split_once(end).map_or("", |(_, after)| after).trim_start();
    }
    rest.len() - words.len()
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
            ("create unique index\n    if not exists \"notes_by_id\" on notes (id)", Some("notes_by_id")),
            ("CREATE TABLE notes (id TEXT)", None),
            ("CREATE TABLE notes (said TEXT DEFAULT ' IF NOT EXISTS then')", None),
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

    #[test]
    fn how_a_type_is_written_makes_no_difference_and_what_is_none_is_left_alone() {
        let translations = [
            (
                "create table t (n integer,\n\tb Blob, i int) without rowid",
                "create table t (n BIGINT,\n\tb BYTEA, i BIGINT)",
            ),
            ("CREATE TABLE t (text text, \"blob\" BLOB)", "CREATE TABLE t (text TEXT COLLATE \"C\", \"blob\" BYTEA)"),
            (
                "CREATE TABLE t (a TEXT DEFAULT 'an INTEGER, a BLOB')",
                "CREATE TABLE t (a TEXT COLLATE \"C\" DEFAULT 'an INTEGER, a BLOB')",
            ),
            (
                "CREATE TABLE t ( -- it's one\n  a BLOB, -- and\n  -- another's\n  b /* , it's */ INTEGER)",
                "CREATE TABLE t ( -- it's one\n  a BYTEA, -- and\n  -- another's\n  b /* , it's */ BIGINT)",
            ),
            (
                "CREATE INDEX i ON t (CAST(a AS INTEGER), text) WHERE text > ''",
                "CREATE INDEX i ON t (CAST(a AS BIGINT), text) WHERE text > ''",
            ),
        ];
        for (sqlite, postgres) in translations {
            assert_eq!(translate(sqlite), postgres);
        }
    }
}
