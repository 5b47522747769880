//! How many units of each SKU have left, by shipping's events. A shipment's id is the order's, and so its reservation's.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of_kind},
    journal::{Table, sql::Transaction},
};
use proto::{
    inventory::v1::Item,
    shipping::v1::{Parcel, Shipment, ShipmentEvent, ShipmentState, shipment_event},
};

/// The kind of shipping's aggregates that make this view.
pub const KIND: &str = "shipment";

/// One row a SKU of which units have left.
pub static SHIPPED_STOCK: Table = Table {
    name: "shipped_stock",
    create: &[
        "CREATE TABLE IF NOT EXISTS shipped_stock (
            id TEXT NOT NULL PRIMARY KEY,
            position INTEGER,
            document BLOB
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS shipped_stock_by_position ON shipped_stock (position)",
    ],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// One row a shipment: what is in it, since the event that recalls it doesn't say.
static SHIPMENTS_OF_STOCK: Table = Table {
    name: "shipments_of_stock",
    create: &["CREATE TABLE IF NOT EXISTS shipments_of_stock (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds shipping's events into [`SHIPPED_STOCK`].
#[derive(Debug)]
pub(crate) struct ShippedStock;

impl Projection for ShippedStock {
    const NAME: &'static str = "shipped_stock";
    const TABLES: &'static [&'static Table] = &[&SHIPPED_STOCK, &SHIPMENTS_OF_STOCK];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of_kind::<ShipmentEvent>(KIND, events)?;
        let ids = changes.iter().map(|(event, _)| &event.id);
        let mut shipments = Documents::load(transaction, &SHIPMENTS_OF_STOCK, ids).await?;
        let mut moved = Vec::new();
        for (event, change) in changes {
            shipments.update(&event.id, event.position, |shipment: &mut Shipment| {
                let sign = fold(shipment, change);
                let units = shipment.parcels.iter().map(|Parcel { sku, quantity }| (sku.clone(), sign * quantity));
                moved.extend(units.map(|(sku, units)| (event.position, sku, units)));
            });
        }
        let mut shipped = Documents::load(transaction, &SHIPPED_STOCK, moved.iter().map(|(_, sku, _)| sku)).await?;
        for (position, sku, units) in moved {
            shipped.update(&sku, position, |item: &mut Item| {
                item.sku.clone_from(&sku);
                item.quantity += units;
            });
        }
        shipments.save(transaction, |_| Vec::new()).await?;
        shipped.save(transaction, |_| Vec::new()).await
    }
}

/// The shipment after an event, and how its units count then: they leave, or they are back.
fn fold(shipment: &mut Shipment, change: ShipmentEvent) -> i64 {
    match change.event {
        Some(shipment_event::Event::Created(created)) => {
            shipment.parcels = created.parcels;
            shipment.set_state(ShipmentState::Shipped);
            1
        }
        Some(shipment_event::Event::Cancelled(_)) => {
            shipment.set_state(ShipmentState::Cancelled);
            -1
        }
        None => 0,
    }
}
