//! What a saga has somebody told at once, in the log.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod lines;
mod saga_world;

use std::time::{Duration, Instant};

use libs::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{Definition, Retry, testing::Fault},
};
use lines::Lines;
use proto::saga::v1::SagaPhase;
use saga_world::{Charge, Reserve, World};

#[tokio::test]
async fn a_line_about_one_step_does_not_tell_what_was_the_matter_with_one_that_is_settled() {
    let (lines, _keeping) = Lines::keep();
    let world = World::new();
    world.participants.on_call(|call| match &*call.step {
        "charge" => Fault::LoseRequest,
        "ship" => Fault::Elsewhere,
        _ => Fault::None,
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    process.coordinator.pause("tea", "ann", "payment is no more").await.unwrap();
    let skipped = process.settle("tea", "charge", Op::Action, true).await.unwrap();
    assert_eq!(skipped.steps[1].last_error, "", "nothing is the matter with it any more");
    process.coordinator.resume("tea", "ann", "paid in cash").await.unwrap();
    process.until("tea", |saga| !saga.steps[2].last_error.is_empty()).await;
    let told = lines.that_say("doesn't answer as one");
    assert!(told[0].contains("saga.step=\"ship\"") && told[0].contains("not by its barrier"), "{told:?}");
}

#[tokio::test]
async fn a_line_about_an_undoing_does_not_tell_why_the_saga_turned_back() {
    let (lines, _keeping) = Lines::keep();
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.check::<Charge>("screen", |order, _| Ok(order.clone()));
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let quick = Duration::from_millis(1);
    saga.after(&[]).retry(Retry { initial: quick, most: quick, ..Retry::default() });
    let world = World::with(saga.build().unwrap());
    let no = Refusal::precondition("NO", "a stranger");
    world.participants.on_call(move |call| match (&*call.step, call.op) {
        ("screen", _) => Fault::Reject(no.clone()),
        (_, Op::Compensation) => Fault::LoseRequest,
        _ => Fault::None,
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| saga.steps[1].compensation_attempts > 10).await;
    let told = lines.that_say("doesn't get done");
    assert!(told[0].contains("saga.step=\"reserve\"") && told[0].contains("the connection broke"), "{told:?}");
}

/// As where an address leads to another service.
#[tokio::test]
async fn what_all_sagas_meet_at_one_step_is_a_line_a_second_for_all_of_them() {
    let (lines, _keeping) = Lines::keep();
    let world = World::new();
    world.participants.on_call(|call| if call.step == "charge" { Fault::Elsewhere } else { Fault::None });
    let process = world.open().await;
    let (began, sagas) = (Instant::now(), (0..50).map(|number| format!("tea-{number}")).collect::<Vec<_>>());
    for saga in &sagas {
        process.place(saga).await.unwrap();
    }
    for saga in &sagas {
        process.until(saga, |saga| !saga.steps[1].last_error.is_empty()).await;
    }
    let (told, seconds) = (lines.that_say("doesn't answer as one"), began.elapsed().as_secs() as usize);
    assert!((1..=seconds + 1).contains(&told.len()), "{} lines in {seconds} s, such as {}", told.len(), told[0]);
    let says = ["ERROR", "saga.step=\"charge\"", "saga.id=\"tea-", "times=1"];
    assert!(says.iter().all(|said| told[0].contains(said)), "{told:?}");
}

#[tokio::test]
async fn of_each_saga_that_is_stuck_there_is_a_line() {
    let (lines, _keeping) = Lines::keep();
    let world = World::new();
    let no = Refusal::precondition("NO", "a stranger");
    world.participants.on_call(move |call| match (&*call.step, call.op) {
        ("ship", Op::Action) | ("charge", Op::Compensation) => Fault::Reject(no.clone()),
        _ => Fault::None,
    });
    let process = world.open().await;
    for saga in ["tea", "jam", "rice"] {
        process.place(saga).await.unwrap();
    }
    for saga in ["tea", "jam", "rice"] {
        process.until(saga, |saga| saga.phase() == SagaPhase::Stuck).await;
        let told = lines.that_say(&format!("saga.id={saga:?}"));
        assert_eq!(told.iter().filter(|line| line.contains("a saga is stuck")).count(), 1, "{told:?}");
    }
}

#[tokio::test]
async fn that_nobody_is_told_what_to_forget_for_the_want_of_the_own_database_is_one_line_that_names_no_participant() {
    let (lines, _keeping) = Lines::keep();
    let world = World::new();
    let process = world.open().await;
    let file = rusqlite::Connection::open(world.folder.path().join("order.db")).unwrap();
    let by_hand = |sql| file.execute_batch(sql).unwrap();
    let told = || [lines.that_say("what it may forget"), lines.that_say("what participants may forget")].concat();
    for times in 1..=2 {
        by_hand("ALTER TABLE aggregates RENAME TO elsewhere");
        for _ in 0..2 {
            assert_eq!(process.coordinator.forget_ended().await, 0);
        }
        let told = told();
        assert!(told.len() == times && told.iter().all(|line| line.contains("no such table")), "{told:?}");
        by_hand("ALTER TABLE elsewhere RENAME TO aggregates");
        process.coordinator.forget_ended().await;
    }
    let told = told();
    assert!(!["inventory", "payment", "shipping"].iter().any(|peer| told.concat().contains(peer)), "{told:?}");
}
