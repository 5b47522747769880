//! What services remember of commands and of sagas' operations, while they are processes: not for ever, and as long as it takes.

use std::time::Duration;

use anyhow::Context as _;
use proto::{
    inventory::v1::{AddStockRequest, GetStockRequest, ReserveStockRequest},
    order::v1::PlaceOrderRequest,
    payment::v1::ChargeCustomerRequest,
    saga::v1::{GetSagaRequest, Saga, SagaPhase, StepState},
    shipping::v1::CreateShipmentRequest,
};
use tests::{
    Clients, Shop,
    shop::{order, usd},
};
use tokio::time::{sleep, timeout};
use tonic::{Request, Response, Status};

/// How long something may take that is only waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Services that keep answers for so long.
async fn shop(keep: &str) -> anyhow::Result<Shop> {
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.flag("--keep-answers", keep);
        server.start().await?;
    }
    shop.stock("tea", 10, 3).await?;
    shop.deposit("ann", 100).await?;
    Ok(shop)
}

/// A step of the saga "o-1", asked for with what was never asked: another request while the step is known, a malformed one after that.
fn probe<Q>(step: &'static str, request: Q) -> anyhow::Result<Request<Q>> {
    let mut request = Request::new(request);
    let words = [("saga-id", "o-1"), ("saga-type", "place-order"), ("saga-step", step), ("saga-op", "action")];
    for (key, word) in words {
        request.metadata_mut().insert(key, word.parse()?);
    }
    Ok(request)
}

/// Whether a participant still knows the step that was asked for.
fn is_known<R>(answer: Result<Response<R>, Status>) -> anyhow::Result<bool> {
    let refused = answer.err().context("a probe is never granted")?;
    match refused.metadata().get("saga-verdict").map(|verdict| verdict.to_str()).transpose()? {
        Some("conflict") => Ok(true),
        Some("rejected") => Ok(false),
        _ => anyhow::bail!("it says neither: {refused}"),
    }
}

async fn inventory_knows(clients: &Clients) -> anyhow::Result<bool> {
    let request = probe("reserve_inventory", ReserveStockRequest::default())?;
    is_known(clients.inventory_commands().reserve_stock(request).await)
}

async fn payment_knows(clients: &Clients) -> anyhow::Result<bool> {
    let request = probe("charge_customer", ChargeCustomerRequest::default())?;
    is_known(clients.payment_commands().charge_customer(request).await)
}

async fn shipping_knows(clients: &Clients) -> anyhow::Result<bool> {
    let request = probe("ship_order", CreateShipmentRequest::default())?;
    is_known(clients.shipping_commands().create_shipment(request).await)
}

/// Waits until the saga "o-1" is as wanted.
async fn until(clients: &Clients, wanted: impl Fn(&Saga) -> bool) -> anyhow::Result<()> {
    let comes = async {
        loop {
            let asked = GetSagaRequest { saga_id: "o-1".to_owned() };
            let saga = clients.saga_queries().get_saga(asked).await.ok().and_then(|shown| shown.into_inner().saga);
            if saga.is_some_and(|saga| wanted(&saga)) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, comes).await.context("it never is as wanted")
}

/// Waits until somebody has forgotten.
async fn forgotten(knows: impl AsyncFn(&Clients) -> anyhow::Result<bool>, clients: &Clients) -> anyhow::Result<()> {
    let wait = async {
        while knows(clients).await? {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, wait).await.context("it is remembered for ever")?
}

#[tokio::test]
async fn participants_forget_a_saga_that_has_ended_and_who_was_out_when_it_is_back() -> anyhow::Result<()> {
    let mut shop = shop("2s").await?;
    let clients = shop.clients();
    // Payment is out before the saga has ended, however slow the machine is: shipping is asked last, and stands still meanwhile.
    shop.shipping().signal("STOP").await?;
    clients
        .order_commands()
        .place_order(PlaceOrderRequest { wait_for_completion: false, ..order("o-1", "CH") })
        .await?;
    let is_charged =
        |saga: &Saga| saga.steps.iter().any(|step| step.name == "charge_customer" && step.state() == StepState::Done);
    until(&clients, is_charged).await?;
    shop.payment().kill().await?;
    shop.shipping().signal("CONT").await?;
    until(&clients, |saga| saga.phase() == SagaPhase::Completed).await?;

    forgotten(inventory_knows, &clients).await?;
    forgotten(shipping_knows, &clients).await?;
    // Whoever tells is killed too: the next one knows who was not told.
    shop.order().kill().await?;
    shop.payment().start().await?;
    assert!(payment_knows(&clients).await?, "nobody was there to tell it");
    shop.order().start().await?;
    forgotten(payment_knows, &clients).await
}

#[tokio::test]
async fn a_command_that_is_repeated_when_its_answer_is_forgotten_is_a_new_one() -> anyhow::Result<()> {
    let shop = shop("1s").await?;
    let clients = shop.clients();
    let again = AddStockRequest {
        request_id: "stock-tea".to_owned(),
        sku: "tea".to_owned(),
        quantity: 10,
        unit_price: Some(usd(3)),
    };
    let added = async {
        loop {
            let answered = clients.inventory_commands().add_stock(again.clone()).await?;
            let mut request = Request::new(GetStockRequest { sku: "tea".to_owned() });
            let token = answered.metadata().get("consistency-token").context("a token")?;
            request.metadata_mut().insert("consistency-token", token.clone());
            let stock = clients.inventory_queries().get_stock(request).await?.into_inner().stock;
            match stock.context("stock")?.added {
                10 => sleep(Duration::from_millis(20)).await,
                more => return anyhow::Ok(more),
            }
        }
    };
    assert_eq!(timeout(PATIENCE, added).await.context("it is a repetition for ever")??, 20);
    Ok(())
}
