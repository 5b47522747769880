//! Sagas that are parked: who they are and why is told, and an operator closes what nobody mends.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod saga_world;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    cqrs::{Log, Projections, Views},
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, Row},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Attempt, Coordinator, Definition, Options, ParkedSagas, SagaQueries, SagasView, TABLES, Transport,
        testing::{Fault, Participants},
    },
    testing::wrong_fields,
};
use lines::Lines;
use parking_lot::Mutex;
use prost::Message as _;
use proto::saga::v1::{
    EndedStep, ForgetStepsRequest, GetSagaRequest, ListParkedSagasRequest, ParkedSaga, Saga, SagaPhase, Step,
    StepState, parked_saga_query_service_server::ParkedSagaQueryService as _,
    saga_query_service_server::SagaQueryService as _,
};
use saga_world::{Charge, PATIENCE, Process, Reserve, Ship, World, becomes, place_order, place_order_version, shares};
use tokio::time::timeout;
use tonic::{Code, Request, Status, metadata::MetadataMap};

/// A process on the world's database, which has not taken anything up yet.
async fn opened(world: &World, definitions: Vec<Arc<Definition>>) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    Process::on(journal, definitions, world.participants.clone(), Options::default())
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
    let why = "its definition, place-order version 1, is not here: bring it back";
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

/// A booking of this version.
fn booking(version: u32) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("book", version);
    saga.pivot::<Ship>("fly", |trip, _| Ok(trip.clone()));
    saga.build().unwrap()
}

/// A trip of one version, booked by another saga of some version.
fn trip(version: u32, booked: u32) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", version);
    saga.compensatable::<Charge>("charge", |trip, _| Ok(trip.clone()), |undo| undo.request);
    saga.pivot_saga::<String, ()>("book", &booking(booked), |trip, _| Ok(trip.clone()));
    saga.build().unwrap()
}

#[tokio::test]
async fn one_whose_version_is_here_over_another_saga_below_says_so() {
    let world = World::with(trip(1, 1));
    left(&world, &["rome"]).await;
    let process = opened(&world, vec![trip(1, 2), booking(1)]).await;
    process.coordinator.recover().await.unwrap();
    let (parked, _) = page(&process, 0, "").await;
    let why = "its definition, place-order version 1, is here with other steps, another end or another version of a saga below: once what \
               began under that one has ended, give the newer of the two another version, and keep both";
    assert_eq!(parked.iter().map(|parked| parked.error.as_str()).collect::<Vec<_>>(), [why]);
    process.coordinator.leave().await;
    process.crash().await;

    let process = opened(&world, vec![trip(1, 1), trip(2, 2)]).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    assert_eq!(process.finished("rome").await.phase(), SagaPhase::Completed);
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

/// A version of an order that is alone with what it orders, so far as its id says what that is before a dash.
fn alone(version: u32) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", version);
    saga.lock(|order: &String| vec![order.split('-').next().unwrap_or_default().to_owned()]);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

#[tokio::test]
async fn a_parked_saga_that_is_closed_has_ended_and_is_in_nobodys_way() {
    let world = World::with(alone(1));
    left(&world, &["tea-1"]).await;
    // Its successor queues behind it, under a version that stays.
    world.participants.on_call(|call| if call.saga_id == "tea-1" { Fault::Hang } else { Fault::None });
    let process = opened(&world, vec![alone(1), alone(2)]).await;
    process.coordinator.recover().await.unwrap();
    process.place("tea-2").await.unwrap();
    process.until("tea-2", |saga| saga.waits_for_saga_id == "tea-1").await;
    process.coordinator.leave().await;
    process.crash().await;

    world.participants.on_call(|_| Fault::None);
    let process = opened(&world, vec![alone(2)]).await;
    process.coordinator.recover().await.unwrap();
    assert_eq!(parked(&process).await, ["tea-1"]);
    let refused = process.coordinator.cancel("tea-1", "ann", "too old").await.unwrap_err();
    assert!(refused.reason == "SAGA_PARKED" && refused.message.contains("force-close"), "{refused:?}");
    let calls = world.participants.calls().len();
    let closed = process.coordinator.force_close("tea-1", "ann", "paid back by hand").await.unwrap();
    assert_eq!(closed.phase(), SagaPhase::ForceClosed);
    assert_eq!(parked(&process).await, [""; 0]);
    assert_eq!(process.finished("tea-1").await.version, closed.version);
    assert_eq!(process.finished("tea-2").await.phase(), SagaPhase::Completed);
    let others = world.participants.calls().into_iter().skip(calls);
    assert!(others.into_iter().all(|made| made.call.saga_id == "tea-2"), "nobody is called for what is closed");

    let shown = process.until_phase("tea-1", SagaPhase::ForceClosed).await;
    let [why, who] = &shown.history[shown.history.len() - 2..] else { unreachable!() };
    assert!(why.what == "parked" && why.detail.contains("place-order version 1"), "{why:?}");
    assert_eq!((&*who.what, &*who.actor, &*who.detail), ("force-closed", "ann", "paid back by hand"));
    let phases = |saga: &Saga| saga.steps.iter().map(Step::state).collect::<Vec<_>>();
    assert_eq!(phases(&shown), [StepState::Done, StepState::Started, StepState::Unspecified], "as it was");
    for refused in [
        process.coordinator.force_close("tea-1", "ann", "?").await,
        process.coordinator.retry("tea-1", "ann", "?").await,
    ] {
        assert_eq!(refused.unwrap_err().reason, "SAGA_CLOSED");
    }
    // Its id is free, as that of any that has ended.
    assert_eq!(process.run("tea-1").await.phase(), SagaPhase::Completed);
    process.coordinator.leave().await;
    process.crash().await;
    let process = opened(&world, vec![alone(2)]).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 0, "nothing is left");
    assert_eq!(parked(&process).await, [""; 0]);
}

/// Pays by a saga of its own, which has a bug.
fn buy() -> Arc<Definition> {
    let mut pay = Definition::builder::<String>("pay", 1);
    pay.pivot::<Charge>("capture", |order, _| {
        if order == "bug" { panic!("{}", "nobody thought ".repeat(1_000)) } else { Ok(order.clone()) }
    });
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot_saga::<String, ()>("pay", &pay.build().unwrap(), |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

/// Pays by a saga of its own.
fn pay_below(version: u32) -> Vec<Arc<Definition>> {
    let mut pay = Definition::builder::<String>("pay", 1);
    pay.pivot::<Charge>("capture", |order, _| Ok(order.clone()));
    let pay = pay.build().unwrap();
    let mut saga = Definition::builder::<String>("place-order", version);
    saga.pivot_saga::<String, ()>("pay", &pay, |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("ship", |order, _| Ok(order.clone()));
    vec![saga.build().unwrap(), pay]
}

#[tokio::test]
async fn the_id_of_a_saga_that_is_closed_is_free_once_those_below_it_have_ended() {
    let world = World::new();
    world.participants.on_call(|_| Fault::LoseRequest);
    let process = opened(&world, pay_below(1)).await;
    process.coordinator.recover().await.unwrap();
    process.place("tea").await.unwrap();
    process.coordinator.leave().await;
    process.crash().await;

    let process = opened(&world, pay_below(2)).await;
    process.coordinator.recover().await.unwrap();
    process.coordinator.force_close("tea", "ann", "paid in cash").await.unwrap();
    // The one below goes on: what it pays for is not what another of that id orders.
    let refused = process.try_place("tea", "coffee").await.unwrap_err();
    assert!(refused.reason == "SAGA_EXISTS" && refused.message.contains("tea:pay"), "{refused:?}");
    world.participants.on_call(|_| Fault::None);
    assert_eq!(process.finished("tea:pay").await.phase(), SagaPhase::Completed);
    process.place("tea").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn another_saga_of_the_id_of_one_that_is_closed_is_shown_without_what_that_one_did() {
    let world = World::new();
    left(&world, &["tea"]).await;
    let mut saga = Definition::builder::<String>("place-order", 2);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    let definition = saga.build().unwrap();
    let process = opened(&world, vec![Arc::clone(&definition)]).await;
    process.coordinator.recover().await.unwrap();
    let location = database::location(world.folder.path(), "order").views();
    let views = Views::open(location, Log::of(&process.journal), &Projections::new().with(SagasView)).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    let running = tokio::spawn(views.run());
    process.coordinator.force_close("tea", "ann", "paid back by hand").await.unwrap();
    process.run("tea").await;
    process.crash().await;
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    let queries = SagaQueries::new(read, [definition]).unwrap();
    let shown = queries.get_saga(Request::new(GetSagaRequest { saga_id: "tea".to_owned() })).await.unwrap();
    let shown = shown.into_inner().saga.unwrap();
    let steps: Vec<_> = shown.steps.iter().map(|step| (&*step.name, step.state())).collect();
    assert_eq!(steps, [("ship", StepState::Done)]);
    assert!(shown.history.iter().all(|line| line.what != "force-closed"), "{:?}", shown.history);
}

#[tokio::test]
async fn the_saga_above_one_that_is_closed_asks_what_became_of_it() {
    let world = World::with(buy());
    let process = opened(&world, vec![buy()]).await;
    process.coordinator.recover().await.unwrap();
    process.place("bug").await.unwrap();
    process.until("bug", |saga| saga.phase() == SagaPhase::Forward).await;
    let parks = async {
        while parked(&process).await != ["bug:pay"] {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, parks).await.unwrap();
    let (found, _) = page(&process, 0, "").await;
    let error = &found[0].error;
    assert!(error.contains("panicked: nobody thought") && error.len() == 512, "a page of them is no message: {error}");
    process.coordinator.force_close("bug:pay", "ann", "paid in cash").await.unwrap();
    let stuck = process.until_phase("bug", SagaPhase::Stuck).await;
    assert_eq!(stuck.reason.unwrap().reason, "SUB_SAGA_FORCE_CLOSED");
    process.coordinator.skip("bug", "pay", Op::Action, true, "ann", "paid in cash").await.unwrap();
    assert_eq!(process.finished("bug").await.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("bug"), ["ship"]);
}

/// Whom it tells what to forget; everything else goes where it is called.
#[derive(Clone)]
struct Telling {
    participants: Participants,
    told: Arc<Mutex<Vec<(&'static str, EndedStep)>>>,
}

impl Transport for Telling {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        if !attempt.path.ends_with("/ForgetSteps") {
            return self.participants.call(attempt);
        }
        let request = ForgetStepsRequest::decode(attempt.request).unwrap();
        self.told.lock().extend(request.steps.into_iter().map(|step| (attempt.peer, step)));
        Box::pin(std::future::ready(Ok((Bytes::new(), MetadataMap::new()))))
    }
}

/// What participants are told to forget a moment after `id` is closed in a process with these definitions.
async fn told_once_closed(world: &World, journal: Journal, id: &str) -> Vec<(&'static str, String, String)> {
    let transport = Telling { participants: world.participants.clone(), told: Arc::default() };
    let options = Options { keep_answers: Duration::from_millis(1), ..Options::default() };
    // By the clock of the log.
    let coordinator = Coordinator::new(journal, [place_order_version(2)], transport.clone(), options).unwrap();
    coordinator.recover().await.unwrap();
    assert_eq!(coordinator.forget_ended().await, 0, "it has not ended");
    coordinator.force_close(id, "ann", "paid back by hand").await.unwrap();
    let told = async {
        while coordinator.forget_ended().await == 0 {
            tokio::task::yield_now().await;
        }
        // To whom nothing was to be told the first time.
        coordinator.forget_ended().await;
    };
    timeout(PATIENCE, told).await.unwrap();
    let mut told: Vec<_> =
        transport.told.lock().drain(..).map(|(peer, EndedStep { saga_id, step })| (peer, saga_id, step)).collect();
    told.sort();
    told
}

/// Nothing that could be read.
const GARBAGE: &[u8] = b"\xff";

/// Writes over what is stored.
async fn write(journal: &Journal, decided: Decided) {
    let decide = Box::new(move |_: &Loaded<'_>| decided);
    journal
        .submit(Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 100 })
        .await
        .unwrap();
}

/// Leaves nothing of a saga's record that could be read.
async fn spoil(journal: &Journal, id: &str) {
    let values = vec![id.into(), true.into(), Bytes::from_static(GARBAGE).into()];
    write(journal, Decided { rows: vec![Row { table: TABLES[0], values }], ..Decided::default() }).await;
}

/// One whose last step is refused again and again.
fn refused() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("charge", |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

#[tokio::test]
async fn participants_are_told_what_to_forget_of_a_saga_that_is_closed_whether_its_record_can_be_read_or_not() {
    for is_spoiled in [false, true] {
        let world = World::with(refused());
        let no = Refusal::precondition("NO", "the lorry is gone");
        world
            .participants
            .on_call(move |call| if call.step == "ship" { Fault::Reject(no.clone()) } else { Fault::None });
        let process = opened(&world, vec![refused()]).await;
        process.coordinator.recover().await.unwrap();
        process.place("tea").await.unwrap();
        process.until_phase("tea", SagaPhase::Stuck).await;
        // A call of its own, under another name, which the participant remembers beside the first one.
        process.coordinator.retry("tea", "ann", "there is another lorry").await.unwrap();
        process.until("tea", |saga| saga.history.iter().filter(|line| line.what == "stuck").count() == 2).await;
        process.coordinator.leave().await;
        process.crash().await;

        let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
        if is_spoiled {
            spoil(&journal, "tea").await;
        }
        let told = told_once_closed(&world, journal, "tea").await;
        let expected = [("payment", "charge"), ("shipping", "ship"), ("shipping", "ship#2"), ("shipping", "ship#3")];
        assert_eq!(told, expected.map(|(peer, step)| (peer, "tea".to_owned(), step.to_owned())), "{is_spoiled}");
    }
}

#[tokio::test]
async fn a_saga_whose_record_cannot_be_read_says_so_and_is_closed_as_its_log_tells() {
    let world = World::with(alone(1));
    left(&world, &["tea-1"]).await;
    let process = opened(&world, vec![alone(1)]).await;
    spoil(&process.journal, "tea-1").await;
    process.coordinator.recover().await.unwrap();
    let (found, _) = page(&process, 0, "").await;
    assert!(found.len() == 1 && found[0].error.contains("the record can't be read"), "{found:?}");
    process.place("tea-2").await.unwrap();
    process.until("tea-2", |saga| saga.waits_for_saga_id == "tea-1").await;
    for refused in [
        process.coordinator.finished("tea-1").await,
        process.coordinator.pause("tea-1", "ann", "?").await,
        process.coordinator.retry("tea-1", "ann", "?").await,
    ] {
        assert_eq!(refused.unwrap_err().reason, "SAGA_PARKED");
    }
    let before = process.until("tea-1", |saga| saga.version == 3).await;
    let closed = process.coordinator.force_close("tea-1", "ann", "paid back by hand").await.unwrap();
    assert_eq!((closed.phase(), closed.version), (SagaPhase::ForceClosed, 4));
    assert_eq!((&closed.steps, &closed.lock_keys, &closed.r#type), (&before.steps, &before.lock_keys, &before.r#type));
    let shown = process.until_phase("tea-1", SagaPhase::ForceClosed).await;
    assert!(shown.history.iter().any(|line| line.what == "parked" && line.detail.contains("can't be read")));
    assert_eq!(process.finished("tea-1").await.version, 4);
    assert_eq!(process.finished("tea-2").await.phase(), SagaPhase::Completed);
    assert_eq!(parked(&process).await, [""; 0]);
}

#[tokio::test]
async fn a_saga_that_cannot_be_read_is_told_of_once_though_one_below_waits_for_its_end() {
    let mut below = Definition::builder::<String>("below", 1);
    below.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let below = below.build().unwrap();
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable_saga::<String, ()>("below", &below, |order, _| Ok(order.clone()));
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    let definitions = vec![saga.build().unwrap(), below];
    let world = World::with(Arc::clone(&definitions[0]));
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let process = opened(&world, definitions.clone()).await;
    process.coordinator.recover().await.unwrap();
    process.place("tea").await.unwrap();
    process.until("tea", |saga| saga.steps[1].attempts > 0).await;
    process.coordinator.leave().await;
    process.crash().await;

    let process = opened(&world, definitions).await;
    spoil(&process.journal, "tea").await;
    let (lines, _guard) = Lines::keep();
    process.coordinator.recover().await.unwrap();
    // It looks every second.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(lines.that_say("can't be read").len(), 1, "{:?}", lines.that_say(""));
    process.coordinator.force_close("tea", "ann", "paid back by hand").await.unwrap();
    assert_eq!(process.finished("tea:below").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_saga_of_which_nothing_can_be_read_stays_parked() {
    let world = World::new();
    left(&world, &["tea"]).await;
    let process = opened(&world, vec![place_order()]).await;
    spoil(&process.journal, "tea").await;
    let events = vec![NewEvent { name: "SagaAdvanced", payload: Bytes::from_static(GARBAGE) }];
    let change = Change { aggregate: AggregateId::new("saga", "tea"), state: None, version: 4, events };
    write(&process.journal, Decided { changes: vec![change], ..Decided::default() }).await;
    process.coordinator.recover().await.unwrap();
    let owner = async || process.journal.aggregate(&AggregateId::new("saga_owner", "tea")).await.unwrap().state;
    let gone = owner().await;
    for _ in 0..2 {
        let refused = process.coordinator.force_close("tea", "ann", "paid back by hand").await.unwrap_err();
        assert!(refused.reason == "SAGA_PARKED" && refused.message.contains("restore"), "{refused:?}");
        assert_eq!(parked(&process).await, ["tea"]);
        assert_eq!(owner().await, gone, "it is left to whoever can read it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_drives_is_not_closed_by_one_that_passed_it_by() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    left(&world, &["tea"]).await;
    let old = opened(&world, vec![place_order_version(2)]).await;
    old.coordinator.recover().await.unwrap();
    assert_eq!(parked(&old).await, ["tea"]);
    world.participants.on_call(|call| if call.step == "charge" { Fault::LoseRequest } else { Fault::None });
    let new = opened(&world, vec![place_order()]).await;
    assert_eq!(new.coordinator.recover().await.unwrap(), 1);
    tokio::spawn(new.coordinator.clone().share());
    let refused = old.coordinator.force_close("tea", "ann", "too old").await.unwrap_err();
    assert_eq!((refused.code, &*refused.reason), (Code::Unavailable, "SAGA_NOT_DRIVEN"));
    assert_eq!(parked(&old).await, [""; 0], "it is not, any more");
    world.participants.on_call(|_| Fault::None);
    assert_eq!(new.finished("tea").await.phase(), SagaPhase::Completed);
}

/// Whoever parked it can close it. The others can't even read whether it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_saga_that_cannot_be_read_another_process_says_that_it_does_not_drive_it() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |_, _| panic!("nobody thought of it"));
    let world = World::with(saga.build().unwrap());
    let open = async || {
        let process = opened(&world, vec![Arc::clone(&world.definition)]).await;
        process.coordinator.recover().await.unwrap();
        shares(&process);
        process
    };
    let (one, two) = (open().await, open().await);
    one.place("tea").await.unwrap();
    becomes("parked", async || parked(&one).await == ["tea"]).await;
    spoil(&one.journal, "tea").await;
    for refused in [
        two.coordinator.force_close("tea", "ann", "paid back by hand").await,
        two.coordinator.retry("tea", "ann", "?").await,
        two.coordinator.pause("tea", "ann", "?").await,
        two.coordinator.skip("tea", "ship", Op::Action, true, "ann", "?").await,
        two.coordinator.finished("tea").await,
    ] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (Code::Unavailable, "SAGA_NOT_DRIVEN"));
    }
    let closed = one.coordinator.force_close("tea", "ann", "paid back by hand").await.unwrap();
    assert_eq!(two.finished("tea").await.version, closed.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_passed_a_saga_by_one_closes_it_for_all() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    left(&world, &["rum", "tea"]).await;
    let open = async || {
        let process = opened(&world, vec![place_order_version(2)]).await;
        process.coordinator.recover().await.unwrap();
        process
    };
    let (one, two) = (open().await, open().await);
    for process in [&one, &two] {
        assert_eq!(parked(process).await, ["rum", "tea"]);
    }
    let closed = one.coordinator.force_close("tea", "ann", "too old").await.unwrap();
    assert_eq!(parked(&one).await, ["rum"]);
    // What it still remembers it looks up.
    assert_eq!(two.coordinator.force_close("tea", "bob", "too old").await.unwrap_err().reason, "SAGA_CLOSED");
    assert_eq!(parked(&two).await, ["rum"]);
    assert_eq!(two.finished("tea").await.version, closed.version);
    one.coordinator.force_close("rum", "ann", "too old").await.unwrap();
    tokio::spawn(two.coordinator.clone().share());
    let hears = async {
        while !parked(&two).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, hears).await.expect("what another has closed is not listed any more");
}
