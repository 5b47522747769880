//! How the shop's commands talk to the services: as any client would, over gRPC.

use anyhow::{Context as _, bail};
use libs::{cqrs::CONSISTENCY_TOKEN, refusal::Refusal};
use proto::{
    inventory::v1::{
        inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
    order::v1::{
        order_command_service_client::OrderCommandServiceClient, order_query_service_client::OrderQueryServiceClient,
    },
    payment::v1::{
        payment_command_service_client::PaymentCommandServiceClient,
        payment_query_service_client::PaymentQueryServiceClient,
    },
    saga::v1::{
        parked_saga_query_service_client::ParkedSagaQueryServiceClient,
        saga_query_service_client::SagaQueryServiceClient,
    },
    shipping::v1::shipping_query_service_client::ShippingQueryServiceClient,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

/// Clients of the order service.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Places orders.
    pub commands: OrderCommandServiceClient<Channel>,
    /// Shows orders.
    pub queries: OrderQueryServiceClient<Channel>,
    /// Shows their sagas.
    pub sagas: SagaQueryServiceClient<Channel>,
    /// Shows those that can't be driven.
    pub parked: ParkedSagaQueryServiceClient<Channel>,
}

impl Orders {
    /// Connects to the order service.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        let channel = connect("order", address).await?;
        Ok(Self {
            commands: OrderCommandServiceClient::new(channel.clone()),
            queries: OrderQueryServiceClient::new(channel.clone()),
            sagas: SagaQueryServiceClient::new(channel.clone()),
            parked: ParkedSagaQueryServiceClient::new(channel),
        })
    }
}

/// Clients of the services behind an order.
#[derive(Clone, Debug)]
pub struct Suppliers {
    /// Adds stock.
    pub inventory: InventoryCommandServiceClient<Channel>,
    /// Shows stock.
    pub stock: InventoryQueryServiceClient<Channel>,
    /// Takes deposits.
    pub payment: PaymentCommandServiceClient<Channel>,
    /// Shows accounts.
    pub accounts: PaymentQueryServiceClient<Channel>,
    /// Shows shipments.
    pub shipments: ShippingQueryServiceClient<Channel>,
}

impl Suppliers {
    /// Connects to the three services.
    ///
    /// # Errors
    /// When one doesn't answer.
    pub async fn connect(inventory: &str, payment: &str, shipping: &str) -> anyhow::Result<Self> {
        let inventory = connect("inventory", inventory).await?;
        let payment = connect("payment", payment).await?;
        let shipping = connect("shipping", shipping).await?;
        Ok(Self {
            inventory: InventoryCommandServiceClient::new(inventory.clone()),
            stock: InventoryQueryServiceClient::new(inventory),
            payment: PaymentCommandServiceClient::new(payment.clone()),
            accounts: PaymentQueryServiceClient::new(payment),
            shipments: ShippingQueryServiceClient::new(shipping),
        })
    }
}

/// Connects to a service.
///
/// # Errors
/// When nobody answers there, or by TLS alone.
pub async fn connect(name: &str, address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned());
    let endpoint = endpoint.with_context(|| format!("{address} is not an address such as http://localhost:50054"))?;
    if endpoint.uri().scheme_str() == Some("https") {
        bail!("{address}: this speaks plain text; ask a service that has TLS by grpcurl, with a certificate of yours");
    }
    match endpoint.connect().await {
        Ok(channel) => Ok(channel),
        Err(_) => bail!("nobody answers for {name} at {address}: start the services with `./just up`"),
    }
}

/// The token that a command answered: a query that carries it sees the command's effect.
pub type Token = Option<MetadataValue<Ascii>>;

/// Reads a reply's token.
#[must_use]
pub fn token(metadata: &MetadataMap) -> Token {
    metadata.get(CONSISTENCY_TOKEN).cloned()
}

/// A query that sees what the token stands for.
pub fn after<T>(token: &Token, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert(CONSISTENCY_TOKEN, token.clone());
    }
    request
}

/// A refusal in one line: its reason and its sentence.
#[must_use]
pub fn sentence(status: &Status) -> anyhow::Error {
    let refusal = Refusal::from_status(status);
    match status.code() {
        Code::Unavailable if refusal.message.is_empty() => anyhow::anyhow!("the service is gone"),
        _ => anyhow::anyhow!("{}: {}", refusal.reason, refusal.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_has_tls_is_not_said_to_be_away() {
        let said = connect("order", "https://127.0.0.1:1").await.expect_err("it speaks plain text").to_string();
        assert!(said.contains("plain text") && !said.contains("nobody answers"), "{said}");
    }
}
