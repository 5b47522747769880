//! Sets of rows, written and looked up a set a statement.
//!
//! Statements come in few, fixed shapes (row counts are powers of two), so each is prepared once and used again. That, and
//! one statement for a whole set of rows, is where the journal's speed comes from.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::RwLock;
use rusqlite::Connection;

use super::{Error, Record, Value, execute, query};
use crate::journal::entry::{Row, Table};

/// The most rows that one statement writes or looks up.
const MOST_ROWS: usize = 128;

/// How a set of rows is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::journal) enum Write {
    /// A row whose key is there is an error.
    Insert,
    /// A row whose key is there is replaced.
    Upsert,
}

/// Writes a set of rows, in as few statements as the fixed shapes allow. No two may have one key.
pub(in crate::journal) fn write(
    connection: &Connection,
    table: &'static Table,
    how: Write,
    rows: &[impl AsRef<[Value]>],
) -> Result<(), Error> {
    let mut rows = rows;
    while !rows.is_empty() {
        let (set, rest) = rows.split_at(largest_shape(rows.len()));
        let sql = shape(Shape::Write(place(table), how, set.len()), || match how {
            Write::Insert => insert_sql(table, set.len()),
            Write::Upsert => upsert_sql(table, set.len()),
        });
        execute(connection, &sql, set.iter().flat_map(AsRef::as_ref))?;
        rows = rest;
    }
    Ok(())
}

/// Inserts or replaces rows of any tables, a table at a time; of two rows with one key the later stays.
pub(in crate::journal) fn upsert(connection: &Connection, rows: &[Row]) -> Result<(), Error> {
    for (table, set) in by_table(rows) {
        write(connection, table, Write::Upsert, &last_of_each_key(table, set))?;
    }
    Ok(())
}

/// Rows a table, in the order in which the tables come.
pub(super) fn by_table(rows: &[Row]) -> Vec<(&'static Table, Vec<&[Value]>)> {
    let mut tables: Vec<(&'static Table, Vec<&[Value]>)> = Vec::new();
    for row in rows {
        match tables.iter_mut().find(|(table, _)| table.name == row.table.name) {
            Some((_, set)) => set.push(&row.values),
            None => tables.push((row.table, vec![&row.values])),
        }
    }
    tables
}

/// Reads the rows with these keys. The last key is repeated up to the next shape: its row may come more than once.
pub(in crate::journal) fn fetch_keys(
    connection: &Connection,
    table: &'static Table,
    keys: &[Vec<Value>],
) -> Result<Vec<Record>, Error> {
    let mut found = Vec::with_capacity(keys.len());
    let mut keys = keys;
    while !keys.is_empty() {
        let count = looked_up(keys.len());
        let (chunk, rest) = keys.split_at(count.min(keys.len()));
        let sql = shape(Shape::Fetch(place(table), count), || fetch_sql(table, count));
        let padding = chunk.last().into_iter().cycle().take(count - chunk.len());
        found.extend(query(connection, &sql, chunk.iter().chain(padding).flatten())?);
        keys = rest;
    }
    Ok(found)
}

/// Deletes the rows with these keys, which are one column, whose `time` is before this one. Answers how many there were.
pub(in crate::journal) fn delete_older(
    connection: &Connection,
    table: &'static Table,
    keys: &[String],
    before: i64,
) -> Result<u64, Error> {
    let mut deleted = 0;
    for chunk in keys.chunks(MOST_ROWS) {
        let count = chunk.len().next_power_of_two();
        let sql = shape(Shape::Delete(place(table), count), || {
            let key = table.columns[0];
            let wanted = vec!["?"; count].join(",");
            format!("DELETE FROM {} WHERE {key} IN ({wanted}) AND time<? RETURNING 1", table.name)
        });
        let padding = chunk.last().into_iter().cycle().take(count - chunk.len());
        let mut values: Vec<Value> = chunk.iter().chain(padding).map(|key| key.as_str().into()).collect();
        values.push(before.into());
        deleted += query(connection, &sql, &values)?.len() as u64;
    }
    Ok(deleted)
}

/// Keeps, of rows with the same key, the last one: one statement must not touch a row twice.
pub(super) fn last_of_each_key<'r>(table: &Table, rows: Vec<&'r [Value]>) -> Vec<&'r [Value]> {
    if rows.len() < 2 {
        return rows;
    }
    let mut place: HashMap<&[Value], usize> = HashMap::with_capacity(rows.len());
    let mut kept: Vec<&[Value]> = Vec::with_capacity(rows.len());
    for row in rows {
        match place.get(&row[..table.key]) {
            Some(&at) => kept[at] = row,
            None => {
                place.insert(&row[..table.key], kept.len());
                kept.push(row);
            }
        }
    }
    kept
}

/// The largest power of two that is not more than `rows`.
fn largest_shape(rows: usize) -> usize {
    let floor = 1 << rows.max(1).ilog2();
    floor.min(MOST_ROWS)
}

/// The shape in which so many keys are looked up first. A key that is repeated is a look in vain, and one more statement costs as much as a
/// few of those.
fn looked_up(keys: usize) -> usize {
    let ceil = keys.next_power_of_two();
    if ceil <= MOST_ROWS && ceil - keys <= keys / 8 { ceil } else { largest_shape(keys) }
}

/// What is done with which table, and how many rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Shape {
    Write(usize, Write, usize),
    Fetch(usize, usize),
    Delete(usize, usize),
}

/// Where a table's description is. Its name doesn't say which it is: another service of this process may have one of that name, with other
/// columns, in its own database.
fn place(table: &'static Table) -> usize {
    std::ptr::from_ref(table).addr()
}

/// Every statement text that was ever needed: a few dozen.
static SHAPES: LazyLock<RwLock<HashMap<Shape, Arc<str>>>> = LazyLock::new(RwLock::default);

fn shape(key: Shape, make: impl FnOnce() -> String) -> Arc<str> {
    if let Some(sql) = SHAPES.read().get(&key) {
        return Arc::clone(sql);
    }
    Arc::clone(SHAPES.write().entry(key).or_insert_with(|| make().into()))
}

/// `(?,?),(?,?)` for two rows of two columns. Numbered placeholders would be searched by name, each time.
fn placeholders(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![row; rows].join(",")
}

/// An error ends the whole transaction: undoing the statement alone would cost a copy of every page it touches.
fn insert_sql(table: &Table, rows: usize) -> String {
    let columns = table.columns.join(",");
    format!("INSERT OR ROLLBACK INTO {}({columns}) VALUES {}", table.name, placeholders(rows, table.columns.len()))
}

fn upsert_sql(table: &Table, rows: usize) -> String {
    format!("{} {}", insert_sql(table, rows), or_replace_sql(table))
}

/// What an INSERT does with a row whose key is there.
pub(super) fn or_replace_sql(table: &Table) -> String {
    let (key, rest) = table.columns.split_at(table.key);
    let changing = rest.iter().filter(|column| !table.fixed.contains(column));
    let set: Vec<String> = changing.map(|column| format!("{column}=excluded.{column}")).collect();
    if set.is_empty() {
        return format!("ON CONFLICT({}) DO NOTHING", key.join(","));
    }
    format!("ON CONFLICT({}) DO UPDATE SET {}", key.join(","), set.join(","))
}

/// A join over the wanted keys: SQLite would scan the whole table for `(a, b) IN (VALUES …)`.
fn fetch_sql(table: &Table, rows: usize) -> String {
    let key = &table.columns[..table.key];
    let wanted: Vec<String> = (0..table.key).map(|column| format!("k{column}")).collect();
    let equal: Vec<String> = key.iter().zip(&wanted).map(|(column, wanted)| format!("{column}={wanted}")).collect();
    format!(
        "WITH wanted({}) AS (VALUES {}) SELECT {} FROM wanted CROSS JOIN {} WHERE {}",
        wanted.join(","),
        placeholders(rows, table.key),
        table.columns.join(","),
        table.name,
        equal.join(" AND ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    static PAIRS: Table = Table {
        name: "pairs",
        create: &["CREATE TABLE pairs (a INTEGER, b INTEGER, c INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID"],
        columns: &["a", "b", "c"],
        key: 2,
        fixed: &[],
    };

    static DATED: Table = Table { columns: &["a", "b", "c", "made"], key: 1, fixed: &["made"], ..PAIRS };
    static LASTING: Table = Table { fixed: &["c"], ..PAIRS };

    fn row(a: i64, b: i64, c: i64) -> Vec<Value> {
        vec![Value::Int(a), Value::Int(b), Value::Int(c)]
    }

    #[test]
    fn shapes_are_few_and_right() {
        assert_eq!(
            fetch_sql(&PAIRS, 2),
            "WITH wanted(k0,k1) AS (VALUES (?,?),(?,?)) \
             SELECT a,b,c FROM wanted CROSS JOIN pairs WHERE a=k0 AND b=k1"
        );
        assert_eq!(
            upsert_sql(&PAIRS, 1),
            "INSERT OR ROLLBACK INTO pairs(a,b,c) VALUES (?,?,?) ON CONFLICT(a,b) DO UPDATE SET c=excluded.c"
        );
        assert!(upsert_sql(&DATED, 1).ends_with("ON CONFLICT(a) DO UPDATE SET b=excluded.b,c=excluded.c"));
        assert!(upsert_sql(&LASTING, 1).ends_with("ON CONFLICT(a,b) DO NOTHING"));
        assert_eq!((1..=9).map(largest_shape).collect::<Vec<_>>(), [1, 2, 2, 4, 4, 4, 4, 8, 8]);
        assert_eq!(largest_shape(1_000), MOST_ROWS);
        assert_eq!([1, 3, 7, 8, 9, 40, 60, 1_000].map(looked_up), [1, 2, 4, 8, 8, 32, 64, MOST_ROWS]);
    }

    #[test]
    fn of_two_rows_with_one_key_the_later_stays() {
        let rows = [row(1, 1, 1), row(2, 1, 1), row(1, 1, 9)];
        let kept = last_of_each_key(&PAIRS, rows.iter().map(Vec::as_slice).collect());
        assert_eq!(kept, [row(1, 1, 9), row(2, 1, 1)]);
    }

    #[test]
    fn of_the_rows_with_these_keys_the_older_ones_go() {
        static NOTES: Table = Table {
            name: "notes",
            create: &["CREATE TABLE notes (id TEXT PRIMARY KEY, time INTEGER) WITHOUT ROWID"],
            columns: &["id", "time"],
            key: 1,
            fixed: &[],
        };
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(NOTES.create[0]).unwrap();
        let rows: Vec<Vec<Value>> = (0..300).map(|at| vec![format!("{at}").into(), Value::Int(at)]).collect();
        write(&connection, &NOTES, Write::Insert, &rows).unwrap();
        let keys: Vec<String> = (100..400).map(|at| at.to_string()).collect();
        assert_eq!(delete_older(&connection, &NOTES, &keys, 250).unwrap(), 150);
        assert_eq!(delete_older(&connection, &NOTES, &keys, 250).unwrap(), 0);
        let left =
            query(&connection, "SELECT COUNT(*), MIN(time), MAX(time) FROM notes WHERE time >= 100", []).unwrap();
        assert_eq!((left[0].int(0).unwrap(), left[0].int(1).unwrap()), (50, 250));
    }

    /// As with two services of one process, each with a database of its own.
    #[test]
    fn of_two_tables_with_one_name_each_is_written_and_read_by_its_own_columns() {
        static ONE: Table = Table {
            name: "twins",
            create: &["CREATE TABLE twins (a INTEGER PRIMARY KEY, b INTEGER, c INTEGER)"],
            columns: &["a", "b", "c"],
            key: 1,
            fixed: &[],
        };
        static OTHER: Table = Table { columns: &["a", "c", "b"], ..ONE };
        for table in [&ONE, &OTHER] {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(table.create[0]).unwrap();
            upsert(&connection, &[Row { table, values: row(1, 2, 3) }]).unwrap();
            upsert(&connection, &[Row { table, values: row(1, 4, 5) }]).unwrap();
            let found = fetch_keys(&connection, table, &[vec![Value::Int(1)]]).unwrap();
            assert_eq!((found[0].int(1).unwrap(), found[0].int(2).unwrap()), (4, 5));
            let by_name = format!("SELECT {} FROM twins", table.columns.join(","));
            let kept = query(&connection, &by_name, []).unwrap();
            assert_eq!((kept[0].int(1).unwrap(), kept[0].int(2).unwrap()), (4, 5), "{:?}", table.columns);
        }
    }

    #[test]
    fn a_set_of_any_size_is_written_whole_and_found_by_its_keys() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(PAIRS.create[0]).unwrap();
        let rows: Vec<_> = (0..301).map(|at| row(at, 1, at * 2)).collect();
        write(&connection, &PAIRS, Write::Insert, &rows).unwrap();
        assert!(write(&connection, &PAIRS, Write::Insert, &rows[7..8]).is_err(), "its key is there");
        upsert(&connection, &[Row { table: &PAIRS, values: row(7, 1, -1) }]).unwrap();
        let keys: Vec<_> = [0, 7, 300, 301].iter().map(|at| vec![Value::Int(*at), Value::Int(1)]).collect();
        let mut found: Vec<i64> =
            fetch_keys(&connection, &PAIRS, &keys).unwrap().iter().map(|r| r.int(2).unwrap()).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [-1, 0, 600]);
    }
}
