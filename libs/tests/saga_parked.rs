//! Sagas that are parked: who they are and why is told, and an operator closes what nobody mends.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::sync::Arc;

use libs::{
    cqrs::{Log, Projections, Views},
    journal::Journal,
    refusal::Refusal,
    saga::{Definition, Options, ParkedSagas, SagaQueries, SagasView, TABLES, Transport, testing::Fault},
    testing::wrong_fields,
};
use proto::saga::v1::{
    GetSagaRequest, ListParkedSagasRequest, ParkedSaga, SagaPhase,
    parked_saga_query_service_server::ParkedSagaQueryService as _, saga_query_service_server::SagaQueryService as _,
};
use saga_world::{PATIENCE, Process, World, place_order, place_order_version};
use tonic::Request;

/// A process on the world's database, which has not taken anything up yet.
async fn opened(world: &World, definitions: Vec<Arc<Definition>>) -> Process {
    opened_with(world, definitions, world.participants.clone(), Options::default()).await
}

async fn opened_with(
    world: &World,
    definitions: Vec<Arc<Definition>>,
    transport: impl Transport,
    options: Options,
) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    Process::on(journal, definitions, transport, options)
}

/// Sagas that wait for the answer of their second step, whose process is gone.
async fn left(world: &World, ids: &[&str]) {
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let process = opened(world, vec![Arc::clone(&world.definition)]).await;
    process.coordinator.recover().await.unwrap();
    for id in ids {
        process.place(id).await.unwrap();
        process.until(id, |saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0)).await;
    }
    process.coordinator.leave().await;
    process.crash().await;
    world.participants.on_call(|_| Fault::None);
}

async fn page(process: &Process, page_size: i32, page_token: &str) -> (Vec<ParkedSaga>, String) {
    let request = ListParkedSagasRequest { page_size, page_token: page_token.to_owned() };
    let parked = ParkedSagas::new("test", process.coordinator.clone());
    let page = parked.list_parked_sagas(Request::new(request)).await.unwrap().into_inner();
    (page.parked_sagas, page.next_page_token)
}

/// Who is parked, in one page.
async fn parked(process: &Process) -> Vec<String> {
    let (parked, next) = page(process, 0, "").await;
    assert_eq!(next, "");
    parked.into_iter().map(|parked| parked.saga_id).collect()
}

#[tokio::test]
async fn what_is_parked_is_listed_with_its_reason_until_it_goes_on() {
    let world = World::new();
    left(&world, &["c", "a", "b"]).await;
    let process = opened(&world, vec![place_order_version(2)]).await;
    assert_eq!(parked(&process).await, [""; 0]);
    process.coordinator.recover().await.unwrap();

    let (first, token) = page(&process, 2, "").await;
    let ids = |page: &[ParkedSaga]| page.iter().map(|parked| parked.saga_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ["a", "b"]);
    let (second, end) = page(&process, 2, &token).await;
    assert_eq!((ids(&second), end), (vec!["c".to_owned()], String::new()));
    assert_eq!(page(&process, 3, "").await.1, "", "a page that is just full is the last");
    let why = "its definition, place-order version 1, is not here, or has other steps now: bring it back";
    for parked in first.iter().chain(&second) {
        assert_eq!(parked.error, why);
        assert_eq!(parked.park_time.unwrap().seconds, 1_700_000_000, "the clock of the test");
        // Whoever is alone with a database owns all of it.
        assert_eq!(parked.orphan, database::is_shared());
    }
    let refused = async |page_size, page_token: &str| {
        let request = ListParkedSagasRequest { page_size, page_token: page_token.to_owned() };
        let parked = ParkedSagas::new("test", process.coordinator.clone());
        wrong_fields(parked.list_parked_sagas(Request::new(request)).await)
    };
    assert_eq!(refused(-1, "").await, ["page_size"]);
    assert_eq!(refused(0, "garbage").await, ["page_token"]);
    process.coordinator.leave().await;
    process.crash().await;

    let process = opened(&world, vec![place_order(), place_order_version(2)]).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 3);
    assert_eq!(process.finished("a").await.phase(), SagaPhase::Completed);
    assert_eq!(parked(&process).await, [""; 0]);
}

#[tokio::test]
async fn a_saga_that_is_shown_says_that_it_is_parked_and_why() {
    let world = World::new();
    left(&world, &["tea"]).await;
    let process = opened(&world, vec![place_order_version(2)]).await;
    process.coordinator.recover().await.unwrap();
    let location = database::location(world.folder.path(), "order").views();
    let views = Views::open(location, Log::of(&process.journal), &Projections::new().with(SagasView)).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    tokio::spawn(views.run());
    let apart = SagaQueries::new(read, [place_order_version(2)]).unwrap();
    let here = apart.clone().beside(process.coordinator.clone());
    let get = async |queries: &SagaQueries, id: &str| loop {
        match queries.get_saga(Request::new(GetSagaRequest { saga_id: id.to_owned() })).await {
            Ok(answer) => break answer.into_inner(),
            // The view is a moment behind.
            Err(status) => assert_eq!(Refusal::from_status(&status).reason, "UNKNOWN_SAGA"),
        }
        tokio::task::yield_now().await;
    };
    let shown = get(&here, "tea").await;
    assert_eq!(shown.saga.unwrap().saga_id, "tea");
    assert!(shown.parked.unwrap().error.contains("place-order version 1"));
    assert_eq!(get(&apart, "tea").await.parked, None, "where nothing is driven");
    process.run("milk").await;
    assert_eq!(get(&here, "milk").await.parked, None, "the others are not");
}
