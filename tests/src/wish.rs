//! The orders that a load is made of: those that can be had, and each kind that can't.

use proto::{
    google::r#type::PostalAddress,
    order::v1::{Order, OrderItem, OrderState, PlaceOrderRequest},
};
use rand::{Rng, RngExt as _, seq::IndexedRandom as _};
use uuid::Builder;

use crate::Shop;

/// SKUs that don't run out.
const PLENTY: [&str; 3] = ["tea", "coffee", "sugar"];
/// A SKU that does.
const SCARCE: &str = "truffle";
/// How many there are of it.
const SCARCE_UNITS: i64 = 300;
/// Customers who can pay.
const RICH: [&str; 5] = ["ann", "ben", "cleo", "dora", "emil"];

/// What a customer hopes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// What is there, by somebody who can pay, to where shipping goes.
    Fine,
    /// What is there for a while.
    Scarce,
    /// By somebody with too little money.
    Poor,
    /// By somebody with no account.
    Stranger,
    /// To a region that shipping refuses, after the charge.
    Undeliverable,
    /// Of a SKU that nobody knows.
    UnknownSku,
    /// More than there ever was.
    TooMany,
    /// Fine, and then cancelled, perhaps too late.
    Regretted,
}

impl Wish {
    /// Half of a load is fine; the rest is of all kinds.
    const MIX: [Self; 14] = [
        Self::Fine,
        Self::Fine,
        Self::Fine,
        Self::Fine,
        Self::Fine,
        Self::Fine,
        Self::Fine,
        Self::Scarce,
        Self::Poor,
        Self::Stranger,
        Self::Undeliverable,
        Self::UnknownSku,
        Self::TooMany,
        Self::Regretted,
    ];

    /// Brings the stock and the money that the wishes are about.
    ///
    /// # Errors
    /// When a service refuses.
    pub async fn prepare(shop: &Shop) -> anyhow::Result<()> {
        for (sku, dollars) in PLENTY.into_iter().zip(3..) {
            shop.stock(sku, 100_000_000, dollars).await?;
        }
        shop.stock(SCARCE, SCARCE_UNITS, 90).await?;
        for customer in RICH {
            shop.deposit(customer, 1_000_000_000).await?;
        }
        shop.deposit("poor", 1).await
    }

    /// Draws one.
    pub fn draw(random: &mut impl Rng) -> Self {
        *Self::MIX.choose(random).unwrap_or(&Self::Fine)
    }

    /// The request that asks for it. Its ids come from `random` too, so that a seed gives the same orders again.
    pub fn request(self, random: &mut impl Rng) -> PlaceOrderRequest {
        let mut id = || Builder::from_random_bytes(random.random()).into_uuid().to_string();
        let (request_id, chosen_id) = (id(), id());
        PlaceOrderRequest {
            request_id,
            order_id: if random.random() { chosen_id } else { String::new() },
            customer_id: match self {
                Self::Poor => "poor".to_owned(),
                Self::Stranger => "stranger".to_owned(),
                _ => RICH.choose(random).copied().unwrap_or_default().to_owned(),
            },
            items: self.items(random),
            address: Some(PostalAddress {
                region_code: if self == Self::Undeliverable { "AQ" } else { "CH" }.to_owned(),
                address_lines: vec![format!("Bahnhofstrasse {}", random.random_range(1..=1_000))],
                ..PostalAddress::default()
            }),
            wait_for_completion: random.random(),
        }
    }

    fn items(self, random: &mut impl Rng) -> Vec<OrderItem> {
        let mut skus: Vec<&str> = PLENTY.sample(random, 2).copied().collect();
        match self {
            Self::Scarce | Self::TooMany => skus.push(SCARCE),
            Self::UnknownSku => skus.push("nothing"),
            _ => {}
        }
        let item = |sku: &str, quantity| OrderItem { sku: sku.to_owned(), quantity };
        let mut items: Vec<OrderItem> = skus.into_iter().map(|sku| item(sku, random.random_range(1..=5))).collect();
        if let (Self::TooMany, Some(last)) = (self, items.last_mut()) {
            last.quantity = SCARCE_UNITS + 1;
        }
        items
    }

    /// Says what is wrong with the order's end, given what was hoped for.
    ///
    /// The order's saga has no deadline and no limit to its attempts, so however long a service is out, nothing but the wish itself
    /// explains a rejection.
    #[must_use]
    pub fn disappointment(self, order: &Order) -> Option<String> {
        let reason = order.rejection.as_ref().map_or("", |rejection| rejection.reason.as_str());
        let refusals: &[&str] = match self {
            Self::Fine | Self::Regretted => &[],
            Self::Scarce | Self::TooMany => &["INSUFFICIENT_STOCK"],
            Self::Poor => &["INSUFFICIENT_FUNDS"],
            Self::Stranger => &["UNKNOWN_ACCOUNT"],
            Self::Undeliverable => &["UNDELIVERABLE_ADDRESS"],
            Self::UnknownSku => &["UNKNOWN_SKU"],
        };
        let may_complete = matches!(self, Self::Fine | Self::Regretted | Self::Scarce);
        let strange = match order.state() {
            OrderState::Completed => !may_complete,
            OrderState::Rejected if refusals.contains(&reason) => false,
            OrderState::Rejected if reason == "CANCELLED" => self != Self::Regretted,
            _ => true,
        };
        strange.then(|| format!("order {} was {self:?}, but ended {:?} {reason}", order.order_id, order.state()))
    }
}

#[cfg(test)]
mod tests {
    use proto::order::v1::Rejection;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn a_seed_gives_the_same_orders_again() {
        let draw = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            Wish::draw(&mut random).request(&mut random)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn an_end_that_the_wish_does_not_explain_is_a_disappointment() {
        let ended = |state: OrderState, reason: &str| Order {
            state: state.into(),
            rejection: Some(Rejection { reason: reason.to_owned(), ..Rejection::default() }),
            ..Order::default()
        };
        assert_eq!(Wish::Fine.disappointment(&ended(OrderState::Completed, "")), None);
        assert_eq!(Wish::Poor.disappointment(&ended(OrderState::Rejected, "INSUFFICIENT_FUNDS")), None);
        assert_eq!(Wish::Regretted.disappointment(&ended(OrderState::Rejected, "CANCELLED")), None);
        assert!(Wish::Poor.disappointment(&ended(OrderState::Completed, "")).is_some());
        for reason in ["INSUFFICIENT_STOCK", "INVALID_REQUEST", "REPLY_MISSING", "ATTEMPTS_SPENT", ""] {
            assert!(Wish::Fine.disappointment(&ended(OrderState::Rejected, reason)).is_some(), "{reason}");
        }
        assert!(Wish::Fine.disappointment(&ended(OrderState::Rejected, "CANCELLED")).is_some());
        assert!(Wish::Fine.disappointment(&ended(OrderState::Pending, "")).is_some());
    }
}
