//! One order with services that run.

use proto::order::v1::{OrderItem, PlaceOrderRequest};
use uuid::Uuid;

use crate::{clients::Orders, config, demo, follow, screen::Screen};

/// Places the order and shows what becomes of it. A refusal is an end like any other.
///
/// # Errors
/// When the services aren't there or don't take the order.
pub async fn run(asked: config::Order, screen: Screen) -> anyhow::Result<()> {
    let config::Order { sku, quantity, customer, region, at } = asked;
    let orders = Orders::connect(&at.address).await?;
    let request = PlaceOrderRequest {
        request_id: Uuid::now_v7().to_string(),
        customer_id: customer,
        items: vec![OrderItem { sku, quantity }],
        address: Some(demo::address(&region)),
        ..PlaceOrderRequest::default()
    };
    let order = follow::place_and_follow(&orders, request, screen).await?;
    screen.line(format!("  order {} {}", order.order_id, follow::ending(&order, screen)))?;
    Ok(())
}
