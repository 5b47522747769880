//! What shipping's events say of each order's shipment. The shipment's id is the order's.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of_kind},
    journal::{Table, sql::Transaction},
    time::timestamp,
};
use proto::shipping::v1::{Shipment, ShipmentEvent, ShipmentState, shipment_event};

/// The kind of shipping's aggregates that make this view.
pub const KIND: &str = "shipment";

/// One row a shipment.
pub static ORDER_SHIPMENTS: Table = Table {
    name: "order_shipments",
    create: &["CREATE TABLE IF NOT EXISTS order_shipments (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds shipping's events into [`ORDER_SHIPMENTS`].
#[derive(Debug)]
pub(crate) struct ShipmentsOfOrders;

impl Projection for ShipmentsOfOrders {
    const NAME: &'static str = "order_shipments";
    const TABLES: &'static [&'static Table] = &[&ORDER_SHIPMENTS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of_kind::<ShipmentEvent>(KIND, events)?;
        let ids = changes.iter().map(|(event, _)| &event.id);
        let mut shipments = Documents::load(transaction, &ORDER_SHIPMENTS, ids).await?;
        for (event, change) in changes {
            let time = Some(timestamp(event.time_micros));
            shipments.update(&event.id, event.position, |shipment: &mut Shipment| {
                shipment.update_time = time;
                match change.event {
                    Some(shipment_event::Event::Created(created)) => {
                        shipment.shipment_id.clone_from(&event.id);
                        shipment.address = created.address;
                        shipment.parcels = created.parcels;
                        shipment.create_time = time;
                        shipment.set_state(ShipmentState::Shipped);
                    }
                    Some(shipment_event::Event::Cancelled(_)) => shipment.set_state(ShipmentState::Cancelled),
                    None => {}
                }
            });
        }
        shipments.save(transaction, |_| Vec::new()).await
    }
}
