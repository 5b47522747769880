//! Sagas that are steps of others: begun with the step, done or undone as a whole, whatever is lost and whoever crashes.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{sync::Arc, time::Duration};

use libs::{
    journal::{Cause, Entry, Journal, Loaded, Location},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Builder, Definition, Handle, LocalWork, Options, TABLES,
        testing::{Fault, Participants, Rig, crash_every_point, fail_every_step, repeat_every_operation},
    },
};
use proto::saga::v1::{Saga, SagaPhase, StepState};
use saga_world::{Charge, PATIENCE, Process, Reserve, Ship, World, local};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

/// Two things that can be undone: a flight and a hotel. It answers both prices.
fn book() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("book", 1);
    let flight = saga.compensatable::<Reserve>("flight", |trip, _| Ok(trip.clone()), |undo| undo.request);
    let hotel = saga.compensatable::<Charge>("hotel", |trip, _| Ok(trip.clone()), |undo| undo.request);
    saga.after(&[]);
    saga.answer(move |_, replies| Ok(format!("{} and {}", replies.get(flight)?, replies.get(hotel)?)));
    saga.build().unwrap()
}

/// One that has a pivot of its own.
fn pay() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("pay", 1);
    saga.compensatable::<Reserve>("hold", |trip, _| Ok(trip.clone()), |undo| undo.request);
    saga.pivot::<Ship>("capture", |trip, _| Ok(trip.clone()));
    saga.retriable_local("account", |_, _| Ok(LocalWork::nothing()));
    saga.on_compensated(|trip, reason| Ok(local(&format!("unpaid {}", reason.reason), trip)));
    saga.build().unwrap()
}

/// look → book (a saga) → pay (a saga, the pivot) → tell → thank (a saga) → done
fn travel() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("look", |trip, _| Ok(trip.clone()), |undo| undo.request);
    let booked: Handle<String> = saga.compensatable_saga("book", &book(), |trip: &String, _| Ok(trip.clone()));
    saga.pivot_saga::<String, ()>("pay", &pay(), move |_, replies| Ok(format!("pay {}", replies.get(booked)?)));
    saga.retriable::<Ship>("tell", |trip, _| Ok(trip.clone()));
    saga.retriable_saga::<String, ()>("thank", &pay(), |trip, _| Ok(trip.clone()));
    saga.retriable_local("complete", |trip, _| Ok(local("Completed", trip)));
    saga.on_compensated(|trip, reason| Ok(local(&format!("Rejected {} {}", reason.step, reason.reason), trip)));
    saga.build().unwrap()
}

async fn ended(process: &Process, id: &str) -> Saga {
    process.finished(id).await
}

fn no() -> Refusal {
    Refusal::precondition("NO", "the participant says no")
}

fn effects(world: &World) -> Vec<String> {
    let sign = |op| if op == Op::Action { "" } else { "-" };
    let effects = world.participants.effects();
    effects.iter().map(|effect| format!("{}{} of {}", sign(effect.op), effect.step, effect.saga_id)).collect()
}

#[tokio::test]
async fn a_step_is_done_when_its_saga_is_and_its_answer_feeds_the_next() {
    let world = World::with(travel());
    let process = world.open().await;
    let saga = process.run("rome").await;
    assert_eq!(saga.phase(), SagaPhase::Completed);
    let mut done = effects(&world);
    done[1..3].sort();
    let expected = [
        "look of rome",
        "flight of rome:book",
        "hotel of rome:book",
        "hold of rome:pay",
        "capture of rome:pay",
        "tell of rome",
        "hold of rome:thank",
        "capture of rome:thank",
    ];
    assert_eq!(done, expected);
    let paid = world.participants.calls().into_iter().find(|call| call.call.step == "hold").unwrap();
    assert!(paid.message.ends_with(b"pay price of rome and "), "{:?}", paid.message);
    // Each has a row of its own and says what it belongs to; the one that could have been undone is final now too.
    let ids: Vec<_> = saga.steps.iter().map(|step| step.sub_saga_id.as_str()).collect();
    assert_eq!(ids, ["", "rome:book", "rome:pay", "", "rome:thank", ""]);
    for id in ["rome:book", "rome:pay", "rome:thank"] {
        let below = ended(&process, id).await;
        assert_eq!((below.phase(), below.parent_saga_id.as_str()), (SagaPhase::Completed, "rome"));
        assert_eq!(format!("rome:{}", below.parent_step), id);
    }
    assert_eq!(process.coordinator.live(), 0);
}

#[tokio::test]
async fn a_step_that_is_a_saga_which_goes_on_is_settled_in_that_saga_alone() {
    let world = World::with(travel());
    world.participants.on_call(|call| if call.step == "capture" { Fault::LoseRequest } else { Fault::None });
    let process = world.open().await;
    process.place("rome").await.unwrap();
    process.until("rome:pay", |saga| saga.steps.iter().any(|step| !step.last_error.is_empty())).await;
    process.coordinator.pause("rome", "ann", "the bank is out").await.unwrap();
    for done in [true, false] {
        let skipped = process.coordinator.skip("rome", "pay", Op::Action, done, "ann", "paid in cash").await;
        let refused = skipped.unwrap_err();
        assert!(refused.reason == "STEP_UNCERTAIN" && refused.message.contains("rome:pay"), "{refused:?}");
    }
    world.participants.on_call(|_| Fault::None);
    process.coordinator.resume("rome", "ann", "it is back").await.unwrap();
    assert_eq!(ended(&process, "rome").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn what_is_refused_below_turns_everything_back_in_reverse() {
    for (refused, undone) in [
        ("hotel", ["-flight of rome:book", "-look of rome"].as_slice()),
        ("capture", &["-hold of rome:pay", "-flight of rome:book", "-hotel of rome:book", "-look of rome"]),
    ] {
        let world = World::with(travel());
        let mut first = true;
        world.participants.on_call(move |call| {
            // Its sibling is done first, so that there is something to undo.
            if call.step == refused && std::mem::take(&mut first) {
                return Fault::Pending;
            }
            if call.step == refused { Fault::Reject(no()) } else { Fault::None }
        });
        let process = world.open().await;
        let saga = process.run("rome").await;
        assert_eq!(saga.phase(), SagaPhase::Compensated);
        let reason = saga.reason.clone().unwrap();
        let step = if refused == "hotel" { "book" } else { "pay" };
        assert_eq!((reason.step.as_str(), reason.reason.as_str()), (step, "NO"));
        assert_eq!(reason.message, format!("{refused}: the participant says no"));
        let mut back: Vec<_> = effects(&world).into_iter().filter(|effect| effect.starts_with('-')).collect();
        if refused == "capture" {
            back[1..3].sort();
        }
        assert_eq!(back, undone, "{refused}");
        assert_eq!(process.order("rome").await, format!("Rejected {step} NO"));
        assert_eq!(ended(&process, "rome:book").await.phase(), SagaPhase::Compensated);
        assert_eq!(process.coordinator.live(), 0);
    }
}

#[tokio::test]
async fn a_cancel_reaches_the_saga_below_and_what_is_done_below_is_cancelled_above_only() {
    for at in ["hotel", "look"] {
        let world = World::with(travel_in_parallel());
        // Held while the saga below is under way, or while it is done and waits.
        world.participants.on_call(move |call| if call.step == at { Fault::Hang } else { Fault::None });
        let process = world.open().await;
        process.place("rome").await.unwrap();
        let is_done = |saga: &Saga| saga.history.iter().any(|line| line.what == "done, waits for its parent");
        if at == "look" {
            process.until("rome:book", is_done).await;
            let refusal = process.coordinator.cancel("rome:book", "ann", "?").await.unwrap_err();
            assert_eq!((&*refusal.reason, refusal.metadata["parent_saga_id"].as_str()), ("PART_OF_SAGA", "rome"));
        } else {
            let flown = |saga: &Saga| saga.steps.iter().any(|s| s.name == "flight" && s.state() == StepState::Done);
            process.until("rome:book", flown).await;
        }
        process.coordinator.cancel("rome", "ann", "changed my mind").await.unwrap();
        world.participants.on_call(|_| Fault::None);
        assert_eq!(ended(&process, "rome").await.phase(), SagaPhase::Compensated);
        let below = process.until_phase("rome:book", SagaPhase::Compensated).await;
        assert!(below.history.iter().any(|line| line.actor == "saga rome"), "{below:#?}");
        let done = effects(&world);
        assert!(done.contains(&"-flight of rome:book".to_owned()), "{done:?}");
    }
}

/// A saga below beside a call, so that one can be done while the other is not.
fn travel_in_parallel() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("look", |trip, _| Ok(trip.clone()), |undo| undo.request);
    saga.compensatable_saga::<String, String>("book", &book(), |trip, _| Ok(trip.clone()));
    saga.after(&[]);
    saga.pivot::<Ship>("go", |trip, _| Ok(trip.clone()));
    saga.after(&["look", "book"]);
    saga.build().unwrap()
}

#[tokio::test]
async fn it_comes_through_everything_that_can_be_lost_and_a_crash_at_every_point() {
    let folder = TempDir::new().unwrap();
    for definition in [travel(), travel_in_parallel()] {
        let participants = || Participants::new().answer::<Reserve>(|request| Ok(format!("price of {request}")));
        let rig = Rig::new(folder.path(), definition, "rome".to_owned(), participants);
        let refused = fail_every_step(&rig).await.unwrap_or_else(|broken| panic!("{broken}"));
        let repeated = repeat_every_operation(&rig).await.unwrap_or_else(|broken| panic!("{broken}"));
        let crashed = crash_every_point(&rig).await.unwrap_or_else(|broken| panic!("{broken}"));
        println!("{} {} {}", refused.runs().len(), repeated.runs().len(), crashed.runs().len());
        assert!(refused.runs().len() >= 4 && repeated.runs().len() > 20 && crashed.runs().len() > 12);
    }
}

#[tokio::test]
async fn a_saga_after_the_pivot_that_turned_back_is_begun_anew_by_an_operator() {
    let world = World::with(travel());
    world.participants.on_call(|call| {
        if call.saga_id == "rome:thank" && call.step == "capture" { Fault::Reject(no()) } else { Fault::None }
    });
    let process = world.open().await;
    process.place("rome").await.unwrap();
    let stuck = process.until_phase("rome", SagaPhase::Stuck).await;
    assert_eq!(stuck.reason.unwrap().step, "thank");
    assert_eq!(process.order("rome").await, "unpaid NO");
    process.coordinator.retry("rome", "bob", "the card works again").await.unwrap();
    let saga = ended(&process, "rome").await;
    assert_eq!((saga.phase(), saga.steps[4].sub_saga_id.as_str()), (SagaPhase::Completed, "rome:thank#2"));
    assert_eq!(ended(&process, "rome:thank").await.phase(), SagaPhase::Compensated);
    assert_eq!(ended(&process, "rome:thank#2").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_saga_below_that_is_closed_as_it_was_is_settled_above_by_an_operator() {
    let world = World::with(travel());
    world.participants.on_call(|call| if call.step == "flight" { Fault::Conflict } else { Fault::None });
    let process = world.open().await;
    process.place("rome").await.unwrap();
    process.until_phase("rome:book", SagaPhase::Stuck).await;
    process.coordinator.force_close("rome:book", "bob", "booked by hand").await.unwrap();
    let stuck = process.until_phase("rome", SagaPhase::Stuck).await;
    assert_eq!(stuck.reason.unwrap().reason, "SUB_SAGA_FORCE_CLOSED");
    let skipped = process.coordinator.skip("rome", "book", Op::Action, false, "bob", "there is no flight").await;
    assert!(matches!(skipped.unwrap().phase(), SagaPhase::Compensating | SagaPhase::Compensated));
    assert_eq!(ended(&process, "rome").await.phase(), SagaPhase::Compensated);
    assert_eq!(effects(&world).last().unwrap(), "-look of rome");
}

#[tokio::test]
async fn a_process_that_goes_down_does_not_wait_for_the_sagas_below() {
    let world = World::with(travel());
    world.participants.on_call(|call| if call.step == "flight" { Fault::LoseRequest } else { Fault::None });
    let process = world.open().await;
    process.place("rome").await.unwrap();
    let tried = |saga: &Saga| saga.steps.iter().any(|step| step.name == "flight" && !step.last_error.is_empty());
    process.until("rome:book", tried).await;
    let drained = tokio::time::timeout(Duration::from_secs(10), process.coordinator.drain(Duration::from_secs(60)));
    drained.await.expect("nothing is under way that must end");
    assert_eq!(process.coordinator.live(), 0);
    process.crash().await;
    world.participants.on_call(|_| Fault::None);
    let process = world.open().await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 2);
    assert_eq!(ended(&process, "rome").await.phase(), SagaPhase::Completed);
    assert_eq!(ended(&process, "rome:book").await.phase(), SagaPhase::Completed);
    process.crash().await;
    assert_eq!(world.open().await.coordinator.recover().await.unwrap(), 0, "nothing is left open");
}

#[test]
fn a_step_that_cannot_be_that_saga_is_refused_when_it_is_built() {
    let refused = |make: fn(&mut Builder<String>)| {
        let mut saga = Definition::builder::<String>("above", 1);
        make(&mut saga);
        saga.build().unwrap_err().to_string()
    };
    let message = refused(|saga| {
        saga.compensatable_saga::<String, ()>("pay", &pay(), |it, _| Ok(it.clone()));
    });
    assert_eq!(message, "saga above: pay can be undone, and runs pay, whose pivot capture can't");
    let message = refused(|saga| {
        // However deep it is.
        let mut middle = Definition::builder::<String>("middle", 1);
        middle.pivot_saga::<String, ()>("pay", &pay(), |it, _| Ok(it.clone()));
        saga.compensatable_saga::<String, ()>("deep", &middle.build().unwrap(), |it, _| Ok(it.clone()));
    });
    assert_eq!(message, "saga above: deep can be undone, and runs middle, whose pivot pay can't");
    let message = refused(|saga| {
        saga.compensatable_saga::<i64, String>("book", &book(), |_, _| Ok(1));
    });
    assert_eq!(message, "saga above: book runs book, which starts from another message");
    let message = refused(|saga| {
        saga.compensatable_saga::<String, i64>("book", &book(), |it, _| Ok(it.clone()));
    });
    assert_eq!(message, "saga above: book runs book, which answers another message");
    let message = refused(|saga| {
        let mut locking = Definition::builder::<String>("locking", 1);
        locking.lock(|it: &String| vec![it.clone()]);
        locking.check::<Ship>("look", |it, _| Ok(it.clone()));
        saga.pivot_saga::<String, ()>("go", &locking.build().unwrap(), |it, _| Ok(it.clone()));
    });
    assert_eq!(message, "saga above: go runs locking, which takes locks: take them in above, which holds them as long");
    let message = refused(|saga| {
        const LONG: &str = "a-name-as-long-as-a-name-may-be-with-which-two-are-already-too-m";
        let mut middle = Definition::builder::<String>("middle", 1);
        middle.compensatable_saga::<String, String>(LONG, &book(), |it, _| Ok(it.clone()));
        saga.compensatable_saga::<String, ()>(LONG, &middle.build().unwrap(), |it, _| Ok(it.clone()));
    });
    assert!(message.contains("runs middle, and the ids of the sagas below would be too long"), "{message}");
    let message = refused(|saga| {
        saga.compensatable_saga::<String, String>("book", &book(), |it, _| Ok(it.clone()));
        saga.attempt_timeout(Duration::from_secs(1));
    });
    assert_eq!(message, "saga above: book is a saga and no call: how to call it has no meaning there");
}

#[tokio::test]
async fn an_id_that_would_be_too_long_below_starts_no_saga() {
    let world = World::with(travel());
    let process = world.open().await;
    // ":thank", and the longest count of one that is begun anew.
    let most = 128 - 6 - 11;
    let refusal = process.place(&"x".repeat(most + 1)).await.unwrap_err();
    let [violation] = &refusal.violations[..] else { panic!("{refusal:?}") };
    assert_eq!(violation.field, "saga_id");
    assert_eq!(violation.description, format!("must be 1 to {most} visible ASCII characters"));
    let saga = process.run(&"x".repeat(most)).await;
    assert_eq!(saga.phase(), SagaPhase::Completed);
    // One that the step's saga of another could have, which would be the same row.
    let refusal = process.place("rome:book").await.unwrap_err();
    assert_eq!(refusal.violations[0].field, "saga_id", "{refusal:?}");
}

/// It is on its way back as the one above wants it: that has nothing to tell it, and takes it away from nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_turns_back_already_stays_where_an_operator_holds_it() {
    if !database::has_server() {
        return;
    }
    let mut book = Definition::builder::<String>("book", 1);
    book.compensatable::<Reserve>("flight", |trip, _| Ok(trip.clone()), |undo| undo.request);
    book.attempt_timeout(Duration::from_millis(500));
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable_saga::<String, ()>("book", &book.build().unwrap(), |trip: &String, _| Ok(trip.clone()));
    saga.pivot::<Ship>("ship", |trip, _| Ok(trip.clone()));
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| match (&*call.step, call.op) {
        ("ship", _) => Fault::Reject(no()),
        (_, Op::Compensation) => Fault::LoseRequest,
        _ => Fault::None,
    });
    let open = || async {
        let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
        let definitions = vec![Arc::clone(&world.definition)];
        let process = Process::on(journal, definitions, world.participants.clone(), Options::default());
        process.coordinator.recover().await.unwrap();
        tokio::spawn(process.coordinator.clone().share());
        process
    };
    let (one, two) = (open().await, open().await);
    one.place("rome").await.unwrap();
    let lost = |saga: &Saga| saga.phase() == SagaPhase::Compensating && !saga.steps[0].last_error.is_empty();
    one.until("rome:book", lost).await;
    two.coordinator.pause("rome:book", "bob", "the airline is closed").await.unwrap();
    let let_go = async {
        while one.coordinator.live() != 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, let_go).await.is_ok(), "it is never let go of");
    two.settle("rome:book", "flight", Op::Compensation, true).await.unwrap();
    assert_eq!(ended(&one, "rome").await.phase(), SagaPhase::Compensated);
    assert_eq!(ended(&two, "rome:book").await.phase(), SagaPhase::Compensated);
}

/// Whoever owns which: the sagas above and below may have been taken over apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_drive_the_one_above_and_the_one_below() {
    if !database::has_server() {
        return;
    }
    let world = World::with(travel());
    let open = || async {
        let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
        let process = Process::on(journal, vec![travel()], world.participants.clone(), Options::default());
        process.coordinator.recover().await.unwrap();
        tokio::spawn(process.coordinator.clone().share());
        process
    };
    let (one, two) = (open().await, open().await);
    for back in [false, true] {
        world.participants.on_call(move |call| match &*call.step {
            "flight" => Fault::Hang,
            "capture" if back => Fault::Reject(no()),
            _ => Fault::None,
        });
        let id = if back { "rome" } else { "oslo" };
        one.place(id).await.unwrap();
        let below = format!("{id}:book");
        one.until(&below, |saga| saga.steps[1].state() == StepState::Done).await;
        // An operator asks the other one: from now on it drives the saga below.
        two.coordinator.pause(&below, "bob", "?").await.unwrap();
        world.participants.on_call(
            move |call| {
                if back && call.step == "capture" { Fault::Reject(no()) } else { Fault::None }
            },
        );
        two.coordinator.resume(&below, "bob", "!").await.unwrap();
        let phase = if back { SagaPhase::Compensated } else { SagaPhase::Completed };
        assert_eq!(ended(&one, id).await.phase(), phase);
        assert_eq!(ended(&one, &below).await.phase(), phase);
    }
    // Both may begin at once and leave at once.
    let entry = |id: String| {
        let coordinator = two.coordinator.clone();
        let decide = move |loaded: &Loaded<'_>| coordinator.start("place-order", &id, &"x".to_owned(), loaded).unwrap();
        Entry { request: None, aggregates: vec![], cause: Cause::default(), decide: Box::new(decide), size: 10 }
    };
    world.participants.on_call(|_| Fault::None);
    for at in 0..10 {
        two.journal.submit(entry(format!("bulk-{at}"))).await.unwrap();
    }
    for at in 0..10 {
        assert_eq!(ended(&one, &format!("bulk-{at}")).await.phase(), SagaPhase::Completed);
    }
}

/// A saga doesn't attend to what it waits for while it looks whose it is. What reads for it then keeps no session from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_above_sagas_that_are_parked_are_heard_after_the_server_has_stood_still() {
    let mut book = Definition::builder::<String>("book", 1);
    book.compensatable::<Reserve>("flight", |_, _| panic!("a bug"), |undo| undo.request);
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable_saga::<String, ()>("book", &book.build().unwrap(), |trip: &String, _| Ok(trip.clone()));
    saga.pivot::<Ship>("go", |trip, _| Ok(trip.clone()));
    let world = World::with(saga.build().unwrap());
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    let location = Location::Postgres { url: url.clone(), schema: schema.clone() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let definitions = vec![Arc::clone(&world.definition)];
    let process = Process::on(journal, definitions, world.participants.clone(), Options::default());
    process.coordinator.recover().await.unwrap();
    // More than there are sessions to read with.
    let trips: Vec<String> = (0..8).map(|at| format!("rome-{at}")).collect();
    for trip in &trips {
        process.place(trip).await.unwrap();
        assert_eq!(process.coordinator.finished(&format!("{trip}:book")).await.unwrap_err().reason, "SAGA_PARKED");
    }
    let mut server = PgConnection::connect(&url).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE {schema}.sagas IN ACCESS EXCLUSIVE MODE");
    server.execute(AssertSqlSafe(lock)).await.unwrap();
    let mut watcher = PgConnection::connect(&url).await.unwrap();
    let waiting = format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{schema}.sagas'::regclass");
    let all_wait = async {
        while sqlx::query_scalar::<_, i64>(AssertSqlSafe(waiting.clone())).fetch_one(&mut watcher).await.unwrap() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_wait).await.expect("some session doesn't read");
    let pauses: Vec<_> = trips
        .iter()
        .map(|trip| {
            let (coordinator, trip) = (process.coordinator.clone(), trip.clone());
            tokio::spawn(async move { coordinator.pause(&trip, "ann", "the server stands still").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.execute("COMMIT").await.unwrap();
    let paused = tokio::time::timeout(PATIENCE, futures::future::join_all(pauses)).await.expect("no answer");
    assert!(paused.into_iter().all(|paused| paused.unwrap().is_ok()));
}
