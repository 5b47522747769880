//! The ceiling: the same messages between as many processes over tonic alone, with nothing stored and nothing guarded.

use std::{net::SocketAddr, process::Stdio};

use anyhow::Context as _;
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
use tests::port::Port;
use tokio::process::{Child, Command};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// The four bare processes; they end with this.
#[derive(Debug)]
pub struct Bare {
    channel: Channel,
    _processes: Vec<(Child, Port)>,
}

impl Bare {
    /// A channel to the one that orders are placed with.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Starts four processes of this very program, which must [`serve`] when its first word is `bare`.
///
/// # Errors
/// When one can't be started.
pub async fn start() -> anyhow::Result<Bare> {
    let mut processes = Vec::new();
    let mut peers: Vec<String> = Vec::new();
    for name in ["inventory", "payment", "shipping", "order"] {
        let port = Port::free()?;
        let address = port.address().to_string();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bare", name, &address]).args(&peers).stdin(Stdio::null()).kill_on_drop(true);
        processes.push((command.spawn().context("a bare server can't be started")?, port));
        peers.push(address);
    }
    let order = peers.last().context("there are four")?;
    let endpoint = Endpoint::from_shared(format!("http://{order}"))?.tcp_nodelay(true);
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    Ok(Bare { channel, _processes: processes })
}

/// Serves one of the four: `NAME ADDRESS [PEER …]`.
///
/// # Errors
/// When a word is missing or wrong, or the address is taken.
pub async fn serve(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let name = arguments.next().context("no name")?;
    let address: SocketAddr = arguments.next().context("no address")?.parse()?;
    let mut peers = arguments.map(|peer| Endpoint::from_shared(format!("http://{peer}")));
    let mut peer = || {
        peers.next().context("no peer")?.map(|peer| peer.tcp_nodelay(true).connect_lazy()).map_err(anyhow::Error::from)
    };
    let mut server = Server::builder();
    let router = match name.as_str() {
        "inventory" => server.add_service(InventoryCommandServiceServer::new(Participant)),
        "payment" => server.add_service(PaymentCommandServiceServer::new(Participant)),
        "shipping" => server.add_service(ShippingCommandServiceServer::new(Participant)),
        _ => server.add_service(OrderCommandServiceServer::new(Orders {
            inventory: InventoryCommandServiceClient::new(peer()?),
            payment: PaymentCommandServiceClient::new(peer()?),
            shipping: ShippingCommandServiceClient::new(peer()?),
        })),
    };
    Ok(router.serve(address).await?)
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
