//! Everything that a shop's queries answer, read page by page.

use std::collections::BTreeSet;

use futures::Future;
use proto::{
    inventory::v1::{ListStockRequest, Stock},
    order::v1::{ListOrdersRequest, Order},
    payment::v1::{Account, Charge, GetAccountRequest, ListChargesRequest},
    saga::v1::{ListSagasRequest, Saga},
    shipping::v1::{ListShipmentsRequest, Shipment},
};
use tonic::{Code, Status};

use crate::Clients;

/// The most that a page holds.
const PAGE: i32 = 1_000;

/// What a shop's read models say, all of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Every SKU's stock.
    pub stock: Vec<Stock>,
    /// The accounts of everybody who ever ordered or was charged.
    pub accounts: Vec<Account>,
    /// Every charge.
    pub charges: Vec<Charge>,
    /// Every shipment.
    pub shipments: Vec<Shipment>,
    /// Every order.
    pub orders: Vec<Order>,
    /// Every saga.
    pub sagas: Vec<Saga>,
}

impl Facts {
    /// Reads them all. They are of one moment only when nothing moves.
    ///
    /// # Errors
    /// What a query answers other than what was asked.
    pub async fn read(clients: &Clients) -> Result<Self, Status> {
        Self::beside(clients, orders(clients).await?, sagas(clients).await?).await
    }

    /// What the participants say beside these orders and sagas, which are told of elsewhere.
    ///
    /// # Errors
    /// What a query answers other than what was asked.
    pub async fn beside(clients: &Clients, orders: Vec<Order>, sagas: Vec<Saga>) -> Result<Self, Status> {
        let charges = charges(clients).await?;
        let customers = orders.iter().map(|order| &order.customer_id);
        let customers: BTreeSet<_> = customers.chain(charges.iter().map(|charge| &charge.customer_id)).collect();
        let mut accounts = Vec::with_capacity(customers.len());
        for customer in customers {
            accounts.extend(account(clients, customer).await?);
        }
        let (stock, shipments) = (stock(clients).await?, shipments(clients).await?);
        Ok(Self { stock, accounts, charges, shipments, orders, sagas })
    }
}

/// A customer's account, or none.
async fn account(clients: &Clients, customer: &str) -> Result<Option<Account>, Status> {
    match clients.payment_queries().get_account(GetAccountRequest { customer_id: customer.to_owned() }).await {
        Ok(answer) => Ok(answer.into_inner().account),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

async fn stock(clients: &Clients) -> Result<Vec<Stock>, Status> {
    pages(|page_token| async move {
        let request = ListStockRequest { page_size: PAGE, page_token };
        let page = clients.inventory_queries().list_stock(request).await?.into_inner();
        Ok((page.stock, page.next_page_token))
    })
    .await
}

async fn charges(clients: &Clients) -> Result<Vec<Charge>, Status> {
    pages(|page_token| async move {
        let request = ListChargesRequest { page_size: PAGE, page_token, ..ListChargesRequest::default() };
        let page = clients.payment_queries().list_charges(request).await?.into_inner();
        Ok((page.charges, page.next_page_token))
    })
    .await
}

async fn shipments(clients: &Clients) -> Result<Vec<Shipment>, Status> {
    pages(|page_token| async move {
        let request = ListShipmentsRequest { page_size: PAGE, page_token };
        let page = clients.shipping_queries().list_shipments(request).await?.into_inner();
        Ok((page.shipments, page.next_page_token))
    })
    .await
}

async fn orders(clients: &Clients) -> Result<Vec<Order>, Status> {
    pages(|page_token| async move {
        let request = ListOrdersRequest { page_size: PAGE, page_token, ..ListOrdersRequest::default() };
        let page = clients.order_queries().list_orders(request).await?.into_inner();
        Ok((page.orders, page.next_page_token))
    })
    .await
}

async fn sagas(clients: &Clients) -> Result<Vec<Saga>, Status> {
    pages(|page_token| async move {
        let request = ListSagasRequest { page_size: PAGE, page_token, ..ListSagasRequest::default() };
        let page = clients.saga_queries().list_sagas(request).await?.into_inner();
        Ok((page.sagas, page.next_page_token))
    })
    .await
}

/// Asks for page after page until there is no token to go on with.
async fn pages<T, F>(mut page: impl FnMut(String) -> F) -> Result<Vec<T>, Status>
where
    F: Future<Output = Result<(Vec<T>, String), Status>>,
{
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_read_to_the_last() {
        let read = pages(|token| async move {
            let at: usize = token.parse().unwrap_or(0);
            Ok((vec![at], if at < 3 { (at + 1).to_string() } else { String::new() }))
        });
        assert_eq!(read.await.expect("three pages"), [0, 1, 2, 3]);
    }
}
