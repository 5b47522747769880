//! Several processes that share the sagas of one database, on the PostgreSQL that `TEST_POSTGRES` names.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    breaker::{CircuitOpen, Reason},
    journal::{Journal, Location, Member},
    refusal::Refusal,
    rpc::verdict::{Op, SagaCall},
    saga::{
        Attempt, Coordinator, Definition, Operation as _, Options, Retry, TABLES, Transport,
        testing::{Call, Fault, Participants},
    },
};
use proto::saga::v1::SagaPhase;
use saga_world::{
    Charge, PATIENCE, Process, Reserve, Ship, World, becomes, buy, local, pay, place_order, place_order_version, shares,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::{runtime::Runtime, sync::watch};
use tonic::{Code, Status, metadata::MetadataMap};

/// What a call takes effect for at once, and is answered when the gate is open.
#[derive(Clone)]
struct Gated {
    participants: Participants,
    open: watch::Receiver<bool>,
}

impl Transport for Gated {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let answer = self.participants.call(attempt);
        let mut open = self.open.clone();
        Box::pin(async move {
            let answer = answer.await;
            open.wait_for(|open| *open).await.unwrap();
            answer
        })
    }
}

/// One more process on the world's database.
async fn process(world: &World, transport: impl Transport) -> Process {
    knowing(world, transport, std::slice::from_ref(&world.definition)).await
}

/// One more, with definitions of its own: older or newer than the others'.
async fn knowing(world: &World, transport: impl Transport, definitions: &[Arc<Definition>]) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let process = Process::on(journal, definitions.to_vec(), transport, Options::default());
    process.coordinator.recover().await.unwrap();
    process
}

/// Waits until a process has let go of all its sagas.
async fn drives_nothing(process: &Process) {
    becomes("without a saga", async || process.coordinator.live() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_drives_what_it_started_and_whoever_asks_hears_of_the_end() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let (one, two) =
        (process(&world, world.participants.clone()).await, process(&world, world.participants.clone()).await);
    shares(&one);
    shares(&two);
    for at in 0..20 {
        let (from, other) = if at % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let order = format!("tea-{at}");
        from.place(&order).await.unwrap();
        assert_eq!(other.finished(&order).await.phase(), SagaPhase::Completed);
        assert_eq!(world.participants.done_for(&order), ["reserve", "charge", "ship"]);
    }
    // Nobody did the other's work again.
    assert_eq!(world.participants.calls().len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_ask_any_of_them() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let (open, gate) = watch::channel(false);
    let one = process(&world, Gated { participants: world.participants.clone(), open: gate }).await;
    let two = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    // The process that started it has reserved, and waits for the answer: what is cancelled is under way.
    becomes("reserved", async || !world.participants.effects().is_empty()).await;
    let cancelled = two.coordinator.cancel("tea", "ada", "changed my mind").await.unwrap();
    assert_eq!(cancelled.phase(), SagaPhase::Compensating);
    let ended = two.finished("tea").await;
    assert_eq!(ended.phase(), SagaPhase::Compensated);
    assert_eq!(two.order("tea").await, "Rejected  CANCELLED");
    // The answer comes at last. What it would lead to is refused, and the one who had it lets go.
    open.send_replace(true);
    drives_nothing(&one).await;
    assert_eq!(one.finished("tea").await.version, ended.version);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_nothing_to_do_hears_that_another_has_ended_its_saga() {
    if !database::has_server() {
        return;
    }
    let world = World::with(buy());
    let (one, two) =
        (process(&world, world.participants.clone()).await, process(&world, world.participants.clone()).await);
    shares(&one);
    shares(&two);
    let no = Refusal::precondition("NO", "the books are closed");
    world.participants.on_call(move |call| match (&*call.step, &*call.saga_id) {
        ("account", _) => Fault::Reject(no.clone()),
        ("reserve", "bob-1") => Fault::LoseRequest,
        _ => Fault::None,
    });
    // Ada's is STUCK below and waits for that above, and her next one waits for it. Bob's is paused.
    one.place("ada-1").await.unwrap();
    one.until_phase("ada-1:pay", SagaPhase::Stuck).await;
    one.place("ada-2").await.unwrap();
    one.until("ada-2", |saga| !saga.waits_for_saga_id.is_empty()).await;
    one.place("bob-1").await.unwrap();
    one.coordinator.pause("bob-1", "ada", "stock-taking").await.unwrap();
    let waiting: Vec<_> = ["ada-1", "ada-1:pay", "ada-2", "bob-1"]
        .map(|id| {
            let coordinator = one.coordinator.clone();
            tokio::spawn(async move { (id, coordinator.finished(id).await.unwrap().phase()) })
        })
        .into();

    world.participants.on_call(|_| Fault::None);
    two.coordinator.cancel("ada-2", "ada", "too late").await.unwrap();
    two.coordinator.skip("ada-1:pay", "account", Op::Action, true, "ada", "booked by hand").await.unwrap();
    two.coordinator.resume("bob-1", "ada", "all is there").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, futures::future::join_all(waiting)).await;
    let ended: Vec<_> = ended.expect("who waits hears of the end").into_iter().map(Result::unwrap).collect();
    let expected = [
        ("ada-1", SagaPhase::Completed),
        ("ada-1:pay", SagaPhase::Completed),
        ("ada-2", SagaPhase::Compensated),
        ("bob-1", SagaPhase::Completed),
    ];
    assert_eq!(ended, expected);
    assert_eq!(one.order("ada-1").await, "Completed");
    assert_eq!(one.coordinator.live(), 0, "nothing is kept for what another has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_know_a_sagas_definition_leaves_it_to_its_owner() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let new = knowing(&world, world.participants.clone(), &[place_order_version(2)]).await;
    let old = process(&world, world.participants.clone()).await;
    world.participants.on_call(|call| if call.step == "charge" { Fault::LoseRequest } else { Fault::None });
    new.place("tea").await.unwrap();
    let refused = old.coordinator.pause("tea", "ada", "stock-taking").await.unwrap_err();
    assert_eq!((refused.code, &*refused.reason), (Code::Unavailable, "SAGA_NOT_DRIVEN"));
    world.participants.on_call(|_| Fault::None);
    let ended = tokio::time::timeout(PATIENCE, new.coordinator.finished("tea")).await;
    assert_eq!(ended.expect("its owner goes on").unwrap().phase(), SagaPhase::Completed);
}

/// As the other one, with a bug in its pivot.
fn place_order_with_a_bug() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |_, _| panic!("a bug"));
    saga.retriable_local("complete", |order, _| Ok(local("Completed", order)));
    saga.on_compensated(|order, _| Ok(local("Rejected", order)));
    saga.build().unwrap()
}

/// Whether a process says within this time that a saga is parked; who asks for one that is driven waits.
async fn is_parked(process: &Process, id: &str, within: Duration) -> bool {
    let waiting = tokio::time::timeout(within, process.coordinator.finished(id));
    match waiting.await {
        Err(_) => false,
        Ok(ended) => ended.expect_err("it has not ended").reason == "SAGA_PARKED",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_is_not_any_more_once_another_drives_it() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let lose = |step: &'static str| {
        world.participants.on_call(move |call| if call.step == step { Fault::LoseRequest } else { Fault::None });
    };
    // One is an orphan of a version that the old process doesn't have, the other its own, which hits a bug of its version.
    lose("charge");
    let gone = knowing(&world, world.participants.clone(), &[place_order_version(2)]).await;
    gone.place("tea").await.unwrap();
    gone.coordinator.drain(Duration::from_millis(50)).await;
    gone.coordinator.leave().await;
    lose("ship");
    let old = knowing(&world, world.participants.clone(), &[place_order_with_a_bug()]).await;
    assert!(is_parked(&old, "tea", PATIENCE).await);
    old.place("rum").await.unwrap();
    assert!(is_parked(&old, "rum", PATIENCE).await);
    shares(&old);
    tokio::time::sleep(Member::BEAT + Member::BEAT / 2).await;
    for id in ["tea", "rum"] {
        assert!(is_parked(&old, id, PATIENCE).await, "for as long as nobody else drives them");
    }

    let new = knowing(&world, world.participants.clone(), &[place_order(), place_order_version(2)]).await;
    // Or it would be gone for the old one once its lease is over, and what it drives an orphan again.
    shares(&new);
    new.coordinator.retry("rum", "ada", "mended").await.unwrap();
    assert_eq!(new.coordinator.live(), 2);
    for id in ["tea", "rum"] {
        becomes("driven by another", async || !is_parked(&old, id, Duration::from_secs(2)).await).await;
    }
    world.participants.on_call(|_| Fault::None);
    for id in ["tea", "rum"] {
        // Where it only took long to say that it is parked, it says so until it hears of the other.
        let ended = async || old.coordinator.finished(id).await.is_ok_and(|saga| saga.phase() == SagaPhase::Completed);
        becomes("completed", ended).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_leaves_is_taken_up_by_another() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let killed = Runtime::new().unwrap();
    let orders: Vec<String> = (0..10).map(|at| format!("tea-{at}")).collect();
    let location = database::location(world.folder.path(), "order");
    let participants = world.participants.clone();
    let left = orders.clone();
    let running = killed.spawn(async move {
        let journal = Journal::open(location, TABLES).await.unwrap();
        let one = Process::on(journal, vec![place_order()], participants, Options::default());
        one.coordinator.recover().await.unwrap();
        shares(&one);
        for order in left {
            one.place(&order).await.unwrap();
            one.until(&order, |saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0)).await;
        }
    });
    running.await.unwrap();
    // As SIGKILL leaves it.
    killed.shutdown_background();

    let two = process(&world, world.participants.clone()).await;
    assert_eq!(two.coordinator.live(), 0, "its owner counts as there for a while");
    world.participants.on_call(|_| Fault::None);
    shares(&two);
    for order in &orders {
        assert_eq!(two.finished(order).await.phase(), SagaPhase::Completed);
        assert_eq!(world.participants.done_for(order), ["reserve", "charge", "ship"]);
    }
}

/// Taking over many sagas takes long, and here it is held up: whoever does so is there all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_for_longer_than_a_lease_is_not_taken_for_gone() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    let open = async || Journal::open(Location::Postgres { url: url.clone(), schema: schema.clone() }, TABLES).await;
    let on = |journal| Process::on(journal, vec![place_order()], world.participants.clone(), Options::default());
    world.participants.on_call(|_| Fault::Hang);
    let gone = on(open().await.unwrap());
    gone.coordinator.recover().await.unwrap();
    gone.place("tea").await.unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    let sql = format!("UPDATE {schema}.members SET seen_until = 0");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await.unwrap();
    // The turn that a claim needs.
    let turn = format!("SELECT pg_advisory_lock(hashtextextended('trellis/{schema}/journal', 0))");
    let two = on(open().await.unwrap());
    sqlx::raw_sql(AssertSqlSafe(turn)).execute(&mut server).await.unwrap();
    let adopting = tokio::spawn(async move { two.coordinator.recover().await });
    tokio::time::sleep(Member::LEASE + Duration::from_secs(1)).await;
    assert!(!adopting.is_finished(), "it is held up");
    let there = format!(
        "SELECT count(*) FROM {schema}.members WHERE seen_until > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    );
    let there: i64 = sqlx::query_scalar(AssertSqlSafe(there)).fetch_one(&mut server).await.unwrap();
    assert_eq!(there, 1);
    sqlx::raw_sql("SELECT pg_advisory_unlock_all()").execute(&mut server).await.unwrap();
    assert_eq!(adopting.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_taken_for_dead_and_goes_on_changes_nothing() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let (open, gate) = watch::channel(false);
    // It never says that it is there: stopped, as far as the others can tell.
    let stopped = process(&world, Gated { participants: world.participants.clone(), open: gate }).await;
    stopped.place("tea").await.unwrap();
    world.participants.on_call(|call| {
        // Its successor turns the saga back.
        let no = libs::refusal::Refusal::precondition("NO", "sold out");
        if call.step == "charge" { Fault::Reject(no) } else { Fault::None }
    });
    let two = process(&world, world.participants.clone()).await;
    shares(&two);
    let ended = two.finished("tea").await;
    assert_eq!(ended.phase(), SagaPhase::Compensated);
    // What it has called already it may call once more, without a commit: the barrier answers that.
    let others = || {
        let is_other = |made: &&Call| (&*made.call.step, made.call.op) != ("reserve", Op::Action);
        world.participants.calls().iter().filter(is_other).count()
    };
    let calls = others();
    open.send_replace(true);
    drives_nothing(&stopped).await;
    let known = stopped.finished("tea").await;
    assert_eq!((known.phase(), known.version), (ended.phase(), ended.version));
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
    assert_eq!(others(), calls, "and it calls nobody");
    let undone = world.participants.effects().iter().filter(|effect| effect.op == Op::Compensation).count();
    assert_eq!(undone, 1);
}

/// It can't know that it was taken for dead, and no barrier tells: so it looks whether the saga is its own before it calls once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_waited_for_long_calls_no_participant_without_barrier_unless_the_saga_is_still_its_own() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let second = Duration::from_secs(1);
    let retry = Retry { initial: second, most: second, jitter: 0.0, ..Retry::default() };
    saga.attempt_timeout(Duration::from_millis(50)).retry(retry).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.op == Op::Action { Fault::LoseRequest } else { Fault::None });
    let stopped = process(&world, world.participants.clone()).await;
    stopped.place("tea").await.unwrap();
    stopped.until("tea", |saga| !saga.steps[0].last_error.is_empty()).await;
    let two = process(&world, world.participants.clone()).await;
    two.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Compensated);
    drives_nothing(&stopped).await;
    let calls: Vec<Op> = world.participants.calls().iter().map(|made| made.call.op).collect();
    assert!(calls.ends_with(&[Op::Compensation]), "{calls:?}");
}

/// Pays, then sends: what is sent can't be taken back, and its participant is asked again a second later if it has no answer.
fn pay_and_send(wait: Duration, patience: Duration) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("pay", |order, _| Ok(order.clone()));
    saga.attempt_timeout(PATIENCE);
    saga.retriable::<Ship>("send", |order, _| Ok(order.clone()));
    saga.attempt_timeout(patience).retry(Retry { initial: wait, most: wait, jitter: 0.0, ..Retry::default() });
    saga.build().unwrap()
}

/// Its owner before doesn't know that it was taken over, and would call once more when its wait is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_settles_is_not_called_any_more_by_who_drove_it_before() {
    if !database::has_server() {
        return;
    }
    let patience = Duration::from_millis(50);
    let world = World::with(pay_and_send(Duration::from_secs(1), patience));
    let participants = world.participants.clone();
    participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let one = process(&world, participants.clone()).await;
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    let two = process(&world, participants.clone()).await;
    shares(&two);
    let three = process(&world, participants.clone()).await;
    let begun = Instant::now();
    two.coordinator.pause("tea", "ann", "the post office is closed").await.unwrap();
    // Who took it over now would have to wait anew.
    let refused = three.coordinator.skip("tea", "send", Op::Action, true, "ann", "sent by mail").await;
    assert_eq!(refused.expect_err("another drives it").reason, "SAGA_NOT_DRIVEN");
    two.settle("tea", "send", Op::Action, true).await.unwrap();
    assert!(begun.elapsed() >= 3 * patience, "who drove it before may have made a call just now");
    let sends = || participants.calls().iter().filter(|call| call.call.step == "send").count();
    let made = sends();
    drives_nothing(&one).await;
    assert_eq!(sends(), made, "it was sent by mail");
}

/// It would be refused for ever, so there is nothing to ask again for; and the saga stays with its owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_on_by_itself_is_settled_at_no_process() {
    if !database::has_server() {
        return;
    }
    let world = World::with(pay_and_send(Duration::from_secs(3600), PATIENCE));
    world.participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let one = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    // However long all this takes.
    shares(&one);
    let two = process(&world, world.participants.clone()).await;
    for process in [&two, &one] {
        let refused = process.coordinator.skip("tea", "send", Op::Action, true, "ann", "sent by mail").await;
        let refused = refused.expect_err("it isn't paused");
        assert_eq!((&*refused.reason, refused.code), ("NOT_STUCK", Code::FailedPrecondition));
    }
    assert_eq!((one.coordinator.live(), two.coordinator.live()), (1, 0));
}

/// What is given up is undone, whenever its calls come: any process may be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_undone_when_it_is_given_up_is_given_up_at_any_process() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.op == Op::Action { Fault::LoseRequest } else { Fault::None });
    let one = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    one.coordinator.pause("tea", "ann", "the store is closed").await.unwrap();
    let two = process(&world, world.participants.clone()).await;
    let skipped = two.coordinator.skip("tea", "reserve", Op::Action, false, "ann", "it will never answer").await;
    assert_eq!(skipped.unwrap().phase(), SagaPhase::Compensating);
    two.coordinator.resume("tea", "ann", "that is all").await.unwrap();
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Compensated);
}

/// A call of its action from before may be under way yet, and who took the saga over would have to wait anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undoing_that_cannot_be_asked_for_is_settled_by_who_drives_it() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.input.clone());
    // So long that the call is not over while the test runs.
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::Hang);
    let before = process(&world, world.participants.clone()).await;
    before.place("tea").await.unwrap();

    // A build that can't read what the saga began with.
    let mut saga = Definition::builder::<i64>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.to_string()), |undo| undo.input.to_string());
    saga.attempt_timeout(PATIENCE);
    let definitions = [saga.build().unwrap()];
    let one = knowing(&world, world.participants.clone(), &definitions).await;
    shares(&one);
    one.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    let stuck = one.until_phase("tea", SagaPhase::Stuck).await;
    assert_eq!(stuck.steps[0].compensation_attempts, 0, "{stuck:?}");
    let two = knowing(&world, world.participants.clone(), &definitions).await;
    for (process, reason) in [(&two, "SAGA_NOT_DRIVEN"), (&one, "STEP_UNDER_WAY")] {
        let skipped =
            process.coordinator.skip("tea", "reserve", Op::Compensation, true, "ann", "nothing is reserved").await;
        assert_eq!(skipped.expect_err("it may be reserved yet").reason, reason);
    }
    // No call is waited for where there is nothing to settle.
    let skipped = two.coordinator.skip("tea", "reserve", Op::Action, true, "ann", "it is reserved").await;
    assert_eq!(skipped.expect_err("it turned back").reason, "STEP_SETTLED");
}

/// No call is waited for, and no process can settle it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_a_saga_is_settled_at_no_process() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot_saga::<String, ()>("pay", &pay(), |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::LoseRequest);
    let one = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    one.coordinator.pause("tea", "ann", "the bank is closed").await.unwrap();
    let two = process(&world, world.participants.clone()).await;
    for done in [true, false] {
        let refused = two.coordinator.skip("tea", "pay", Op::Action, done, "ann", "paid in cash").await;
        assert_eq!(refused.expect_err("it goes on").reason, "STEP_UNCERTAIN");
    }
}

/// It finds out by itself only when it has something to commit, and what changes nothing isn't committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_taken_over_answers_no_operator() {
    if !database::has_server() {
        return;
    }
    let hour = Duration::from_secs(3600);
    let world = World::with(pay_and_send(hour, PATIENCE));
    world.participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let one = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    let two = process(&world, world.participants.clone()).await;
    two.coordinator.pause("tea", "ann", "the post office is closed").await.unwrap();
    world.participants.on_call(|_| Fault::None);
    let refused = one.coordinator.resume("tea", "ann", "it is open").await.expect_err("it isn't paused there");
    assert_eq!(refused.reason, "SAGA_NOT_DRIVEN");
    drives_nothing(&one).await;
    // From now on it is its own once more.
    one.coordinator.resume("tea", "ann", "it is open").await.unwrap();
    assert_eq!(one.finished("tea").await.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("tea"), ["pay", "send"]);
}

/// What one saga calls is not answered until the gate is open.
#[derive(Clone)]
struct HeldUp {
    participants: Participants,
    saga_id: &'static str,
    open: watch::Receiver<bool>,
}

impl Transport for HeldUp {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let call = SagaCall::from_metadata(&attempt.metadata).unwrap().unwrap();
        if call.saga_id == self.saga_id {
            let (participants, open) = (self.participants.clone(), self.open.clone());
            return Gated { participants, open }.call(attempt);
        }
        self.participants.call(attempt)
    }
}

/// The call was begun while the saga was its own, and gets its turn when it isn't any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_turn_comes_late_is_not_made_for_what_another_drives_by_now() {
    if !database::has_server() {
        return;
    }
    let world = World::with(pay_and_send(Duration::from_millis(1), Duration::from_millis(100)));
    world.participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let (open, gate) = watch::channel(false);
    let transport = HeldUp { participants: world.participants.clone(), saga_id: "rum", open: gate };
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let options = Options { most_calls: 1, ..Options::default() };
    let one = Process::on(journal, vec![Arc::clone(&world.definition)], transport, options);
    one.coordinator.recover().await.unwrap();
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    one.place("rum").await.unwrap();
    becomes("paid", async || world.participants.done_for("rum") == ["pay"]).await;
    let two = process(&world, world.participants.clone()).await;
    two.coordinator.pause("tea", "ann", "the post office is closed").await.unwrap();
    two.settle("tea", "send", Op::Action, true).await.unwrap();
    world.participants.on_call(|_| Fault::None);
    open.send_replace(true);
    assert_eq!(one.finished("rum").await.phase(), SagaPhase::Completed);
    drives_nothing(&one).await;
    assert_eq!(world.participants.done_for("tea"), ["pay"], "it was sent by mail");
}

/// A saga doesn't attend to its calls while it looks whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_looks_whose_its_saga_is_holds_nobody_up() {
    if !database::has_server() {
        return;
    }
    let world = World::with(pay_and_send(Duration::from_millis(1), Duration::from_millis(100)));
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else { return };
    world.participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let (open, gate) = watch::channel(false);
    let transport = HeldUp { participants: world.participants.clone(), saga_id: "rum", open: gate };
    let location = Location::Postgres { url: url.clone(), schema: schema.clone() };
    let options = Options { most_calls: 1, ..Options::default() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let one = Process::on(journal, vec![Arc::clone(&world.definition)], transport, options);
    one.coordinator.recover().await.unwrap();
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    one.place("rum").await.unwrap();
    becomes("paid", async || world.participants.done_for("rum") == ["pay"]).await;
    // Its next call waits for its turn for so long that it must look, and then for the owners.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut server = PgConnection::connect(&url).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE \"{schema}\".aggregates IN ACCESS EXCLUSIVE MODE");
    server.execute(AssertSqlSafe(lock)).await.unwrap();
    world.participants.on_call(|_| Fault::None);
    open.send_replace(true);
    let mut watcher = PgConnection::connect(&url).await.unwrap();
    let waiting =
        format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '\"{schema}\".aggregates'::regclass");
    // It, and the commit of the other saga.
    let both_wait = async {
        while sqlx::query_scalar::<_, i64>(AssertSqlSafe(waiting.clone())).fetch_one(&mut watcher).await.unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both_wait).await.expect("they don't wait");
    let coordinator = one.coordinator.clone();
    let retried = tokio::spawn(async move { coordinator.retry("tea", "ann", "it is open").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.execute("COMMIT").await.unwrap();
    tokio::time::timeout(PATIENCE, retried).await.expect("no answer").unwrap().unwrap();
    for order in ["tea", "rum"] {
        assert_eq!(one.finished(order).await.phase(), SagaPhase::Completed);
    }
}

/// Held back, and asked for again 40 ms later. Only the first time it is written down.
fn circuit_open() -> CircuitOpen {
    let retry_after = Duration::from_millis(40);
    CircuitOpen { breaker: Reserve::PEER.into(), reason: Reason::Open, retry_after, cause: None, generation: 1 }
}

/// No circuit is asked again sooner than after the step's first wait.
fn at_once() -> Retry {
    Retry { initial: Duration::from_millis(1), ..Retry::default() }
}

/// Until that time has come, its record is as new as can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_spares_nobody_the_look_at_whose_the_saga_is() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_millis(50)).without_barrier().retry(at_once());
    let world = World::with(saga.build().unwrap());
    let circuit = |call: &SagaCall| match call.op {
        Op::Action => Fault::Status(circuit_open().into_status()),
        Op::Compensation => Fault::None,
    };
    world.participants.on_call(circuit);
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let (definitions, right) = (vec![Arc::clone(&world.definition)], saga_world::tokio_clock());
    let ahead = Arc::new(move || right() + 3_600_000_000);
    let coordinator =
        Coordinator::with_clock(journal.clone(), definitions, world.participants.clone(), Options::default(), ahead);
    let gone = Process { journal, coordinator: coordinator.unwrap() };
    gone.coordinator.recover().await.unwrap();
    gone.place("tea").await.unwrap();
    gone.until("tea", |saga| !saga.steps[0].last_error.is_empty()).await;
    gone.coordinator.drain(PATIENCE).await;
    gone.coordinator.leave().await;

    let one = process(&world, world.participants.clone()).await;
    assert_eq!(one.coordinator.live(), 1);
    let two = process(&world, world.participants.clone()).await;
    two.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Compensated);
    world.participants.on_call(|_| Fault::None);
    drives_nothing(&one).await;
    let calls: Vec<Op> = world.participants.calls().iter().map(|made| made.call.op).collect();
    assert!(calls.ends_with(&[Op::Compensation]), "{calls:?}");
}

/// Its time comes, and then looks like one at which the saga was its own. Here it comes while an undoing waits, before which nothing is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_for_less_than_a_wait_spares_nobody_the_look_either() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    // The undoing waits three times as long.
    saga.attempt_timeout(Duration::from_millis(200)).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.op == Op::Action { Fault::LoseRequest } else { Fault::None });
    let (begun, ahead) = (1_700_000_000_000_000, 500_000);
    let (gone, _) = going_by(&world, begun + ahead).await;
    gone.place("tea").await.unwrap();
    gone.until("tea", |saga| !saga.steps[0].last_error.is_empty()).await;
    gone.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    gone.coordinator.drain(PATIENCE).await;
    gone.coordinator.leave().await;

    let (one, clock) = going_by(&world, begun).await;
    assert_eq!(one.coordinator.live(), 1);
    let two = process(&world, world.participants.clone()).await;
    two.coordinator.retry("tea", "ann", "the store is open").await.unwrap();
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Compensated);
    clock.store(begun + ahead + 110_000, Ordering::Relaxed);
    drives_nothing(&one).await;
    let undone = world.participants.calls().iter().filter(|made| made.call.op == Op::Compensation).count();
    assert_eq!(undone, 1, "who had it before calls nobody");
}

/// One more process, whose clock stands until it is set.
async fn going_by(world: &World, micros: i64) -> (Process, Arc<AtomicI64>) {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let clock = Arc::new(AtomicI64::new(micros));
    let shown = Arc::clone(&clock);
    let shown = Arc::new(move || shown.load(Ordering::Relaxed));
    let (definitions, transport) = (vec![Arc::clone(&world.definition)], world.participants.clone());
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, Options::default(), shown);
    let process = Process { journal, coordinator: coordinator.unwrap() };
    process.coordinator.recover().await.unwrap();
    (process, clock)
}

/// A look is a read: of a hundred thousand that wait for one participant, each would write an event every few seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_participant_without_barrier_writes_nothing_meanwhile() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let timeout = Duration::from_millis(250);
    saga.attempt_timeout(timeout).without_barrier().retry(at_once());
    let world = World::with(saga.build().unwrap());
    let open = circuit_open();
    let (held_back, mut tried) = tokio::sync::mpsc::unbounded_channel();
    world.participants.on_call(move |_| {
        let _ = held_back.send(());
        Fault::Status(open.clone().into_status())
    });
    let process = process(&world, world.participants.clone()).await;
    let sagas = ["tea", "jam", "rye", "oil"];
    for id in sagas {
        process.place(id).await.unwrap();
    }
    for id in sagas {
        process.until(id, |saga| !saga.steps[0].last_error.is_empty()).await;
    }
    let before = *process.journal.head().borrow();
    // So long that each has looked whose its saga is.
    let (since, mut tries) = (Instant::now(), 0);
    while tries < 10 * sagas.len() || since.elapsed() < 2 * timeout {
        tried.recv().await.unwrap();
        tries += 1;
    }
    assert_eq!(*process.journal.head().borrow(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shuts_down_is_not_waited_for() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    // The call hangs for as long as this takes.
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let one = process(&world, world.participants.clone()).await;
    shares(&one);
    one.place("tea").await.unwrap();
    world.called(|calls| calls.iter().any(|call| call.call.step == "charge")).await;
    world.participants.on_call(|_| Fault::None);
    // As an App does with a hook that overruns, and then with the one after it.
    let drained = tokio::time::timeout(Duration::from_millis(50), one.coordinator.drain(PATIENCE)).await;
    assert!(drained.is_err(), "a call hangs");
    one.coordinator.leave().await;
    one.crash().await;
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let definitions = vec![Arc::clone(&world.definition)];
    let two = Process::on(journal, definitions, world.participants.clone(), Options::default());
    assert_eq!(two.coordinator.recover().await.unwrap(), 1, "the lease was given up");
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Completed);
}
