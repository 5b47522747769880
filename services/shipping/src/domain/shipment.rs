//! A shipment: parcels handed to the carrier, and recalled.

use libs::{
    cqrs::{Aggregate, Decision, State},
    refusal::Refusal,
};
use proto::shipping::v1::{
    CancelShipmentRequest, CancelShipmentResponse, CreateShipmentRequest, CreateShipmentResponse, Parcel,
    ShipmentCancelled, ShipmentCreated, ShipmentEvent, ShipmentRecord, shipment_event::Event,
};

use super::region;

/// The aggregate; its id is the caller's, an order's own.
#[derive(Debug)]
pub enum Shipment {}

impl Aggregate for Shipment {
    const KIND: &'static str = "shipment";
    type State = ShipmentRecord;
    type Event = ShipmentEvent;

    fn evolve(state: &mut ShipmentRecord, event: &ShipmentEvent) {
        match event.event {
            Some(Event::Created(_)) => state.created = true,
            Some(Event::Cancelled(_)) => state.cancelled = true,
            None => {}
        }
    }

    const OLD_FORMS: &'static [&'static str] = &["ShipmentCreated"];

    #[expect(deprecated, reason = "the old form is read here, and nowhere else")]
    fn upcast(event: &mut ShipmentEvent) {
        let Some(Event::Created(created)) = &mut event.event else { return };
        for sku in std::mem::take(&mut created.skus) {
            match created.parcels.iter_mut().find(|parcel| parcel.sku == sku) {
                Some(parcel) => parcel.quantity += 1,
                None => created.parcels.push(Parcel { sku, quantity: 1 }),
            }
        }
    }

    fn event_name(event: &ShipmentEvent) -> &'static str {
        match event.event {
            Some(Event::Created(_)) => "ShipmentCreated",
            Some(Event::Cancelled(_)) => "ShipmentCancelled",
            None => "ShipmentEvent",
        }
    }
}

/// Hands parcels to the carrier, if it goes there.
///
/// # Errors
/// SHIPMENT_EXISTS, UNDELIVERABLE_ADDRESS.
pub fn create(state: &State<'_>, request: &CreateShipmentRequest) -> Result<Decision<CreateShipmentResponse>, Refusal> {
    let id = &request.shipment_id;
    if state.exists::<Shipment>(id) {
        let message = format!("shipment {id} was made before");
        return Err(Refusal::already_exists("SHIPMENT_EXISTS", message).with("shipment_id", id));
    }
    let region_code = request.address.as_ref().map_or("", |address| &address.region_code);
    if !region::is_served(region_code) {
        let message = format!("region {region_code} is not served");
        return Err(Refusal::precondition("UNDELIVERABLE_ADDRESS", message).with("region_code", region_code));
    }
    let (address, parcels) = (request.address.clone(), request.parcels.clone());
    let created = ShipmentCreated { address, parcels, ..ShipmentCreated::default() };
    Ok(Decision::reply(CreateShipmentResponse { shipment_id: id.clone() })
        .event::<Shipment>(id, &ShipmentEvent { event: Some(Event::Created(created)) }))
}

/// Recalls a shipment. Once it is recalled, asking again changes nothing.
///
/// # Errors
/// UNKNOWN_SHIPMENT.
pub fn cancel(state: &State<'_>, request: &CancelShipmentRequest) -> Result<Decision<CancelShipmentResponse>, Refusal> {
    let id = &request.shipment_id;
    if !state.exists::<Shipment>(id) {
        let message = format!("there is no shipment {id}");
        return Err(Refusal::not_found("UNKNOWN_SHIPMENT", message).with("shipment_id", id));
    }
    let reply = Decision::reply(CancelShipmentResponse { shipment_id: id.clone() });
    if state.get::<Shipment>(id)?.cancelled {
        return Ok(reply);
    }
    Ok(reply.event::<Shipment>(id, &ShipmentEvent { event: Some(Event::Cancelled(ShipmentCancelled {})) }))
}

#[cfg(test)]
mod tests {
    use libs::cqrs::testing::{Given, given};
    use proto::{google::r#type::PostalAddress, shipping::v1::Parcel};
    use tonic::Code;

    use super::*;

    fn to(region_code: &str) -> CreateShipmentRequest {
        let address = PostalAddress {
            region_code: region_code.to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned()],
            ..PostalAddress::default()
        };
        CreateShipmentRequest {
            shipment_id: "s1".to_owned(),
            address: Some(address),
            parcels: vec![Parcel { sku: "tea".to_owned(), quantity: 2 }],
            ..CreateShipmentRequest::default()
        }
    }

    fn created() -> ShipmentEvent {
        let CreateShipmentRequest { address, parcels, .. } = to("CH");
        ShipmentEvent {
            event: Some(Event::Created(ShipmentCreated { address, parcels, ..ShipmentCreated::default() })),
        }
    }

    fn cancelled() -> ShipmentEvent {
        ShipmentEvent { event: Some(Event::Cancelled(ShipmentCancelled {})) }
    }

    fn creating(world: &Given, request: &CreateShipmentRequest) -> Result<Decision<CreateShipmentResponse>, Refusal> {
        world.when(|state| create(state, request))
    }

    fn cancelling(world: &Given) -> Result<Decision<CancelShipmentResponse>, Refusal> {
        let request = CancelShipmentRequest { shipment_id: "s1".to_owned(), ..CancelShipmentRequest::default() };
        world.when(|state| cancel(state, &request))
    }

    #[test]
    fn parcels_go_where_the_carrier_goes() {
        let decision = creating(&given().aggregate::<Shipment>("s1"), &to("CH")).expect("served");
        assert_eq!(decision.events::<Shipment>(), [("s1".to_owned(), created())]);
    }

    #[test]
    fn a_region_that_is_not_served_is_refused() {
        let refusal = creating(&given().aggregate::<Shipment>("s1"), &to("AQ")).expect_err("penguins only");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "UNDELIVERABLE_ADDRESS"));
        assert_eq!(refusal.metadata["region_code"], "AQ");
    }

    #[test]
    fn a_shipment_is_made_once_even_after_its_recall() {
        let world = given().event::<Shipment>("s1", &created());
        for world in [world.clone(), world.event::<Shipment>("s1", &cancelled())] {
            let refusal = creating(&world, &to("CH")).expect_err("it was made");
            assert_eq!((refusal.code, &*refusal.reason), (Code::AlreadyExists, "SHIPMENT_EXISTS"));
        }
    }

    #[test]
    fn cancelling_twice_changes_nothing() {
        let world = given().event::<Shipment>("s1", &created());
        let decision = cancelling(&world).expect("it was made");
        assert_eq!(decision.events::<Shipment>(), [("s1".to_owned(), cancelled())]);

        let again = cancelling(&world.event::<Shipment>("s1", &cancelled())).expect("it is recalled");
        assert_eq!(again.events::<Shipment>(), []);
    }

    #[test]
    fn only_a_shipment_that_was_made_can_be_recalled() {
        let refusal = cancelling(&given().aggregate::<Shipment>("s1")).expect_err("nothing was made");
        assert_eq!((refusal.code, &*refusal.reason), (Code::NotFound, "UNKNOWN_SHIPMENT"));
    }
}
