//! A network that loses, doubles, delays, cuts and turns away what an order asks of inventory, payment and shipping: every order ends as
//! it must, nothing takes effect twice, and the books add up.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use anyhow::{Context as _, ensure};
use futures::future::{join_all, try_join_all};
use proto::{
    breaker::v1::{ResetBreakerRequest, breaker_command_service_client::BreakerCommandServiceClient},
    inventory::v1::{Item, ReserveStockRequest},
    order::v1::{CancelOrderRequest, GetOrderRequest, Order, OrderState},
};
use tests::{
    Clients, Shop,
    facts::Facts,
    invariants,
    proxy::{Answered, Fault, Proxy},
    shop::order,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every call of an order's saga: the peer's place in the shop, the method, and where the order goes to that makes it.
const CALLS: [(usize, &str, &str); 5] = [
    (0, "ReserveStock", "CH"),
    (1, "ChargeCustomer", "CH"),
    (2, "CreateShipment", "CH"),
    // To where shipping doesn't go: the saga turns back.
    (0, "ReleaseStock", "AQ"),
    (1, "RefundCharge", "AQ"),
];

/// What the saga's alert says of a peer that turns calls away.
const TURNED_AWAY: &str = "a participant doesn't answer as one";

/// A shop whose order service reaches the others through proxies, in their order.
async fn shop() -> anyhow::Result<(Shop, Vec<Proxy>)> {
    let mut shop = Shop::new()?;
    let peers: Vec<_> = shop.participants_mut().map(|peer| (peer.name(), peer.address())).collect();
    let mut proxies = Vec::new();
    for (name, address) in peers {
        let proxy = Proxy::before(address).await?;
        shop.order().peer_at(name, &proxy.address());
        proxies.push(proxy);
    }
    try_join_all(shop.servers_mut().iter_mut().map(tests::Server::start)).await?;
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    Ok((shop, proxies))
}

/// Places an order, and asks again until it is answered with the order as it ended.
async fn ended(clients: &Clients, id: &str, region: &str) -> anyhow::Result<Order> {
    let placing = async {
        loop {
            match clients.order_commands().place_order(order(id, region)).await {
                Ok(placed) => return placed.into_inner().order.unwrap_or_default(),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, placing).await.with_context(|| format!("{id} never ends"))
}

/// Closes the breakers again and again: how long they leave alone who fails so often is proved elsewhere, and waited for nowhere.
async fn close_breakers(shop: &Shop) -> Infallible {
    let mut breakers = BreakerCommandServiceClient::new(shop.clients().order);
    loop {
        for name in ["inventory", "payment", "shipping"] {
            // The next one may be heard.
            let _ = breakers.reset_breaker(ResetBreakerRequest { name: name.to_owned() }).await;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn end_of(region: &str) -> OrderState {
    if region == "CH" { OrderState::Completed } else { OrderState::Rejected }
}

/// Waits until the books add up, and checks that no operation took effect twice.
async fn settled(shop: &Shop, proxies: &[Proxy]) -> anyhow::Result<()> {
    let books = async {
        loop {
            let differences = invariants::differences(&Facts::read(&shop.clients()).await?);
            if differences.is_empty() {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, books).await.context("the books don't add up")??;
    let mut applied: BTreeMap<(String, String), usize> = BTreeMap::new();
    for Answered { saga, method, verdict } in proxies.iter().flat_map(Proxy::answered) {
        *applied.entry((saga, method)).or_default() += usize::from(verdict == "applied");
    }
    let twice: Vec<_> = applied.into_iter().filter(|(_, times)| *times > 1).collect();
    ensure!(twice.is_empty(), "took effect more than once: {twice:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_lost_doubled_or_cut_off_every_order_ends_as_it_must() -> anyhow::Result<()> {
    let (shop, proxies) = shop().await?;
    let faults = [
        Fault::LoseRequest,
        Fault::LoseReply,
        Fault::Silence,
        Fault::Double,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Http(502),
    ];
    let mut orders = Vec::new();
    for fault in faults {
        for (peer, method, region) in CALLS {
            let id = format!("{fault:?}-{method}").replace(['(', ')'], "-");
            // An answer that never comes is waited for, as long as an attempt may take.
            proxies[peer].plan(&id, method, fault, if fault == Fault::Silence { 1 } else { 2 });
            orders.push((id, region));
        }
    }
    let clients = shop.clients();
    let all = tokio::select! {
        all = join_all(orders.iter().map(|(id, region)| ended(&clients, id, region))) => all,
        never = close_breakers(&shop) => match never {},
    };
    for ((id, region), order) in orders.iter().zip(all) {
        let order = order?;
        ensure!(order.state() == end_of(region), "{id}: {order:?}");
    }
    for proxy in &proxies {
        timeout(PATIENCE, proxy.met()).await.context("a fault was never met")?;
    }
    settled(&shop, &proxies).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_turned_away_tells_and_goes_on_once_it_is_let_in() -> anyhow::Result<()> {
    let (mut shop, proxies) = shop().await?;
    let mut orders = Vec::new();
    for status in [401, 403, 404] {
        for (peer, method, region) in CALLS {
            let id = format!("{status}-{method}");
            proxies[peer].plan(&id, method, Fault::Http(status), u32::MAX);
            orders.push((id, region));
        }
    }
    let clients = shop.clients();
    let all = async {
        let all = orders.iter().map(|(id, region)| ended(&clients, id, region));
        try_join_all(all).await
    };
    let healed = async {
        for proxy in &proxies {
            timeout(PATIENCE, proxy.met()).await.context("nobody was turned away")?;
        }
        // Each tells of it, and none is turned back or given up.
        for (id, _) in &orders {
            let told = async {
                while !shop.order().log().lines().any(|line| line.contains(TURNED_AWAY) && line.contains(id.as_str())) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, told).await.with_context(|| format!("nothing was told of {id}"))?;
            let shown = clients.shown(GetOrderRequest { order_id: id.clone(), include_shipment: false }).await?;
            let state = shown.order.unwrap_or_default().state();
            ensure!(state == OrderState::Pending, "{id} is {state:?}");
        }
        proxies.iter().for_each(Proxy::heal);
        anyhow::Ok(())
    };
    let (ends, healed) = tokio::join!(all, healed);
    healed?;
    for (order, (id, region)) in ends?.iter().zip(&orders) {
        ensure!(order.state() == end_of(region), "{id}: {order:?}");
    }
    settled(&shop, &proxies).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_that_comes_after_its_compensation_takes_no_effect() -> anyhow::Result<()> {
    let (shop, proxies) = shop().await?;
    let clients = shop.clients();
    let held = [(0, "ReserveStock"), (1, "ChargeCustomer")];
    // Who says nothing leaves no blank for whoever reads why.
    let reasons = [("changed my mind", "changed my mind"), ("", "no reason given")];
    for ((peer, method), (reason, _)) in held.into_iter().zip(reasons) {
        proxies[peer].plan(method, method, Fault::Hold, 1);
        let mut asked = order(method, "CH");
        asked.wait_for_completion = false;
        clients.order_commands().place_order(asked).await?;
        timeout(PATIENCE, proxies[peer].met()).await.context("it is not called")?;
        let cancel = CancelOrderRequest {
            request_id: format!("cancel-{method}"),
            order_id: method.to_owned(),
            reason: reason.to_owned(),
        };
        clients.order_commands().cancel_order(cancel).await?;
    }
    for ((_, method), (_, shown)) in held.into_iter().zip(reasons) {
        let order = ended(&clients, method, "CH").await?;
        let why = order.rejection.as_ref().map(|why| (&*why.reason, &*why.message));
        ensure!(why == Some(("CANCELLED", shown)), "{order:?}");
    }
    for (peer, method) in held {
        let late = proxies[peer].let_go().await?;
        let (saga, method, verdict) = (method.to_owned(), method.to_owned(), "cancelled".to_owned());
        ensure!(late == [Answered { saga, method, verdict }], "{late:?}");
    }
    settled(&shop, &proxies).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_comes_after_its_repetition_is_answered_the_same() -> anyhow::Result<()> {
    let (shop, proxies) = shop().await?;
    let clients = shop.clients();
    for (peer, method, _) in CALLS {
        proxies[peer].plan(method, method, Fault::Hold, 1);
    }
    let all = CALLS.map(|(_, method, region)| ended(&clients, method, region));
    for ((_, method, region), order) in CALLS.into_iter().zip(join_all(all).await) {
        let order = order?;
        ensure!(order.state() == end_of(region), "{method}: {order:?}");
    }
    let late = try_join_all(proxies.iter().map(Proxy::let_go)).await?.concat();
    ensure!(late.len() == CALLS.len() && late.iter().all(|answered| answered.verdict == "replayed"), "{late:?}");
    settled(&shop, &proxies).await
}

#[tokio::test]
async fn an_action_that_comes_after_its_sagas_deadline_takes_no_effect() -> anyhow::Result<()> {
    let shop = Shop::start().await?;
    shop.stock("tea", 10, 3).await?;
    let reserve = |saga: &str, deadline: &str| {
        let items = vec![Item { sku: "tea".to_owned(), quantity: 1 }];
        let message = ReserveStockRequest { reservation_id: saga.to_owned(), items, ..ReserveStockRequest::default() };
        let mut request = Request::new(message);
        let words = [
            ("saga-id", saga),
            ("saga-type", "place-order"),
            ("saga-step", "reserve_inventory"),
            ("saga-op", "action"),
            ("saga-deadline", deadline),
        ];
        for (key, value) in words {
            request.metadata_mut().insert(key, value.parse().context(key)?);
        }
        anyhow::Ok(request)
    };
    let mut inventory = shop.clients().inventory_commands();
    // Again and again, and with a deadline that has not passed: the refusal is kept.
    for deadline in ["1", "1", "9000000000000000"] {
        let late = inventory.reserve_stock(reserve("late", deadline)?).await.err().context("it was granted")?;
        let verdict = late.metadata().get("saga-verdict").and_then(|verdict| verdict.to_str().ok());
        ensure!((late.code(), verdict) == (Code::FailedPrecondition, Some("rejected")), "{late:?}");
    }
    inventory.reserve_stock(reserve("early", "9000000000000000")?).await?;
    Ok(())
}
