//! Two order processes on one database, on the PostgreSQL that `TEST_POSTGRES` names: they share the sagas, and take over from each
//! other.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use proto::{
    google::r#type::PostalAddress,
    order::v1::{
        GetOrderRequest, Order, OrderItem, OrderState, PlaceOrderRequest, WatchOrderRequest,
        order_command_service_client::OrderCommandServiceClient, order_query_service_client::OrderQueryServiceClient,
    },
    saga::v1::{GetSagaRequest, Saga, SagaPhase, saga_query_service_client::SagaQueryServiceClient},
};
use tempfile::TempDir;
use tests::{Server, Shop, facts::Facts, invariants};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, metadata::AsciiMetadataValue};
use uuid::Uuid;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An order to where shipping goes (`CH`), or doesn't (`AQ`).
fn order(id: &str, region: &str, wait: bool) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "owners-ann".to_owned(),
        items: vec![OrderItem { sku: "owners-tea".to_owned(), quantity: 1 }],
        address: Some(PostalAddress {
            region_code: region.to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: wait,
    }
}

/// One more order process beside the shop's own, with the same neighbours.
async fn second(shop: &mut Shop, folder: &Path) -> anyhow::Result<Server> {
    let mut server = Server::new("order", folder)?;
    for peer in shop.participants_mut() {
        server.peer(peer);
    }
    server.start().await?;
    Ok(server)
}

/// Watches an order to its end, from the write on that the token tells of.
async fn ended(server: &Server, id: &str, token: &AsciiMetadataValue) -> anyhow::Result<Order> {
    let mut watch = Request::new(WatchOrderRequest { order_id: id.to_owned(), after_position: 0 });
    watch.metadata_mut().insert("consistency-token", token.clone());
    let mut changes = OrderQueryServiceClient::new(server.channel()).watch_order(watch).await?.into_inner();
    let mut last = None;
    while let Some(change) = timeout(PATIENCE, changes.message()).await.with_context(|| format!("{last:?}"))?? {
        last = change.order;
    }
    last.with_context(|| format!("nothing was said of order {id}"))
}

/// Looks until these orders are there, ended or not.
async fn accepted(server: &Server, ids: impl Iterator<Item = &String>) -> anyhow::Result<()> {
    let mut queries = OrderQueryServiceClient::new(server.channel());
    for id in ids {
        let there = async {
            loop {
                match queries.get_order(GetOrderRequest { order_id: id.clone(), include_shipment: false }).await {
                    Ok(_) => return Ok(()),
                    Err(status) if status.code() == Code::NotFound => sleep(Duration::from_millis(5)).await,
                    Err(status) => return Err(status),
                }
            }
        };
        timeout(PATIENCE, there).await.with_context(|| format!("order {id} is not accepted"))??;
    }
    Ok(())
}

/// Waits until a process has logged something.
async fn logs(server: &Server, what: &str) -> anyhow::Result<()> {
    let logged = async {
        while !server.log().contains(what) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, logged).await.with_context(|| format!("{what:?} is never logged\n{}", server.log_end()))
}

/// Sagas as their view shows them once they are over: it is a moment behind.
async fn sagas<T>(server: &Server, ids: &[(String, T)]) -> anyhow::Result<Vec<Saga>> {
    let mut queries = SagaQueryServiceClient::new(server.channel());
    let mut sagas = Vec::new();
    for (id, _) in ids {
        let over = async {
            loop {
                let shown = queries.get_saga(GetSagaRequest { saga_id: id.clone() }).await?;
                let saga = shown.into_inner().saga.unwrap_or_default();
                if matches!(saga.phase(), SagaPhase::Completed | SagaPhase::Compensated) {
                    return anyhow::Ok(saga);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        sagas.push(timeout(PATIENCE, over).await.with_context(|| format!("saga {id} never ends"))??);
    }
    Ok(sagas)
}

#[tokio::test]
async fn one_that_is_stopped_is_stood_in_for_and_changes_nothing_when_it_goes_on() -> anyhow::Result<()> {
    if std::env::var_os("TEST_POSTGRES").is_none() {
        eprintln!("skipped: needs PostgreSQL, and TEST_POSTGRES names none (tests/postgres.sh)");
        return Ok(());
    }
    let mut shop = Shop::new()?;
    // Who waits at it does so for as long as a lease and more.
    shop.order().flag("--max-deadline", "120s");
    for server in shop.servers_mut() {
        server.start().await?;
    }
    let folder = TempDir::new()?;
    let mut second = second(&mut shop, folder.path()).await?;
    let run = Uuid::new_v4();
    shop.stock("owners-tea", 10_000, 3).await?;
    shop.deposit("owners-ann", 100_000).await?;

    // Both work, and each can be asked to wait for its own.
    for (at, server) in [shop.order().channel(), second.channel()].into_iter().cycle().take(10).enumerate() {
        let placed =
            OrderCommandServiceClient::new(server).place_order(order(&format!("{run}-{at}"), "CH", true)).await?;
        assert_eq!(placed.into_inner().order.unwrap_or_default().state(), OrderState::Completed);
    }

    // The first is stopped in the middle of its orders: they wait for shipping.
    shop.shipping().signal("STOP").await?;
    let ends = [("CH", OrderState::Completed), ("AQ", OrderState::Rejected)];
    let held: Vec<_> = (0..26).map(|at| (format!("{run}-held-{at}"), ends[at % 2])).collect();
    let mut tokens = Vec::new();
    for (id, (region, _)) in &held {
        let mut first = OrderCommandServiceClient::new(shop.order().channel());
        let placed = first.place_order(order(id, region, false)).await?;
        tokens.push(placed.metadata().get("consistency-token").context("a token")?.clone());
    }
    let waited = ends.map(|(region, end)| {
        let (id, mut first) =
            (format!("{run}-waited-{region}"), OrderCommandServiceClient::new(shop.order().channel()));
        let placed = order(&id, region, true);
        (id, end, tokio::spawn(async move { first.place_order(placed).await }))
    });
    accepted(&second, waited.iter().map(|(id, ..)| id)).await?;
    shop.order().signal("STOP").await?;
    shop.shipping().signal("CONT").await?;
    for ((id, (_, end)), token) in held.iter().zip(&tokens) {
        assert_eq!(ended(&second, id, token).await?.state(), *end, "{id}");
    }
    let before = sagas(&second, &held).await?;
    // They may have ended before it has taken over all of them, and says so.
    logs(&second, "taken over from a process that is gone").await?;

    // It goes on, finds that its orders are not its own any more, and lets go.
    shop.order().signal("CONT").await?;
    logs(shop.order(), "taken over by another process").await?;
    // Who waits at it is told how the other one ended their order.
    for (id, end, placed) in waited {
        let placed = timeout(PATIENCE, placed).await.with_context(|| format!("nobody is told of {id}"))???;
        assert_eq!(placed.into_inner().order.unwrap_or_default().state(), end, "{id}");
    }
    let after = format!("{run}-after");
    let placed = OrderCommandServiceClient::new(shop.order().channel()).place_order(order(&after, "CH", true)).await?;
    assert_eq!(placed.into_inner().order.unwrap_or_default().state(), OrderState::Completed);
    // Not a line of theirs is new.
    assert_eq!(sagas(&second, &held).await?, before);
    second.terminate().await?;
    assert!(second.ended().await?.success());
    let looked = async {
        loop {
            let differences = invariants::differences(&Facts::read(&shop.clients()).await?);
            if differences.is_empty() {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, looked).await.context("the books don't add up")?
}
