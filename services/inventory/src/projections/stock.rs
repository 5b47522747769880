//! The stock of each SKU, as queries show it.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of},
    journal::{Table, sql::Transaction},
    time::timestamp,
};
use proto::inventory::v1::{Stock as Document, StockEvent, stock_event};

use crate::domain::Stock;

/// One row a SKU.
pub static STOCK: Table = Table {
    name: "stock",
    create: &[
        "CREATE TABLE IF NOT EXISTS stock (
            id TEXT NOT NULL PRIMARY KEY,
            position INTEGER,
            document BLOB
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS stock_by_position ON stock (position)",
    ],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds stock events into [`STOCK`].
#[derive(Debug)]
pub(crate) struct StockView;

impl Projection for StockView {
    const NAME: &'static str = "stock";
    const TABLES: &'static [&'static Table] = &[&STOCK];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of::<Stock>(events)?;
        let mut stock = Documents::load(transaction, &STOCK, changes.iter().map(|(event, _)| &event.id)).await?;
        for (event, change) in changes {
            stock.update(&event.id, event.position, |document: &mut Document| {
                document.sku.clone_from(&event.id);
                document.update_time = Some(timestamp(event.time_micros));
                fold(document, change);
            });
        }
        stock.save(transaction, |_| Vec::new()).await
    }
}

fn fold(stock: &mut Document, change: StockEvent) {
    match change.event {
        Some(stock_event::Event::Added(added)) => {
            stock.added += added.quantity;
            stock.available += added.quantity;
            stock.unit_price = added.unit_price;
        }
        Some(stock_event::Event::Reserved(reserved)) => {
            stock.available -= reserved.quantity;
            stock.reserved += reserved.quantity;
        }
        Some(stock_event::Event::Released(released)) => {
            stock.available += released.quantity;
            stock.reserved -= released.quantity;
        }
        None => {}
    }
}
