//! What a service's death means to those who call it: refused at once, answered from what is known, and whole again by itself.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use proto::{
    breaker::v1::{
        Breaker, CircuitState, ListBreakersRequest, breaker_query_service_client::BreakerQueryServiceClient,
    },
    google::r#type::PostalAddress,
    order::v1::{GetOrderRequest, OrderItem, OrderState, PlaceOrderRequest, ShipmentStanding},
    shipping::v1::ShipmentState,
};
use tests::{
    Shop,
    outage::Look,
    proxy::{Fault, Proxy},
};
use tokio::time::{Instant, sleep, timeout};

fn order(id: &str, wait: bool) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "ada".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 1 }],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["1 Market Square".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: wait,
    }
}

/// How an order's shipment stands, as the order service says.
async fn standing(shop: &Shop, order_id: &str) -> anyhow::Result<ShipmentStanding> {
    let asked = GetOrderRequest { order_id: order_id.to_owned(), include_shipment: true };
    Ok(shop.clients().shown(asked).await?.shipment.unwrap_or_default())
}

/// Waits until the first order's shipment stands as wanted.
async fn stands(shop: &Shop, wanted: impl Fn(&ShipmentStanding) -> bool) -> anyhow::Result<ShipmentStanding> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let standing = standing(shop, "one").await?;
        if wanted(&standing) {
            return Ok(standing);
        }
        anyhow::ensure!(Instant::now() < deadline, "after a minute it still stands as {standing:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A breaker of the order service.
async fn breaker(shop: &Shop, name: &str) -> anyhow::Result<Breaker> {
    let mut client = BreakerQueryServiceClient::new(shop.clients().order);
    let breakers = client.list_breakers(ListBreakersRequest::default()).await?.into_inner().breakers;
    breakers.into_iter().find(|breaker| breaker.name == name).with_context(|| format!("no breaker {name}"))
}

/// Waits until the breaker of questions to shipping is in this state, while something goes on asking.
async fn until(shop: &Shop, state: CircuitState) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = breaker(shop, "shipping.queries").await?.state();
        if now == state {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the breaker is {now:?} and not {state:?}");
        standing(shop, "one").await?;
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn while_shipping_is_dead_an_order_shows_the_last_that_was_heard_and_says_so() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    shop.stock("tea", 100, 3).await?;
    shop.deposit("ada", 1_000).await?;
    let placed = shop.clients().order_commands().place_order(order("one", true)).await?.into_inner();
    assert_eq!(placed.order.map(|order| order.state()), Some(OrderState::Completed));

    // Shipping's own view is a moment behind its command.
    let current = stands(&shop, |current| current.shipment.is_some()).await?;
    assert!(current.current && current.unavailable_because.is_empty(), "{current:?}");
    assert_eq!(current.shipment.as_ref().map(|shipment| shipment.state()), Some(ShipmentState::Shipped));

    shop.shipping().kill().await?;
    let known = standing(&shop, "one").await?;
    assert!(!known.current && known.age.is_some() && !known.unavailable_because.is_empty(), "{known:?}");
    assert_eq!(known.shipment, current.shipment);

    until(&shop, CircuitState::Open).await?;
    // A circuit that lets a probe through just now opens again.
    let known = stands(&shop, |known| known.unavailable_because.contains("circuit is open")).await?;
    assert_eq!(known.shipment, current.shipment);

    // What needs shipping waits for it, and what doesn't goes on: the order is taken, reserved and charged.
    let placed = shop.clients().order_commands().place_order(order("two", false)).await?.into_inner();
    assert_eq!(placed.order.map(|order| order.state()), Some(OrderState::Pending));
    let never_heard_of = standing(&shop, "two").await?;
    assert!(never_heard_of.shipment.is_none() && !never_heard_of.current, "{never_heard_of:?}");

    shop.shipping().start().await?;
    until(&shop, CircuitState::Closed).await?;
    // Who asks has half a second for it, which a busy machine may not have.
    stands(&shop, |known| known.current).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let asked = GetOrderRequest { order_id: "two".to_owned(), include_shipment: false };
        let answer = shop.clients().order_queries().get_order(asked).await?.into_inner();
        assert_eq!(answer.shipment, None, "it was not asked for");
        if answer.order.is_some_and(|order| order.state() == OrderState::Completed) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "the second order is not completed");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A shop with something to sell and a customer, and a proxy on the way from order to shipping.
async fn shop_behind_a_proxy() -> anyhow::Result<(Shop, Proxy)> {
    let mut shop = Shop::new()?;
    let proxy = Proxy::before(shop.shipping().address()).await?;
    shop.order().peer_at("shipping", &proxy.address());
    for server in shop.servers_mut() {
        server.start().await?;
    }
    shop.stock("tea", 100, 3).await?;
    shop.deposit("ada", 1_000).await?;
    Ok((shop, proxy))
}

#[tokio::test]
async fn questions_that_shipping_answers_too_late_keep_no_order_from_being_shipped() -> anyhow::Result<()> {
    let (shop, proxy) = shop_behind_a_proxy().await?;
    shop.clients().order_commands().place_order(order("one", true)).await?;
    proxy.plan("", "GetShipment", Fault::Silence, u32::MAX);
    let refused = |standing: &ShipmentStanding| standing.unavailable_because.contains("circuit is open");
    let asking = async {
        while !try_join_all((0..40).map(|_| standing(&shop, "one"))).await?.iter().any(refused) {}
        anyhow::Ok(())
    };
    timeout(Duration::from_secs(60), asking).await??;
    let placed = shop.clients().order_commands().place_order(order("two", true)).await?.into_inner();
    assert_eq!(placed.order.map(|order| order.state()), Some(OrderState::Completed));
    let steps = breaker(&shop, "shipping").await?;
    let totals = steps.totals.unwrap_or_default();
    assert_eq!((steps.state(), totals.failure, totals.rejected), (CircuitState::Closed, 0, 0));
    Ok(())
}

#[tokio::test]
async fn whatever_shipping_answers_in_error_an_order_shows_the_last_that_was_heard() -> anyhow::Result<()> {
    let (shop, proxy) = shop_behind_a_proxy().await?;
    shop.clients().order_commands().place_order(order("one", true)).await?;
    let heard = stands(&shop, |standing| standing.shipment.is_some()).await?;

    proxy.plan("", "GetShipment", Fault::Http(401), u32::MAX);
    let known = stands(&shop, |standing| standing.unavailable_because.contains("UNAUTHENTICATED")).await?;
    assert_eq!((known.shipment, known.current), (heard.shipment, false));
    Ok(())
}

#[tokio::test]
async fn under_load_a_dead_service_is_passed_by_and_comes_back_by_itself() -> anyhow::Result<()> {
    let mut looks: Vec<Look> = Vec::new();
    tests::outage::run(|look| looks.push(look.clone())).await?;
    // Shut, open, shut: once shipping is back nothing opens again, and the last look sees it answer all that is asked.
    let states = looks.iter().filter(|look| look.state != CircuitState::HalfOpen).map(|look| look.state);
    let mut states: Vec<_> = states.collect();
    states.dedup();
    assert_eq!(states, [CircuitState::Closed, CircuitState::Open, CircuitState::Closed]);
    Ok(())
}
