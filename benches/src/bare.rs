//! The ceiling: the same messages between as many processes over tonic alone, with nothing stored and nothing guarded.

use anyhow::{Context as _, bail};
use proto::{
    google::r#type::Money,
    inventory::v1::{
        AddStockRequest, AddStockResponse, Item, ReleaseStockRequest, ReleaseStockResponse, ReserveStockRequest,
        ReserveStockResponse,
        inventory_command_service_client::InventoryCommandServiceClient,
        inventory_command_service_server::{InventoryCommandService, InventoryCommandServiceServer},
    },
    order::v1::{
        CancelOrderRequest, CancelOrderResponse, Order, OrderState, PlaceOrderRequest, PlaceOrderResponse,
        order_command_service_server::{OrderCommandService, OrderCommandServiceServer},
    },
    payment::v1::{
        ChargeCustomerRequest, ChargeCustomerResponse, DepositFundsRequest, DepositFundsResponse, RefundChargeRequest,
        RefundChargeResponse,
        payment_command_service_client::PaymentCommandServiceClient,
        payment_command_service_server::{PaymentCommandService, PaymentCommandServiceServer},
    },
    shipping::v1::{
        CancelShipmentRequest, CancelShipmentResponse, CreateShipmentRequest, CreateShipmentResponse, Parcel,
        shipping_command_service_client::ShippingCommandServiceClient,
        shipping_command_service_server::{ShippingCommandService, ShippingCommandServiceServer},
    },
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use crate::again::Again;

/// The four bare processes, of which orders are placed with the last; they end with this.
#[derive(Debug)]
pub struct Bare([Again; 4]);

impl Bare {
    /// A channel to the one that orders are placed with.
    #[must_use]
    pub fn channel(&self) -> Channel {
        let [.., order] = &self.0;
        order.channel()
    }
}

/// Starts four processes of this very program, which must [`serve`] when its first word is `bare`.
///
/// # Errors
/// When one can't be started.
pub async fn start() -> anyhow::Result<Bare> {
    let inventory = Again::start(["bare", "inventory"], &[]).await?;
    let payment = Again::start(["bare", "payment"], &[]).await?;
    let shipping = Again::start(["bare", "shipping"], &[]).await?;
    let [first, second, third] = [&inventory, &payment, &shipping].map(Again::address);
    let order = Again::start(["bare", "order", &first, &second, &third], &[]).await?;
    Ok(Bare([inventory, payment, shipping, order]))
}

/// Serves one of the four: `NAME [INVENTORY PAYMENT SHIPPING] ADDRESS`.
///
/// # Errors
/// When a word is missing or wrong, or the address is taken.
pub async fn serve(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let words: Vec<String> = arguments.collect();
    let [name, peers @ .., address] = &words[..] else { bail!("no name, or no address") };
    let peer = |at: usize| {
        let address = peers.get(at).context("no peer")?;
        anyhow::Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect_lazy())
    };
    let mut server = Server::builder();
    let router = match name.as_str() {
        "inventory" => server.add_service(InventoryCommandServiceServer::new(Participant)),
        "payment" => server.add_service(PaymentCommandServiceServer::new(Participant)),
        "shipping" => server.add_service(ShippingCommandServiceServer::new(Participant)),
        _ => server.add_service(OrderCommandServiceServer::new(Orders {
            inventory: InventoryCommandServiceClient::new(peer(0)?),
            payment: PaymentCommandServiceClient::new(peer(1)?),
            shipping: ShippingCommandServiceClient::new(peer(2)?),
        })),
    };
    Ok(router.serve(address.parse()?).await?)
}

struct Participant;

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the benchmark"))
}

#[tonic::async_trait]
impl InventoryCommandService for Participant {
    async fn add_stock(&self, _: Request<AddStockRequest>) -> Result<Response<AddStockResponse>, Status> {
        unused()
    }

    async fn reserve_stock(
        &self,
        request: Request<ReserveStockRequest>,
    ) -> Result<Response<ReserveStockResponse>, Status> {
        let total = Some(Money { currency_code: "USD".to_owned(), units: 1, nanos: 0 });
        Ok(Response::new(ReserveStockResponse { reservation_id: request.into_inner().reservation_id, total }))
    }

    async fn release_stock(&self, _: Request<ReleaseStockRequest>) -> Result<Response<ReleaseStockResponse>, Status> {
        unused()
    }
}

#[tonic::async_trait]
impl PaymentCommandService for Participant {
    async fn deposit_funds(&self, _: Request<DepositFundsRequest>) -> Result<Response<DepositFundsResponse>, Status> {
        unused()
    }

    async fn charge_customer(
        &self,
        request: Request<ChargeCustomerRequest>,
    ) -> Result<Response<ChargeCustomerResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(ChargeCustomerResponse { charge_id: request.charge_id, balance: request.amount }))
    }

    async fn refund_charge(&self, _: Request<RefundChargeRequest>) -> Result<Response<RefundChargeResponse>, Status> {
        unused()
    }
}

#[tonic::async_trait]
impl ShippingCommandService for Participant {
    async fn create_shipment(
        &self,
        request: Request<CreateShipmentRequest>,
    ) -> Result<Response<CreateShipmentResponse>, Status> {
        Ok(Response::new(CreateShipmentResponse { shipment_id: request.into_inner().shipment_id }))
    }

    async fn cancel_shipment(
        &self,
        _: Request<CancelShipmentRequest>,
    ) -> Result<Response<CancelShipmentResponse>, Status> {
        unused()
    }
}

struct Orders {
    inventory: InventoryCommandServiceClient<Channel>,
    payment: PaymentCommandServiceClient<Channel>,
    shipping: ShippingCommandServiceClient<Channel>,
}

#[tonic::async_trait]
impl OrderCommandService for Orders {
    async fn place_order(&self, request: Request<PlaceOrderRequest>) -> Result<Response<PlaceOrderResponse>, Status> {
        let PlaceOrderRequest { request_id: id, customer_id, items, address, .. } = request.into_inner();
        let reserve = ReserveStockRequest {
            reservation_id: id.clone(),
            items: items.iter().map(|item| Item { sku: item.sku.clone(), quantity: item.quantity }).collect(),
            ..ReserveStockRequest::default()
        };
        let total = self.inventory.clone().reserve_stock(reserve).await?.into_inner().total;
        let charge = ChargeCustomerRequest {
            charge_id: id.clone(),
            customer_id: customer_id.clone(),
            amount: total.clone(),
            ..ChargeCustomerRequest::default()
        };
        self.payment.clone().charge_customer(charge).await?;
        let ship = CreateShipmentRequest {
            shipment_id: id.clone(),
            address: address.clone(),
            parcels: items.iter().map(|item| Parcel { sku: item.sku.clone(), quantity: item.quantity }).collect(),
            ..CreateShipmentRequest::default()
        };
        self.shipping.clone().create_shipment(ship).await?;
        let mut order = Order { order_id: id, customer_id, items, address, total, ..Order::default() };
        order.set_state(OrderState::Completed);
        Ok(Response::new(PlaceOrderResponse { order: Some(order) }))
    }

    async fn cancel_order(&self, _: Request<CancelOrderRequest>) -> Result<Response<CancelOrderResponse>, Status> {
        unused()
    }
}
