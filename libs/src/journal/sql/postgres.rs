//! The same sets of rows on PostgreSQL: each column of a set is one array, so every statement has one shape.

use std::{fmt::Write as _, io, pin::pin, time::Duration};

use sqlx::{
    AssertSqlSafe, Column as _, PgConnection, Postgres, Row as _, TypeInfo as _, postgres::PgArguments, query::Query,
};

use tokio::time::timeout;

use super::{Error, Record, Value, Write, statements};
use crate::journal::entry::{Row, Table};

/// How long a statement may take. After that the way to the server counts as cut: a host that is gone says nothing, and whoever waits
/// for what it was sent would wait for ever.
const ANSWER: Duration = Duration::from_secs(15);

impl Error {
    /// True where what was asked was cut off in its midst, maybe as it took longer than it may: the server has ended the session or the
    /// statement, or has not answered in time. Less of it may go through.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        match self {
            Self::Postgres(sqlx::Error::Io(error)) => error.kind() != io::ErrorKind::ConnectionRefused,
            // A silence or a transaction that was too long, a statement that was.
            Self::Postgres(sqlx::Error::Database(said)) => {
                said.code().is_some_and(|code| matches!(&*code, "25P03" | "25P04" | "57014"))
            }
            _ => false,
        }
    }

    /// True where others hold what was waited for, for too long or in a circle.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        match self {
            Self::Postgres(sqlx::Error::Database(said)) => {
                said.code().is_some_and(|code| matches!(&*code, "55P03" | "40P01"))
            }
            _ => false,
        }
    }
}

/// Waits for what a server was asked, within bounds.
///
/// # Errors
/// As where the link is cut, when there is no answer. Until what is left of that was read the session must not be used again.
pub(in crate::journal) async fn answered<T, E: From<sqlx::Error>>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()).into()))
}

/// Waits for what may take as long as it does, such as an index, and tells of it every so often.
pub(in crate::journal) async fn patiently<T>(asked: impl Future<Output = T>, tell: impl Fn()) -> T {
    let mut asked = pin!(asked);
    loop {
        match timeout(ANSWER, &mut asked).await {
            Ok(end) => return end,
            Err(_) => tell(),
        }
    }
}

/// Runs a statement, however long that takes. Placeholders are `$1`, `$2`, ….
pub(in crate::journal) async fn execute(
    connection: &mut PgConnection,
    sql: &str,
    values: &[Value],
) -> Result<(), Error> {
    bind(sqlx::query(AssertSqlSafe(sql)), values).execute(connection).await?;
    Ok(())
}

/// Runs a SELECT.
pub(in crate::journal) async fn query(
    connection: &mut PgConnection,
    sql: &str,
    values: &[Value],
) -> Result<Vec<Record>, Error> {
    let rows = answered(bind(sqlx::query(AssertSqlSafe(sql)), values).fetch_all(connection)).await?;
    rows.iter().map(read).collect()
}

/// Runs a SELECT over columns of texts: of each of these keys one.
pub(in crate::journal) async fn query_texts(
    connection: &mut PgConnection,
    sql: &'static str,
    columns: &[(&[Vec<Value>], usize)],
) -> Result<Vec<Record>, Error> {
    let mut query = sqlx::query(sql);
    for &(keys, column) in columns {
        let text = |key: &'_ Vec<Value>| match key.get(column) {
            Some(Value::Text(text)) => Ok(text.as_ref().to_owned()),
            _ => Err(Error::Mixed),
        };
        query = query.bind(keys.iter().map(text).collect::<Result<Vec<String>, _>>()?);
    }
    answered(query.fetch_all(connection)).await?.iter().map(read).collect()
}

/// Rows of one table, no two with one key, and how they are written.
pub(in crate::journal) type Set<'r> = (&'static Table, Write, Vec<&'r [Value]>);

/// Writes sets of rows in one statement. No table may come twice.
pub(in crate::journal) async fn write(connection: &mut PgConnection, sets: &[Set<'_>]) -> Result<(), Error> {
    let sets: Vec<(&Set<'_>, &[Value])> = sets.iter().filter_map(|set| Some((set, *set.2.first()?))).collect();
    let (mut inserts, mut bound) = (Vec::with_capacity(sets.len()), 0);
    for ((table, how, rows), first) in &sets {
        let types: Vec<_> = (0..first.len()).map(|at| type_of(column(rows, at))).collect();
        inserts.push(insert_sql(table, *how, &types, &mut bound));
    }
    let Some(last) = inserts.pop() else { return Ok(()) };
    let mut sql = String::new();
    for (at, insert) in inserts.iter().enumerate() {
        let _ = write!(sql, "{} set{at} AS ({insert})", if at == 0 { "WITH" } else { "," });
    }
    sql.push_str(&last);
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for ((_, _, rows), first) in &sets {
        for at in 0..first.len() {
            query = bind_array(query, column(rows, at))?;
        }
    }
    answered(query.execute(connection)).await?;
    Ok(())
}

/// What writes a set whose columns are of these types, after so many placeholders. One in which no row has a value is bound to nothing.
fn insert_sql(table: &Table, how: Write, types: &[Option<&str>], bound: &mut usize) -> String {
    let (mut values, mut arrays, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (at, array) in types.iter().enumerate() {
        let Some(array) = array else {
            values.push("NULL".to_owned());
            continue;
        };
        *bound += 1;
        arrays.push(format!("${bound}::{array}"));
        names.push(format!("v{at}"));
        values.push(format!("v{at}"));
    }
    let (columns, values, arrays, names) =
        (table.columns.join(","), values.join(","), arrays.join(","), names.join(","));
    let mut sql =
        format!(" INSERT INTO {} ({columns}) SELECT {values} FROM UNNEST({arrays}) AS given({names})", table.name);
    if how == Write::Upsert {
        sql.push(' ');
        sql.push_str(&statements::or_replace_sql(table));
    }
    sql
}

/// Inserts or replaces rows of any tables; of two rows with one key the later stays.
pub(in crate::journal) async fn upsert(connection: &mut PgConnection, rows: &[Row]) -> Result<(), Error> {
    write(connection, &upserts(rows)).await
}

/// Rows of any tables, a set a table; of two rows with one key the later.
pub(in crate::journal) fn upserts(rows: &[Row]) -> Vec<Set<'_>> {
    let set = |(table, rows)| (table, Write::Upsert, statements::last_of_each_key(table, rows));
    statements::by_table(rows).into_iter().map(set).collect()
}

/// Reads the rows with these keys, all columns in the table's order. Those that hold U+0000 have none.
pub(in crate::journal) async fn fetch_keys(
    connection: &mut PgConnection,
    table: &'static Table,
    keys: &[Vec<Value>],
) -> Result<Vec<Record>, Error> {
    let can_be = |key: &&[Value]| !key.iter().any(Value::holds_nul);
    let keys: Vec<&[Value]> = keys.iter().map(Vec::as_slice).filter(can_be).collect();
    let Some(first) = keys.first() else { return Ok(Vec::new()) };
    let types = (0..first.len()).map(|at| type_of(column(&keys, at)).ok_or(Error::Mixed));
    let types = types.collect::<Result<Vec<_>, _>>()?;
    let arrays: Vec<String> = types.iter().enumerate().map(|(at, name)| format!("${}::{name}", at + 1)).collect();
    let wanted: Vec<String> = (0..types.len()).map(|at| format!("k{at}")).collect();
    let equal: Vec<String> =
        table.columns.iter().zip(&wanted).map(|(column, wanted)| format!("{column}={wanted}")).collect();
    let sql = format!(
        "SELECT {} FROM UNNEST({}) AS wanted({}) JOIN {} ON {}",
        table.columns.join(","),
        arrays.join(","),
        wanted.join(","),
        table.name,
        equal.join(" AND ")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for at in 0..types.len() {
        query = bind_array(query, column(&keys, at))?;
    }
    let rows = answered(query.fetch_all(connection)).await?;
    rows.iter().map(read).collect()
}

/// Deletes the rows with these keys, which are one column, whose `time` is before this one. Answers how many there were.
pub(in crate::journal) async fn delete_older(
    connection: &mut PgConnection,
    table: &'static Table,
    keys: &[String],
    before: i64,
) -> Result<u64, Error> {
    let sql = format!("DELETE FROM {} WHERE {} = ANY($1) AND time < $2", table.name, table.columns[0]);
    let deleted = answered(sqlx::query(AssertSqlSafe(sql)).bind(keys).bind(before).execute(connection)).await?;
    Ok(deleted.rows_affected())
}

type Pending<'q> = Query<'q, Postgres, PgArguments>;

/// Binds values to look for. The server takes no text with U+0000, and has none: NULL stands for it, which equals nothing either.
fn bind<'q>(query: Pending<'q>, values: &'q [Value]) -> Pending<'q> {
    values.iter().fold(query, |query, value| match value {
        text if text.holds_nul() => query.bind(None::<&str>),
        Value::Null => query.bind(None::<i64>),
        Value::Int(value) => query.bind(*value),
        Value::Text(value) => query.bind(&**value),
        Value::Blob(value) => query.bind(&**value),
    })
}

/// The values of a column of a set.
fn column(rows: &[impl AsRef<[Value]>], at: usize) -> impl Iterator<Item = &Value> + Clone {
    rows.iter().filter_map(move |row| row.as_ref().get(at))
}

/// What a column is bound as, by the first of its values; None where it has none.
fn type_of<'q>(mut column: impl Iterator<Item = &'q Value>) -> Option<&'static str> {
    column.find_map(|value| match value {
        Value::Int(_) => Some("bigint[]"),
        Value::Text(_) => Some("text[]"),
        Value::Blob(_) => Some("bytea[]"),
        Value::Null => None,
    })
}

/// Binds a column of a set, unless it has no value. All that it has must be of one type.
fn bind_array<'q>(query: Pending<'q>, column: impl Iterator<Item = &'q Value> + Clone) -> Result<Pending<'q>, Error> {
    fn array<'q, T>(
        column: impl Iterator<Item = &'q Value>,
        of: impl Fn(&'q Value) -> Option<T>,
    ) -> Result<Vec<Option<T>>, Error> {
        let value = |value| match value {
            &Value::Null => Ok(None),
            value => of(value).map(Some).ok_or(Error::Mixed),
        };
        column.map(value).collect()
    }
    let int = |value: &'q Value| if let Value::Int(value) = value { Some(*value) } else { None };
    let text = |value: &'q Value| if let Value::Text(value) = value { Some(&**value) } else { None };
    let blob = |value: &'q Value| if let Value::Blob(value) = value { Some(&**value) } else { None };
    Ok(match column.clone().find(|value| **value != Value::Null) {
        Some(Value::Int(_)) => query.bind(array(column, int)?),
        Some(Value::Text(_)) => query.bind(array(column, text)?),
        Some(Value::Blob(_)) => query.bind(array(column, blob)?),
        Some(Value::Null) | None => query,
    })
}

fn read(row: &sqlx::postgres::PgRow) -> Result<Record, Error> {
    let value = |column: &sqlx::postgres::PgColumn| {
        let at = column.ordinal();
        Ok(match column.type_info().name() {
            "INT8" => row.try_get::<Option<i64>, _>(at)?.map_or(Value::Null, Value::Int),
            "INT4" => row.try_get::<Option<i32>, _>(at)?.map_or(Value::Null, Value::from),
            "BOOL" => row.try_get::<Option<bool>, _>(at)?.map_or(Value::Null, Value::from),
            "TEXT" | "VARCHAR" | "NAME" => row.try_get::<Option<String>, _>(at)?.map_or(Value::Null, Value::from),
            "BYTEA" => row.try_get::<Option<Vec<u8>>, _>(at)?.map_or(Value::Null, Value::from),
            other => return Err(Error::Corrupt(format!("column {} is {other}", column.name()))),
        })
    };
    row.columns().iter().map(value).collect::<Result<_, Error>>().map(Record)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_may_take_long_is_waited_for_and_told_of() {
        let told = Cell::new(0);
        patiently(sleep(ANSWER * 3 + ANSWER / 2), || told.set(told.get() + 1)).await;
        assert_eq!(told.get(), 3);
        patiently(std::future::ready(()), || told.set(0)).await;
        assert_eq!(told.get(), 3, "what is there at once is not waited for");
    }
}
