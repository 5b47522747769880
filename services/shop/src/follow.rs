//! Places one order and shows what becomes of it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use proto::{
    order::v1::{Order, OrderState, PlaceOrderRequest, WatchOrderRequest},
    saga::v1::WatchSagasRequest,
};
use tokio::time::timeout;

use crate::{
    clients::{Orders, after, sentence, token},
    screen::{Screen, Tone},
    timeline::{Timeline, is_over},
};

/// How long an order may take; it takes milliseconds unless a service is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Places an order, shows its saga as it moves, and answers the order as it ended.
///
/// # Errors
/// When the order is not accepted, has no end within a minute, or nobody reads the screen.
pub async fn place_and_follow(orders: &Orders, request: PlaceOrderRequest, screen: Screen) -> anyhow::Result<Order> {
    let placed = orders.commands.clone().place_order(request).await.map_err(|status| sentence(&status))?;
    let token = token(placed.metadata());
    let id = placed.into_inner().order.context("the order service answered no order")?.order_id;
    let followed = async {
        let saga = after(&token, WatchSagasRequest { saga_id: id.clone(), after_position: 0 });
        let mut changes =
            orders.sagas.clone().watch_sagas(saga).await.map_err(|status| sentence(&status))?.into_inner();
        let mut timeline = Timeline::default();
        while let Some(change) = changes.message().await.map_err(|status| sentence(&status))? {
            let Some(saga) = change.saga else { continue };
            for line in timeline.news(&saga, screen) {
                screen.line(line)?;
            }
            if is_over(&saga) {
                break;
            }
        }
        // The order's last event and its saga's are one transaction; its view may be a moment behind.
        let order = after(&token, WatchOrderRequest { order_id: id.clone(), after_position: 0 });
        let mut changes =
            orders.queries.clone().watch_order(order).await.map_err(|status| sentence(&status))?.into_inner();
        let mut last = None;
        while let Some(change) = changes.message().await.map_err(|status| sentence(&status))? {
            last = change.order;
        }
        last.context("the order service ended the watch without an order")
    };
    match timeout(PATIENCE, followed).await {
        Ok(order) => order,
        Err(_) => bail!("order {id} has no end after {} s: it goes on, `./just watch` shows it", PATIENCE.as_secs()),
    }
}

/// How an order ended, in a line.
#[must_use]
pub fn ending(order: &Order, screen: Screen) -> String {
    match order.state() {
        OrderState::Completed => {
            let total = order.total.as_ref().map(amount).unwrap_or_default();
            screen.paint(Tone::Good, format!("COMPLETED for {total}"))
        }
        OrderState::Rejected => {
            let rejection = order.rejection.clone().unwrap_or_default();
            let by = if rejection.step.is_empty() { String::new() } else { format!(" by {}", rejection.step) };
            screen.paint(Tone::Bad, format!("REJECTED{by}, {}: {}", rejection.reason, rejection.message))
        }
        state => screen.paint(Tone::Bad, format!("{state:?}")),
    }
}

/// Money, for people.
#[must_use]
pub fn amount(money: &proto::google::r#type::Money) -> String {
    libs::money::Amount::try_from(money).map(|amount| amount.to_string()).unwrap_or_default()
}
