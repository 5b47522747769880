//! What the steps do: calls to this project's inventory, payment and shipping, behind whose barrier a repeated call has no second effect.

use std::future::Future;

use proto::{
    inventory::v1::{
        Item, ReleaseStockRequest, ReserveStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
    },
    payment::v1::{
        ChargeCustomerRequest, RefundChargeRequest, payment_command_service_client::PaymentCommandServiceClient,
    },
    shipping::v1::{CreateShipmentRequest, Parcel, shipping_command_service_client::ShippingCommandServiceClient},
};
use serde::{Deserialize, Serialize};
use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use crate::order::{Cost, Wanted};

/// A participant said no, and nothing was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) reason: String,
}

/// What became of a step; the outer error means nothing, and the call is to be made again.
pub(crate) type Answer<T> = Result<Result<T, Refused>, Status>;

#[derive(Clone, Debug)]
pub(crate) struct Participants {
    inventory: InventoryCommandServiceClient<Channel>,
    payment: PaymentCommandServiceClient<Channel>,
    shipping: ShippingCommandServiceClient<Channel>,
}

impl Participants {
    pub(crate) fn connect(inventory: &str, payment: &str, shipping: &str) -> anyhow::Result<Self> {
        let to = |address: &str| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
            anyhow::Ok(endpoint.connect_lazy())
        };
        Ok(Self {
            inventory: InventoryCommandServiceClient::new(to(inventory)?),
            payment: PaymentCommandServiceClient::new(to(payment)?),
            shipping: ShippingCommandServiceClient::new(to(shipping)?),
        })
    }

    pub(crate) async fn reserve(&self, wanted: &Wanted) -> Answer<Cost> {
        let request = ReserveStockRequest {
            reservation_id: wanted.id.clone(),
            items: items(wanted),
            ..ReserveStockRequest::default()
        };
        let mut inventory = self.inventory.clone();
        let call = inventory.reserve_stock(of_saga(request, wanted, "reserve", "action")?);
        answered(call, |reply| Cost::of(reply.total)).await
    }

    pub(crate) async fn release(&self, wanted: &Wanted) -> Answer<()> {
        let request = ReleaseStockRequest {
            reservation_id: wanted.id.clone(),
            items: items(wanted),
            ..ReleaseStockRequest::default()
        };
        let mut inventory = self.inventory.clone();
        answered(inventory.release_stock(of_saga(request, wanted, "reserve", "compensation")?), drop).await
    }

    pub(crate) async fn charge(&self, wanted: &Wanted, cost: &Cost) -> Answer<()> {
        let request = ChargeCustomerRequest {
            charge_id: wanted.id.clone(),
            customer_id: wanted.customer.clone(),
            amount: Some(cost.money()),
            ..ChargeCustomerRequest::default()
        };
        let mut payment = self.payment.clone();
        answered(payment.charge_customer(of_saga(request, wanted, "charge", "action")?), drop).await
    }

    pub(crate) async fn refund(&self, wanted: &Wanted) -> Answer<()> {
        let request = RefundChargeRequest {
            charge_id: wanted.id.clone(),
            customer_id: wanted.customer.clone(),
            ..RefundChargeRequest::default()
        };
        let mut payment = self.payment.clone();
        answered(payment.refund_charge(of_saga(request, wanted, "charge", "compensation")?), drop).await
    }

    pub(crate) async fn ship(&self, wanted: &Wanted) -> Answer<()> {
        let request = CreateShipmentRequest {
            shipment_id: wanted.id.clone(),
            address: Some(wanted.address()),
            parcels: wanted
                .items
                .iter()
                .map(|(sku, quantity)| Parcel { sku: sku.clone(), quantity: *quantity })
                .collect(),
            ..CreateShipmentRequest::default()
        };
        let mut shipping = self.shipping.clone();
        answered(shipping.create_shipment(of_saga(request, wanted, "ship", "action")?), drop).await
    }
}

fn items(wanted: &Wanted) -> Vec<Item> {
    wanted.items.iter().map(|(sku, quantity)| Item { sku: sku.clone(), quantity: *quantity }).collect()
}

/// A request that says which operation of which saga it is, as the barrier must know.
fn of_saga<T>(message: T, wanted: &Wanted, step: &'static str, op: &'static str) -> Result<Request<T>, Status> {
    let id =
        AsciiMetadataValue::try_from(wanted.id.as_str()).map_err(|_| Status::invalid_argument("the order's id"))?;
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("saga-id", id);
    metadata.insert("saga-type", AsciiMetadataValue::from_static("place-order"));
    metadata.insert("saga-step", AsciiMetadataValue::from_static(step));
    metadata.insert("saga-op", AsciiMetadataValue::from_static(op));
    Ok(request)
}

/// Only the barrier's verdict makes an error a refusal.
async fn answered<R, T>(
    call: impl Future<Output = Result<Response<R>, Status>>,
    reply: impl FnOnce(R) -> T,
) -> Answer<T> {
    match call.await {
        Ok(response) => Ok(Ok(reply(response.into_inner()))),
        Err(status) if status.metadata().get("saga-verdict").is_some_and(|verdict| verdict == "rejected") => {
            Ok(Err(Refused { reason: status.message().to_owned() }))
        }
        Err(status) => Err(status),
    }
}
