//! Sagas that have ended a while ago are forgotten by their participants, others are not, and nothing that comes late begins again.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    cqrs::{Barrier, CommandSide, Decision, Method, State},
    journal::{Cause, Entry, Journal, Loaded, sql::Value},
    refusal::{Refusal, Violations},
    rpc::verdict::SagaCall,
    saga::{Attempt, Coordinator, Definition, Handle, LocalWork, Options, Retry, TABLES, Transport},
};
use parking_lot::Mutex;
use prost::Message as _;
use proto::saga::v1::{ForgetStepsRequest, Saga, SagaPhase, barrier_service_server::BarrierService as _};
use saga_world::{Charge, PATIENCE, Process, Reserve, Ship, place_order};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Request, Status, metadata::MetadataMap};

const KEEP: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;
const PEERS: [&str; 3] = ["inventory", "payment", "shipping"];

type Answered = Result<(Bytes, MetadataMap), Status>;
type Fault = Box<dyn Fn(&SagaCall) -> Option<Answer> + Send>;

/// How a call is answered that does not go its way.
enum Answer {
    /// With this, and the participant hears nothing.
    Lost(Status),
    /// The participant refuses it.
    Refused(Refusal),
    /// Never.
    Not,
}

/// Participants with a journal and a barrier each, as services have them.
#[derive(Clone)]
struct Services(Arc<Inner>);

struct Inner {
    sides: HashMap<&'static str, (Journal, CommandSide)>,
    /// What was decided just now, as `op step of saga`.
    effects: Mutex<Vec<String>>,
    /// The operations that were called, as they were sent.
    sent: Mutex<Vec<(&'static str, &'static str, Bytes, MetadataMap)>>,
    /// Who was told to forget, and how many steps.
    told: Mutex<Vec<(&'static str, usize)>>,
    /// Who is out.
    out: Mutex<Vec<&'static str>>,
    /// Whose answer to being told is lost.
    mute: Mutex<Vec<&'static str>>,
    /// How many such answers are not waited for any more.
    given_up: AtomicUsize,
    fault: Mutex<Fault>,
}

impl Services {
    async fn open(folder: &TempDir) -> Self {
        let mut sides = HashMap::new();
        for peer in PEERS {
            let journal = Journal::open(database::location(folder.path(), peer), &[]).await.unwrap();
            sides.insert(peer, (journal.clone(), CommandSide::new(peer, journal)));
        }
        let fault: Mutex<Fault> = Mutex::new(Box::new(|_| None));
        let (effects, sent, told, out, mute, given_up) = Default::default();
        Self(Arc::new(Inner { sides, effects, sent, told, out, mute, given_up, fault }))
    }

    fn on_call(&self, fault: impl Fn(&SagaCall) -> Option<Answer> + Send + 'static) {
        *self.0.fault.lock() = Box::new(fault);
    }

    async fn operate(&self, peer: &str, path: &'static str, message: Bytes, metadata: MetadataMap) -> Answered {
        let (_, side) = &self.0.sides[peer];
        let call = SagaCall::from_metadata(&metadata).unwrap().unwrap();
        let fault = (self.0.fault.lock())(&call);
        let refusal = match fault {
            None => None,
            Some(Answer::Refused(refusal)) => Some(refusal),
            Some(Answer::Lost(status)) => return Err(status),
            Some(Answer::Not) => return not_answered().await,
        };
        let compensates = path.ends_with("Release") || path.ends_with("Refund");
        let method = Method { name: path.trim_start_matches('/'), compensates };
        let request = String::decode(message).unwrap();
        let accepted = side.accept(&method, &metadata, &request, "", Violations::default()).await?;
        let services = self.clone();
        let decide = move |_: &State<'_>| match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let SagaCall { saga_id, step, op, .. } = call;
                services.0.effects.lock().push(format!("{} {step} of {saga_id}", op.as_str()));
                Ok(Decision::reply("done".to_owned()))
            }
        };
        let (metadata, reply, _) = side.submit(accepted, Vec::new(), decide).await?.into_parts();
        Ok((reply.encode_to_vec().into(), metadata))
    }

    async fn forget(&self, peer: &'static str, message: Bytes) -> Answered {
        if self.0.out.lock().contains(&peer) {
            return Err(Status::unavailable("nobody is there"));
        }
        let request = ForgetStepsRequest::decode(message).unwrap();
        let steps = request.steps.len();
        let barrier = Barrier::new(peer, self.0.sides[peer].0.clone());
        barrier.forget_steps(Request::new(request)).await?;
        self.0.told.lock().push((peer, steps));
        if self.0.mute.lock().contains(&peer) {
            let _waiting = Waiting(&self.0.given_up);
            return not_answered().await;
        }
        Ok((Bytes::new(), MetadataMap::new()))
    }

    /// Delivers the first call of an operation once more, as it was sent.
    async fn late(&self, path: &str) -> Answered {
        self.late_by(path, 0).await
    }

    /// The same, so much later: to a participant whose clock is as much ahead a call's times are as much ago.
    async fn late_by(&self, path: &str, micros: i64) -> Answered {
        let first = self.0.sent.lock().iter().find(|sent| sent.1.ends_with(path)).cloned();
        let (peer, path, message, mut metadata) = first.unwrap();
        let mut call = SagaCall::from_metadata(&metadata).unwrap().unwrap();
        call.deadline_micros -= micros;
        call.expires_micros -= micros;
        call.write_to(&mut metadata);
        self.operate(peer, path, message, metadata).await
    }

    /// The operations that participants remember of a saga, sorted.
    async fn known(&self, saga_id: &str) -> Vec<String> {
        let mut known = Vec::new();
        for peer in PEERS {
            const SQL: &str = "SELECT key FROM requests WHERE key > $1 AND key < $2 ORDER BY key";
            let bounds = vec![Value::from(format!("saga/{saga_id}/")), format!("saga/{saga_id}0").into()];
            let records = self.0.sides[peer].0.reader().fetch(SQL, bounds).await.unwrap();
            let begin = format!("saga/{saga_id}/");
            known.extend(records.iter().map(|record| record.text(0).unwrap().replace(&begin, "")));
        }
        known.sort();
        known
    }

    fn told(&self) -> Vec<(&'static str, usize)> {
        let mut told = std::mem::take(&mut *self.0.told.lock());
        told.sort_unstable();
        told
    }

    fn effects(&self) -> Vec<String> {
        self.0.effects.lock().clone()
    }
}

/// Somebody who waits for an answer.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn not_answered() -> Answered {
    std::future::pending().await
}

impl Transport for Services {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Answered> {
        let Attempt { peer, path, request, metadata, .. } = attempt;
        let services = self.clone();
        Box::pin(async move {
            if path == "/saga.v1.BarrierService/ForgetSteps" {
                return services.forget(peer, request).await;
            }
            services.0.sent.lock().push((peer, path, request.clone(), metadata.clone()));
            services.operate(peer, path, request, metadata).await
        })
    }
}

/// The system's clock, and how far a coordinator's is ahead of it.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicI64>);

impl Clock {
    fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(now.as_micros()).unwrap() + self.0.load(Ordering::SeqCst)
    }

    fn later(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

struct World {
    folder: TempDir,
    services: Services,
    clock: Clock,
    definition: Arc<Definition>,
    keep: Duration,
}

impl World {
    async fn new(definition: Arc<Definition>) -> Self {
        let folder = TempDir::new().unwrap();
        let services = Services::open(&folder).await;
        Self { folder, services, clock: Clock::default(), definition, keep: KEEP }
    }

    /// A process of the order service.
    async fn open(&self) -> Process {
        let journal = Journal::open(database::location(self.folder.path(), "order"), TABLES).await.unwrap();
        let (definitions, clock) = ([Arc::clone(&self.definition)], self.clock.clone());
        let options = Options { keep_answers: self.keep, ..Options::default() };
        let clock: libs::saga::Clock = Arc::new(move || clock.now());
        let coordinator =
            Coordinator::with_clock(journal.clone(), definitions, self.services.clone(), options, clock).unwrap();
        coordinator.recover().await.unwrap();
        Process { journal, coordinator }
    }
}

/// Places an order, by the journal's clock.
async fn place(process: &Process, order: &str) {
    let (coordinator, id) = (process.coordinator.clone(), order.to_owned());
    let decide = move |loaded: &Loaded<'_>| coordinator.start("place-order", &id, &id, loaded).unwrap();
    let (request, aggregates, cause) = (None, Vec::new(), Cause::default());
    let entry = Entry { request, aggregates, cause, decide: Box::new(decide), size: 100 };
    process.journal.submit(entry).await.unwrap();
}

async fn run(process: &Process, order: &str) -> SagaPhase {
    place(process, order).await;
    process.finished(order).await.phase()
}

fn no() -> Refusal {
    Refusal::precondition("NO", "no")
}

#[tokio::test]
async fn an_ended_saga_is_forgotten_after_the_time_and_not_before() {
    let world = World::new(place_order()).await;
    let services = &world.services;
    let process = world.open().await;
    assert_eq!(run(&process, "done").await, SagaPhase::Completed);
    services.on_call(|call| (call.step == "charge").then(|| Answer::Refused(no())));
    assert_eq!(run(&process, "undone").await, SagaPhase::Compensated);
    let all = ["charge/action", "reserve/action", "ship/action"];
    let undone = ["charge/action", "reserve/action", "reserve/compensation"];

    world.clock.later(7 * DAY - HOUR);
    assert_eq!(process.coordinator.forget_ended().await, 0);
    assert_eq!(
        (services.known("done").await, services.known("undone").await),
        (all.map(str::to_owned).to_vec(), undone.map(str::to_owned).to_vec())
    );
    assert!(services.late("Reserve").await.is_ok(), "a repetition gets the stored answer");
    assert_eq!(services.effects().iter().filter(|effect| *effect == "action reserve of done").count(), 1);

    world.clock.later(2 * HOUR);
    assert_eq!(process.coordinator.forget_ended().await, 5);
    assert!(services.known("done").await.is_empty() && services.known("undone").await.is_empty());
    // Each heard of what it was called for: nobody shipped what was undone.
    assert_eq!(services.told(), [("inventory", 2), ("payment", 2), ("shipping", 1)]);
    assert_eq!(process.coordinator.forget_ended().await, 0, "and hears it once");
    assert!(services.told().is_empty());
}

/// A clock that was a year ahead for a while doesn't keep all that came after it for a year.
#[tokio::test]
async fn what_claims_to_be_later_than_now_is_as_old_as_what_comes_after_it() {
    if database::is_shared() {
        return;
    }
    let world = World::new(place_order()).await;
    let process = world.open().await;
    // More than is looked at in one go.
    for at in 0..400 {
        run(&process, &format!("ahead-{at}")).await;
    }
    let path = world.folder.path().join("order.db");
    let ahead = rusqlite::Connection::open(path).unwrap();
    ahead.execute("UPDATE events SET time = time + ?1", [365 * DAY]).unwrap();
    world.clock.later(8 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 0, "nothing says how old it is");
    world.clock.later(-8 * DAY);
    run(&process, "after").await;
    world.clock.later(6 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 0, "what came after it is not old yet");
    world.clock.later(2 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 401 * 3);
    assert!(world.services.known("ahead-7").await.is_empty() && world.services.known("after").await.is_empty());
}

/// Charge, ship, and then something that can't be refused.
fn with_a_last_step() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable::<Reserve>("restock", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

#[tokio::test]
async fn what_a_participant_has_refused_is_asked_for_anew_once_its_operator_has_mended_it() {
    for (refused, way_back, phase) in
        [("action restock", false, SagaPhase::Completed), ("compensation charge", true, SagaPhase::Compensated)]
    {
        let world = World::new(with_a_last_step()).await;
        let services = &world.services;
        let process = world.open().await;
        let refuse = move |call: &SagaCall| {
            let ship = way_back && call.step == "ship";
            (ship || format!("{} {}", call.op.as_str(), call.step) == refused).then(|| Answer::Refused(no()))
        };
        services.on_call(refuse);
        place(&process, "tea").await;
        process.until_phase("tea", SagaPhase::Stuck).await;
        // It was not: the participant has nothing to say but what it has said, each time that is another question.
        process.coordinator.retry("tea", "ada", "mended?").await.unwrap();
        let stuck = |saga: &Saga| saga.history.iter().filter(|line| line.what == "stuck").count();
        process.until("tea", |saga| stuck(saga) == 2).await;
        services.on_call(|_| None);
        process.coordinator.retry("tea", "ada", "mended").await.unwrap();
        assert_eq!(process.finished("tea").await.phase(), phase, "{refused}");
        let effect = format!("{refused} of tea");
        assert_eq!(services.effects().iter().filter(|done| **done == effect).count(), 1, "{:?}", services.effects());
        // A call that was on its way all that time changes nothing.
        let path = if way_back { "Refund" } else { "Reserve" };
        assert_eq!(services.late(path).await.unwrap_err().code(), Code::FailedPrecondition);
        world.clock.later(8 * DAY);
        process.coordinator.forget_ended().await;
        assert!(services.known("tea").await.is_empty(), "{:?}", services.known("tea").await);
    }
}

#[tokio::test]
async fn what_runs_or_is_stuck_is_remembered_however_long_it_takes() {
    let world = World::new(with_a_last_step()).await;
    let services = &world.services;
    let process = world.open().await;
    services.on_call(|call| (call.step == "restock").then(|| Answer::Refused(no())));
    place(&process, "stuck").await;
    process.until_phase("stuck", SagaPhase::Stuck).await;
    services.on_call(|call| (call.step == "ship").then_some(Answer::Not));
    place(&process, "running").await;
    process.until("running", |saga| saga.steps[1].attempts > 0).await;

    world.clock.later(90 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 0);
    assert_eq!(services.known("stuck").await, ["charge/action", "restock/action", "ship/action"]);
    assert_eq!(services.known("running").await, ["charge/action"]);

    // An operator closes it. The end is new, by the journal's clock: it is older than is kept already.
    process.coordinator.force_close("stuck", "ada", "settled by hand").await.unwrap();
    // Three steps, and what was refused might have been asked for anew.
    assert_eq!(process.coordinator.forget_ended().await, 4);
    assert!(services.known("stuck").await.is_empty());
    assert_eq!(services.known("running").await, ["charge/action"]);
}

#[tokio::test]
async fn an_action_that_comes_after_the_sweep_is_refused_and_has_no_effect() {
    let mut world = World::new(place_order()).await;
    world.keep = Duration::from_secs(1);
    let services = &world.services;
    let process = world.open().await;
    assert_eq!(run(&process, "tea").await, SagaPhase::Completed);
    let effects = services.effects();
    let all_are_told = async {
        let mut told = 0;
        while told < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            told += process.coordinator.forget_ended().await;
        }
    };
    timeout(PATIENCE, all_are_told).await.unwrap();
    for path in ["Reserve", "Charge", "Ship"] {
        let late = services.late(path).await.unwrap_err();
        assert_eq!(Refusal::from_status(&late).reason, "SAGA_CALL_EXPIRED", "{path}");
    }
    assert_eq!(services.effects(), effects);
    assert!(services.known("tea").await.is_empty(), "nor is anything remembered of it");
}

#[tokio::test]
async fn an_action_that_comes_after_its_deadline_and_the_sweep_is_refused_and_not_kept() {
    let world = World::new({
        let mut saga = Definition::builder::<String>("place-order", 1);
        saga.deadline(Duration::from_secs(60));
        saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
        saga.build().unwrap()
    })
    .await;
    let services = &world.services;
    let process = world.open().await;
    assert_eq!(run(&process, "tea").await, SagaPhase::Completed);
    let effects = services.effects();
    world.clock.later(8 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 1);
    let refused = services.late_by("Ship", 8 * DAY).await.unwrap_err();
    assert_eq!(Refusal::from_status(&refused).reason, "SAGA_CALL_EXPIRED");
    assert_eq!(services.effects(), effects);
    assert!(services.known("tea").await.is_empty(), "nobody would ever have it forgotten");
}

#[tokio::test]
async fn a_participant_that_is_out_is_told_later_and_holds_up_nobody() {
    let world = World::new(place_order()).await;
    let services = &world.services;
    let process = world.open().await;
    run(&process, "tea").await;
    world.clock.later(8 * DAY);
    services.0.out.lock().push("payment");
    assert_eq!(process.coordinator.forget_ended().await, 2);
    assert_eq!(services.told(), [("inventory", 1), ("shipping", 1)]);
    assert_eq!(services.known("tea").await, ["charge/action"]);
    assert_eq!(process.coordinator.forget_ended().await, 0);

    // The next process knows who was not told.
    process.crash().await;
    let process = world.open().await;
    services.0.out.lock().clear();
    assert_eq!(process.coordinator.forget_ended().await, 1);
    assert_eq!(services.told(), [("payment", 1)]);
    assert!(services.known("tea").await.is_empty());
}

#[tokio::test]
async fn a_participant_that_is_slow_holds_up_nobody_else_however_often_they_are_told() {
    let mut world = World::new(place_order()).await;
    world.keep = Duration::from_secs(1);
    let services = &world.services;
    let process = world.open().await;
    services.0.mute.lock().push("payment");
    let sweeping = tokio::spawn(process.coordinator.clone().sweep());
    for order in ["tea", "coffee"] {
        run(&process, order).await;
        let others_forget = async {
            while services.known(order).await != ["charge/action"] && !services.known(order).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, others_forget).await.expect("the others are told");
    }
    assert_eq!(services.0.given_up.load(Ordering::SeqCst), 0, "until that one has had its time to answer");
    sweeping.abort();
}

/// As `docs/operations.md` says under "Putting one back".
#[tokio::test]
async fn a_participant_that_is_put_back_is_told_again_once_its_place_is_gone() {
    if database::is_shared() {
        return;
    }
    let world = World::new(place_order()).await;
    let write = |service: &str, sql: &str| {
        let path = world.folder.path().join(format!("{service}.db"));
        rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
    };
    let process = world.open().await;
    run(&process, "tea").await;
    world.clock.later(8 * DAY);
    write("payment", "CREATE TABLE backup AS SELECT * FROM requests");
    assert_eq!(process.coordinator.forget_ended().await, 3);
    write("payment", "INSERT INTO requests SELECT * FROM backup");
    assert_eq!(process.coordinator.forget_ended().await, 0);
    assert_eq!(world.services.known("tea").await, ["charge/action"]);

    process.crash().await;
    write("order", "DELETE FROM aggregates WHERE kind = 'saga_told' AND id = 'payment'");
    let process = world.open().await;
    assert_eq!(process.coordinator.forget_ended().await, 1);
    assert!(world.services.known("tea").await.is_empty());
}

#[tokio::test]
async fn who_is_killed_between_telling_and_remembering_tells_again() {
    let world = World::new(place_order()).await;
    let services = &world.services;
    let process = world.open().await;
    run(&process, "tea").await;
    world.clock.later(8 * DAY);
    services.0.mute.lock().extend(PEERS);
    let coordinator = process.coordinator.clone();
    let telling = tokio::spawn(async move { coordinator.forget_ended().await });
    let all_are_told = async {
        while services.0.told.lock().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_are_told).await.unwrap();
    telling.abort();
    process.crash().await;
    assert!(services.known("tea").await.is_empty());

    let all = [("inventory", 1), ("payment", 1), ("shipping", 1)];
    assert_eq!(services.told(), all);
    services.0.mute.lock().clear();
    let process = world.open().await;
    assert_eq!(run(&process, "coffee").await, SagaPhase::Completed);
    let effects = services.effects();
    assert_eq!(process.coordinator.forget_ended().await, 6);
    assert_eq!(process.coordinator.forget_ended().await, 0);
    assert_eq!(services.effects(), effects);
}

#[tokio::test]
async fn a_saga_below_is_forgotten_by_its_own_id_once_both_have_ended() {
    let mut book = Definition::builder::<String>("book", 1);
    book.compensatable::<Reserve>("flight", |trip, _| Ok(trip.clone()), |undo| undo.request);
    let book = book.build().unwrap();
    let mut travel = Definition::builder::<String>("place-order", 1);
    let _: Handle<()> = travel.compensatable_saga("book", &book, |trip: &String, _| Ok(trip.clone()));
    travel.pivot::<Ship>("pay", |trip, _| Ok(trip.clone()));
    travel.retriable_local("complete", |_, _| Ok(LocalWork::nothing()));
    let world = World::new(travel.build().unwrap()).await;
    let services = &world.services;
    let process = world.open().await;
    services.on_call(|call| (call.step == "pay").then(|| Answer::Lost(Status::unavailable("out"))));
    place(&process, "rome").await;
    process.until("rome", |saga| saga.steps[1].attempts > 0).await;
    world.clock.later(8 * DAY);
    assert_eq!(process.coordinator.forget_ended().await, 0, "it may have to be undone");
    assert_eq!(services.known("rome:book").await, ["flight/action"]);

    services.on_call(|_| None);
    if let Err(refusal) = process.coordinator.retry("rome", "ada", "paying works again").await {
        assert_eq!(refusal.reason, "SAGA_CLOSED", "it has called again by itself before");
    }
    assert_eq!(process.finished("rome").await.phase(), SagaPhase::Completed);
    process.until_phase("rome:book", SagaPhase::Completed).await;
    assert_eq!(process.coordinator.forget_ended().await, 2);
    assert!(services.known("rome:book").await.is_empty() && services.known("rome").await.is_empty());
}

#[tokio::test]
async fn a_call_that_waited_long_leaves_on_a_transition_of_today() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    let hours = Duration::from_secs(48 * 60 * 60);
    saga.retry(Retry { initial: Duration::from_millis(50), most: hours, ..Retry::default() });
    let world = World::new(saga.build().unwrap()).await;
    let services = &world.services;
    let process = world.open().await;
    services.on_call(|_| Some(Answer::Lost(Status::unavailable("out"))));
    place(&process, "tea").await;
    process.until("tea", |saga| saga.steps[0].attempts > 0).await;
    world.clock.later(2 * DAY);
    services.on_call(|_| None);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    let sent = services.0.sent.lock().last().cloned().unwrap();
    let call = SagaCall::from_metadata(&sent.3).unwrap().unwrap();
    let left = call.expires_micros - world.clock.now();
    assert!((DAY / 2..=DAY).contains(&left), "it counts for {left} µs from now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_that_tell_at_once_tell_no_less_and_nothing_again() {
    if !database::is_shared() {
        return;
    }
    let world = World::new(place_order()).await;
    let (one, two) = (world.open().await, world.open().await);
    for at in 0..10 {
        run(if at % 2 == 0 { &one } else { &two }, &format!("tea-{at}")).await;
    }
    world.clock.later(8 * DAY);
    let told = tokio::join!(one.coordinator.forget_ended(), two.coordinator.forget_ended());
    assert!((30..=60).contains(&(told.0 + told.1)), "{told:?}");
    for at in 0..10 {
        assert!(world.services.known(&format!("tea-{at}")).await.is_empty());
    }
    assert_eq!((one.coordinator.forget_ended().await, two.coordinator.forget_ended().await), (0, 0));
}

#[tokio::test]
async fn who_goes_on_after_its_sagas_were_forgotten_calls_nobody() {
    if !database::is_shared() {
        return;
    }
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    let hour = Duration::from_secs(3600);
    saga.retry(Retry { initial: hour, most: hour, ..Retry::default() });
    let world = World::new(saga.build().unwrap()).await;
    let services = &world.services;
    let (one, two) = (world.open().await, world.open().await);
    services.on_call(|_| Some(Answer::Lost(Status::unavailable("out"))));
    place(&one, "tea").await;
    one.until("tea", |saga| saga.steps[0].attempts > 0).await;
    // The other takes it over and ends it, a week goes by, and it is forgotten, all while the first one waits to call again.
    services.on_call(|_| None);
    two.coordinator.retry("tea", "ada", "shipping works again").await.unwrap();
    assert_eq!(two.finished("tea").await.phase(), SagaPhase::Completed);
    world.clock.later(8 * DAY);
    assert_eq!(two.coordinator.forget_ended().await, 1);
    let effects = services.effects();
    assert_eq!(one.coordinator.live(), 1);
    // No longer than that: what asks the server would give up waiting.
    tokio::time::pause();
    tokio::time::advance(hour).await;
    tokio::time::resume();
    let lets_go = async {
        while one.coordinator.live() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, lets_go).await.unwrap();
    assert_eq!(effects, ["action ship of tea"]);
    assert_eq!(services.effects(), effects);
    let calls = services.0.sent.lock().iter().filter(|sent| sent.1.ends_with("Ship")).count();
    assert_eq!(calls, 2, "the one that was lost, and the other process's");
}
