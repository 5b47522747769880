//! How far each projection has come: kept beside its tables, and moved in the transaction that folds into them.

use std::collections::HashMap;

use crate::journal::{
    Location, Row, Table,
    sql::{self, Reader, Record, Transaction, Value},
    store,
};

/// One row a projection.
pub(super) static CHECKPOINTS: Table = Table {
    name: "checkpoints",
    create: &["CREATE TABLE IF NOT EXISTS checkpoints (
        projection TEXT NOT NULL PRIMARY KEY,
        position INTEGER
    ) WITHOUT ROWID"],
    columns: &["projection", "position"],
    key: 1,
    fixed: &[],
};

/// How far these projections are, in their order: 0 before the first event.
pub(super) async fn read(
    projections: impl Iterator<Item = &'static str> + Clone,
    reader: &Reader,
) -> Result<Vec<i64>, sql::Error> {
    let records = reader.fetch_keys(&CHECKPOINTS, keys(projections.clone())).await?;
    positions(projections, &records)
}

/// The same, as it is within a transaction.
pub(super) async fn read_within(
    projections: impl Iterator<Item = &'static str> + Clone,
    transaction: &mut Transaction<'_>,
) -> Result<Vec<i64>, sql::Error> {
    let records = transaction.fetch_keys(&CHECKPOINTS, &keys(projections.clone())).await?;
    positions(projections, &records)
}

/// The same as [`read`], but None from a standby, which may not have replayed all that it has.
pub(super) async fn read_of_primary(
    projections: impl Iterator<Item = &'static str>,
    reader: &Reader,
) -> Result<Option<Vec<i64>>, sql::Error> {
    let records = reader.fetch_of_primary(ALL, Vec::new()).await?;
    records.map(|records| positions(projections, &records)).transpose()
}

const ALL: &str = "SELECT projection,position FROM checkpoints";

/// How far views are that were made beside these.
pub(super) async fn read_beside(
    projections: impl Iterator<Item = &'static str>,
    beside: &Location,
    transaction: &mut Transaction<'_>,
) -> Result<Vec<i64>, sql::Error> {
    let sql = format!("SELECT projection,position FROM {}", store::name_beside(&CHECKPOINTS, beside));
    positions(projections, &transaction.fetch(&sql, Vec::new()).await?)
}

fn keys(projections: impl Iterator<Item = &'static str>) -> Vec<Vec<Value>> {
    projections.map(|projection| vec![projection.into()]).collect()
}

fn positions(projections: impl Iterator<Item = &'static str>, records: &[Record]) -> Result<Vec<i64>, sql::Error> {
    let mut found = HashMap::with_capacity(records.len());
    for record in records {
        found.insert(record.text(0)?, record.int(1)?);
    }
    Ok(projections.map(|projection| found.get(projection).copied().unwrap_or_default()).collect())
}

/// Moves a projection's checkpoint.
pub(super) async fn store(
    projection: &'static str,
    position: i64,
    transaction: &mut Transaction<'_>,
) -> Result<(), sql::Error> {
    transaction.upsert(vec![Row { table: &CHECKPOINTS, values: vec![projection.into(), position.into()] }]).await
}
