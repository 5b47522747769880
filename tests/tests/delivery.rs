//! What one service's events say in another one's views, with processes killed on both sides.

#[path = "../../libs/tests/broker/mod.rs"]
mod broker;

use std::time::Duration;

use anyhow::Context as _;
use broker::Broker;
use proto::{
    events::v1::{SubscribeRequest, event_service_client::EventServiceClient},
    inventory::v1::{GetStockRequest, Item, ReleaseStockRequest, Stock, WatchStockRequest, WatchStockResponse},
    order::v1::{GetOrderRequest, GetOrderResponse, ListOrdersRequest, Order, OrderState, ShipmentStanding},
    payment::v1::{Charge, ChargeCustomerRequest, ChargeState, GetChargeRequest},
    projections::v1::{
        ListProjectionsRequest, RebuildProjectionsRequest,
        projection_command_service_client::ProjectionCommandServiceClient,
        projection_query_service_client::ProjectionQueryServiceClient,
    },
    shipping::v1::{CancelShipmentRequest, CreateShipmentRequest, Parcel, ShipmentState},
};
use tests::{
    Clients, Shop,
    shop::{order, usd},
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Streaming};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until an order is shown as wanted.
async fn shown(
    clients: &Clients,
    id: &str,
    wanted: impl Fn(&GetOrderResponse) -> bool,
) -> anyhow::Result<GetOrderResponse> {
    let request = || GetOrderRequest { order_id: id.to_owned(), include_shipment: false };
    let look = async {
        loop {
            if let Ok(order) = clients.order_queries().get_order(request()).await
                && wanted(order.get_ref())
            {
                return order.into_inner();
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(PATIENCE, look).await {
        Ok(order) => Ok(order),
        Err(_) => anyhow::bail!("it never came: {:?}", clients.order_queries().get_order(request()).await),
    }
}

#[tokio::test]
async fn an_orders_view_knows_its_charge_and_shipment_whoever_is_killed() -> anyhow::Result<()> {
    orders_are_followed(Shop::start().await?, None).await
}

/// Runs where `TEST_NATS` names the server's program.
#[tokio::test]
async fn the_same_by_a_broker_that_is_killed_too() -> anyhow::Result<()> {
    let Some(broker) = Broker::start() else { return Ok(()) };
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.flag("--nats-url", &broker.url());
        server.start().await?;
    }
    orders_are_followed(shop, Some(broker)).await
}

async fn orders_are_followed(mut shop: Shop, mut broker: Option<Broker>) -> anyhow::Result<()> {
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    let clients = shop.clients();

    clients.order_commands().place_order(order("kept", "CH")).await?;
    let kept = shown(&clients, "kept", |order| order.charge.is_some() && order.shipped.is_some()).await?;
    let (charge, shipped) = (kept.charge.context("it came")?, kept.shipped.context("it came")?);
    let mut projections = ProjectionQueryServiceClient::new(shop.payment().channel());
    // Who publishes hears of it later than who reads may.
    let published = async {
        loop {
            let all = projections.list_projections(ListProjectionsRequest {}).await?.into_inner().projections;
            match all.iter().find(|projection| projection.name == "jetstream").map(|relay| relay.position) {
                Some(0..3) => sleep(Duration::from_millis(5)).await,
                published => return anyhow::Ok(published),
            }
        }
    };
    let published = timeout(PATIENCE, published).await.context("its events are not published")??;
    assert_eq!(published.is_some(), broker.is_some());
    assert_eq!((charge.state(), shipped.state()), (ChargeState::Charged, ShipmentState::Shipped));
    let request = || GetChargeRequest { charge_id: "kept".to_owned() };
    // Payment's own view may hear of it later than the order's does.
    let own = async {
        loop {
            match clients.payment_queries().get_charge(request()).await {
                Err(status) if status.code() == Code::NotFound => sleep(Duration::from_millis(5)).await,
                answer => return answer,
            }
        }
    };
    assert_eq!(timeout(PATIENCE, own).await??.into_inner().charge, Some(charge));

    // Refused after the charge: what was taken is given back, and that is told too.
    clients.order_commands().place_order(order("refused", "AQ")).await?;
    // Each view follows its own log: the order's end and the refund are seen in either order.
    let ended = |order: &GetOrderResponse| {
        order.charge.as_ref().is_some_and(|charge| charge.state() == ChargeState::Refunded)
            && order.order.as_ref().is_some_and(|order| order.state() == OrderState::Rejected)
    };
    assert_eq!(shown(&clients, "refused", ended).await?.shipped, None);

    // Killed on both sides, in turn: nothing is missed, and what is known is answered while the other is out.
    for round in 0..3 {
        let id = format!("round-{round}");
        clients.order_commands().place_order(order(&id, "CH")).await?;
        shop.order().kill().await?;
        shop.payment().kill().await?;
        if let Some(broker) = &mut broker {
            broker.kill();
        }
        shop.order().start().await?;
        shown(&clients, "kept", |order| order.charge.is_some()).await?;
        shop.payment().start().await?;
        if let Some(broker) = &mut broker {
            broker.go_on();
        }
        shown(&clients, &id, |order| order.charge.is_some() && order.shipped.is_some()).await?;
    }

    // Made anew from the beginning, it is the same.
    let before = settled(&clients).await?;
    let ids: Vec<&str> = before.iter().map(|(order, _)| &*order.order_id).collect();
    assert_eq!(ids, ["round-2", "round-1", "round-0", "refused", "kept"]);
    shop.order().kill().await?;
    for name in ["order.views.db", "order.views.payment.db", "order.views.shipping.db"] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(shop.folder().join(format!("{name}{suffix}")));
        }
    }
    shop.order().start().await?;
    same(&clients, &before).await?;

    // And once more, while it is asked for.
    for source in ["order", "payment", "shipping"] {
        let mut commands = ProjectionCommandServiceClient::new(shop.order().channel());
        let request = RebuildProjectionsRequest { source: source.to_owned() };
        let mut stretches = commands.rebuild_projections(request).await?.into_inner();
        let mut last = None;
        while let Some(stretch) = stretches.message().await? {
            last = Some(stretch);
        }
        let last = last.context("it tells how far it is")?;
        assert_eq!(last.position, last.head);
        // Whoever asks sees the views of before or the new ones, and never less.
        assert_eq!(all(&clients).await?, before, "after {source}");
    }
    Ok(())
}

/// Every order as it is listed, the newest first, and as it is shown with what other services' events say of it.
async fn all(clients: &Clients) -> anyhow::Result<Vec<(Order, GetOrderResponse)>> {
    let listed = clients.order_queries().list_orders(ListOrdersRequest::default()).await?.into_inner();
    assert_eq!(listed.next_page_token, "", "a page holds them all");
    let mut orders = Vec::new();
    for order in listed.orders {
        let request = GetOrderRequest { order_id: order.order_id.clone(), include_shipment: false };
        let shown = clients.order_queries().get_order(request).await?.into_inner();
        orders.push((order, shown));
    }
    Ok(orders)
}

/// The same, once every order has ended and its charge and shipment are seen as they ended.
async fn settled(clients: &Clients) -> anyhow::Result<Vec<(Order, GetOrderResponse)>> {
    let has_ended = |(listed, shown): &(Order, GetOrderResponse)| {
        let charge = shown.charge.as_ref().map(Charge::state);
        let ended = match listed.state() {
            OrderState::Completed => charge == Some(ChargeState::Charged) && shown.shipped.is_some(),
            OrderState::Rejected => charge == Some(ChargeState::Refunded),
            _ => false,
        };
        ended && shown.order.as_ref() == Some(listed)
    };
    let look = async {
        loop {
            let orders = all(clients).await?;
            if orders.iter().all(has_ended) {
                return anyhow::Ok(orders);
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.context("the orders never end")?
}

/// Waits until every order is shown as it was.
async fn same(clients: &Clients, before: &[(Order, GetOrderResponse)]) -> anyhow::Result<()> {
    let mut last = Vec::new();
    let look = async {
        loop {
            last = all(clients).await?;
            if last == before {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = timeout(PATIENCE, look).await;
    ended.with_context(|| format!("it is {last:#?}\nand was {before:#?}"))?
}

#[tokio::test]
async fn stock_counts_what_has_left_whoever_is_killed() -> anyhow::Result<()> {
    stock_is_counted(Shop::start().await?).await
}

/// Runs where `TEST_NATS` names the server's program.
#[tokio::test]
async fn stock_counts_the_same_by_a_broker() -> anyhow::Result<()> {
    let Some(broker) = Broker::start() else { return Ok(()) };
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.flag("--nats-url", &broker.url());
        server.start().await?;
    }
    stock_is_counted(shop).await
}

/// Units of a SKU: available, reserved, shipped.
fn counts(stock: &Stock) -> (i64, i64, i64) {
    (stock.available, stock.reserved, stock.shipped)
}

/// Waits until the tea is counted so; whatever is answered meanwhile adds up too.
async fn counted(clients: &Clients, wanted: (i64, i64, i64)) -> anyhow::Result<()> {
    let mut last = None;
    let look = async {
        loop {
            let request = GetStockRequest { sku: "tea".to_owned() };
            let stock = match clients.inventory_queries().get_stock(request).await {
                // The view is a moment behind the command.
                Err(status) if status.code() == Code::NotFound => continue,
                answer => answer?.into_inner().stock.context("stock")?,
            };
            let (available, reserved, shipped) = counts(&stock);
            assert!(stock.added == available + reserved + shipped && reserved >= 0, "{stock:?}");
            last = Some((available, reserved, shipped));
            if last == Some(wanted) {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, look).await.with_context(|| format!("it is {last:?}, not {wanted:?}"))?
}

/// Waits for the change after which the tea is counted so.
async fn changed(
    changes: &mut Streaming<WatchStockResponse>,
    wanted: (i64, i64, i64),
) -> anyhow::Result<WatchStockResponse> {
    let look = async {
        loop {
            let change = changes.message().await?.context("a change")?;
            if change.stock.as_ref().map(counts) == Some(wanted) {
                return anyhow::Ok(change);
            }
        }
    };
    timeout(PATIENCE, look).await.with_context(|| format!("it never became {wanted:?}"))?
}

async fn stock_is_counted(mut shop: Shop) -> anyhow::Result<()> {
    shop.stock("tea", 10, 3).await?;
    shop.deposit("ann", 10_000).await?;
    let clients = shop.clients();
    counted(&clients, (10, 0, 0)).await?;
    clients.order_commands().place_order(order("one", "CH")).await?;
    counted(&clients, (9, 0, 1)).await?;
    // Refused by shipping: nothing has left.
    clients.order_commands().place_order(order("refused", "AQ")).await?;
    counted(&clients, (9, 0, 1)).await?;

    let watch = |after_position, after_shipping_position| {
        let request = WatchStockRequest { sku: "tea".to_owned(), after_position, after_shipping_position };
        let mut queries = clients.inventory_queries();
        async move { anyhow::Ok(queries.watch_stock(request).await?.into_inner()) }
    };
    let mut changes = watch(0, 0).await?;
    let today = changed(&mut changes, (9, 0, 1)).await?;
    // It is recalled: set aside again, for as long as its reservation stands.
    let recall = CancelShipmentRequest { shipment_id: "one".to_owned(), ..CancelShipmentRequest::default() };
    clients.shipping_commands().cancel_shipment(recall).await?;
    let mut recalled = changed(&mut changes, (9, 1, 0)).await?;
    // A change of inventory's own that is told late, such as the release of what was refused, is counted with what is known by then.
    while recalled.shipping_position == today.shipping_position {
        recalled = changed(&mut changes, (9, 1, 0)).await?;
    }
    assert!(recalled.position >= today.position && recalled.shipping_position > today.shipping_position);
    counted(&clients, (9, 1, 0)).await?;
    drop(changes);

    // Shipping is out: what is known of it is answered, and inventory's own changes go on. Both are killed meanwhile.
    shop.shipping().kill().await?;
    let items = vec![Item { sku: "tea".to_owned(), quantity: 1 }];
    let release = ReleaseStockRequest { reservation_id: "one".to_owned(), items, ..ReleaseStockRequest::default() };
    clients.inventory_commands().release_stock(release).await?;
    counted(&clients, (10, 0, 0)).await?;
    shop.inventory().kill().await?;
    shop.inventory().start().await?;
    counted(&clients, (10, 0, 0)).await?;
    shop.shipping().start().await?;
    clients.order_commands().place_order(order("two", "CH")).await?;
    counted(&clients, (9, 0, 1)).await?;

    // A watch goes on where it was in both logs: it sees every last change, whoever made it.
    let mut resumed = watch(recalled.position, recalled.shipping_position).await?;
    let last = changed(&mut resumed, (9, 0, 1)).await?;
    assert!((last.position, last.shipping_position) > (recalled.position, recalled.shipping_position), "{last:?}");

    // Made anew while it is asked for, it is the same.
    let mut commands = ProjectionCommandServiceClient::new(shop.inventory().channel());
    for source in ["inventory", "shipping"] {
        let request = RebuildProjectionsRequest { source: source.to_owned() };
        let mut stretches = commands.rebuild_projections(request).await?.into_inner();
        while stretches.message().await?.is_some() {}
        counted(&clients, (9, 0, 1)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_somebody_made_under_an_orders_id_for_somebody_else_is_not_shown_as_the_orders_own() -> anyhow::Result<()>
{
    let shop = Shop::start().await?;
    let clients = shop.clients();
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    shop.deposit("bob", 10_000).await?;
    let charge = ChargeCustomerRequest {
        request_id: String::new(),
        charge_id: "taken".to_owned(),
        customer_id: "bob".to_owned(),
        amount: Some(usd(3)),
    };
    clients.payment_commands().charge_customer(charge).await?;
    let elsewhere = order("taken", "DE").address;
    let shipment = CreateShipmentRequest {
        request_id: String::new(),
        shipment_id: "taken".to_owned(),
        address: elsewhere,
        parcels: vec![Parcel { sku: "tea".to_owned(), quantity: 1 }],
    };
    clients.shipping_commands().create_shipment(shipment).await?;
    let taken = clients.order_commands().place_order(order("taken", "CH")).await?.into_inner().order;
    assert_eq!(taken.and_then(|order| order.rejection).context("it is rejected")?.reason, "CHARGE_EXISTS");

    // Both logs have come here as far as this one, and so behind what was made before.
    clients.order_commands().place_order(order("after", "CH")).await?;
    shown(&clients, "after", |order| order.charge.is_some() && order.shipped.is_some()).await?;
    // Shipping's own view, which is asked, may hear of them later, and may be slow to answer once.
    let asked = async |id: &str, shows: fn(&ShipmentStanding) -> bool| {
        let asked = async {
            loop {
                let request = GetOrderRequest { order_id: id.to_owned(), include_shipment: true };
                let order = clients.order_queries().get_order(request).await?.into_inner();
                let standing = order.shipment.clone().context("it was asked for")?;
                if standing.current && shows(&standing) {
                    return anyhow::Ok((order, standing));
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, asked).await.with_context(|| format!("{id} is not shown"))?
    };
    asked("after", |standing| standing.shipment.is_some()).await?;
    let (taken, standing) = asked("taken", |_| true).await?;
    assert_eq!((taken.charge, taken.shipped, standing.shipment), (None, None, None));
    Ok(())
}

#[tokio::test]
async fn a_subscription_is_resumed_filtered_and_checked_and_holds_up_no_shutdown() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    // Calls in flight would be waited for longer than the end is below.
    shop.payment().flag("--drain-timeout", "600s");
    for server in shop.servers_mut() {
        server.start().await?;
    }
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    shop.clients().order_commands().place_order(order("one", "CH")).await?;
    let mut payment = EventServiceClient::new(shop.payment().channel());
    let ask = |after_position, kinds: &[&str]| SubscribeRequest {
        after_position,
        kinds: kinds.iter().map(ToString::to_string).collect(),
    };
    let mut all = payment.subscribe(ask(0, &[])).await?.into_inner();
    let first = all.message().await?.context("a stretch")?;
    assert_eq!(first.events.iter().map(|event| event.position).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(first.events.iter().all(|event| event.time.is_some() && !event.name.is_empty()));
    let mut charges = payment.subscribe(ask(1, &["charge"])).await?.into_inner();
    let stretch = charges.message().await?.context("a stretch")?;
    assert_eq!(stretch.events.iter().map(|event| &*event.name).collect::<Vec<_>>(), ["ChargeMade"]);
    assert_eq!((stretch.after_position, stretch.position), (1, 3));

    // It goes on as events come.
    shop.clients().order_commands().place_order(order("two", "CH")).await?;
    assert_eq!(charges.message().await?.context("news")?.events.len(), 1);

    let ahead = payment.subscribe(ask(1_000, &[])).await.err().context("refused")?;
    assert_eq!((ahead.code(), ahead.message().contains("the log ends at 5")), (Code::FailedPrecondition, true));
    assert_eq!(payment.subscribe(ask(-1, &[])).await.err().context("refused")?.code(), Code::InvalidArgument);

    shop.payment().terminate().await?;
    assert!(shop.payment().ended().await?.success());
    Ok(())
}
