//! An order whose saga was closed by an operator: nothing ends it any more, and whoever asks is told so.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use futures::TryStreamExt as _;
use libs::{
    cqrs::{CommandSide, Log, Projections, Views},
    journal::Journal,
    saga::{
        Coordinator, Options, SagasView, TABLES,
        testing::{Fault, Participants},
    },
    testing::refused,
};
use order::{completion::Completion, projections::OrdersView, queries::until_closed, sagas::place_order};
use proto::{
    google::r#type::PostalAddress,
    order::v1::{
        CancelOrderRequest, OrderItem, OrderState, PlaceOrderRequest, WatchOrderResponse,
        order_command_service_server::OrderCommandService as _,
    },
};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const ID: &str = "order-1";

/// The order service, as far as its commands are concerned, and an order that is STUCK or soon will be.
struct World {
    folder: TempDir,
    journal: Journal,
    coordinator: Coordinator,
    surface: Completion,
}

impl World {
    async fn with_an_order() -> Self {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("order.db"), TABLES).await.unwrap();
        let participants = Participants::new();
        // The reservation is known by another request: only a person can tell what is true.
        participants.on_call(|_| Fault::Conflict);
        let definitions = [place_order::definition().unwrap()];
        let coordinator = Coordinator::new(journal.clone(), definitions, participants, Options::default()).unwrap();
        let surface = Completion::new(CommandSide::new("order", journal.clone()), coordinator.clone());
        surface.place_order(Request::new(request(false))).await.unwrap();
        Self { folder, journal, coordinator, surface }
    }

    async fn force_close(&self) {
        let closed = async {
            // Its first call may be under way yet.
            while let Err(refusal) = self.coordinator.force_close(ID, "ann", "settled by hand").await {
                assert_eq!(refusal.reason, "NOT_STUCK");
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, closed).await.unwrap();
    }
}

fn request(wait_for_completion: bool) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: ID.to_owned(),
        order_id: ID.to_owned(),
        customer_id: "ada".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 2 }],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["1 Market Square".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion,
    }
}

fn left_open() -> (Code, String) {
    (Code::FailedPrecondition, "SAGA_CLOSED_BY_OPERATOR".to_owned())
}

#[tokio::test]
async fn whoever_cancels_it_is_told_that_its_saga_was_closed() {
    let world = World::with_an_order().await;
    world.force_close().await;
    let cancel = CancelOrderRequest { order_id: ID.to_owned(), ..CancelOrderRequest::default() };
    for _ in 0..2 {
        assert_eq!(refused(world.surface.cancel_order(Request::new(cancel.clone())).await), left_open());
    }
}

#[tokio::test]
async fn whoever_cancels_it_while_its_saga_is_parked_is_told_so_and_not_why() {
    let world = World::with_an_order().await;
    world.coordinator.drain(PATIENCE).await;
    // A start without the saga's definition.
    let coordinator = Coordinator::new(world.journal.clone(), [], Participants::new(), Options::default()).unwrap();
    coordinator.recover().await.unwrap();
    let surface = Completion::new(CommandSide::new("order", world.journal.clone()), coordinator.clone());
    let cancel = CancelOrderRequest { order_id: ID.to_owned(), ..CancelOrderRequest::default() };
    let status = surface.cancel_order(Request::new(cancel)).await.unwrap_err();
    assert!(status.message().contains("held up") && !status.message().contains("definition"), "{status}");
    assert_eq!(refused::<()>(Err(status)), (Code::FailedPrecondition, "SAGA_PARKED".to_owned()));
    // Its operator is told.
    let why = coordinator.cancel(ID, "ann", "changed my mind").await.unwrap_err();
    assert!(why.message.contains("definition"), "{}", why.message);
}

#[tokio::test]
async fn a_cancel_that_was_accepted_is_no_refusal_because_its_token_can_not_be_read() {
    let world = World::with_an_order().await;
    // Commands that find the order, but no log to read a token from; its saga is turned back all the same.
    let [order, copy] = ["order.db", "copy.db"].map(|name| world.folder.path().join(name));
    Connection::open(order).unwrap().execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let journal = Journal::open(&*copy, TABLES).await.unwrap();
    Connection::open(copy).unwrap().execute_batch("DROP TABLE events").unwrap();
    let surface = Completion::new(CommandSide::new("order", journal), world.coordinator.clone());
    let cancel = CancelOrderRequest { order_id: ID.to_owned(), ..CancelOrderRequest::default() };
    let cancelled = surface.cancel_order(Request::new(cancel)).await.unwrap();
    assert!(cancelled.metadata().contains_key("consistency-token"));
}

#[tokio::test]
async fn whoever_waits_for_its_end_is_told_that_there_is_none() {
    let world = World::with_an_order().await;
    let surface = world.surface.clone();
    let waiting = tokio::spawn(async move { surface.place_order(Request::new(request(true))).await });
    world.force_close().await;
    assert_eq!(refused(timeout(PATIENCE, waiting).await.unwrap().unwrap()), left_open());
    assert_eq!(refused(world.surface.place_order(Request::new(request(true))).await), left_open());
    let placed = world.surface.place_order(Request::new(request(false))).await.unwrap().into_inner();
    assert_eq!(placed.order.unwrap().state(), OrderState::Pending);
}

#[tokio::test]
async fn whoever_watches_it_sees_how_it_stands_and_then_the_end() {
    let world = World::with_an_order().await;
    let projections = Projections::new().with(OrdersView).with(SagasView);
    let path = world.folder.path().join("views.db");
    let views = Views::open(&path, Log::of(&world.journal), &projections).await.unwrap();
    let read = views.read_side("order", PATIENCE);
    tokio::spawn(async { views.run().await.unwrap() });
    let placed = *world.journal.head().borrow();
    read.wait_for_position(placed).await.unwrap();

    let mut changes = Box::pin(until_closed(read.clone(), ID.to_owned(), 0));
    let first = timeout(PATIENCE, changes.try_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.order.as_ref().unwrap().state(), OrderState::Pending);
    world.force_close().await;
    assert_eq!(timeout(PATIENCE, changes.try_next()).await.unwrap().unwrap(), None);

    // And so do those who come later.
    for (after_position, shown) in [(0, vec![first.clone()]), (first.position, Vec::new())] {
        let all = until_closed(read.clone(), ID.to_owned(), after_position).try_collect::<Vec<WatchOrderResponse>>();
        assert_eq!(timeout(PATIENCE, all).await.unwrap().unwrap(), shown);
    }
}
