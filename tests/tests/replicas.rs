//! Several processes of one service on one PostgreSQL server, each of its own surface: two decide, two answer. Runs where
//! `TEST_POSTGRES_BIN` names the server's programs.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use prost::Message as _;
use proto::{
    events::v1::{Event, SubscribeRequest, event_service_client::EventServiceClient},
    inventory::v1::{
        AddStockRequest, GetStockRequest, Item, ReleaseStockRequest, ReserveStockRequest, Stock, StockEvent,
        inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient, stock_event,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tests::{Server, postgres::Postgres, shop::usd};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Channel};

/// Who wants the one SKU at the same time, and how often each.
const CUSTOMERS: u64 = 8;
const WISHES: usize = 30;
/// What there is at first: far less than is wanted.
const UNITS: i64 = 40;

type Commands = InventoryCommandServiceClient<Channel>;

/// A process of inventory's with one surface, its log in a folder of its own.
async fn process(postgres: &Postgres, folder: &TempDir, surface: &str, at: usize) -> anyhow::Result<Server> {
    let folder = folder.path().join(format!("{surface}-{at}"));
    std::fs::create_dir(&folder)?;
    let mut server = Server::new("inventory", &folder)?;
    server.keep_in(&postgres.url());
    server.flag("--surface", surface);
    // Nobody ships here.
    server.peer_at("shipping", "127.0.0.1:1");
    server.start().await?;
    Ok(server)
}

fn add(request_id: &str, sku: &str, quantity: i64) -> AddStockRequest {
    AddStockRequest { request_id: request_id.to_owned(), sku: sku.to_owned(), quantity, unit_price: Some(usd(3)) }
}

fn tea(quantity: i64) -> Vec<Item> {
    vec![Item { sku: "tea".to_owned(), quantity }]
}

/// What came of a wish, in a form to compare: the reply, or why not.
fn outcome<T: std::fmt::Debug>(answer: &Result<Response<T>, Status>) -> String {
    match answer {
        Ok(reply) => format!("{:?}", reply.get_ref()),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// One customer's wishes, each to one of the two who decide, drawn by chance. Answers the reservations that were granted.
async fn wish(customer: u64, seed: u64, deciders: [Commands; 2]) -> anyhow::Result<Vec<String>> {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(customer));
    let (mut granted, mut held) = (Vec::new(), Vec::new());
    for at in 0..WISHES {
        let id = format!("c{customer}-{at}");
        let [mut one, mut other] = deciders.clone();
        if random.random_bool(0.5) {
            (one, other) = (other, one);
        }
        match random.random_range(0..10) {
            0 => drop(one.add_stock(add(&id, "tea", random.random_range(1..4))).await?),
            1..=2 if !held.is_empty() => {
                let (reservation_id, items): (String, _) = held.swap_remove(random.random_range(0..held.len()));
                one.release_stock(ReleaseStockRequest { request_id: id, reservation_id, items }).await?;
            }
            _ => {
                let items = tea(random.random_range(1..6));
                let wanted =
                    ReserveStockRequest { request_id: id.clone(), reservation_id: id.clone(), items: items.clone() };
                let answer = one.reserve_stock(wanted.clone()).await;
                // The other one knows what came of it, whatever happened since.
                let again = other.reserve_stock(wanted).await;
                ensure!(outcome(&answer) == outcome(&again), "{} and then {}", outcome(&answer), outcome(&again));
                match answer {
                    Ok(_) => {
                        granted.push(id.clone());
                        held.push((id, items));
                    }
                    Err(status) => ensure!(status.code() == Code::FailedPrecondition, "{status:?}"),
                }
            }
        }
    }
    Ok(granted)
}

/// The whole log, up to the mark that was set last.
async fn log(reader: &Server) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut stretches =
        EventServiceClient::new(reader.channel()).subscribe(SubscribeRequest::default()).await?.into_inner();
    while events.last().is_none_or(|event: &Event| event.id != "mark") {
        events.extend(stretches.message().await?.context("the log ended")?.events);
    }
    Ok(events)
}

/// Checks that the log has no hole and that at no moment more was set aside than there was. Answers (added, available, reserved) of tea.
fn checked(events: &[Event]) -> anyhow::Result<(i64, i64, i64)> {
    let mut versions: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let (mut added, mut available, mut reserved) = (0, 0, 0);
    for (at, event) in events.iter().enumerate() {
        ensure!(event.position == at as i64 + 1, "position {} is the log's {}", event.position, at + 1);
        let version = versions.entry((&event.kind, &event.id)).or_default();
        *version += 1;
        ensure!(event.version == *version, "{event:?} should be version {version}");
        if (&*event.kind, &*event.id) != ("stock", "tea") {
            continue;
        }
        match StockEvent::decode(event.payload.clone())?.event.context("an event")? {
            stock_event::Event::Added(more) => (added, available) = (added + more.quantity, available + more.quantity),
            stock_event::Event::Reserved(some) => {
                (available, reserved) = (available - some.quantity, reserved + some.quantity);
            }
            stock_event::Event::Released(some) => {
                (available, reserved) = (available + some.quantity, reserved - some.quantity);
            }
        }
        ensure!(available >= 0 && reserved >= 0, "oversold at {}: {available} left", event.position);
    }
    Ok((added, available, reserved))
}

/// The tea's stock as a process answers it, once it knows of a command.
async fn shown(reader: &Server, after: Option<&MetadataMap>) -> anyhow::Result<Stock> {
    let mut question = Request::new(GetStockRequest { sku: "tea".to_owned() });
    if let Some(token) = after.and_then(|after| after.get("consistency-token")) {
        question.metadata_mut().insert("consistency-token", token.clone());
    }
    let answer = InventoryQueryServiceClient::new(reader.channel()).get_stock(question).await?;
    ensure!(answer.metadata().contains_key("read-position"), "{:?}", answer.metadata());
    answer.into_inner().stock.context("a stock")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_decide_oversell_nothing_and_two_that_answer_agree_even_alone() -> anyhow::Result<()> {
    let Some(postgres) = Postgres::start()? else { return Ok(()) };
    let folder = TempDir::new()?;
    let mut deciding =
        [process(&postgres, &folder, "command", 1).await?, process(&postgres, &folder, "command", 2).await?];
    let mut answering =
        [process(&postgres, &folder, "query", 1).await?, process(&postgres, &folder, "query", 2).await?];
    let deciders = deciding.each_ref().map(|server| Commands::new(server.channel()));
    let [mut one, mut two] = deciders.clone();
    one.add_stock(add("first", "tea", UNITS)).await?;

    let seed = rand::random();
    let wishes = (0..CUSTOMERS).map(|customer| wish(customer, seed, deciders.clone()));
    let granted = try_join_all(wishes).await.with_context(|| format!("seed {seed}"))?.concat();
    let end = two.add_stock(add("last", "mark", 1)).await?;

    let logs = [log(&answering[0]).await?, log(&answering[1]).await?];
    ensure!(logs[0] == logs[1], "one log is read in two ways");
    let [events, _] = &logs;
    let (added, available, reserved) = checked(events).with_context(|| format!("seed {seed}"))?;
    let mut made: Vec<&str> =
        events.iter().filter(|event| event.name == "ReservationMade").map(|event| event.id.as_str()).collect();
    let mut granted: Vec<&str> = granted.iter().map(String::as_str).collect();
    made.sort_unstable();
    granted.sort_unstable();
    assert_eq!(made, granted, "seed {seed}: what was granted was reserved, once, and nothing else");
    assert!(granted.len() > 10 && granted.len() < CUSTOMERS as usize * WISHES, "{}: nobody was refused", granted.len());

    for alone in [false, true] {
        if alone {
            for server in &mut deciding {
                server.kill().await?;
            }
        }
        for reader in &answering {
            let stock = shown(reader, Some(end.metadata())).await?;
            assert_eq!((stock.added, stock.available, stock.reserved), (added, available, reserved), "alone: {alone}");
        }
    }
    // One of those who answer goes too, and the other doesn't mind.
    answering[0].kill().await?;
    assert_eq!(shown(&answering[1], None).await?.available, available);
    Ok(())
}
