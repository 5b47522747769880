//! The books of a shop at rest: what queries answer must add up.

use std::collections::BTreeMap;

use anyhow::Context as _;
use libs::money::Amount;
use proto::{
    google::r#type::Money,
    inventory::v1::{ListStockRequest, Stock},
    order::v1::{ListOrdersRequest, Order, OrderState},
    payment::v1::{Account, Charge, ChargeState, GetAccountRequest, ListChargesRequest},
    shipping::v1::{ListShipmentsRequest, Shipment, ShipmentState},
};

use crate::clients::{Orders, Suppliers, sentence};

/// What the services' queries answer. A page of each is enough for a demonstration.
#[derive(Debug, Default)]
pub struct Books {
    stock: Vec<Stock>,
    accounts: Vec<Account>,
    charges: Vec<Charge>,
    shipments: Vec<Shipment>,
    orders: Vec<Order>,
}

/// One sum that must hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Sum {
    /// The sum in words.
    pub text: String,
    /// True if it holds.
    pub holds: bool,
}

impl Books {
    /// Asks the services.
    ///
    /// # Errors
    /// When one refuses to answer.
    pub async fn read(suppliers: &Suppliers, orders: &Orders, customers: &[&str]) -> anyhow::Result<Self> {
        let Suppliers { mut stock, accounts, mut shipments, .. } = suppliers.clone();
        let stock = stock.list_stock(ListStockRequest::default()).await.map_err(|status| sentence(&status))?;
        let mut found = Vec::new();
        for customer_id in customers {
            let request = GetAccountRequest { customer_id: (*customer_id).to_owned() };
            let account = accounts.clone().get_account(request).await.map_err(|status| sentence(&status))?;
            found.push(account.into_inner().account.context("no account")?);
        }
        let charges = accounts.clone().list_charges(ListChargesRequest::default()).await;
        let charges = charges.map_err(|status| sentence(&status))?;
        let shipments = shipments.list_shipments(ListShipmentsRequest::default()).await;
        let shipments = shipments.map_err(|status| sentence(&status))?;
        let orders = orders.queries.clone().list_orders(ListOrdersRequest::default()).await;
        let orders = orders.map_err(|status| sentence(&status))?;
        Ok(Self {
            stock: stock.into_inner().stock,
            accounts: found,
            charges: charges.into_inner().charges,
            shipments: shipments.into_inner().shipments,
            orders: orders.into_inner().orders,
        })
    }

    /// Every sum, whether it holds or not.
    #[must_use]
    pub fn sums(&self) -> Vec<Sum> {
        let mut sums = Vec::new();
        let mut parcels: BTreeMap<&str, i64> = BTreeMap::new();
        for shipment in self.shipments.iter().filter(|shipment| shipment.state() == ShipmentState::Shipped) {
            for parcel in &shipment.parcels {
                *parcels.entry(&parcel.sku).or_default() += parcel.quantity;
            }
        }
        for Stock { sku, added, available, reserved, shipped, .. } in &self.stock {
            let parcels = parcels.get(sku.as_str()).copied().unwrap_or_default();
            sums.push(Sum {
                text: format!("{sku}: {added} added = {available} available + {reserved} reserved + {shipped} shipped"),
                holds: *added == available + reserved + shipped && *reserved == 0 && *shipped == parcels,
            });
        }
        for account in &self.accounts {
            sums.push(self.account(account));
        }
        let completed = self.orders.iter().filter(|order| order.state() == OrderState::Completed).count();
        let charges = self.charges.iter().filter(|charge| charge.state() == ChargeState::Charged).count();
        let shipments = self.shipments.iter().filter(|shipment| shipment.state() == ShipmentState::Shipped).count();
        sums.push(Sum {
            text: format!("{completed} completed orders = {charges} charges kept = {shipments} shipments"),
            holds: completed == charges && completed == shipments,
        });
        sums
    }

    fn account(&self, account: &Account) -> Sum {
        let Account { customer_id, deposited, balance, charged, .. } = account;
        let kept = self.charges.iter().filter(|charge| charge.state() == ChargeState::Charged);
        let kept = kept.filter(|charge| charge.customer_id == *customer_id);
        let add_up = || -> Option<(String, bool)> {
            let [deposited, balance, charged] = [exact(deposited)?, exact(balance)?, exact(charged)?];
            let kept = kept
                .map(|charge| exact(&charge.amount))
                .try_fold(charged.zero(), |sum, charge| sum.plus(charge?).ok())?;
            let text = format!("{customer_id}: {deposited} deposited = {balance} left + {charged} charged");
            Some((text, balance.plus(charged).ok()? == deposited && kept == charged))
        };
        let (text, holds) = add_up().unwrap_or_else(|| (format!("{customer_id}: amounts are missing"), false));
        Sum { text, holds }
    }
}

fn exact(money: &Option<Money>) -> Option<Amount> {
    Amount::try_from(money.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use proto::shipping::v1::Parcel;

    use super::*;

    fn euros(units: i64) -> Option<Money> {
        Some(Money { currency_code: "EUR".to_owned(), units, nanos: 0 })
    }

    /// Ten teas were added and two of them sold to ada, who had 50.
    fn sound() -> Books {
        let mut charge = Charge { customer_id: "ada".to_owned(), amount: euros(6), ..Charge::default() };
        charge.set_state(ChargeState::Charged);
        let parcels = vec![Parcel { sku: "tea".to_owned(), quantity: 2 }];
        let mut shipment = Shipment { parcels, ..Shipment::default() };
        shipment.set_state(ShipmentState::Shipped);
        let mut order = Order::default();
        order.set_state(OrderState::Completed);
        Books {
            stock: vec![Stock { sku: "tea".to_owned(), added: 10, available: 8, shipped: 2, ..Stock::default() }],
            accounts: vec![Account {
                customer_id: "ada".to_owned(),
                deposited: euros(50),
                balance: euros(44),
                charged: euros(6),
                ..Account::default()
            }],
            charges: vec![charge],
            shipments: vec![shipment],
            orders: vec![order],
        }
    }

    fn hold(books: &Books) -> Vec<bool> {
        books.sums().iter().map(|sum| sum.holds).collect()
    }

    #[test]
    fn what_was_sold_once_adds_up() {
        assert_eq!(hold(&sound()), [true, true, true]);
    }

    #[test]
    fn what_leaked_does_not() {
        let mut books = sound();
        books.stock[0].available = 7;
        assert_eq!(hold(&books), [false, true, true]);
        let mut books = sound();
        books.accounts[0].balance = euros(43);
        assert_eq!(hold(&books), [true, false, true]);
        let mut books = sound();
        books.charges.clear();
        assert_eq!(hold(&books), [true, false, false]);
        let mut books = sound();
        books.shipments.clear();
        assert_eq!(hold(&books), [false, true, false]);
    }
}
