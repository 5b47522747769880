//! A projection that can't fold everything.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use libs::{
    cqrs::{Documents, Projection, ProjectionError},
    journal::{Event, Table, sql::Transaction},
};

pub(crate) static SEEN: Table = Table {
    name: "seen",
    create: &["CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, position INTEGER, document BLOB)"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Counts the events of each id, and can't fold those of `poison` until it is mended.
#[derive(Default)]
pub(crate) struct Squeamish {
    pub(crate) mended: Arc<AtomicBool>,
}

impl Projection for Squeamish {
    const NAME: &'static str = "squeamish";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut seen = Documents::<i64>::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            if event.id == "poison" && !self.mended.load(Ordering::SeqCst) {
                let source = <i64 as prost::Message>::decode(&[255_u8][..]).unwrap_err();
                return Err(ProjectionError::Decode { what: "poison".to_owned(), source });
            }
            seen.update(&event.id, event.position, |count| *count += 1);
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}
