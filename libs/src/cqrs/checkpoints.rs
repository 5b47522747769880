//! How far each projection has come: kept beside its tables, and moved in the transaction that folds into them.

use std::collections::HashMap;

use crate::journal::{
    Row, Table,
    sql::{self, Reader, Transaction, Value},
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

/// How far a projection is: 0 before its first event.
pub(super) async fn read(projection: &'static str, reader: &Reader) -> Result<i64, sql::Error> {
    let rows = reader.fetch_keys(&CHECKPOINTS, vec![vec![projection.into()]]).await?;
    rows.first().map_or(Ok(0), |row| row.int(1))
}

/// How far these projections are, as their database says within a transaction.
pub(super) async fn stored(
    projections: impl Iterator<Item = &'static str> + Clone,
    transaction: &mut Transaction<'_>,
) -> Result<Vec<i64>, sql::Error> {
    let keys: Vec<Vec<Value>> = projections.clone().map(|projection| vec![projection.into()]).collect();
    let mut found = HashMap::with_capacity(keys.len());
    for record in transaction.fetch_keys(&CHECKPOINTS, &keys).await? {
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
