//! What a process takes over from those that are gone, and how much of that it has room for, on the PostgreSQL that `TEST_POSTGRES` names.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_processes;
mod saga_world;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use libs::{
    cqrs::Decision,
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, Member},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{Coordinator, Definition, LocalWork, Options, TABLES, testing::Fault},
};
use prost::Message as _;
use proto::saga::v1::{LockRecord, SagaPhase};
use saga_processes::{leaves, only, process};
use saga_world::{Charge, PATIENCE, Process, Reserve, Ship, World, becomes, buy, pay, shares};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// The server's time in microseconds since 1970, in SQL.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_takes_no_more_than_it_has_room_for_and_the_rest_as_places_become_free() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    only(&world.participants, &[]);
    let (one, two) = (process(&world, 2).await, process(&world, 2).await);
    for (process, orders) in [(&one, ["a-0", "a-1"]), (&two, ["b-0", "b-1"])] {
        for order in orders {
            process.place(order).await.unwrap();
        }
    }
    // It says no more that it is there.
    one.crash().await;
    shares(&two);
    tokio::time::sleep(Member::LEASE + 2 * Member::BEAT).await;
    assert_eq!(two.coordinator.live(), 2, "it has room for two");

    only(&world.participants, &["b-0"]);
    assert_eq!(two.finished("b-0").await.phase(), SagaPhase::Completed);
    becomes("driven in the place that is free", async || two.coordinator.live() == 2).await;
    only(&world.participants, &["a-0", "a-1", "b-1"]);
    for order in ["a-0", "a-1", "b-1"] {
        assert_eq!(two.finished(order).await.phase(), SagaPhase::Completed);
        assert!(two.coordinator.live() <= 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_large_sagas_fewer_are_taken_over_than_there_are_places() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("charge", |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    only(&world.participants, &[]);
    let one = process(&world, 40).await;
    let large = "x".repeat(10 << 10);
    for order in ["a-0", "a-1", "a-2"] {
        one.try_place(order, &large).await.unwrap();
    }
    leaves(one).await;
    let two = process(&world, 2).await;
    assert_eq!(two.coordinator.live(), 1, "one has all the room there is");
    shares(&two);
    only(&world.participants, &["a-0", "a-1", "a-2"]);
    for order in ["a-0", "a-1", "a-2"] {
        assert_eq!(two.finished(order).await.phase(), SagaPhase::Completed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_a_saga_is_not_taken_over_without_the_one_above_that_there_was_no_room_for() {
    if !database::has_server() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot_saga::<String, ()>("pay", &pay(), |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::LoseRequest);
    let one = process(&world, 40).await;
    let large = "x".repeat(10 << 10);
    for order in ["a", "b"] {
        one.try_place(order, &large).await.unwrap();
        world.called(|calls| calls.iter().any(|call| call.call.saga_id.starts_with(order))).await;
    }
    leaves(one).await;
    let two = process(&world, 4).await;
    assert_eq!(two.coordinator.live(), 2, "one, with its step, has all the room there is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_becomes_free_is_for_what_nobody_drives_before_it_is_for_a_new_saga() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    only(&world.participants, &[]);
    let one = process(&world, 2).await;
    for order in ["a-0", "a-1"] {
        one.place(order).await.unwrap();
    }
    leaves(one).await;
    let two = process(&world, 1).await;
    assert_eq!(two.coordinator.live(), 1, "it has room for one");
    only(&world.participants, &["a-0"]);
    assert_eq!(two.finished("a-0").await.phase(), SagaPhase::Completed);
    assert_eq!(two.coordinator.live(), 0);
    assert_eq!(two.place("b").await.unwrap_err().reason, "TOO_MANY_SAGAS");

    shares(&two);
    only(&world.participants, &["a-0", "a-1", "b"]);
    assert_eq!(two.finished("a-1").await.phase(), SagaPhase::Completed);
    // What was left is known anew with the next beat.
    becomes("open to new sagas", async || two.place("b").await.is_ok()).await;
    assert_eq!(two.finished("b").await.phase(), SagaPhase::Completed);
}

/// Else what has a place would wait for ever for what has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_saga_here_waits_for_is_taken_over_where_there_is_no_room() {
    if !database::has_server() {
        return;
    }
    let world = World::with(buy());
    let no = Refusal::precondition("NO", "the books are closed");
    world.participants.on_call(move |call| match &*call.step {
        "account" => Fault::Reject(no.clone()),
        _ => Fault::None,
    });
    let one = process(&world, 100).await;
    // It says that it is there, however long all this takes.
    shares(&one);
    // Each is STUCK below and waits for that above. Bob's comes after Ada's by name, and nobody waits for it.
    for order in ["ada-1", "bob-1", "cleo-1"] {
        one.place(order).await.unwrap();
        one.until_phase(&format!("{order}:pay"), SagaPhase::Stuck).await;
    }
    for order in ["ada-2", "bob-2"] {
        one.place(order).await.unwrap();
        one.until(order, |saga| !saga.waits_for_saga_id.is_empty()).await;
    }
    let two = process(&world, 1).await;
    shares(&two);
    // One that waits for the lock of another, and one that is the step of another.
    for (id, why) in [("ada-2", "it comes here"), ("cleo-1:pay", "so does it")] {
        two.coordinator.pause(id, "ann", why).await.unwrap();
        two.coordinator.resume(id, "ann", why).await.unwrap();
    }
    becomes("here", async || two.coordinator.live() == 2).await;
    leaves(one).await;
    // With the one that holds the lock and the saga that it waits for, and with the one above.
    becomes("all that is waited for", async || two.coordinator.live() == 5).await;
    tokio::time::sleep(3 * Member::BEAT).await;
    assert_eq!(two.coordinator.live(), 5, "nobody here waits for Bob's");

    world.participants.on_call(|_| Fault::None);
    for id in ["ada-1:pay", "cleo-1:pay"] {
        two.coordinator.retry(id, "ann", "the books are open").await.unwrap();
    }
    for id in ["ada-1", "ada-2", "cleo-1"] {
        assert_eq!(two.finished(id).await.phase(), SagaPhase::Completed);
    }
    // In its turn.
    becomes("driven", async || two.coordinator.live() > 0).await;
    two.coordinator.retry("bob-1:pay", "ann", "the books are open").await.unwrap();
    for id in ["bob-1", "bob-2"] {
        assert_eq!(two.finished(id).await.phase(), SagaPhase::Completed);
    }
}

/// Nobody else is to be asked, and nobody waits for less than whoever takes it over now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_what_nobody_has_room_for_is_settled_by_whoever_is_asked() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    only(&world.participants, &[]);
    let (one, two) = (process(&world, 1).await, process(&world, 1).await);
    for (process, order) in [(&one, "tea"), (&two, "rum")] {
        process.place(order).await.unwrap();
        process.until(order, |saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0)).await;
    }
    shares(&one);
    one.coordinator.pause("tea", "ann", "the bank is out").await.unwrap();
    let skipped = async || two.coordinator.skip("tea", "charge", Op::Action, true, "ann", "paid in cash").await;
    assert_eq!(skipped().await.expect_err("another drives it").reason, "SAGA_NOT_DRIVEN");
    leaves(one).await;
    assert_eq!(skipped().await.expect_err("it may have been called just now").reason, "STEP_UNDER_WAY");
    assert_eq!(two.coordinator.live(), 2);
}

/// It says nothing of whose the others are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_cannot_be_read_keeps_nobody_from_what_a_process_has_left() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    only(&world.participants, &[]);
    let (one, two, three) = (process(&world, 1).await, process(&world, 2).await, process(&world, 2).await);
    for (process, order) in [(&one, "tea"), (&two, "thyme"), (&two, "zest")] {
        process.place(order).await.unwrap();
    }
    one.coordinator.pause("tea", "ann", "stock-taking").await.unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    let harm = format!(
        "SET search_path = {schema};
        CREATE TABLE kept AS SELECT * FROM aggregates WHERE kind = 'saga_owner' AND id = 'tea';
        UPDATE aggregates SET state = NULL WHERE kind = 'saga_owner' AND id = 'tea'"
    );
    server.execute(AssertSqlSafe(harm)).await.unwrap();
    shares(&one);
    shares(&three);
    leaves(two).await;
    becomes("taken over", async || three.coordinator.live() == 2).await;
    tokio::time::sleep(2 * Member::BEAT).await;
    assert_eq!(one.coordinator.live(), 1, "nobody knows that it is another's");

    let mend = "UPDATE aggregates SET state = kept.state FROM kept WHERE aggregates.kind = kept.kind AND aggregates.id = kept.id";
    server.execute(mend).await.unwrap();
    only(&world.participants, &["tea", "thyme", "zest"]);
    one.coordinator.resume("tea", "ann", "all is there").await.unwrap();
    for (process, order) in [(&one, "tea"), (&three, "thyme"), (&three, "zest")] {
        assert_eq!(process.finished(order).await.phase(), SagaPhase::Completed);
    }
}

/// Nothing that it claimed would be driven until it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_to_end_while_it_takes_over_claims_nothing_more() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    only(&world.participants, &[]);
    let one = process(&world, 100).await;
    for order in ["rum", "tea", "zest"] {
        one.place(order).await.unwrap();
    }
    leaves(one).await;
    let location = Location::Postgres { url: url.clone(), schema: schema.clone() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let (definitions, participants) = (vec![Arc::clone(&world.definition)], world.participants.clone());
    let two = Process::on(journal, definitions, participants, Options::default());
    let mut server = PgConnection::connect(&url).await.unwrap();
    // The turn that a claim needs.
    let turn = format!("SELECT pg_advisory_lock(hashtextextended('trellis/{schema}/journal', 0))");
    server.execute(AssertSqlSafe(turn)).await.unwrap();
    let coordinator = two.coordinator.clone();
    let adopting = tokio::spawn(async move { coordinator.recover().await });
    let mut watcher = PgConnection::connect(&url).await.unwrap();
    let waiting = format!(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND NOT granted AND application_name = 'trellis {schema}'"
    );
    let claims = async {
        while sqlx::query_scalar::<_, i64>(AssertSqlSafe(waiting.clone())).fetch_one(&mut watcher).await.unwrap() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, claims).await.expect("it claims nothing");
    two.coordinator.drain(PATIENCE).await;
    server.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    assert_eq!(adopting.await.unwrap().unwrap(), 0);
    let claimed = format!(
        "SELECT count(*) FROM {schema}.aggregates JOIN {schema}.members ON state = convert_to(name, 'UTF8')
        WHERE kind = 'saga_owner'"
    );
    let claimed: i64 = sqlx::query_scalar(AssertSqlSafe(claimed)).fetch_one(&mut server).await.unwrap();
    assert_eq!(claimed, 0);
}

/// A process that crashes again and again leaves a row each time, and each open saga is looked for in all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_enters_forgets_those_that_are_gone() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    let location = Location::Postgres { url: url.clone(), schema: schema.clone() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let stopped = journal.join().await.unwrap().unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    let sql = format!(
        "UPDATE {schema}.members SET seen_until = seen_until - 120000000;
        INSERT INTO {schema}.members SELECT 'crashed/' || at, {NOW} - 600000000 FROM generate_series(1, 300) AS at;
        INSERT INTO {schema}.members VALUES ('there', {NOW} + 9000000), ('late', {NOW} - 1000000)"
    );
    server.execute(AssertSqlSafe(sql)).await.unwrap();
    let entered = journal.join().await.unwrap().unwrap();
    let names = format!("SELECT name FROM {schema}.members ORDER BY seen_until");
    let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(names.clone())).fetch_all(&mut server).await.unwrap();
    assert_eq!(names, ["late", "there", entered.name()]);
    // Who was only stopped is there again.
    stopped.beat().await.unwrap();
    let names = format!("SELECT name FROM {schema}.members WHERE seen_until > {NOW} ORDER BY seen_until");
    let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(names)).fetch_all(&mut server).await.unwrap();
    assert_eq!(names, ["there", entered.name(), stopped.name()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_not_entered_again_by_a_beat_that_is_on_its_way() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    let location = Location::Postgres { url: url.clone(), schema: schema.clone() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let member = journal.join().await.unwrap().unwrap();
    let mut server = PgConnection::connect(&url).await.unwrap();
    // It holds up whoever enters, before they have anything to do with a row.
    let sql = format!(
        "CREATE FUNCTION {schema}.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock(hashtext('{schema}'));
            RETURN NEW;
        END $$;
        CREATE TRIGGER hold BEFORE INSERT ON {schema}.members FOR EACH ROW EXECUTE FUNCTION {schema}.hold();
        SELECT pg_advisory_lock(hashtext('{schema}'))"
    );
    server.execute(AssertSqlSafe(sql)).await.unwrap();
    let (beats, leaves) = (member.clone(), member.clone());
    let beat = tokio::spawn(async move { beats.beat().await });
    let held = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND objid::bigint = hashtext($1)::bigint & 4294967295";
    let on_its_way = async {
        while sqlx::query_scalar::<_, i64>(held).bind(&schema).fetch_one(&mut server).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, on_its_way).await.expect("it is on its way");
    let mut leave = tokio::spawn(async move { leaves.leave().await });
    // Who doesn't wait for it has left by then.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut leave).await;
    server.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    beat.await.unwrap().unwrap();
    match early {
        Ok(left) => left.unwrap().unwrap(),
        Err(_) => leave.await.unwrap().unwrap(),
    }
    member.beat().await.unwrap();
    let there = format!("SELECT COUNT(*) FROM {schema}.members");
    let there: i64 = sqlx::query_scalar(AssertSqlSafe(there)).fetch_one(&mut server).await.unwrap();
    assert_eq!(there, 0);
}

/// One more process, with room for one saga. Its orders start another saga each with their own work, and all of those lock one key, or
/// queue for it.
async fn with_one_key(world: &World, queues: bool) -> Process {
    let coordinator = Arc::<OnceLock<Coordinator>>::default();
    let mut saga = Definition::builder::<String>("count", 1);
    let key = |_: &String| vec!["stock".to_owned()];
    if queues {
        saga.lock(key)
    } else {
        saga.lock_or_refuse(key)
    }
    saga.pivot::<Ship>("count", |order, _| Ok(order.clone()));
    let count = saga.build().unwrap();
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Reserve>("reserve", |order, _| Ok(order.clone()));
    let known = Arc::clone(&coordinator);
    saga.retriable_local("start", move |order, _| {
        let (known, order) = (Arc::clone(&known), order.clone());
        let locks = known.get().unwrap().locks("count", &order)?;
        Ok(LocalWork::new(locks, move |state| {
            let counts = known.get().unwrap().start("count", &format!("{order}-counts"), &order, state.loaded())?;
            Ok(Decision::reply(()).beside(counts))
        }))
    });
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let options = Options { most_live: 1, ..Options::default() };
    let definitions = vec![saga.build().unwrap(), count];
    let process = Process::on(journal, definitions, world.participants.clone(), options);
    assert!(coordinator.set(process.coordinator.clone()).is_ok());
    process.coordinator.recover().await.unwrap();
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_lock_refuses_own_work_here_is_taken_over_where_there_is_no_room() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.step == "count" { Fault::LoseRequest } else { Fault::None });
    let (one, two) = (with_one_key(&world, false).await, with_one_key(&world, false).await);
    assert_eq!(one.run("ada").await.phase(), SagaPhase::Completed);
    two.place("bob").await.unwrap();
    two.until("bob", |saga| saga.steps.iter().any(|step| step.last_error.contains("locked by saga ada-counts"))).await;
    leaves(one).await;
    world.participants.on_call(|_| Fault::None);
    shares(&two);
    for id in ["ada-counts", "bob", "bob-counts"] {
        assert_eq!(two.finished(id).await.phase(), SagaPhase::Completed);
    }
}

/// Fills the queue for the key with sagas that nobody knows.
async fn fill_queue(process: &Process) {
    let queue = AggregateId::new("saga_lock", "stock");
    let aggregate = queue.clone();
    let decide = move |loaded: &Loaded<'_>| {
        let before = loaded.aggregate("saga_lock", "stock").unwrap();
        let mut queue = LockRecord::decode(before.state.clone()).unwrap();
        queue.saga_ids.extend((queue.saga_ids.len()..1000).map(|at| format!("else-{at}")));
        let state = Some(queue.encode_to_vec().into());
        let change = Change { aggregate, state, version: before.version + 1, events: Vec::new() };
        Decided { changes: vec![change], ..Decided::default() }
    };
    let (cause, decide) = (Cause::default(), Box::new(decide));
    let entry = Entry { request: None, aggregates: vec![queue], cause, decide, size: 9 };
    process.journal.submit(entry).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_first_in_a_full_queue_that_refuses_own_work_here_is_taken_over_where_there_is_no_room() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.step == "count" { Fault::LoseRequest } else { Fault::None });
    let (one, two) = (with_one_key(&world, true).await, with_one_key(&world, true).await);
    assert_eq!(one.run("ada").await.phase(), SagaPhase::Completed);
    fill_queue(&one).await;
    two.place("bob").await.unwrap();
    two.until("bob", |saga| saga.steps.iter().any(|step| step.last_error.contains("too many sagas wait"))).await;
    leaves(one).await;
    world.participants.on_call(|_| Fault::None);
    shares(&two);
    for id in ["ada-counts", "bob"] {
        assert_eq!(two.finished(id).await.phase(), SagaPhase::Completed);
    }
}

/// As where the server's clock was ahead and is put back, or one takes over whose clock is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_said_until_when_it_is_there_by_a_clock_that_was_ahead_is_gone_no_later() {
    let world = World::new();
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return;
    };
    only(&world.participants, &[]);
    let one = process(&world, 100).await;
    one.place("tea").await.unwrap();
    one.crash().await;
    let mut server = PgConnection::connect(&url).await.unwrap();
    let ahead = format!("UPDATE {schema}.members SET seen_until = {NOW} + 86400000000");
    server.execute(AssertSqlSafe(ahead)).await.unwrap();
    let two = process(&world, 100).await;
    becomes("driven", async || two.coordinator.live() == 1).await;
    only(&world.participants, &["tea"]);
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Completed);
}
