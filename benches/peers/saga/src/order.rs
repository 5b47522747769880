//! An order as the engines keep it, and how it ends.

use anyhow::Context as _;
use proto::{
    google::r#type::{Money, PostalAddress},
    order::v1::{Order, OrderItem, OrderState, PlaceOrderRequest, Rejection},
};
use serde::{Deserialize, Serialize};

/// What a saga starts from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) items: Vec<(String, i64)>,
    pub(crate) region: String,
    pub(crate) postal_code: String,
    pub(crate) locality: String,
    pub(crate) lines: Vec<String>,
}

/// What the items cost together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    currency: String,
    units: i64,
    nanos: i32,
}

/// How an order ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ended {
    Completed(Cost),
    Rejected { step: String, reason: String },
}

/// How many sagas an engine's store has, by their end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) completed: i64,
    pub(crate) rejected: i64,
}

impl Wanted {
    pub(crate) fn from_request(request: PlaceOrderRequest) -> anyhow::Result<Self> {
        let address = request.address.context("no address")?;
        Ok(Self {
            id: request.request_id,
            customer: request.customer_id,
            items: request.items.into_iter().map(|item| (item.sku, item.quantity)).collect(),
            region: address.region_code,
            postal_code: address.postal_code,
            locality: address.locality,
            lines: address.address_lines,
        })
    }

    pub(crate) fn address(&self) -> PostalAddress {
        PostalAddress {
            region_code: self.region.clone(),
            postal_code: self.postal_code.clone(),
            locality: self.locality.clone(),
            address_lines: self.lines.clone(),
            ..PostalAddress::default()
        }
    }

    /// The order as the caller is answered.
    pub(crate) fn into_order(self, ended: Ended) -> Order {
        let address = Some(self.address());
        let items = self.items.into_iter().map(|(sku, quantity)| OrderItem { sku, quantity }).collect();
        let mut order = Order { order_id: self.id, customer_id: self.customer, items, address, ..Order::default() };
        match ended {
            Ended::Completed(cost) => {
                order.set_state(OrderState::Completed);
                order.total = Some(cost.money());
            }
            Ended::Rejected { step, reason } => {
                order.set_state(OrderState::Rejected);
                order.rejection = Some(Rejection { step, reason, ..Rejection::default() });
            }
        }
        order
    }
}

impl Cost {
    pub(crate) fn of(total: Option<Money>) -> Self {
        let Money { currency_code, units, nanos } = total.unwrap_or_default();
        Self { currency: currency_code, units, nanos }
    }

    pub(crate) fn money(&self) -> Money {
        Money { currency_code: self.currency.clone(), units: self.units, nanos: self.nanos }
    }
}
