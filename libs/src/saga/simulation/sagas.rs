//! The sagas that are simulated.

use std::{sync::Arc, time::Duration};

use super::orders::note;
use crate::saga::{Compensated, Definition, Operation, Retry};

macro_rules! operations {
    ($($name:ident at $peer:literal)*) => { $(
        struct $name;
        impl Operation for $name {
            const PEER: &'static str = $peer;
            const PATH: &'static str = concat!("/simulated.v1.Service/", stringify!($name));
            type Request = String;
            type Reply = String;
        }
    )* };
}

operations!(
    Reserve at "inventory" Release at "inventory" Notify at "inventory"
    Charge at "payment" Refund at "payment" Screen at "payment"
    Ship at "shipping"
);

impl Compensated for Reserve {
    type Compensation = Release;
}

impl Compensated for Charge {
    type Compensation = Refund;
}

/// Those that customers start. Each calls every participant.
pub(super) fn definitions() -> [Arc<Definition>; 3] {
    [linear(), diamond(), nested()]
}

/// What an order says to lock.
fn keys(order: &str) -> Vec<String> {
    order.split(' ').filter_map(|word| word.strip_prefix("lock=")).map(str::to_owned).collect()
}

/// A request that says when it was made: one that is made anew is another.
fn now(order: &str) -> String {
    format!("{order} at={}", turmoil::sim_elapsed().unwrap_or_default().as_millis())
}

/// One after the other: two that can be undone, the pivot, work of our own.
fn linear() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("linear", 1);
    saga.lock(|order| keys(order));
    let reserve = saga.compensatable::<Reserve>("reserve", |order, _| Ok(now(order)), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(2));
    saga.compensatable::<Charge>(
        "charge",
        move |order, replies| Ok(now(&format!("{order} after {}", replies.get(reserve)?))),
        |undo| undo.request,
    );
    saga.attempt_timeout(Duration::from_secs(2)).retry(Retry { attempts: Some(6), ..Retry::default() });
    saga.pivot::<Ship>("ship", |order, _| Ok(now(order)));
    saga.attempt_timeout(Duration::from_secs(2));
    saga.retriable_local("complete", |order, _| Ok(note("Completed", order)));
    saga.on_compensated(|order, _| Ok(note("Rejected", order)));
    saga.deadline(Duration::from_secs(40));
    saga.build().expect("a legal shape")
}

/// A check, two side by side that can be undone, the pivot after both, one that must follow. It doesn't wait for its locks.
fn diamond() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("diamond", 1);
    saga.lock_or_refuse(|order| keys(order));
    saga.check::<Screen>("screen", |order, _| Ok(now(order)));
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(now(order)), |undo| undo.request);
    saga.step_deadline(Duration::from_secs(15));
    saga.compensatable::<Charge>("charge", |order, _| Ok(now(order)), |undo| undo.request);
    saga.after(&["screen"]).attempt_timeout(Duration::from_secs(2));
    saga.pivot::<Ship>("ship", |order, _| Ok(now(order)));
    saga.after(&["reserve", "charge"]);
    saga.retriable::<Notify>("notify", |order, _| Ok(now(order)));
    saga.retriable_local("complete", |order, _| Ok(note("Completed", order)));
    saga.on_compensated(|order, _| Ok(note("Rejected", order)));
    saga.build().expect("a legal shape")
}

/// Sagas as steps: one that can be undone as a whole, and after the pivot one with a pivot of its own.
fn nested() -> Arc<Definition> {
    let mut pack = Definition::builder::<String>("pack", 1);
    pack.compensatable::<Reserve>("reserve", |order, _| Ok(now(order)), |undo| undo.request);
    pack.attempt_timeout(Duration::from_secs(2));
    let charged = pack.compensatable::<Charge>("charge", |order, _| Ok(now(order)), |undo| undo.request);
    pack.attempt_timeout(Duration::from_secs(2)).retry(Retry { attempts: Some(6), ..Retry::default() });
    pack.answer(move |_, replies| replies.get(charged));
    let pack = pack.build().expect("a legal shape");

    let mut tell = Definition::builder::<String>("tell", 1);
    tell.pivot::<Notify>("notify", |order, _| Ok(now(order)));
    let tell = tell.build().expect("a legal shape");

    let mut saga = Definition::builder::<String>("nested", 1);
    saga.lock(|order| keys(order));
    saga.check::<Screen>("screen", |order, _| Ok(now(order)));
    let packed = saga.compensatable_saga("pack", &pack, |order: &String, _| Ok(order.clone()));
    saga.compensatable::<Charge>("fee", move |_, replies| replies.get(packed), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(2));
    saga.pivot::<Ship>("ship", |order, _| Ok(now(order)));
    saga.retriable_saga::<_, ()>("tell", &tell, |order: &String, _| Ok(order.clone()));
    saga.retriable_local("complete", |order, _| Ok(note("Completed", order)));
    saga.on_compensated(|order, _| Ok(note("Rejected", order)));
    saga.build().expect("a legal shape")
}
