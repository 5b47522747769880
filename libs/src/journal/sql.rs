//! The little SQL that the journal, projections and queries share: values in, rows out, whole sets a statement.
//!
//! Statements come in few, fixed shapes (row counts are powers of two), so each is prepared once and used again. That, and
//! one statement for a whole set of rows, is where the journal's speed comes from.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use parking_lot::RwLock;
use sqlx::{AssertSqlSafe, Row as _, Sqlite, SqliteConnection, SqlitePool, query::Query, sqlite::SqliteArguments};

use super::entry::{Row, Table};

/// The most rows that one statement writes or looks up.
const MOST_ROWS: usize = 128;

/// A value to bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// NULL.
    Null,
    /// A 64-bit integer.
    Int(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value)
    }
}

impl From<Bytes> for Value {
    fn from(value: Bytes) -> Self {
        Self::Blob(value.into())
    }
}

/// A row that was read.
#[derive(Debug)]
pub struct Record(sqlx::sqlite::SqliteRow);

impl Record {
    /// The integer in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn int(&self, column: usize) -> Result<i64, sqlx::Error> {
        self.0.try_get(column)
    }

    /// The text in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn text(&self, column: usize) -> Result<String, sqlx::Error> {
        self.0.try_get(column)
    }

    /// The bytes in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn blob(&self, column: usize) -> Result<Bytes, sqlx::Error> {
        self.0.try_get::<Vec<u8>, _>(column).map(Bytes::from)
    }
}

/// Reads, and can do nothing else: its connections are opened read-only.
#[derive(Clone, Debug)]
pub struct Reader(pub(super) SqlitePool);

impl Reader {
    /// Runs a SELECT. Placeholders are `$1`, `$2`, ….
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, sqlx::Error> {
        let rows = bind(AssertSqlSafe(sql), values).fetch_all(&self.0).await?;
        Ok(rows.into_iter().map(Record).collect())
    }

    /// Reads the rows with these keys, all columns in the table's order. A key that isn't there gives no row.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, sqlx::Error> {
        let mut connection = self.0.acquire().await?;
        fetch_keys(&mut connection, table, keys).await
    }
}

/// A transaction over somebody's own tables.
#[derive(Debug)]
pub struct Transaction<'c>(pub(super) sqlx::Transaction<'c, Sqlite>);

impl Transaction<'_> {
    /// Makes all of it durable, or none.
    ///
    /// # Errors
    /// When it can't be.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }

    /// Makes none of it.
    ///
    /// # Errors
    /// When the database can't be told.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.0.rollback().await
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// When the statement is wrong or can't be carried out.
    pub async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<(), sqlx::Error> {
        bind(AssertSqlSafe(sql), values).execute(&mut *self.0).await.map(drop)
    }

    /// Runs a SELECT.
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, sqlx::Error> {
        let rows = bind(AssertSqlSafe(sql), values).fetch_all(&mut *self.0).await?;
        Ok(rows.into_iter().map(Record).collect())
    }

    /// Reads the rows with these keys, all columns in the table's order.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&mut self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, sqlx::Error> {
        fetch_keys(&mut self.0, table, keys).await
    }

    /// Inserts rows, or replaces those whose key is there. Of two rows with one key the later stays.
    ///
    /// # Errors
    /// When a row can't be written.
    pub async fn upsert(&mut self, rows: Vec<Row>) -> Result<(), sqlx::Error> {
        upsert(&mut self.0, rows).await
    }
}

/// Inserts or replaces rows of any tables, a table at a time, whole sets a statement.
pub(super) async fn upsert(connection: &mut SqliteConnection, rows: Vec<Row>) -> Result<(), sqlx::Error> {
    let mut statements = Statements::default();
    statements.upsert(rows);
    for Statement { sql, values } in statements.0 {
        bind(AssertSqlSafe(sql), values).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Statements that write sets of rows, in order.
#[derive(Debug, Default)]
pub(super) struct Statements(Vec<Statement>);

#[derive(Debug)]
struct Statement {
    sql: Arc<str>,
    values: Vec<Value>,
}

impl Statements {
    /// Adds a set of rows, in as few statements as the fixed shapes allow.
    pub(super) fn write(&mut self, table: &'static Table, how: Write, rows: Vec<Vec<Value>>) {
        let mut left = rows.len();
        let mut rows = rows.into_iter();
        while left > 0 {
            let count = largest_shape(left);
            left -= count;
            let sql = shape(Shape::Write(table.name, how, count), || match how {
                Write::Insert => insert_sql(table, count),
                Write::Upsert => upsert_sql(table, count),
            });
            let values = rows.by_ref().take(count).flatten().collect();
            self.0.push(Statement { sql, values });
        }
    }

    /// Adds rows of any tables; of two rows with one key the later stays.
    pub(super) fn upsert(&mut self, rows: Vec<Row>) {
        let mut tables: Vec<(&'static Table, Vec<Vec<Value>>)> = Vec::new();
        for row in rows {
            match tables.iter_mut().find(|(table, _)| table.name == row.table.name) {
                Some((_, set)) => set.push(row.values),
                None => tables.push((row.table, vec![row.values])),
            }
        }
        for (table, set) in tables {
            self.write(table, Write::Upsert, last_of_each_key(table, set));
        }
    }

    /// Runs all in one transaction. Every statement is a trip to the database's thread and back, so a small batch goes as one
    /// script, and a large one takes BEGIN and COMMIT along with its first and last statement.
    ///
    /// After an error the transaction is left as it is: the connection must not be used again.
    pub(super) async fn commit(mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        /// With more values than this a script's shapes would be too many to keep prepared.
        const SMALL: usize = 64;
        let values: usize = self.0.iter().map(|statement| statement.values.len()).sum();
        if values <= SMALL {
            let mut script = Statement { sql: "".into(), values: Vec::with_capacity(values) };
            let mut text = String::from("BEGIN IMMEDIATE;");
            for statement in self.0 {
                text.push_str(&statement.sql);
                text.push(';');
                script.values.extend(statement.values);
            }
            text.push_str("COMMIT");
            script.sql = text.into();
            self.0 = vec![script];
        } else {
            if let Some(first) = self.0.first_mut() {
                first.sql = format!("BEGIN IMMEDIATE;{}", first.sql).into();
            }
            if let Some(last) = self.0.last_mut() {
                last.sql = format!("{};COMMIT", last.sql).into();
            }
        }
        for Statement { sql, values } in self.0 {
            bind(AssertSqlSafe(sql), values).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// How a set of rows is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Write {
    /// A row whose key is there is an error.
    Insert,
    /// A row whose key is there is replaced.
    Upsert,
}

/// Reads the rows with these keys. The last key is repeated up to the next shape: its row may come more than once.
pub(super) async fn fetch_keys(
    connection: &mut SqliteConnection,
    table: &'static Table,
    keys: &[Vec<Value>],
) -> Result<Vec<Record>, sqlx::Error> {
    let mut found = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(MOST_ROWS) {
        let count = chunk.len().next_power_of_two();
        let sql = shape(Shape::Fetch(table.name, count), || fetch_sql(table, count));
        let padding = chunk.last().into_iter().cycle().take(count - chunk.len());
        let values = chunk.iter().chain(padding).flatten().cloned();
        let rows = bind(AssertSqlSafe(sql), values).fetch_all(&mut *connection).await?;
        found.extend(rows.into_iter().map(Record));
    }
    Ok(found)
}

fn bind<'q>(sql: impl sqlx::SqlSafeStr, values: impl IntoIterator<Item = Value>) -> Query<'q, Sqlite, SqliteArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Null => query.bind(None::<i64>),
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    })
}

/// Keeps, of rows with the same key, the last one: one statement must not touch a row twice.
fn last_of_each_key(table: &Table, rows: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    if rows.len() < 2 {
        return rows;
    }
    let mut place: HashMap<Vec<Value>, usize> = HashMap::with_capacity(rows.len());
    let mut kept: Vec<Vec<Value>> = Vec::with_capacity(rows.len());
    for row in rows {
        match place.get(&row[..table.key]) {
            Some(&at) => kept[at] = row,
            None => {
                place.insert(row[..table.key].to_vec(), kept.len());
                kept.push(row);
            }
        }
    }
    kept
}

fn largest_shape(rows: usize) -> usize {
    // The largest power of two that is not more than `rows`.
    let floor = 1 << rows.max(1).ilog2();
    floor.min(MOST_ROWS)
}

// === the shapes ===

#[derive(Clone, PartialEq, Eq, Hash)]
enum Shape {
    Write(&'static str, Write, usize),
    Fetch(&'static str, usize),
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

fn insert_sql(table: &Table, rows: usize) -> String {
    let columns = table.columns.join(",");
    format!("INSERT INTO {}({columns}) VALUES {}", table.name, placeholders(rows, table.columns.len()))
}

fn upsert_sql(table: &Table, rows: usize) -> String {
    let (key, rest) = table.columns.split_at(table.key);
    let set: Vec<String> = rest.iter().map(|column| format!("{column}=excluded.{column}")).collect();
    format!("{} ON CONFLICT({}) DO UPDATE SET {}", insert_sql(table, rows), key.join(","), set.join(","))
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

    static PAIRS: Table = Table { name: "pairs", create: &[], columns: &["a", "b", "c"], key: 2 };

    #[test]
    fn shapes_are_few_and_right() {
        assert_eq!(
            fetch_sql(&PAIRS, 2),
            "WITH wanted(k0,k1) AS (VALUES (?,?),(?,?)) \
             SELECT a,b,c FROM wanted CROSS JOIN pairs WHERE a=k0 AND b=k1"
        );
        assert_eq!(
            upsert_sql(&PAIRS, 1),
            "INSERT INTO pairs(a,b,c) VALUES (?,?,?) ON CONFLICT(a,b) DO UPDATE SET c=excluded.c"
        );
        assert_eq!((1..=9).map(largest_shape).collect::<Vec<_>>(), [1, 2, 2, 4, 4, 4, 4, 8, 8]);
        assert_eq!(largest_shape(1_000), MOST_ROWS);
    }

    #[test]
    fn of_two_rows_with_one_key_the_later_stays() {
        let row = |a: i64, b: i64, c: i64| vec![Value::Int(a), Value::Int(b), Value::Int(c)];
        let kept = last_of_each_key(&PAIRS, vec![row(1, 1, 1), row(2, 1, 1), row(1, 1, 9)]);
        assert_eq!(kept, [row(1, 1, 9), row(2, 1, 1)]);
    }
}
