//! `saga.v1` over real sagas and their view: what is listed, watched, described and ordered; and sagas that begin later.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use libs::{
    cqrs::{CommandSide, Log, Projection, ProjectionError, Projections, READ_POSITION, Views},
    journal::{AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, NewEvent, Table, sql::Transaction},
    refusal::Refusal,
    rpc::principal::Principal,
    saga::{Definition, LocalWork, Options, Retry, SagaCommands, SagaQueries, SagasView, TABLES, testing::Fault},
    testing::{after, refused, wrong_fields},
};
use proto::saga::v1::{
    self as pb, CancelSagaRequest, DescribeSagaRequest, ForceCloseSagaRequest, GetSagaRequest, ListSagasRequest,
    LockPolicy, PauseSagaRequest, ResumeSagaRequest, RetrySagaRequest, SagaPhase, SkipOutcome, SkipStepRequest,
    StepKind, WatchSagasRequest, saga_command_service_client::SagaCommandServiceClient,
    saga_command_service_server::SagaCommandService as _, saga_query_service_server::SagaQueryService as _,
};
use saga_world::{PATIENCE, Process, Reserve, Ship, World};
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, transport::Server};

/// The time at which every saga of a test is asked for.
const NOW: i64 = 1_700_000_000_000_000;

fn inner() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("inner", 3);
    saga.compensatable::<Reserve>("reserve", |it, _| Ok(it.clone()), |undo| undo.request);
    saga.build().unwrap()
}

fn outer() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("outer", 2);
    saga.lock(|it: &String| vec![format!("it/{it}")]);
    saga.compensatable_saga::<String, ()>("prepare", &inner(), |it, _| Ok(it.clone()));
    saga.pivot::<Ship>("ship", |it, _| Ok(it.clone()));
    saga.build().unwrap()
}

/// As it was before, with limits of every kind.
fn older() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("outer", 1);
    saga.deadline(Duration::from_secs(60));
    saga.compensatable::<Reserve>("reserve", |it, _| Ok(it.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(2)).step_deadline(Duration::from_secs(30));
    saga.trusted_codes(&[Code::NotFound]).without_barrier();
    let (initial, most) = (Duration::from_secs(1), Duration::from_secs(9));
    saga.retry(Retry { initial, most, factor: 3.0, jitter: 0.25, attempts: Some(7) });
    saga.on_compensated(|_, _| Ok(LocalWork::nothing()));
    saga.build().unwrap()
}

struct Api {
    world: World,
    process: Process,
    side: CommandSide,
    queries: SagaQueries,
    /// The same, where nobody waits for the view.
    impatient: SagaQueries,
    commands: SagaCommands,
}

async fn open() -> Api {
    let world = World::with(inner());
    let location = database::location(world.folder.path(), "order");
    let journal = Journal::open(location.clone(), TABLES).await.unwrap();
    let process = Process::on(journal.clone(), vec![outer()], world.participants.clone(), Options::default());
    process.coordinator.recover().await.unwrap();
    let log = Log::of(&journal);
    let views = Views::open(location.views(), log, &Projections::new().with(SagasView)).await.unwrap();
    let queries = |most_wait| SagaQueries::new(views.read_side("test", most_wait), [older(), outer()]).unwrap();
    let (queries, impatient) = (queries(PATIENCE), queries(Duration::ZERO));
    tokio::spawn(views.run());
    let side = CommandSide::new("test", journal);
    let commands = SagaCommands::new(side.clone(), process.coordinator.clone());
    Api { side, world, process, queries, impatient, commands }
}

impl Api {
    /// A query that sees all that is committed now.
    async fn ask<Q>(&self, query: Q) -> Request<Q> {
        let mut request = Request::new(query);
        self.side.stamp(request.metadata_mut()).await.unwrap();
        request
    }

    async fn start(&self, saga_type: &'static str, id: &str, start_micros: i64) -> Result<(), Refusal> {
        start(&self.process, saga_type, id, start_micros).await
    }

    async fn listed(&self, list: ListSagasRequest) -> (Vec<String>, String) {
        let page = self.queries.list_sagas(self.ask(list).await).await.unwrap().into_inner();
        (page.sagas.into_iter().map(|saga| saga.saga_id).collect(), page.next_page_token)
    }
}

async fn start(process: &Process, saga_type: &'static str, id: &str, start_micros: i64) -> Result<(), Refusal> {
    let (coordinator, id) = (process.coordinator.clone(), id.to_owned());
    let decide = move |_: &Loaded<'_>| {
        let loaded = Loaded::new(&[], None, NOW);
        coordinator.start_at(saga_type, &id, &id, &loaded, start_micros).unwrap()
    };
    let (cause, aggregates) = (Cause::default(), Vec::new());
    process
        .journal
        .submit(Entry { request: None, aggregates, cause, decide: Box::new(decide), size: 9 })
        .await
        .unwrap();
    Ok(())
}

#[tokio::test]
async fn sagas_are_listed_by_phase_and_type_a_page_at_a_time_the_newest_first() {
    let api = open().await;
    api.world.participants.on_call(|call| if call.saga_id == "c" { Fault::Hang } else { Fault::None });
    for id in ["a", "b", "c"] {
        api.start("inner", id, 0).await.unwrap();
    }
    api.start("outer", "d", 0).await.unwrap();
    for id in ["a", "b", "d", "d:prepare"] {
        assert_eq!(api.process.finished(id).await.phase(), SagaPhase::Completed);
    }
    let list = |phases: &[SagaPhase], saga_type: &str| ListSagasRequest {
        phases: phases.iter().map(|phase| (*phase).into()).collect(),
        r#type: saga_type.to_owned(),
        page_size: 2,
        page_token: String::new(),
    };
    let (first, token) = api.listed(list(&[SagaPhase::Completed, SagaPhase::Stuck], "inner")).await;
    assert_eq!(first, ["d:prepare", "b"]);
    // The next page is of the same listing, in whichever order its phases come, or how often.
    let phases = [SagaPhase::Stuck, SagaPhase::Completed, SagaPhase::Stuck];
    let next = ListSagasRequest { page_token: token, ..list(&phases, "inner") };
    assert_eq!(api.listed(next).await, (vec!["a".to_owned()], String::new()));
    assert_eq!(api.listed(list(&[SagaPhase::Forward], "")).await.0, ["c"]);
    assert_eq!(api.listed(list(&[], "outer")).await.0, ["d"]);
    let wrong = ListSagasRequest { phases: vec![99], page_token: "garbage".to_owned(), ..ListSagasRequest::default() };
    assert_eq!(wrong_fields(api.queries.list_sagas(Request::new(wrong)).await), ["phases"]);
    let wrong = ListSagasRequest { page_token: "garbage".to_owned(), ..ListSagasRequest::default() };
    assert_eq!(wrong_fields(api.queries.list_sagas(Request::new(wrong)).await), ["page_token"]);
}

/// Keeps nothing.
struct Bystander;

impl Projection for Bystander {
    const NAME: &'static str = "bystander";
    const TABLES: &'static [&'static Table] = &[];

    async fn project(&self, _: &[Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_watch_of_a_view_that_is_far_behind_the_others_is_told_what_comes_into_it() {
    let world = World::with(inner());
    let location = database::location(world.folder.path(), "order");
    let journal = Journal::open(location.clone(), TABLES).await.unwrap();
    let process = Process::on(journal.clone(), vec![outer()], world.participants.clone(), Options::default());
    start(&process, "inner", "a", 0).await.unwrap();
    process.finished("a").await;
    let event = || NewEvent { name: "Happened", payload: Vec::new().into() };
    let (aggregate, events) = (AggregateId::new("thing", "a"), std::iter::repeat_with(event).take(5_000).collect());
    let change = Change { aggregate, state: None, version: 1, events };
    let decide = Box::new(|_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 9 };
    journal.submit(entry).await.unwrap();
    let (log, projections) = (|| Log::of(&journal), Projections::new().with(Bystander));
    Views::open(location.views(), log(), &projections).await.unwrap().catch_up(|_, _| {}).await.unwrap();

    let views = Views::open(location.views(), log(), &projections.with(SagasView)).await.unwrap();
    let queries = SagaQueries::new(views.read_side("test", PATIENCE), [older(), outer()]).unwrap();
    let all = queries.watch_sagas(Request::new(WatchSagasRequest::default())).await.unwrap();
    let begins: i64 = all.metadata().get(READ_POSITION).unwrap().to_str().unwrap().parse().unwrap();
    tokio::spawn(views.run());
    let seen = timeout(PATIENCE, all.into_inner().next()).await.expect("it is told").unwrap().unwrap();
    assert!(begins < seen.position, "who goes on after {begins} is not told");
    assert_eq!(seen.saga.unwrap().phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_watch_goes_on_from_where_it_was() {
    let api = open().await;
    api.world.participants.on_call(|call| if call.step == "reserve" { Fault::Hang } else { Fault::None });
    api.start("inner", "a", 0).await.unwrap();
    let watch = |saga_id: &str, after_position| {
        let (queries, asked) =
            (&api.queries, api.ask(WatchSagasRequest { saga_id: saga_id.to_owned(), after_position }));
        async move { queries.watch_sagas(asked.await).await }
    };
    let mut all = watch("", 0).await.unwrap().into_inner();
    let seen = watch("a", 0).await.unwrap().into_inner().next().await.unwrap().unwrap();
    assert_eq!(seen.saga.unwrap().phase(), SagaPhase::Forward);
    api.process.coordinator.cancel("a", "ann", "enough").await.unwrap();
    api.world.participants.on_call(|_| Fault::None);
    api.process.finished("a").await;
    // Neither what was seen before, nor anything after the end.
    let rest: Vec<_> = watch("a", seen.position).await.unwrap().into_inner().collect().await;
    let rest: Vec<_> = rest.into_iter().map(|change| change.unwrap()).collect();
    assert!(rest.iter().all(|change| change.position > seen.position));
    assert_eq!(rest.last().unwrap().saga.as_ref().unwrap().phase(), SagaPhase::Compensated);
    let last = rest.last().unwrap().position;
    assert_eq!(watch("a", last).await.unwrap().into_inner().count().await, 0);
    // Who watches all of them hears of it too.
    let hears = async { while all.next().await.unwrap().unwrap().position != last {} };
    timeout(PATIENCE, hears).await.expect("it is told");
    assert_eq!(wrong_fields(watch("", -1).await), ["after_position"]);
    // Nobody waits in silence for a log that doesn't go so far, not even for a saga that has ended.
    for saga_id in ["", "a"] {
        let watch = WatchSagasRequest { saga_id: saga_id.to_owned(), after_position: last + 1_000 };
        let mut beyond = api.impatient.watch_sagas(Request::new(watch)).await.unwrap().into_inner();
        let beyond = beyond.next().await.unwrap().unwrap_err();
        assert_eq!(Refusal::from_status(&beyond).reason, "AHEAD_OF_LOG", "{beyond:?}");
    }
    let mut gone = watch("nobody", 0).await.unwrap().into_inner();
    assert_eq!(gone.next().await.unwrap().unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_definition_tells_its_shape_and_those_below_it() {
    let api = open().await;
    let describe = |name: &str, version| {
        let request = Request::new(DescribeSagaRequest { r#type: name.to_owned(), version });
        let queries = api.queries.clone();
        async move { queries.describe_saga(request).await }
    };
    let outer = describe("outer", 0).await.unwrap().into_inner();
    assert_eq!((outer.version, outer.lock_policy(), outer.definition_hash.len()), (2, LockPolicy::Wait, 64));
    let [prepare, ship] = &outer.steps[..] else { panic!("{outer:?}") };
    assert_eq!((prepare.participant.as_str(), prepare.action.as_str()), ("saga", "inner"));
    assert_eq!((ship.kind(), ship.after.as_slice()), (StepKind::Pivot, ["prepare".to_owned()].as_slice()));
    let inner = describe("inner", 0).await.unwrap().into_inner();
    assert_eq!((inner.version, inner.lock_policy()), (3, LockPolicy::Unspecified));
    assert!(inner.steps[0].compensation.ends_with("/Release"));
    assert_eq!(refused(describe("other", 0).await), (Code::NotFound, "UNKNOWN_SAGA_TYPE".to_owned()));
    // What open sagas pin may be an older one.
    let older = describe("outer", 1).await.unwrap().into_inner();
    assert_eq!((older.version, older.steps.len()), (1, 1));
    assert_eq!(refused(describe("outer", 3).await), (Code::NotFound, "UNKNOWN_SAGA_VERSION".to_owned()));
}

#[tokio::test]
async fn a_definition_tells_its_limits() {
    let api = open().await;
    let request = Request::new(DescribeSagaRequest { r#type: "outer".to_owned(), version: 1 });
    let limited = api.queries.describe_saga(request).await.unwrap().into_inner();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    assert_eq!((limited.deadline, limited.on_compensated), (seconds(60), true));
    let reserve = &limited.steps[0];
    assert_eq!((reserve.attempt_timeout, reserve.deadline), (seconds(2), seconds(30)));
    assert_eq!((reserve.trusted_codes.as_slice(), reserve.without_barrier), ([Code::NotFound as i32].as_slice(), true));
    let retry = pb::RetryPolicy { initial: seconds(1), most: seconds(9), factor: 3.0, jitter: 0.25, attempts: 7 };
    assert_eq!(reserve.retry, Some(retry));
    // What was not limited is not.
    let request = Request::new(DescribeSagaRequest { r#type: "inner".to_owned(), version: 0 });
    let inner = api.queries.describe_saga(request).await.unwrap().into_inner();
    assert_eq!((inner.deadline, inner.on_compensated, inner.steps[0].deadline), (None, false, None));
    assert_eq!(inner.steps[0].retry.as_ref().map(|retry| retry.attempts), Some(0));
}

#[tokio::test]
async fn an_order_says_who_and_why_and_stays_in_the_history() {
    let api = open().await;
    api.world.participants.on_call(|_| Fault::Hang);
    api.start("outer", "a", 0).await.unwrap();
    api.process.until("a:prepare", |saga| saga.version > 0).await;
    // It is stored before anybody drives it, and driven once it calls.
    let called = async {
        while !api.world.participants.calls().iter().any(|call| call.call.saga_id == "a:prepare") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, called).await.unwrap();
    let wrong = PauseSagaRequest { saga_id: "a b".to_owned(), actor: String::new(), reason: "x".repeat(513) };
    assert_eq!(wrong_fields(api.commands.pause_saga(Request::new(wrong)).await), ["saga_id", "actor", "reason"]);
    let pause = PauseSagaRequest {
        saga_id: "a:prepare".to_owned(),
        actor: "ann".to_owned(),
        reason: "inventory day".to_owned(),
    };
    let paused = api.commands.pause_saga(Request::new(pause)).await.unwrap();
    // Whoever asks with the answer's token sees what was done.
    let get = after(&paused, GetSagaRequest { saga_id: "a:prepare".to_owned() });
    assert!(paused.into_inner().saga.unwrap().paused);
    let shown = api.queries.get_saga(get).await.unwrap().into_inner().saga.unwrap();
    let line = shown.history.last().unwrap();
    assert_eq!((line.what.as_str(), line.actor.as_str(), line.detail.as_str()), ("paused", "ann", "inventory day"));

    let resume =
        ResumeSagaRequest { saga_id: "a:prepare".to_owned(), actor: "ann".to_owned(), reason: "done".to_owned() };
    let bob = Principal::new("bob").unwrap();
    let resumed = bob.scope(api.commands.resume_saga(Request::new(resume))).await.unwrap().into_inner().saga.unwrap();
    let line = resumed.history.iter().find(|line| line.what == "resumed").unwrap();
    assert_eq!(line.actor, "bob", "he was known, and is not ann");
    assert_eq!(shown.parent_saga_id, "a");
    let unknown = GetSagaRequest { saga_id: "nobody".to_owned() };
    assert_eq!(
        refused(api.queries.get_saga(api.ask(unknown).await).await),
        (Code::NotFound, "UNKNOWN_SAGA".to_owned())
    );
    let cancel = CancelSagaRequest { saga_id: "nobody".to_owned(), actor: "ann".to_owned(), reason: "?".to_owned() };
    assert_eq!(refused(api.commands.cancel_saga(Request::new(cancel)).await).1, "UNKNOWN_SAGA");
}

#[tokio::test]
async fn an_operator_settles_what_is_stuck_each_in_its_way() {
    let api = open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = Server::builder().add_service(api.commands.clone().into_server());
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut operator = SagaCommandServiceClient::connect(address).await.unwrap();

    api.world.participants.on_call(|_| Fault::Conflict);
    for id in ["retried", "done", "rejected", "closed", "resumed"] {
        api.start("inner", id, 0).await.unwrap();
        api.process.until_phase(id, SagaPhase::Stuck).await;
    }
    api.world.participants.on_call(|_| Fault::None);
    let (actor, reason) = ("ann".to_owned(), "I have looked".to_owned());
    let skip = |saga_id: &str, operation: pb::Operation, outcome: SkipOutcome| SkipStepRequest {
        saga_id: saga_id.to_owned(),
        step: "reserve".to_owned(),
        operation: operation.into(),
        outcome: outcome.into(),
        actor: actor.clone(),
        reason: reason.clone(),
    };

    // Whoever doesn't say what he knows has nothing done for him.
    let unsaid = skip("done", pb::Operation::Action, SkipOutcome::Unspecified);
    assert_eq!(wrong_fields(operator.skip_step(unsaid).await), ["outcome"]);
    let unsaid = skip("done", pb::Operation::Unspecified, SkipOutcome::Done);
    assert_eq!(wrong_fields(operator.skip_step(unsaid).await), ["operation"]);
    let nothing = operator.skip_step(pb::SkipStepRequest::default()).await;
    assert_eq!(wrong_fields(nothing), ["step", "operation", "outcome", "saga_id", "actor", "reason"]);
    let (pause, resume) = (
        PauseSagaRequest { saga_id: "resumed".to_owned(), actor: actor.clone(), reason: reason.clone() },
        ResumeSagaRequest { saga_id: "resumed".to_owned(), actor: actor.clone(), reason: reason.clone() },
    );
    assert!(operator.pause_saga(pause).await.unwrap().into_inner().saga.unwrap().paused);
    let resumed = operator.resume_saga(resume).await.unwrap().into_inner().saga.unwrap();
    assert_eq!((resumed.paused, resumed.phase()), (false, SagaPhase::Stuck), "it stays what it was");

    let retry = RetrySagaRequest { saga_id: "retried".to_owned(), actor: actor.clone(), reason: reason.clone() };
    let close = ForceCloseSagaRequest { saga_id: "closed".to_owned(), actor: actor.clone(), reason: reason.clone() };
    operator.retry_saga(retry).await.unwrap();
    operator.skip_step(skip("done", pb::Operation::Action, SkipOutcome::Done)).await.unwrap();
    operator.skip_step(skip("rejected", pb::Operation::Action, SkipOutcome::Rejected)).await.unwrap();
    operator.force_close_saga(close).await.unwrap();
    for (id, end, effects) in [
        ("retried", SagaPhase::Completed, vec!["reserve"]),
        ("done", SagaPhase::Completed, vec![]),
        ("rejected", SagaPhase::Compensated, vec![]),
        ("closed", SagaPhase::ForceClosed, vec![]),
    ] {
        let (ended, effects) = (api.process.finished(id).await, effects.into_iter().map(str::to_owned).collect());
        assert_eq!((ended.phase(), api.world.participants.done_for(id)), (end, effects), "{id}");
        // The history is the log's.
        let history = api.process.until_phase(id, end).await.history;
        assert!(history.iter().any(|line| line.actor == actor && line.detail.contains(&reason)), "{id}: {history:?}");
    }
}

#[tokio::test]
async fn a_saga_that_begins_later_is_scheduled_and_calls_nobody_before() {
    let world = World::with(inner());
    let open = || async {
        let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
        Process::on(journal, vec![inner()], world.participants.clone(), Options::default())
    };
    let process = open().await;
    process.coordinator.recover().await.unwrap();
    let soon = NOW + 300_000;
    start(&process, "inner", "soon", soon).await.unwrap();
    start(&process, "inner", "never", NOW + 86_400_000_000).await.unwrap();
    process.until_phase("soon", SagaPhase::Scheduled).await;
    // It may be cancelled before it begins: nothing was done, nothing is undone.
    let cancelled = process.coordinator.cancel("never", "ann", "not after all").await.unwrap();
    assert_eq!(cancelled.phase(), SagaPhase::Compensated);
    assert_eq!(process.finished("soon").await.phase(), SagaPhase::Completed);
    let saga = process.until_phase("soon", SagaPhase::Completed).await;
    let begun = saga.history.iter().find(|line| line.what == "begun").unwrap().time.unwrap();
    assert!(begun.seconds * 1_000_000 + i64::from(begun.nanos) / 1_000 >= soon);
    assert_eq!(world.participants.done_for("soon"), ["reserve"]);
    assert!(world.participants.calls().iter().all(|call| call.call.saga_id == "soon"));
    // A restart leaves it as it is.
    start(&process, "inner", "later", NOW + 86_400_000_000).await.unwrap();
    process.crash().await;
    if database::is_shared() {
        return;
    }
    let process = open().await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    let paused = process.coordinator.pause("later", "ann", "?").await.unwrap();
    assert_eq!(paused.phase(), SagaPhase::Scheduled);
}
