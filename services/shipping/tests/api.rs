//! Shipping as its callers see it: the real server, a real client, nothing in between replaced.

mod support;

use libs::{
    rpc::verdict::{Op, Verdict},
    testing::{after, in_saga, refused, verdict, wrong_fields},
};
use proto::{
    google::r#type::PostalAddress,
    shipping::v1::{
        CancelShipmentRequest, CreateShipmentRequest, GetShipmentRequest, ListShipmentsRequest, Parcel, ShipmentState,
    },
};
use support::TestApp;
use tonic::Code;

fn create(id: &str, region: &str) -> CreateShipmentRequest {
    let address = PostalAddress {
        region_code: region.to_owned(),
        address_lines: vec!["1 Market Square".to_owned()],
        ..PostalAddress::default()
    };
    CreateShipmentRequest {
        request_id: format!("create-{id}"),
        shipment_id: id.to_owned(),
        address: Some(address),
        parcels: vec![Parcel { sku: "tea".to_owned(), quantity: 2 }],
    }
}

fn cancel(id: &str) -> CancelShipmentRequest {
    CancelShipmentRequest { request_id: format!("cancel-{id}"), shipment_id: id.to_owned() }
}

fn get(id: &str) -> GetShipmentRequest {
    GetShipmentRequest { shipment_id: id.to_owned() }
}

#[tokio::test]
async fn a_shipment_is_seen_on_its_way_and_recalled() {
    let mut app = TestApp::start().await;
    let created = app.commands.create_shipment(create("s1", "CH")).await.unwrap();
    let seen = app.queries.get_shipment(after(&created, get("s1"))).await.unwrap().into_inner().shipment.unwrap();
    assert_eq!(
        (seen.state(), &seen.address, seen.parcels.len()),
        (ShipmentState::Shipped, &create("s1", "CH").address, 1)
    );

    let cancelled = app.commands.cancel_shipment(cancel("s1")).await.unwrap();
    let seen = app.queries.get_shipment(after(&cancelled, get("s1"))).await.unwrap().into_inner().shipment.unwrap();
    assert_eq!(seen.state(), ShipmentState::Cancelled);
    assert!(seen.create_time.is_some() && seen.update_time.is_some());
}

#[tokio::test]
async fn a_region_that_is_not_served_is_refused_and_leaves_nothing() {
    let mut app = TestApp::start().await;
    let far = app.commands.create_shipment(in_saga(Op::Action, create("s1", "AQ"))).await;
    assert_eq!(verdict(&far), Some(Verdict::Rejected));
    assert_eq!(refused(far), (Code::FailedPrecondition, "UNDELIVERABLE_ADDRESS".to_owned()));
    assert_eq!(refused(app.queries.get_shipment(get("s1")).await), (Code::NotFound, "UNKNOWN_SHIPMENT".to_owned()));
    let unknown = app.commands.cancel_shipment(cancel("s1")).await;
    assert_eq!(refused(unknown), (Code::NotFound, "UNKNOWN_SHIPMENT".to_owned()));
}

#[tokio::test]
async fn what_is_malformed_is_told_field_by_field() {
    let mut app = TestApp::start().await;
    let nothing = CreateShipmentRequest::default();
    assert_eq!(wrong_fields(app.commands.create_shipment(nothing).await), ["shipment_id", "address", "parcels"]);
    let nowhere = CreateShipmentRequest { address: Some(PostalAddress::default()), ..create("s1", "CH") };
    let fields = ["address.region_code", "address.address_lines"];
    assert_eq!(wrong_fields(app.commands.create_shipment(nowhere).await), fields);
    assert_eq!(wrong_fields(app.queries.get_shipment(get("")).await), ["shipment_id"]);
}

#[tokio::test]
async fn shipments_are_listed_in_pages() {
    let mut app = TestApp::start().await;
    let mut last = None;
    for id in ["s3", "s1", "s2"] {
        last = Some(app.commands.create_shipment(create(id, "CH")).await.unwrap());
    }
    let list = ListShipmentsRequest { page_size: 2, ..ListShipmentsRequest::default() };
    let first = app.queries.list_shipments(after(&last.unwrap(), list.clone())).await.unwrap().into_inner();
    let rest = ListShipmentsRequest { page_token: first.next_page_token, ..list };
    let rest = app.queries.list_shipments(rest).await.unwrap().into_inner();
    let ids: Vec<_> = first.shipments.into_iter().chain(rest.shipments).map(|shipment| shipment.shipment_id).collect();
    assert_eq!((ids, rest.next_page_token.as_str()), (["s1", "s2", "s3"].map(str::to_owned).to_vec(), ""));
}
