//! Sagas on a real journal, with participants that fail in every way they can.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod clock;
mod lines;
mod saga_world;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use clock::{becomes, soon, stop_the_clock};
use futures::future::BoxFuture;
use libs::{
    breaker::{CircuitOpen, Reason},
    journal::{Cause, Decided, Entry, Journal, Loaded},
    refusal::Refusal,
    rpc::verdict::{Op, Verdict},
    saga::{
        Attempt, Definition, Options, Retry, TABLES, Transport,
        testing::{Fault, Participants},
    },
};
use lines::Lines;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use proto::saga::v1::{Saga, SagaPhase, StepState};
use saga_world::{Charge, PATIENCE, Process, Reserve, Ship, World, local};
use tokio::sync::watch;
use tonic::{Code, Status, metadata::MetadataMap};

fn no() -> Refusal {
    Refusal::precondition("NO", "the participant says no")
}

#[tokio::test]
async fn a_saga_takes_its_steps_in_order_and_ends_with_its_own_work_done() {
    let world = World::new();
    let process = world.open().await;
    let saga = process.run("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge", "ship"]);
    assert_eq!(process.order("tea").await, "Completed");
    assert!(saga.steps.iter().all(|step| step.state() == StepState::Done && step.attempts == 1));
    // Replies feed later requests.
    assert!(String::from_utf8_lossy(&world.participants.calls()[1].message).contains("charge price of"));
    // One commit to start, and one a participant: the last one completes the order too.
    assert_eq!((saga.version, process.journal.stats().commits), (4, 4));
}

/// Bytes are the same on the wire as a string is: every step would read them.
#[tokio::test]
async fn a_saga_starts_from_no_message_but_its_definitions() {
    let (lines, _kept) = Lines::keep();
    let process = World::new().open().await;
    let (coordinator, bytes) = (&process.coordinator, b"tea".to_vec());
    let loaded = Loaded::new(&[], None, 1_700_000_000_000_000);
    let refused = [
        coordinator.start("place-order", "tea", &bytes, &loaded).map(drop),
        coordinator.start_at("place-order", "tea", &bytes, &loaded, i64::MAX).map(drop),
        coordinator.locks("place-order", &bytes).map(drop),
    ];
    assert_eq!(refused.map(|refused| refused.map_err(|refusal| refusal.code)), [Err(Code::Internal); 3]);
    let said = "saga place-order starts from alloc::string::String, and was to start from alloc::vec::Vec<u8>";
    let said = lines.that_say(said);
    assert!(said.len() == 3 && said.iter().all(|line| line.starts_with("ERROR")), "{said:?}");
    assert!(coordinator.start("place-order", "tea", &"tea".to_owned(), &loaded).is_ok());
}

#[tokio::test]
async fn a_refusal_undoes_what_was_done_last_things_first() {
    let world = World::new();
    world.participants.on_call(|call| if call.step == "ship" { Fault::Reject(no()) } else { Fault::None });
    let process = world.open().await;
    let saga = process.run("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge", "-charge", "-reserve"]);
    assert_eq!(process.order("tea").await, "Rejected ship NO");
    let reason = saga.reason.unwrap();
    assert_eq!((reason.step.as_str(), reason.message.as_str()), ("ship", "the participant says no"));
    assert_eq!(reason.code, i32::from(tonic::Code::FailedPrecondition));
    let undo = world.participants.calls().into_iter().find(|call| call.call.op == Op::Compensation).unwrap();
    assert!(undo.message.ends_with(b"knowing Some(\"\")"), "{:?}", undo.message);
}

/// A fault for the first call of one operation.
fn once(step: &'static str, op: Op, fault: Fault) -> impl FnMut(&libs::rpc::verdict::SagaCall) -> Fault {
    let mut fault = Some(fault);
    move |call| {
        if (call.step.as_str(), call.op) == (step, op) { fault.take().unwrap_or(Fault::None) } else { Fault::None }
    }
}

fn quick() -> Retry {
    Retry { initial: Duration::from_millis(1), most: Duration::from_millis(5), ..Retry::default() }
}

fn step<'a>(saga: &'a Saga, name: &str) -> &'a proto::saga::v1::Step {
    saga.steps.iter().find(|step| step.name == name).unwrap()
}

fn said(saga: &Saga, what: &str) -> bool {
    saga.history.iter().any(|entry| entry.what == what)
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_with_the_same_bytes_and_has_one_effect() {
    for fault in [Fault::LoseReply, Fault::LoseRequest, Fault::Repeat] {
        let world = World::new();
        world.participants.on_call(once("charge", Op::Action, fault));
        let saga = world.open().await.run("tea").await;
        assert_eq!(saga.phase(), SagaPhase::Completed);
        assert_eq!(world.participants.done_for("tea"), ["reserve", "charge", "ship"]);
        let calls = world.participants.calls();
        let charges: Vec<_> = calls.iter().filter(|call| call.call.step == "charge").collect();
        assert!(charges.iter().all(|call| call.message == charges[0].message));
        assert_eq!(step(&saga, "charge").attempts as usize, charges.len());
    }
}

#[tokio::test]
async fn a_code_without_a_verdict_never_turns_a_saga_back() {
    for code in 1..=16 {
        let world = World::new();
        let status = Status::new(Code::from(code), "a proxy's word");
        world.participants.on_call(once("charge", Op::Action, Fault::Status(status)));
        let process = world.open().await;
        process.place("tea").await.unwrap();
        process.until("tea", |saga| step(saga, "charge").last_error.contains("a proxy's word")).await;
        if let Err(refusal) = process.coordinator.retry("tea", "ann", "the proxy is mended").await {
            assert_eq!(refusal.reason, "SAGA_CLOSED", "it has called again by itself before");
        }
        let saga = process.finished("tea").await;
        assert_eq!(saga.phase(), SagaPhase::Completed, "{code}");
    }
}

#[tokio::test]
async fn an_ok_that_is_not_the_barriers_is_no_end_of_an_operation() {
    for (op, ended) in [(Op::Action, SagaPhase::Completed), (Op::Compensation, SagaPhase::Compensated)] {
        let world = World::new();
        let mut elsewhere = once("charge", op, Fault::Elsewhere);
        world.participants.on_call(move |call| match call.step.as_str() {
            "ship" if op == Op::Compensation => Fault::Reject(no()),
            _ => elsewhere(call),
        });
        let process = world.open().await;
        process.place("tea").await.unwrap();
        let error = |saga: &Saga| step(saga, "charge").last_error.clone();
        let saga = process.until("tea", |saga| saga.phase() == ended || !error(saga).is_empty()).await;
        assert!(error(&saga).contains("not by its barrier"), "it was taken for done: {saga:#?}");
        assert!(!world.participants.done_for("tea").contains(&"ship".to_owned()), "{op:?}");
        if let Err(refusal) = process.coordinator.retry("tea", "ann", "the right server is there again").await {
            assert_eq!(refusal.reason, "SAGA_CLOSED", "it has called again by itself before");
        }
        let saga = process.finished("tea").await;
        assert_eq!(saga.phase(), ended);
        let mut effects = world.participants.done_for("tea");
        effects.retain(|effect| effect.ends_with("charge"));
        let expected: &[&str] = if op == Op::Action { &["charge"] } else { &["charge", "-charge"] };
        assert_eq!(effects, expected);
    }
}

#[tokio::test]
async fn what_is_under_way_at_the_participant_is_asked_for_until_it_is_done() {
    let world = World::new();
    world.participants.on_call(once("charge", Op::Action, Fault::Pending));
    let saga = world.open().await.run("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Completed);
    assert!(!said(&saga, "action failed"));
}

#[tokio::test]
async fn a_crash_with_any_call_under_way_is_taken_up_with_one_effect_each() {
    let calls = ["reserve", "charge", "ship", "-charge", "-reserve"];
    for refused in [false, true] {
        for (at, taken) in calls.iter().flat_map(|at| [(*at, false), (*at, true)]) {
            let world = World::new();
            let (name, op) = at.strip_prefix('-').map_or((at, Op::Action), |name| (name, Op::Compensation));
            let (reached, mut seen) = tokio::sync::mpsc::unbounded_channel();
            world.participants.on_call(move |call| {
                if (call.step.as_str(), call.op) == (name, op) {
                    let _ = reached.send(());
                    // Its request is lost, or only the reply: the crash comes before the saga calls again.
                    return if taken { Fault::LoseReply } else { Fault::Hang };
                }
                if refused && call.step == "ship" { Fault::Reject(no()) } else { Fault::None }
            });
            let process = world.open().await;
            process.place("tea").await.unwrap();
            tokio::select! {
                _ = seen.recv() => {}
                _ = process.coordinator.finished("tea") => {}
            }
            process.crash().await;

            world.participants.on_call(
                move |call| {
                    if refused && call.step == "ship" { Fault::Reject(no()) } else { Fault::None }
                },
            );
            let process = world.open().await;
            process.coordinator.recover().await.unwrap();
            let saga = process.finished("tea").await;
            // A ship that took effect before the crash stays done: the barrier replays it.
            let done = !refused || (at == "ship" && taken);
            let expected = if done { SagaPhase::Completed } else { SagaPhase::Compensated };
            assert_eq!(saga.phase(), expected, "{at} {refused} {taken}: {saga:#?}");
            let effects = world.participants.done_for("tea");
            let expected: &[&str] =
                if done { &["reserve", "charge", "ship"] } else { &["reserve", "charge", "-charge", "-reserve"] };
            assert_eq!(effects, expected, "{at} {refused} {taken}");
            assert_eq!(process.order("tea").await.starts_with("Rejected"), !done);
            assert_eq!(process.coordinator.recover().await.unwrap(), 0, "nothing is left open");
        }
    }
}

#[tokio::test]
async fn a_cancel_undoes_even_what_nobody_knows_and_stops_what_comes_late() {
    let world = World::new();
    // Whenever it is called again: it is cancelled before it is done.
    world.participants.on_call(|call| match (&*call.step, call.op) {
        ("charge", Op::Action) => Fault::Hang,
        _ => Fault::None,
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| step(saga, "charge").state() == StepState::Started).await;
    process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    let saga = process.finished("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    let calls = world.participants.calls();
    let of = |op| calls.iter().find(|call| (&*call.call.step, call.call.op) == ("charge", op)).unwrap();
    assert!(of(Op::Compensation).call.attempt > 0, "what may have been done is undone");
    // And there it is, after all.
    world.participants.on_call(|_| Fault::None);
    let mut metadata = MetadataMap::new();
    let late = of(Op::Action).clone();
    late.call.write_to(&mut metadata);
    let late = Attempt { peer: "payment", path: late.path, request: late.message, metadata, timeout: PATIENCE };
    let told = world.participants.call(late).await.unwrap_err();
    assert_eq!(Verdict::from_metadata(told.metadata()), Some(Verdict::Cancelled));
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
    assert_eq!(process.order("tea").await, "Rejected  CANCELLED");
    assert!(
        saga.history.iter().any(|entry| (entry.actor.as_str(), entry.detail.as_str()) == ("ann", "changed my mind"))
    );
    assert_eq!(process.coordinator.cancel("tea", "ann", "again").await.unwrap_err().reason, "SAGA_CLOSED");
    assert_eq!(process.coordinator.cancel("milk", "ann", "who?").await.unwrap_err().reason, "UNKNOWN_SAGA");
}

#[tokio::test]
async fn nothing_turns_a_saga_back_once_its_pivot_has_started() {
    let world = World::new();
    world.participants.on_call(once("ship", Op::Action, Fault::LoseReply));
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| step(saga, "ship").state() == StepState::Started).await;
    let refusal = process.coordinator.cancel("tea", "ann", "too late").await.unwrap_err();
    assert!(matches!(&*refusal.reason, "PAST_PIVOT" | "SAGA_CLOSED"), "{refusal:?}");
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_compensation_that_is_refused_waits_for_an_operator_while_others_are_undone() {
    // Two branches: one can't be undone.
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.after(&[]);
    let charge = |order: &String, _: libs::saga::Replies<'_>| Ok(order.clone());
    saga.compensatable::<Charge>("charge", charge, |undo| undo.request);
    saga.after(&[]);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.after(&["reserve", "charge"]);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| match (call.step.as_str(), call.op) {
        ("ship", _) | ("charge", Op::Compensation) => Fault::Reject(no()),
        _ => Fault::None,
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    let stuck = process
        .until("tea", |saga| {
            saga.phase() == SagaPhase::Stuck && step(saga, "reserve").state() == StepState::Compensated
        })
        .await;
    assert_eq!(step(&stuck, "charge").state(), StepState::Compensating);
    let skip = |name, op| process.coordinator.skip("tea", name, op, true, "bob", "refunded by hand");
    assert_eq!(skip("reserve", Op::Compensation).await.unwrap_err().reason, "STEP_SETTLED");
    let saga = skip("charge", Op::Compensation).await.unwrap();
    assert_eq!(saga.phase(), SagaPhase::Compensated);
}

#[tokio::test]
async fn what_is_said_to_have_had_no_effect_while_a_call_of_it_is_under_way_is_undone_all_the_same() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(PATIENCE);
    let charge = |order: &String, _: libs::saga::Replies<'_>| Ok(order.clone());
    saga.compensatable::<Charge>("charge", charge, |undo| undo.request);
    saga.after(&[]);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| match (call.step.as_str(), call.op) {
        ("reserve", Op::Action) => Fault::Hang,
        ("charge", Op::Action) => Fault::Conflict,
        _ => Fault::None,
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until_phase("tea", SagaPhase::Stuck).await;
    let skip = |name| process.coordinator.skip("tea", name, Op::Action, false, "bob", "no trace of it");
    let saga = skip("reserve").await.unwrap();
    assert_eq!(step(&saga, "reserve").state(), StepState::Abandoned);
    // What the participant has answered is known: nothing of it comes any more.
    skip("charge").await.unwrap();
    let saga = process.finished("tea").await;
    let states = ["reserve", "charge"].map(|name| step(&saga, name).state());
    assert_eq!((saga.phase(), states), (SagaPhase::Compensated, [StepState::Compensated, StepState::Rejected]));
    let calls = world.participants.calls();
    let undone: Vec<_> = calls.iter().filter(|call| call.call.op == Op::Compensation).collect();
    assert_eq!((undone.len(), undone[0].call.step.as_str()), (1, "reserve"));
}

#[tokio::test]
async fn what_is_refused_after_the_pivot_can_be_tried_again_skipped_or_closed() {
    for way in ["retry", "skip", "close"] {
        let mut saga = Definition::builder::<String>("place-order", 1);
        saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
        saga.retriable::<Reserve>("bill", |order, _| Ok(order.clone()));
        let world = World::with(saga.build().unwrap());
        let conflict = once("bill", Op::Action, Fault::Conflict);
        let mut conflict = conflict;
        let reject = way != "retry";
        world.participants.on_call(
            move |call| {
                if reject && call.step == "bill" { Fault::Reject(no()) } else { conflict(call) }
            },
        );
        let process = world.open().await;
        process.place("tea").await.unwrap();
        process.until_phase("tea", SagaPhase::Stuck).await;
        // It stays so over a restart, and calls nobody.
        process.crash().await;
        let calls = world.participants.calls().len();
        let process = world.open().await;
        assert_eq!(process.coordinator.recover().await.unwrap(), 1);
        let coordinator = &process.coordinator;
        let phase = match way {
            "retry" => {
                coordinator.retry("tea", "bob", "mended").await.unwrap();
                SagaPhase::Completed
            }
            "skip" => {
                coordinator.skip("tea", "bill", Op::Action, false, "bob", "a gift").await.unwrap();
                SagaPhase::Completed
            }
            _ => {
                assert_eq!(coordinator.cancel("tea", "bob", "?").await.unwrap_err().reason, "PAST_PIVOT");
                coordinator.force_close("tea", "bob", "enough").await.unwrap();
                SagaPhase::ForceClosed
            }
        };
        let ended = match coordinator.finished("tea").await {
            Ok(saga) => saga,
            Err(refusal) => panic!("{way}: {refusal:?}"),
        };
        assert_eq!(ended.phase(), phase, "{way}");
        assert_eq!(world.participants.calls().len(), calls + usize::from(way == "retry"));
    }
}

#[tokio::test]
async fn a_paused_saga_calls_nobody_until_it_is_resumed() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    // It does not call again by itself before it is paused.
    let hour = Duration::from_secs(3600);
    saga.retry(Retry { initial: hour, most: hour, ..Retry::default() });
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(once("charge", Op::Action, Fault::LoseRequest));
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| !step(saga, "charge").last_error.is_empty()).await;
    let paused = process.coordinator.pause("tea", "ann", "inventory day").await.unwrap();
    assert!(paused.paused);
    let calls = world.participants.calls().len();
    // The second is answered after all that the first leads to.
    for _ in 0..2 {
        process.coordinator.retry("tea", "ann", "still paused").await.unwrap();
    }
    assert_eq!(world.participants.calls().len(), calls);
    process.coordinator.resume("tea", "ann", "go on").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_step_that_nobody_will_ever_answer_is_settled_by_hand_while_its_saga_is_paused() {
    let world = World::new();
    world.participants.on_call(|call| if call.step == "ship" { Fault::LoseRequest } else { Fault::None });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| !step(saga, "ship").last_error.is_empty()).await;
    let skip = |done| process.settle("tea", "ship", Op::Action, done);
    let refused = skip(true).await.unwrap_err();
    assert!(refused.reason == "NOT_STUCK" && refused.message.contains("pause it before"), "{refused:?}");
    process.coordinator.pause("tea", "ann", "the shipper is no more").await.unwrap();
    let refused = skip(false).await.unwrap_err();
    assert_eq!(refused.reason, "STEP_UNCERTAIN", "what came before must not be undone for it");
    let skipped = skip(true).await.unwrap();
    assert_eq!((step(&skipped, "ship").state(), skipped.phase()), (StepState::Skipped, SagaPhase::Forward));
    assert!(said(&skipped, "skipped as done"));
    process.coordinator.resume("tea", "ann", "sent by mail").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge"]);
    assert_eq!(process.order("tea").await, "Completed");
}

#[tokio::test]
async fn what_a_call_is_under_way_for_is_settled_by_nobody_else_and_closed_by_an_operator() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::Hang);
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| step(saga, "ship").state() == StepState::Started).await;
    world.called(|calls| calls.iter().any(|call| call.call.step == "ship")).await;
    let close = || process.coordinator.force_close("tea", "ann", "sent by mail");
    assert_eq!(close().await.unwrap_err().reason, "NOT_STUCK");
    process.coordinator.pause("tea", "ann", "the shipper is no more").await.unwrap();
    let skipped = process.coordinator.skip("tea", "ship", Op::Action, true, "ann", "sent by mail").await;
    assert_eq!(skipped.unwrap_err().reason, "STEP_UNDER_WAY");
    assert_eq!(close().await.unwrap().phase(), SagaPhase::ForceClosed);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::ForceClosed);
}

/// What is struck out keeps out no call that was made before it.
#[tokio::test]
async fn an_undoing_is_settled_by_nobody_while_what_it_undoes_may_take_effect_yet() {
    // A call of it is under way, or was under way when the process before went, or comes late and no barrier stops it.
    for (hangs, crashes, plain) in [(true, false, false), (true, true, false), (false, false, true)] {
        let mut saga = Definition::builder::<String>("place-order", 1);
        saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
        let hour = Duration::from_secs(3600);
        saga.attempt_timeout(PATIENCE).retry(Retry { initial: hour, most: hour, ..Retry::default() });
        if plain {
            saga.without_barrier();
        }
        let world = World::with(saga.build().unwrap());
        let action = if hangs { Fault::Hang } else { Fault::LoseRequest };
        let lost_undoing = move |call: &libs::rpc::verdict::SagaCall| {
            if call.op == Op::Action { action.clone() } else { Fault::LoseRequest }
        };
        world.participants.on_call(lost_undoing);
        let mut process = world.open().await;
        process.place("tea").await.unwrap();
        world.called(|calls| !calls.is_empty()).await;
        if crashes {
            process.crash().await;
            world.participants.on_call(|_| Fault::LoseRequest);
            process = world.open().await;
            process.coordinator.recover().await.unwrap();
        }
        if !hangs || crashes {
            process.until("tea", |saga| !step(saga, "reserve").last_error.is_empty()).await;
        }
        process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
        let is_undone = |saga: &Saga| step(saga, "reserve").state() == StepState::Compensating;
        let was_lost = |saga: &Saga| plain || step(saga, "reserve").compensation_attempts > 0;
        process.until("tea", |saga| is_undone(saga) && was_lost(saga)).await;
        process.coordinator.pause("tea", "ann", "inventory is no more").await.unwrap();
        let skip = || process.coordinator.skip("tea", "reserve", Op::Compensation, true, "ann", "nothing is reserved");
        // Until the lost call of the undoing has ended.
        let refused = loop {
            let refused = skip().await.unwrap_err();
            assert_eq!(refused.reason, "STEP_UNDER_WAY");
            if refused.message.contains("action") || refused.message.contains("took the saga up") {
                break refused;
            }
            tokio::task::yield_now().await;
        };
        if hangs && !crashes {
            assert_eq!(
                process.coordinator.force_close("tea", "ann", "it is enough").await.unwrap().phase(),
                SagaPhase::ForceClosed
            );
            continue;
        }
        let wait = refused.retry_after.unwrap();
        assert!(wait > PATIENCE / 2 && wait <= PATIENCE * 3, "{wait:?}");
    }
}

/// The participant may be at it yet, for as long as it was given, whatever became of who called.
#[tokio::test]
async fn what_was_called_before_a_crash_is_settled_by_nobody_else_until_its_time_is_up() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::Hang);
    let process = world.open().await;
    process.place("tea").await.unwrap();
    world.called(|calls| !calls.is_empty()).await;
    process.coordinator.pause("tea", "ann", "the shipper is no more").await.unwrap();
    process.crash().await;

    let process = world.open().await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    let skip = || process.coordinator.skip("tea", "ship", Op::Action, true, "ann", "sent by mail");
    let refused = skip().await.unwrap_err();
    assert_eq!(refused.reason, "STEP_UNDER_WAY");
    assert!(refused.message.contains("before this process took the saga up"), "{}", refused.message);
    tokio::time::pause();
    tokio::time::advance(refused.retry_after.unwrap()).await;
    tokio::time::resume();
    assert_eq!(step(&skip().await.unwrap(), "ship").state(), StepState::Skipped);
}

/// What a call was given counts, and not what the next one would be.
#[tokio::test]
async fn a_call_from_before_a_crash_is_waited_for_as_long_as_it_was_given_whatever_its_definition_says_by_now() {
    let giving = |timeout| {
        let mut saga = Definition::builder::<String>("place-order", 1);
        saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
        saga.attempt_timeout(timeout).without_barrier();
        vec![saga.build().unwrap()]
    };
    let (short, long) = (Duration::from_secs(5), Duration::from_secs(500));
    // From the start on, or only by the process before.
    for before in [vec![long], vec![short, long]] {
        let world = World::with(giving(short).remove(0));
        world.participants.on_call(|_| Fault::Hang);
        for (at, timeout) in before.iter().enumerate() {
            let process = world.open_with(giving(*timeout), Options::default()).await;
            match at {
                0 => process.place("tea").await.unwrap(),
                _ => drop(process.coordinator.recover().await.unwrap()),
            }
            world.called(|calls| calls.len() > at).await;
            if at + 1 == before.len() {
                process.coordinator.pause("tea", "ann", "inventory is no more").await.unwrap();
            }
            process.crash().await;
        }
        let process = world.open_with(giving(short), Options::default()).await;
        process.coordinator.recover().await.unwrap();
        let skipped = process.coordinator.skip("tea", "reserve", Op::Action, true, "ann", "it is there").await;
        let refused = skipped.unwrap_err();
        assert_eq!(refused.reason, "STEP_UNDER_WAY");
        assert!(refused.retry_after.unwrap() > long / 2, "{refused:?}");
        process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
        let undone = process.coordinator.resume("tea", "ann", "that is all").await.unwrap();
        let waits = step(&undone, "reserve").next_attempt_time.unwrap().seconds - undone.update_time.unwrap().seconds;
        assert!(waits > 2 * 500, "{waits} s");
    }
}

/// Else all whose calls were lost at once would call again at once.
#[tokio::test]
async fn how_long_sagas_wait_until_they_call_again_is_left_to_chance() {
    let world = World::new();
    world.participants.on_call(|_| Fault::LoseRequest);
    let process = world.open().await;
    let micros = |time: &Option<prost_types::Timestamp>| {
        let time = time.as_ref().unwrap();
        time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000
    };
    let mut waits = Vec::new();
    for at in 0..8 {
        let order = format!("tea-{at}");
        process.place(&order).await.unwrap();
        let saga = process.until(&order, |saga| !step(saga, "reserve").last_error.is_empty()).await;
        waits.push(micros(&step(&saga, "reserve").next_attempt_time) - micros(&saga.update_time));
    }
    waits.sort_unstable();
    // Half of 100 ms is chance: that it leaves eight so close comes about once in a million.
    assert!((50_000..=100_000).contains(&waits[0]) && waits[7] - waits[0] > 5_000 && waits[7] <= 100_000, "{waits:?}");
}

/// It has told no participant to keep its action out.
#[tokio::test]
async fn an_undoing_that_cannot_be_asked_for_is_settled_by_nobody_while_its_action_may_take_effect_yet() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.input.clone());
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::Hang);
    let process = world.open().await;
    process.place("tea").await.unwrap();
    world.called(|calls| !calls.is_empty()).await;
    process.crash().await;

    // A build that can't read what the saga began with.
    let mut saga = Definition::builder::<i64>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.to_string()), |undo| undo.input.to_string());
    saga.attempt_timeout(PATIENCE);
    world.participants.on_call(|_| Fault::LoseRequest);
    let process = world.open_with(vec![saga.build().unwrap()], Options::default()).await;
    process.coordinator.recover().await.unwrap();
    process.until("tea", |saga| !step(saga, "reserve").last_error.is_empty()).await;
    process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    let stuck = process.until_phase("tea", SagaPhase::Stuck).await;
    assert_eq!(step(&stuck, "reserve").compensation_attempts, 0, "{stuck:?}");
    let skipped =
        process.coordinator.skip("tea", "reserve", Op::Compensation, true, "ann", "nothing is reserved").await;
    let refused = skipped.expect_err("a call from before may reserve it yet");
    assert_eq!(refused.reason, "STEP_UNDER_WAY", "{refused:?}");
    assert!(refused.retry_after.unwrap() > PATIENCE / 2, "{refused:?}");
}

#[tokio::test]
async fn what_needs_the_reply_of_a_step_that_was_settled_by_hand_is_refused() {
    let world = World::new();
    world.participants.on_call(once("reserve", Op::Action, Fault::Conflict));
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until_phase("tea", SagaPhase::Stuck).await;
    process.coordinator.skip("tea", "reserve", Op::Action, true, "ann", "it is on the shelf").await.unwrap();
    let saga = process.finished("tea").await;
    let reason = saga.reason.clone().unwrap();
    assert_eq!((saga.phase(), reason.reason.as_str()), (SagaPhase::Compensated, "REPLY_MISSING"), "{}", reason.message);
    let called: Vec<_> = world.participants.calls().into_iter().map(|call| (call.call.step, call.call.op)).collect();
    // What an operator says was done is undone, without its reply.
    assert_eq!(called, [("reserve".to_owned(), Op::Action), ("reserve".to_owned(), Op::Compensation)]);
    let undo = world.participants.calls().remove(1).message;
    assert!(String::from_utf8_lossy(&undo).contains("knowing None"), "{undo:?}");
}

#[tokio::test]
async fn a_saga_of_an_unknown_definition_is_parked_alone_and_goes_on_when_it_is_brought_back() {
    let world = World::new();
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let process = world.open().await;
    process.place("old").await.unwrap();
    process.until("old", |saga| step(saga, "charge").state() == StepState::Started).await;
    process.crash().await;

    world.participants.on_call(|_| Fault::None);
    let new = saga_world::place_order_version(2);
    let process = world.open_with(vec![Arc::clone(&new)], Options::default()).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 0);
    assert_eq!(process.run("new").await.definition_version, 2);
    assert_eq!(process.coordinator.finished("old").await.unwrap_err().reason, "SAGA_PARKED");
    assert_eq!(process.coordinator.retry("old", "ann", "?").await.unwrap_err().reason, "SAGA_PARKED");
    process.crash().await;

    let both = vec![new, Arc::clone(&world.definition)];
    let process = world.open_with(both, Options::default()).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    let old = process.finished("old").await;
    assert_eq!((old.phase(), old.definition_version), (SagaPhase::Completed, 1));
    assert_eq!(process.run("newer").await.definition_version, 2);
}

#[tokio::test]
async fn a_definition_that_panics_parks_its_saga_alone() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| if order == "tea" { panic!("boom") } else { Ok(order.clone()) });
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    process.place("tea").await.unwrap();
    assert_eq!(process.run("milk").await.phase(), SagaPhase::Completed);
    let parked = tokio::time::timeout(PATIENCE, process.coordinator.finished("tea")).await.unwrap().unwrap_err();
    assert_eq!(parked.reason, "SAGA_PARKED");
    let refusal = process.coordinator.pause("tea", "ann", "?").await.unwrap_err();
    assert!(refusal.reason == "SAGA_PARKED" && refusal.message.contains("boom"), "{refusal:?}");
}

/// To ask once more is of no use. The second one is heard by the same task, or by one of its own.
#[tokio::test]
async fn who_retries_a_saga_that_panics_again_is_told_that_it_is_parked() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |_, _| panic!("boom"));
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    // It begins by its task, a moment later.
    process.try_place_at("tea", "tea", 1_700_000_000_050_000).await.unwrap();
    let parked = tokio::time::timeout(PATIENCE, process.coordinator.finished("tea")).await.unwrap().unwrap_err();
    assert_eq!(parked.reason, "SAGA_PARKED");
    let retry = || process.coordinator.retry("tea", "ann", "and now?");
    let (one, other) = tokio::join!(retry(), retry());
    for refusal in [one.unwrap_err(), other.unwrap_err()] {
        assert!(refusal.reason == "SAGA_PARKED" && refusal.message.contains("boom"), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_drain_lets_the_call_under_way_end_and_starts_no_other() {
    let world = World::new();
    let process = world.open().await;
    let coordinator = process.coordinator.clone();
    let (drained, done) = tokio::sync::oneshot::channel();
    let mut drain = Some((coordinator.clone(), drained));
    world.participants.on_call(move |call| {
        if call.step == "charge"
            && let Some((coordinator, drained)) = drain.take()
        {
            tokio::spawn(async move {
                coordinator.drain(PATIENCE).await;
                drained.send(())
            });
        }
        Fault::None
    });
    process.place("tea").await.unwrap();
    done.await.unwrap();
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge"]);
    assert_eq!(coordinator.live(), 0);
    assert_eq!(process.place("milk").await.unwrap_err().reason, "SHUTTING_DOWN");
    assert_eq!(coordinator.finished("tea").await.unwrap_err().reason, "SAGA_NOT_DRIVEN");
    process.crash().await;
    let process = world.open().await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge", "ship"]);
}

#[tokio::test]
async fn too_many_sagas_are_refused_before_anything_is_written() {
    let world = World::new();
    world.participants.on_call(|_| Fault::Hang);
    let definitions = vec![Arc::clone(&world.definition)];
    let process = world.open_with(definitions, Options { most_live: 1, ..Options::default() }).await;
    process.place("tea").await.unwrap();
    let refusal = process.place("milk").await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (Code::ResourceExhausted, "TOO_MANY_SAGAS"));
    assert!(refusal.retry_after.is_some());
    assert_eq!(process.coordinator.finished("milk").await.unwrap_err().reason, "UNKNOWN_SAGA");
    // A second start of one that is under way is refused, too.
    assert_eq!(process.place("tea").await.unwrap_err().reason, "SAGA_EXISTS");
    // A place is given back when its saga ends.
    process.coordinator.cancel("tea", "ann", "make room").await.unwrap();
    world.participants.on_call(|_| Fault::None);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Compensated);
    assert_eq!(process.run("milk").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn of_large_sagas_fewer_may_be_under_way_than_of_small_ones() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::LoseRequest);
    let options = Options { most_live: 4, ..Options::default() };
    let process = world.open_with(vec![Arc::clone(&world.definition)], options).await;
    let (large, full) = ("x".repeat(5 << 10), "TOO_MANY_SAGAS");
    for saga in ["a", "b"] {
        process.try_place(saga, &large).await.unwrap();
    }
    assert_eq!(process.try_place("c", &large).await.unwrap_err().reason, full);
    assert_eq!(process.place("small").await.unwrap_err().reason, full);
    // What was accepted is taken up, and counts as before.
    process.crash().await;
    let process = world.open_with(vec![Arc::clone(&world.definition)], options).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 2);
    assert_eq!(process.try_place("c", &large).await.unwrap_err().reason, full);
    world.participants.on_call(|_| Fault::None);
    for saga in ["a", "b"] {
        assert_eq!(process.finished(saga).await.phase(), SagaPhase::Completed);
    }
    // However large one is, it finds room where there is no other.
    process.try_place("c", &large.repeat(4)).await.unwrap();
    assert_eq!(process.finished("c").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn a_saga_that_has_grown_has_the_room_of_several() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.repeat(10 << 10)));
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.step == "ship" { Fault::Hang } else { Fault::None });
    let options = Options { most_live: 3, ..Options::default() };
    let process = world.open_with(vec![Arc::clone(&world.definition)], options).await;
    process.place("tea").await.unwrap();
    world.called(|calls| calls.iter().any(|call| call.call.step == "ship")).await;
    assert_eq!(process.place("milk").await.unwrap_err().reason, "TOO_MANY_SAGAS");
}

#[tokio::test]
async fn a_first_request_that_cannot_be_made_starts_no_saga() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |_, _| Err(Refusal::invalid("order", "is empty")));
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    assert_eq!(process.place("tea").await.unwrap_err().code, Code::InvalidArgument);
    assert_eq!(process.coordinator.live(), 0);
    assert_eq!(process.coordinator.finished("tea").await.unwrap_err().reason, "UNKNOWN_SAGA");
}

/// Its request, its reply and the request to undo it: one step keeps three times what it was asked for.
#[tokio::test]
async fn a_saga_that_would_keep_too_much_turns_back_and_what_it_keeps_by_then_is_stored() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.repeat(3 << 20)), |undo| undo.request);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.repeat(3 << 20)), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.repeat(3 << 20)));
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    let saga = process.run("x").await;
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    let reason = saga.reason.unwrap();
    assert_eq!((reason.step.as_str(), reason.reason.as_str()), ("charge", "SAGA_TOO_LARGE"), "{}", reason.message);
    assert_eq!(world.participants.done_for("x"), ["reserve", "-reserve"]);
}

#[tokio::test]
async fn a_saga_past_its_pivot_gets_through_however_much_it_keeps() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("charge", |order, _| Ok(order.repeat(6 << 20)));
    saga.retriable::<Ship>("ship", |order, _| Ok(order.repeat(6 << 20)));
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    assert_eq!(process.run("x").await.phase(), SagaPhase::Completed);
    assert_eq!(world.participants.done_for("x"), ["charge", "ship"]);
}

#[tokio::test]
async fn an_action_that_may_still_come_where_no_barrier_is_holds_its_undoing_back_whatever_happens() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(3600)).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.op == Op::Action { Fault::Hang } else { Fault::None });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| step(saga, "reserve").state() == StepState::Started).await;
    process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    let saga = process.until("tea", |saga| step(saga, "reserve").state() == StepState::Compensating).await;
    let begun = saga.create_time.unwrap();
    let waits = |saga: &Saga| step(saga, "reserve").next_attempt_time.unwrap().seconds - begun.seconds >= 3 * 3600;
    assert!(waits(&saga), "{saga:#?}");

    // Neither a crash nor an operator's impatience makes the action less likely to come.
    process.crash().await;
    let process = world.open().await;
    process.coordinator.recover().await.unwrap();
    let taken_up = process.coordinator.pause("tea", "ann", "inventory day").await.unwrap();
    assert!(waits(&taken_up), "{taken_up:#?}");
    process.coordinator.resume("tea", "ann", "done").await.unwrap();
    let tried = process.coordinator.retry("tea", "ann", "now!").await.unwrap();
    assert!(waits(&tried), "{tried:#?}");
    assert!(world.participants.calls().iter().all(|call| call.call.op == Op::Action));
}

#[tokio::test]
async fn where_no_barrier_is_an_action_that_was_not_answered_holds_its_undoing_back_although_the_next_was() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(3600)).retry(quick()).without_barrier();
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    let mut lost = once("reserve", Op::Action, Fault::LoseRequest);
    world.participants.on_call(move |call| if call.step == "ship" { Fault::Reject(no()) } else { lost(call) });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    let saga = process.until("tea", |saga| step(saga, "reserve").state() == StepState::Compensating).await;
    let waits = step(&saga, "reserve").next_attempt_time.expect("it waits");
    assert!(waits.seconds - saga.create_time.unwrap().seconds >= 3 * 3600, "{saga:#?}");
}

#[tokio::test]
async fn where_no_barrier_is_an_action_is_made_again_at_once_all_the_same() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let hour = Duration::from_secs(3600);
    saga.attempt_timeout(hour).retry(Retry { initial: hour, most: hour, ..Retry::default() }).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(once("reserve", Op::Action, Fault::LoseRequest));
    let process = world.open().await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| !step(saga, "reserve").last_error.is_empty()).await;
    process.coordinator.retry("tea", "ann", "now!").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

/// Its undoing waits for no call that leaves so late. The turn comes while the saga is being stored, when nobody looks after its calls.
#[tokio::test]
async fn where_no_barrier_is_an_action_whose_turn_comes_too_late_does_not_leave() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_millis(200)).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.saga_id == "rum" { Fault::Hang } else { Fault::None });
    let options = Options { most_calls: 1, ..Options::default() };
    let process = world.open_with(vec![Arc::clone(&world.definition)], options).await;
    tokio::time::pause();
    let running = stop_the_clock();
    soon(process.place("rum")).await.unwrap();
    becomes(|| !world.participants.calls().is_empty()).await;
    cancelled_for_a_second(&process, running, || {}).await;
    let calls = world.participants.calls().into_iter().filter(|call| call.call.saga_id == "tea");
    assert_eq!(calls.map(|call| call.call.op).collect::<Vec<_>>(), [Op::Compensation]);
}

/// Begins a saga and cancels it, which takes a second to be stored. Something happens meanwhile. The clock stands still before that.
async fn cancelled_for_a_second(process: &Process, running: mpsc::Sender<()>, meanwhile: impl FnOnce()) {
    // What is ready to run has run.
    let settle = || async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    soon(process.place("tea")).await.unwrap();
    soon(process.until("tea", |saga| step(saga, "reserve").state() == StepState::Started)).await;
    let (begun, begins) = mpsc::channel();
    let (open, opened) = mpsc::channel::<()>();
    let decide = Box::new(move |_: &Loaded<'_>| {
        begun.send(()).unwrap();
        let _ = opened.recv();
        Decided::default()
    });
    let long = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 1 };
    let journal = process.journal.clone();
    tokio::spawn(async move { journal.submit(long).await });
    becomes(|| begins.try_recv().is_ok()).await;
    settle().await;
    let coordinator = process.coordinator.clone();
    let cancelled = tokio::spawn(async move { coordinator.cancel("tea", "ann", "changed my mind").await });
    settle().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    settle().await;
    meanwhile();
    settle().await;
    drop(open);
    tokio::time::resume();
    drop(running);
    cancelled.await.unwrap().unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Compensated);
}

/// Calls wait until there is a connection.
struct Connecting {
    participants: Participants,
    connected: watch::Receiver<bool>,
}

impl Transport for Connecting {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let (participants, mut connected) = (self.participants.clone(), self.connected.clone());
        Box::pin(async move {
            connected.wait_for(|connected| *connected).await.unwrap();
            participants.call(attempt).await
        })
    }
}

#[tokio::test]
async fn where_no_barrier_is_an_action_that_waits_for_a_connection_ends_on_time_while_its_saga_is_stored() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_millis(200)).without_barrier();
    let world = World::with(saga.build().unwrap());
    let journal = Journal::open(&world.folder.path().join("order.db"), TABLES).await.unwrap();
    let (connect, connected) = watch::channel(false);
    let transport = Connecting { participants: world.participants.clone(), connected };
    let process = Process::on(journal, vec![Arc::clone(&world.definition)], transport, Options::default());
    tokio::time::pause();
    let running = stop_the_clock();
    let connects = || {
        connect.send_replace(true);
    };
    cancelled_for_a_second(&process, running, connects).await;
    let calls = world.participants.calls();
    assert_eq!(calls.iter().map(|call| call.call.op).collect::<Vec<_>>(), [Op::Compensation]);
}

#[tokio::test]
async fn where_no_barrier_is_an_action_waits_for_its_turn_no_longer_than_for_its_answer() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    // It keeps its place for as long as this takes.
    saga.attempt_timeout(Duration::from_secs(3600));
    let charge = |order: &String, _: libs::saga::Replies<'_>| Ok(order.clone());
    saga.compensatable::<Charge>("charge", charge, |undo| undo.request);
    saga.after(&[]).attempt_timeout(Duration::from_millis(20)).without_barrier();
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::Hang);
    let options = Options { most_calls: 1, ..Options::default() };
    let process = world.open_with(vec![Arc::clone(&world.definition)], options).await;
    process.place("tea").await.unwrap();
    let saga = process.until("tea", |saga| !step(saga, "charge").last_error.is_empty()).await;
    assert!(step(&saga, "charge").last_error.contains("too many calls"), "{saga:#?}");
    let called: Vec<_> = world.participants.calls().iter().map(|call| call.call.step.clone()).collect();
    assert_eq!(called, ["reserve"]);
}

#[tokio::test]
async fn attempts_that_are_spent_turn_the_saga_back_and_undo_the_step_itself() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.retry(Retry { attempts: Some(3), ..quick() });
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.op == Op::Action { Fault::LoseReply } else { Fault::None });
    // A lost reply of something that took effect: the replays are lost too.
    let saga = world.open().await.run("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    assert_eq!((saga.reason.unwrap().reason.as_str(), saga.steps[0].attempts), ("ATTEMPTS_SPENT", 3));
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
}

#[tokio::test]
async fn a_deadline_turns_back_what_has_not_reached_its_pivot() {
    for of_step in [true, false] {
        let mut saga = Definition::builder::<String>("place-order", 1);
        saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
        if of_step {
            saga.step_deadline(Duration::from_millis(20));
        } else {
            saga.deadline(Duration::from_millis(20));
        }
        saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
        let world = World::with(saga.build().unwrap());
        world.participants.on_call(|call| if call.op == Op::Action { Fault::Hang } else { Fault::None });
        let saga = world.open().await.run("tea").await;
        let reason = if of_step { "STEP_DEADLINE_PASSED" } else { "DEADLINE_PASSED" };
        assert_eq!((saga.phase(), saga.reason.unwrap().reason.as_str()), (SagaPhase::Compensated, reason));
    }
}

#[tokio::test]
async fn a_deadline_travels_with_what_it_bounds_and_with_nothing_else() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.deadline(Duration::from_secs(60));
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable::<Reserve>("bill", |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    assert_eq!(world.open().await.run("tea").await.phase(), SagaPhase::Completed);
    let deadlines: Vec<_> = world.participants.calls().iter().map(|call| call.call.deadline_micros > 0).collect();
    assert_eq!(deadlines, [true, false]);
}

#[tokio::test]
async fn work_of_our_own_that_is_refused_leaves_the_saga_stuck_and_can_be_tried_again() {
    let refuse = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&refuse);
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable_local("complete", move |order, _| {
        let refused = flag.load(std::sync::atomic::Ordering::SeqCst);
        Ok(local(if refused { "refuse" } else { "Completed" }, order))
    });
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    process.place("tea").await.unwrap();
    let stuck = process.until_phase("tea", SagaPhase::Stuck).await;
    assert_eq!(stuck.reason.unwrap().reason, "CLOSED");
    assert_eq!(step(&process.coordinator.pause("tea", "a", "b").await.unwrap(), "ship").state(), StepState::Done);
    process.coordinator.resume("tea", "a", "b").await.unwrap();
    refuse.store(false, std::sync::atomic::Ordering::SeqCst);
    process.coordinator.retry("tea", "ann", "mended").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    assert_eq!(process.order("tea").await, "Completed");
}

#[tokio::test]
async fn branches_run_side_by_side_and_join() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.check::<Ship>("look", |order, _| Ok(order.clone()));
    let left = saga.compensatable::<Reserve>("left", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.compensatable::<Charge>("right", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.after(&["look"]);
    saga.pivot::<Ship>("join", move |_, replies| replies.get(left));
    saga.after(&["left", "right"]);
    let world = World::with(saga.build().unwrap());
    let saga = world.open().await.run("tea").await;
    assert_eq!(saga.phase(), SagaPhase::Completed);
    // Both branches begin in one transition: look, branches, one branch done, join begun, join done.
    assert_eq!(saga.version, 5);
    let calls = world.participants.calls();
    let order: Vec<_> = calls.iter().map(|call| call.call.step.as_str()).collect();
    assert_eq!((order[0], order[3]), ("look", "join"));
}

/// The value of a metric whose attributes have all these values; of a histogram its count, or with "sum" its sum.
fn exported(exporter: &InMemoryMetricExporter, name: &str, values: &[&str]) -> Option<f64> {
    let metrics = exporter.get_finished_metrics().unwrap();
    let last =
        metrics.last()?.scope_metrics().flat_map(|scope| scope.metrics()).find(|metric| metric.name() == name)?;
    let fits =
        |attributes: Vec<String>| values.iter().all(|value| *value == "sum" || attributes.iter().any(|a| a == value));
    let texts = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>| -> Vec<String> {
        attributes.map(|pair| pair.value.to_string()).collect()
    };
    match last.data() {
        AggregatedMetrics::I64(MetricData::Gauge(gauge)) => {
            let mut points = gauge.data_points().filter(|point| fits(texts(&mut point.attributes())));
            points.next().map(|point| point.value() as f64)
        }
        AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
            gauge.data_points().next().map(|point| point.value() as f64)
        }
        AggregatedMetrics::U64(MetricData::Sum(sum)) => {
            let mut points = sum.data_points().filter(|point| fits(texts(&mut point.attributes())));
            points.next().map(|point| point.value() as f64)
        }
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
            let sum = values.contains(&"sum");
            let mut points = histogram.data_points().filter(|point| fits(texts(&mut point.attributes())));
            points.next().map(|point| if sum { point.sum() } else { point.count() as f64 })
        }
        _ => None,
    }
}

#[tokio::test]
async fn what_pages_somebody_at_night_is_a_metric() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| if order == "bug" { panic!("boom") } else { Ok(order.clone()) });
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    process.coordinator.observe(&provider.meter("test"));
    let (mut lost, mut held_back) = (Some(()), Some(()));
    world.participants.on_call(move |call| match (&*call.saga_id, &*call.step, call.op) {
        ("stuck", "charge", _) => Fault::Conflict,
        ("tea", "charge", _) if held_back.take().is_some() => Fault::Status(circuit_to("payment")),
        ("tea", "charge", _) if lost.take().is_some() => Fault::LoseReply,
        ("astray", "charge", _) => Fault::Elsewhere,
        ("milk", "ship", _) => Fault::Reject(no()),
        _ => Fault::None,
    });
    let (tea, milk) = (process.run("tea").await, process.run("milk").await);
    process.place("stuck").await.unwrap();
    process.until_phase("stuck", SagaPhase::Stuck).await;
    // Its task counts it a moment after the log tells of it.
    let shown = |name: &str, values: &[&str]| {
        provider.force_flush().unwrap();
        exported(&exporter, name, values)
    };
    let becomes = async |name: &str, values: &[&str], wanted: f64| {
        let waits = async {
            while shown(name, values) != Some(wanted) {
                tokio::task::yield_now().await;
            }
        };
        let became = tokio::time::timeout(PATIENCE, waits).await;
        assert!(became.is_ok(), "{name} {values:?} is {:?}", shown(name, values));
    };
    becomes("saga.driven", &["stuck"], 1.0).await;
    assert_eq!(shown("saga.driven", &["forward"]), Some(0.0));
    assert_eq!(shown("saga.parked", &[]), Some(0.0));
    process.place("bug").await.unwrap();
    becomes("saga.parked", &[], 1.0).await;
    assert_eq!(shown("saga.ended", &["place-order", "completed"]), Some(1.0));
    assert_eq!(shown("saga.retries", &["charge", "action"]), Some(1.0));
    assert_eq!(shown("saga.call.duration", &["charge", "action", "UNAVAILABLE"]), Some(1.0), "one was held back");
    assert_eq!(shown("saga.call.duration", &["ship", "action", "FAILED_PRECONDITION"]), Some(1.0));
    process.coordinator.force_close("bug", "ann", "nobody wants it any more").await.unwrap();
    becomes("saga.parked", &[], 0.0).await;
    assert_eq!(shown("saga.ended", &["place-order", "force_closed"]), Some(1.0));
    for (step, operation, steps) in [
        ("charge", "action", [&tea.steps[0].action_duration, &milk.steps[0].action_duration].as_slice()),
        ("charge", "compensation", &[&milk.steps[0].compensation_duration]),
        ("ship", "action", &[&tea.steps[1].action_duration]),
    ] {
        assert_eq!(shown("saga.step.duration", &[step, operation]), Some(steps.len() as f64), "{step} {operation}");
        let seconds = steps.iter().map(|took| Duration::try_from(took.unwrap()).unwrap().as_secs_f64());
        let told = shown("saga.step.duration", &[step, operation, "sum"]).unwrap();
        assert!((told - seconds.sum::<f64>()).abs() < 1e-6, "{step} {operation}: {told}");
    }
    // An OK that isn't its participant's is none.
    process.place("astray").await.unwrap();
    becomes("saga.call.duration", &["charge", "action", "UNKNOWN"], 1.0).await;
}

/// What a circuit to a participant says that lets nothing through.
fn circuit_to(participant: &str) -> Status {
    let retry_after = Duration::from_millis(1);
    CircuitOpen { breaker: participant.into(), reason: Reason::Open, retry_after, cause: None, generation: 1 }
        .into_status()
}
