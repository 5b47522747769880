//! An event that was written in an older form is what it means today, in every view.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use libs::journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Location, NewEvent};
use prost::Message as _;
use proto::{
    events::v1::SubscribeRequest,
    shipping::v1::{GetShipmentRequest, Parcel, ShipmentCreated, ShipmentEvent, shipment_event::Event},
};
use support::TestApp;
use tempfile::TempDir;

#[expect(deprecated, reason = "as it was written once")]
fn old() -> ShipmentEvent {
    let skus = ["tea", "cup", "tea"].map(ToOwned::to_owned).to_vec();
    ShipmentEvent { event: Some(Event::Created(ShipmentCreated { skus, ..ShipmentCreated::default() })) }
}

/// Writes an event as an older version of this service did.
async fn write_old(folder: &TempDir) {
    let journal = Journal::open(Location::Sqlite(folder.path().join("shipping.db")), &[]).await.unwrap();
    let aggregate = AggregateId::new("shipment", "old");
    let events = vec![NewEvent { name: "ShipmentCreated", payload: old().encode_to_vec().into() }];
    let change = Change { aggregate: aggregate.clone(), state: None, version: 1, events };
    let decide = Box::new(move |_: &libs::journal::Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    let entry = Entry { request: None, aggregates: vec![aggregate], cause: Cause::default(), decide, size: 100 };
    journal.submit(entry).await.unwrap();
    journal.close();
    journal.ended().await.unwrap();
}

fn parcels() -> Vec<Parcel> {
    [("tea", 2), ("cup", 1)].map(|(sku, quantity)| Parcel { sku: sku.to_owned(), quantity }).to_vec()
}

#[tokio::test]
async fn this_services_views_and_others_see_the_form_of_today() {
    let folder = TempDir::new().unwrap();
    write_old(&folder).await;
    let mut app = TestApp::start_on(folder).await;
    let request = GetShipmentRequest { shipment_id: "old".to_owned() };
    let folded = async {
        loop {
            // Folded a moment after the start.
            match app.queries.get_shipment(request.clone()).await {
                Ok(found) => return found.into_inner().shipment.unwrap(),
                Err(status) => assert_eq!(status.code(), tonic::Code::NotFound),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let shipment =
        tokio::time::timeout(Duration::from_secs(60), folded).await.expect("the shipment is shown within a minute");
    assert_eq!(shipment.parcels, parcels());

    let mut events = app.events.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    let sent = events.message().await.unwrap().unwrap().events.remove(0);
    let Some(Event::Created(created)) = ShipmentEvent::decode(sent.payload).unwrap().event else { panic!("created") };
    assert_eq!(created, ShipmentCreated { parcels: parcels(), ..ShipmentCreated::default() });
}
