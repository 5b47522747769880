//! The services together.

use std::path::Path;

use futures::future::try_join_all;
use proto::{
    google::r#type::{Money, PostalAddress},
    inventory::v1::AddStockRequest,
    order::v1::{OrderItem, PlaceOrderRequest},
    payment::v1::DepositFundsRequest,
};
use tempfile::TempDir;

use crate::{Clients, Server, tls::Secrets};

/// Inventory, payment, shipping and order as processes, on fresh data that goes when this does.
#[derive(Debug)]
pub struct Shop {
    // Before the folder, so that no process outlives its data.
    servers: [Server; Self::NAMES.len()],
    folder: TempDir,
}

impl Shop {
    /// The services' places in [`servers_mut`](Self::servers_mut).
    pub const NAMES: [&str; 4] = ["inventory", "payment", "shipping", "order"];
    /// Those that take part in order's sagas.
    const PARTICIPANTS: [&str; 3] = ["inventory", "payment", "shipping"];

    /// Starts all and waits until they serve.
    ///
    /// # Errors
    /// When one isn't built or doesn't serve.
    pub async fn start() -> anyhow::Result<Self> {
        let mut shop = Self::new()?;
        try_join_all(shop.servers.iter_mut().map(Server::start)).await?;
        Ok(shop)
    }

    /// All, none of them started.
    ///
    /// # Errors
    /// When no port or folder is to be had.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("shop-").tempdir()?;
        let [inventory, payment, shipping, order] = Self::NAMES.map(|name| Server::new(name, folder.path()));
        let mut shop = Self { servers: [inventory?, payment?, shipping?, order?], folder };
        shop.introduce();
        Ok(shop)
    }

    /// Tells those that call others where those are.
    fn introduce(&mut self) {
        let [inventory, payment, shipping, order] = &mut self.servers;
        inventory.peer(shipping);
        for peer in [inventory, payment, shipping] {
            order.peer(peer);
        }
    }

    /// Gives all of them TLS, with a certificate to show each other.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn secure(&mut self, secrets: &Secrets) -> anyhow::Result<()> {
        for server in &mut self.servers {
            server.secure(secrets)?;
        }
        self.introduce();
        Ok(())
    }

    /// All, in the order of [`NAMES`](Self::NAMES).
    pub fn servers_mut(&mut self) -> &mut [Server; Self::NAMES.len()] {
        &mut self.servers
    }

    /// Those that take part in order's sagas.
    pub fn participants_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.servers.iter_mut().filter(|server| Self::PARTICIPANTS.contains(&server.name()))
    }

    /// The inventory service.
    pub fn inventory(&mut self) -> &mut Server {
        let [inventory, _, _, _] = &mut self.servers;
        inventory
    }

    /// The payment service.
    pub fn payment(&mut self) -> &mut Server {
        let [_, payment, _, _] = &mut self.servers;
        payment
    }

    /// The shipping service.
    pub fn shipping(&mut self) -> &mut Server {
        let [_, _, shipping, _] = &mut self.servers;
        shipping
    }

    /// The order service.
    pub fn order(&mut self) -> &mut Server {
        let [_, _, _, order] = &mut self.servers;
        order
    }

    /// Where all data and logs are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where they listen, in the order of [`NAMES`](Self::NAMES).
    #[must_use]
    pub fn addresses(&self) -> [String; Self::NAMES.len()] {
        self.servers.each_ref().map(Server::address)
    }

    /// Clients of all.
    #[must_use]
    pub fn clients(&self) -> Clients {
        let [inventory, payment, shipping, order] = &self.servers;
        Clients {
            inventory: inventory.channel(),
            payment: payment.channel(),
            shipping: shipping.channel(),
            order: order.channel(),
        }
    }

    /// Adds units of a SKU at a price in USD.
    ///
    /// # Errors
    /// When inventory refuses.
    pub async fn stock(&self, sku: &str, quantity: i64, dollars: i64) -> anyhow::Result<()> {
        self.clients().inventory_commands().add_stock(stock(sku, quantity, dollars)).await?;
        Ok(())
    }

    /// Puts USD into a customer's account.
    ///
    /// # Errors
    /// When payment refuses.
    pub async fn deposit(&self, customer_id: &str, dollars: i64) -> anyhow::Result<()> {
        self.clients().payment_commands().deposit_funds(deposit(customer_id, dollars)).await?;
        Ok(())
    }
}

/// Whole US dollars.
#[must_use]
pub fn usd(dollars: i64) -> Money {
    Money { currency_code: "USD".to_owned(), units: dollars, nanos: 0 }
}

/// The adding of units of a SKU, at a price in USD.
#[must_use]
pub fn stock(sku: &str, quantity: i64, dollars: i64) -> AddStockRequest {
    AddStockRequest {
        request_id: format!("stock-{sku}"),
        sku: sku.to_owned(),
        quantity,
        unit_price: Some(usd(dollars)),
    }
}

/// USD for a customer's account.
#[must_use]
pub fn deposit(customer_id: &str, dollars: i64) -> DepositFundsRequest {
    DepositFundsRequest {
        request_id: format!("deposit-{customer_id}"),
        customer_id: customer_id.to_owned(),
        amount: Some(usd(dollars)),
    }
}

/// An order for a unit of tea by Ann, to a region, that is answered once it has ended.
#[must_use]
pub fn order(id: &str, region: &str) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "ann".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 1 }],
        address: Some(PostalAddress {
            region_code: region.to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: true,
    }
}
