//! The commands: what is wrong with the shape of each, and which rule decides it.

use libs::{
    address,
    cqrs::{Decision, State},
    items,
    refusal::{Refusal, Violations},
};
use proto::shipping::v1::{
    CancelShipmentRequest, CancelShipmentResponse, CreateShipmentRequest, CreateShipmentResponse,
};

use crate::{domain::shipment, surface::ShippingDecider};

/// The shipments' commands.
#[derive(Debug)]
pub struct Commands;

impl ShippingDecider for Commands {
    fn check_create_shipment(&self, request: &CreateShipmentRequest, violations: &mut Violations) {
        violations.id(&request.shipment_id, "shipment_id");
        address::check(request.address.as_ref(), "address", violations);
        let parcels = request.parcels.iter().map(|parcel| (parcel.sku.as_str(), parcel.quantity));
        items::check(parcels, "parcels", violations);
    }

    fn create_shipment(
        &self,
        state: &State<'_>,
        request: &CreateShipmentRequest,
    ) -> Result<Decision<CreateShipmentResponse>, Refusal> {
        shipment::create(state, request)
    }

    fn check_cancel_shipment(&self, request: &CancelShipmentRequest, violations: &mut Violations) {
        violations.id(&request.shipment_id, "shipment_id");
    }

    fn cancel_shipment(
        &self,
        state: &State<'_>,
        request: &CancelShipmentRequest,
    ) -> Result<Decision<CancelShipmentResponse>, Refusal> {
        shipment::cancel(state, request)
    }
}
