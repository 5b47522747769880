//! Each shipment, as queries show it.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of},
    journal::{Table, sql::Transaction},
    time::timestamp,
};
use proto::shipping::v1::{Shipment as Document, ShipmentState, shipment_event};

use crate::domain::Shipment;

/// One row a shipment.
pub static SHIPMENTS: Table = Table {
    name: "shipments",
    create: &["CREATE TABLE IF NOT EXISTS shipments (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds shipment events into [`SHIPMENTS`].
#[derive(Debug)]
pub(crate) struct ShipmentsView;

impl Projection for ShipmentsView {
    const NAME: &'static str = "shipments";
    const TABLES: &'static [&'static Table] = &[&SHIPMENTS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of::<Shipment>(events)?;
        let ids = changes.iter().map(|(event, _)| &event.id);
        let mut shipments = Documents::load(transaction, &SHIPMENTS, ids).await?;
        for (event, change) in changes {
            let time = Some(timestamp(event.time_micros));
            shipments.update(&event.id, event.position, |document: &mut Document| {
                document.update_time = time;
                match change.event {
                    Some(shipment_event::Event::Created(created)) => {
                        document.shipment_id.clone_from(&event.id);
                        document.address = created.address;
                        document.parcels = created.parcels;
                        document.create_time = time;
                        document.set_state(ShipmentState::Shipped);
                    }
                    Some(shipment_event::Event::Cancelled(_)) => document.set_state(ShipmentState::Cancelled),
                    None => {}
                }
            });
        }
        shipments.save(transaction, |_| Vec::new()).await
    }
}
