//! Views that are documents: a row holds one encoded message, and beside it the columns to filter and sort by.

use std::collections::BTreeMap;

use prost::Message;

use super::ProjectionError;
use crate::journal::{
    Row, Table,
    sql::{Transaction, Value},
};

/// The documents that a batch of events touches. The table's columns must begin with `id`, `position`, `document`, its key
/// being the id. A view that is watched has an index on `position`.
#[derive(Debug)]
pub struct Documents<M> {
    table: &'static Table,
    documents: BTreeMap<String, Document<M>>,
}

#[derive(Debug)]
struct Document<M> {
    position: i64,
    message: M,
    changed: bool,
}

impl<M: Message + Default> Documents<M> {
    /// Loads the documents with these ids; one that isn't there is simply missing.
    ///
    /// # Errors
    /// When the database can't be read, or a document is not what was written.
    pub async fn load(
        transaction: &mut Transaction<'_>,
        table: &'static Table,
        ids: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, ProjectionError> {
        let mut ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        ids.sort_unstable();
        ids.dedup();
        let keys: Vec<Vec<Value>> = ids.into_iter().map(|id| vec![id.into()]).collect();
        let mut documents = BTreeMap::new();
        for record in transaction.fetch_keys(table, &keys).await? {
            let id = record.text(0)?;
            let message = M::decode(record.blob(2)?)
                .map_err(|source| ProjectionError::Decode { what: format!("{} {id}", table.name), source })?;
            documents.insert(id, Document { position: record.int(1)?, message, changed: false });
        }
        Ok(Self { table, documents })
    }

    /// A document as it stands.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&M> {
        self.documents.get(id).map(|document| &document.message)
    }

    /// Changes a document, which begins as the default, by the event at `position`.
    pub fn update(&mut self, id: &str, position: i64, change: impl FnOnce(&mut M)) {
        let empty = || Document { position, message: M::default(), changed: true };
        let document = match self.documents.get_mut(id) {
            Some(document) => document,
            None => self.documents.entry(id.to_owned()).or_insert_with(empty),
        };
        change(&mut document.message);
        document.position = position;
        document.changed = true;
    }

    /// Writes what was changed. `columns` gives the values of the columns after `document`.
    ///
    /// # Errors
    /// When the database can't be written.
    pub async fn save(
        self,
        transaction: &mut Transaction<'_>,
        columns: impl Fn(&M) -> Vec<Value>,
    ) -> Result<(), ProjectionError> {
        let table = self.table;
        let changed = self.documents.into_iter().filter(|(_, document)| document.changed);
        let row = |(id, document): (String, Document<M>)| {
            let mut values = vec![id.into(), document.position.into(), document.message.encode_to_vec().into()];
            values.extend(columns(&document.message));
            Row { table, values }
        };
        let rows = changed.map(row).collect();
        Ok(transaction.upsert(rows).await?)
    }
}
