//! The demonstration: three orders on fresh data, each announced with its end, and the books afterwards.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use proto::{
    google::r#type::{Money, PostalAddress},
    inventory::v1::AddStockRequest,
    order::v1::{Order, OrderItem, OrderState, PlaceOrderRequest},
    payment::v1::DepositFundsRequest,
};

use tokio::time::sleep;

use crate::{
    books::Books,
    clients::{Orders, Suppliers, sentence},
    follow::{amount, ending, place_and_follow},
    screen::{Screen, Tone},
    shop::{Shop, Site},
    timeline::brief,
};

/// What there is: SKU, units, price in cents.
const STOCK: [(&str, i64, i64); 2] = [("tea", 100, 1_250), ("jam", 40, 425)];
/// Who has how much, in cents.
const ACCOUNTS: [(&str, i64); 3] = [("ada", 20_000), ("ben", 500), ("cleo", 8_000)];

/// How long the views may take to know of everything; it is milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(10);

/// An order and the end that is announced for it.
struct Scene {
    customer: &'static str,
    items: &'static [(&'static str, i64)],
    region: &'static str,
    announced: &'static str,
    /// The step and reason of the refusal; None completes.
    refusal: Option<(&'static str, &'static str)>,
}

const SCENES: [Scene; 3] = [
    Scene {
        customer: "ada",
        items: &[("tea", 2), ("jam", 1)],
        region: "CH",
        announced: "all is there, paid and sent: it will be COMPLETED",
        refusal: None,
    },
    Scene {
        customer: "ben",
        items: &[("tea", 3)],
        region: "CH",
        announced: "he can't pay: the reservation will be released, the order REJECTED",
        refusal: Some(("charge_customer", "INSUFFICIENT_FUNDS")),
    },
    Scene {
        customer: "cleo",
        items: &[("jam", 4)],
        region: "AQ",
        announced: "nobody ships to Antarctica: she will be refunded after the charge, the reservation released, the order REJECTED",
        refusal: Some(("ship_order", "UNDELIVERABLE_ADDRESS")),
    },
];

/// Runs the demonstration.
///
/// # Errors
/// When anything ends otherwise than announced.
pub async fn run(screen: Screen) -> anyhow::Result<()> {
    let mut stopped = pin!(libs::cli::shutdown()?);
    let data = tempfile::tempdir().context("no room for the demo's data")?;
    let began = Instant::now();
    screen.line(screen.paint(Tone::Title, "The services, each with its own database, on fresh data"))?;
    let shop = Shop::start(&Site::anywhere(data.path())).await?;
    for (name, uri) in shop.uris() {
        screen.line(format!("  {name:<10} {uri}"))?;
    }
    screen.line(screen.paint(Tone::Faint, format!("  serving after {}", brief(began.elapsed()))))?;
    let uris = [shop.uri("inventory")?, shop.uri("payment")?, shop.uri("shipping")?, shop.uri("order")?];
    shop.during(async {
        tokio::select! {
            played = play(uris, screen) => played,
            // In order, so that the data goes too.
            () = &mut stopped => bail!("stopped before its end"),
        }
    })
    .await
}

async fn play([inventory, payment, shipping, order]: [String; 4], screen: Screen) -> anyhow::Result<()> {
    let suppliers = Suppliers::connect(&inventory, &payment, &shipping).await?;
    let orders = Orders::connect(&order).await?;
    stock(&suppliers, screen).await?;
    for (at, scene) in SCENES.iter().enumerate() {
        scene.play(at + 1, &orders, screen).await?;
    }
    close_books(&suppliers, &orders, screen).await
}

/// Fills shelves and accounts.
async fn stock(suppliers: &Suppliers, screen: Screen) -> anyhow::Result<()> {
    screen.line("")?;
    screen.line(screen.paint(Tone::Title, "Stock and accounts"))?;
    let Suppliers { mut inventory, mut payment, .. } = suppliers.clone();
    for (sku, quantity, price) in STOCK {
        let (request_id, unit_price) = (format!("demo-{sku}"), Some(euros(price)));
        let request = AddStockRequest { request_id, sku: sku.to_owned(), quantity, unit_price };
        inventory.add_stock(request).await.map_err(|status| sentence(&status))?;
        screen.line(format!("  {quantity} {sku} at {}", amount(&euros(price))))?;
    }
    for (customer, cents) in ACCOUNTS {
        let request_id = format!("demo-{customer}");
        let request = DepositFundsRequest { request_id, customer_id: customer.to_owned(), amount: Some(euros(cents)) };
        payment.deposit_funds(request).await.map_err(|status| sentence(&status))?;
        screen.line(format!("  {customer} has {}", amount(&euros(cents))))?;
    }
    Ok(())
}

impl Scene {
    async fn play(&self, number: usize, orders: &Orders, screen: Screen) -> anyhow::Result<()> {
        let items: Vec<String> = self.items.iter().map(|(sku, quantity)| format!("{quantity} {sku}")).collect();
        screen.line("")?;
        let title = format!("Order {number}: {} wants {} to {}", self.customer, items.join(" and "), self.region);
        screen.line(screen.paint(Tone::Title, title))?;
        screen.line(screen.paint(Tone::Faint, format!("  announced: {}", self.announced)))?;
        let order = place_and_follow(orders, self.request(number), screen).await?;
        screen.line(format!("  {}", ending(&order, screen)))?;
        let ended = self.ended_as_announced(&order);
        ensure!(ended, "order {number} ended otherwise than announced: {}", ending(&order, Screen::plain()));
        Ok(())
    }

    fn request(&self, number: usize) -> PlaceOrderRequest {
        let item = |&(sku, quantity): &(&str, i64)| OrderItem { sku: sku.to_owned(), quantity };
        PlaceOrderRequest {
            request_id: format!("demo-{number}"),
            order_id: format!("demo-{number}"),
            customer_id: self.customer.to_owned(),
            items: self.items.iter().map(item).collect(),
            address: Some(address(self.region)),
            wait_for_completion: false,
        }
    }

    fn ended_as_announced(&self, order: &Order) -> bool {
        match (self.refusal, &order.rejection) {
            (None, None) => order.state() == OrderState::Completed,
            (Some((step, reason)), Some(rejection)) => {
                order.state() == OrderState::Rejected && rejection.step == step && rejection.reason == reason
            }
            _ => false,
        }
    }
}

async fn close_books(suppliers: &Suppliers, orders: &Orders, screen: Screen) -> anyhow::Result<()> {
    screen.line("")?;
    screen.line(screen.paint(Tone::Title, "The books, from the queries"))?;
    let customers = ACCOUNTS.map(|(customer, _)| customer);
    let mut sums = Books::read(suppliers, orders, &customers).await?.sums();
    // Queries follow commands at a little distance, and other services' events at another.
    let late = Instant::now() + PATIENCE;
    while sums.iter().any(|sum| !sum.holds) && Instant::now() < late {
        sleep(LOOK).await;
        sums = Books::read(suppliers, orders, &customers).await?.sums();
    }
    for sum in &sums {
        let (tone, word) = if sum.holds { (Tone::Good, "ok") } else { (Tone::Bad, "WRONG") };
        screen.line(format!("  {}  {}", screen.paint(tone, format!("{word:<5}")), sum.text))?;
    }
    ensure!(sums.iter().all(|sum| sum.holds), "the books don't add up");
    Ok(())
}

/// An address in a region.
#[must_use]
pub fn address(region: &str) -> PostalAddress {
    PostalAddress {
        region_code: region.to_owned(),
        address_lines: vec!["1 Market Square".to_owned()],
        ..PostalAddress::default()
    }
}

fn euros(cents: i64) -> Money {
    let nanos = i32::try_from(cents % 100).unwrap_or_default() * 10_000_000;
    Money { currency_code: "EUR".to_owned(), units: cents / 100, nanos }
}

#[cfg(test)]
mod tests {
    use proto::order::v1::Rejection;

    use super::*;

    #[test]
    fn only_the_announced_end_is_taken_for_it() {
        let completed = Order { state: OrderState::Completed.into(), ..Order::default() };
        let rejected = |step: &str, reason: &str| Order {
            state: OrderState::Rejected.into(),
            rejection: Some(Rejection { step: step.to_owned(), reason: reason.to_owned(), ..Rejection::default() }),
            ..Order::default()
        };
        let [fine, poor, far] = SCENES;
        assert!(fine.ended_as_announced(&completed));
        assert!(!fine.ended_as_announced(&Order::default()));
        assert!(poor.ended_as_announced(&rejected("charge_customer", "INSUFFICIENT_FUNDS")));
        assert!(!poor.ended_as_announced(&completed));
        assert!(!far.ended_as_announced(&rejected("charge_customer", "INSUFFICIENT_FUNDS")));
    }
}
