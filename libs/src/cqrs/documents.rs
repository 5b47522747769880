//! Views that are documents: a row holds one encoded message, and beside it the columns to filter and sort by.

use std::{cmp::Ordering, collections::BTreeMap};

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
    /// The ids that were looked up, in order.
    looked_up: Vec<Vec<Value>>,
    documents: BTreeMap<String, Document<M>>,
    /// The first id that was to be changed and had not been looked up.
    not_loaded: Option<String>,
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
        Ok(Self { table, looked_up: keys, documents, not_loaded: None })
    }

    /// A document as it stands.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&M> {
        self.documents.get(id).map(|document| &document.message)
    }

    /// Changes a document, which begins as the default where there is none, by the event at `position`. Its id must be among those that
    /// were [loaded](Self::load): of another one nobody knows whether it is there, and what is would be replaced. Such a one is left alone,
    /// and [`save`](Self::save) refuses.
    pub fn update(&mut self, id: &str, position: i64, change: impl FnOnce(&mut M)) {
        let empty = || Document { position, message: M::default(), changed: true };
        let document = match self.documents.get_mut(id) {
            Some(document) => document,
            None => {
                if !self.is_looked_up(id) {
                    self.not_loaded.get_or_insert_with(|| id.to_owned());
                    return;
                }
                self.documents.entry(id.to_owned()).or_insert_with(empty)
            }
        };
        change(&mut document.message);
        document.position = position;
        document.changed = true;
    }

    fn is_looked_up(&self, id: &str) -> bool {
        let by_id = |key: &Vec<Value>| match key.first() {
            Some(Value::Text(text)) => (**text).cmp(id),
            _ => Ordering::Less,
        };
        self.looked_up.binary_search_by(by_id).is_ok()
    }

    /// Writes what was changed. `columns` gives the values of the columns after `document`.
    ///
    /// # Errors
    /// When the database can't be written, and [`ProjectionError::NotLoaded`] when a document was to be changed that had not been loaded:
    /// nothing is written then. A projection that answers with that is parked.
    pub async fn save(
        self,
        transaction: &mut Transaction<'_>,
        columns: impl Fn(&M) -> Vec<Value>,
    ) -> Result<(), ProjectionError> {
        let table = self.table;
        if let Some(id) = self.not_loaded {
            return Err(ProjectionError::NotLoaded { table: table.name, id });
        }
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
