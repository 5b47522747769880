//! A typed client for each surface of a shop.

use std::time::Duration;

use proto::{
    breaker::v1::breaker_query_service_client::BreakerQueryServiceClient,
    inventory::v1::{
        inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
    order::v1::{
        GetOrderRequest, GetOrderResponse, order_command_service_client::OrderCommandServiceClient,
        order_query_service_client::OrderQueryServiceClient,
    },
    payment::v1::{
        payment_command_service_client::PaymentCommandServiceClient,
        payment_query_service_client::PaymentQueryServiceClient,
    },
    saga::v1::{
        parked_saga_query_service_client::ParkedSagaQueryServiceClient,
        saga_query_service_client::SagaQueryServiceClient,
    },
    shipping::v1::{
        shipping_command_service_client::ShippingCommandServiceClient,
        shipping_query_service_client::ShippingQueryServiceClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status, transport::Channel};

/// How long a view may be behind: far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The channels to a shop's services; they outlive its processes.
#[derive(Clone, Debug)]
pub struct Clients {
    /// To inventory.
    pub inventory: Channel,
    /// To payment.
    pub payment: Channel,
    /// To shipping.
    pub shipping: Channel,
    /// To order.
    pub order: Channel,
}

macro_rules! clients {
    ($($name:ident: $client:ident over $channel:ident;)*) => {
        impl Clients { $(
            #[doc = concat!("A client of [`", stringify!($client), "`].")]
            #[must_use]
            pub fn $name(&self) -> $client<Channel> {
                $client::new(self.$channel.clone())
            }
        )* }
    };
}

clients! {
    inventory_commands: InventoryCommandServiceClient over inventory;
    inventory_queries: InventoryQueryServiceClient over inventory;
    payment_commands: PaymentCommandServiceClient over payment;
    payment_queries: PaymentQueryServiceClient over payment;
    shipping_commands: ShippingCommandServiceClient over shipping;
    shipping_queries: ShippingQueryServiceClient over shipping;
    order_commands: OrderCommandServiceClient over order;
    order_queries: OrderQueryServiceClient over order;
    saga_queries: SagaQueryServiceClient over order;
    parked_sagas: ParkedSagaQueryServiceClient over order;
    breaker_queries: BreakerQueryServiceClient over order;
}

impl Clients {
    /// An order, once the query side knows it: its views are a moment behind the commands.
    ///
    /// # Errors
    /// Whatever it is refused for but that it isn't there; DEADLINE_EXCEEDED when it isn't there after a minute.
    pub async fn shown(&self, asked: GetOrderRequest) -> Result<GetOrderResponse, Status> {
        let look = async {
            loop {
                match self.order_queries().get_order(asked.clone()).await {
                    Err(status) if status.code() == Code::NotFound => sleep(Duration::from_millis(5)).await,
                    answer => return answer.map(Response::into_inner),
                }
            }
        };
        let late = || Status::deadline_exceeded(format!("order {} isn't shown after {PATIENCE:?}", asked.order_id));
        timeout(PATIENCE, look).await.unwrap_or_else(|_| Err(late()))
    }
}
