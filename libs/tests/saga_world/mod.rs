//! A saga over three participants, on a real journal in a folder of its own.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::{sync::Arc, time::Duration};

use libs::{
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, Outcome},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Compensated, Coordinator, Definition, LocalWork, Operation, Options, TABLES, Transport, fold,
        testing::{Call, Participants},
    },
};
use prost::Message as _;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition};
use tempfile::TempDir;

/// Far more than anything here takes: what never comes fails its own test.
pub const PATIENCE: Duration = Duration::from_secs(60);

macro_rules! operation {
    ($name:ident, $peer:literal) => {
        pub struct $name;
        impl Operation for $name {
            const PEER: &'static str = $peer;
            const PATH: &'static str = concat!("/test.v1.Test/", stringify!($name));
            type Request = String;
            type Reply = String;
        }
    };
}

operation!(Reserve, "inventory");
operation!(Release, "inventory");
operation!(Charge, "payment");
operation!(Refund, "payment");
operation!(Ship, "shipping");

impl Compensated for Reserve {
    type Compensation = Release;
}

impl Compensated for Charge {
    type Compensation = Refund;
}

/// One that an operator has to look at if its last step is refused.
pub fn pay() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("pay", 1);
    saga.pivot::<Charge>("capture", |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("account", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

/// Waits for its turn with the order's customer, pays by a saga of its own, completes the order.
pub fn buy() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.lock(|order: &String| vec![order.split('-').next().unwrap_or_default().to_owned()]);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot_saga::<String, ()>("pay", &pay(), |order, _| Ok(order.clone()));
    saga.retriable_local("complete", |order, _| Ok(local("Completed", order)));
    saga.on_compensated(|order, reason| Ok(local(&format!("Rejected {}", reason.reason), order)));
    saga.build().unwrap()
}

/// Reserve, charge, ship, complete; or back, and reject. The input is what is ordered.
pub fn place_order() -> Arc<Definition> {
    place_order_version(1)
}

pub fn place_order_version(version: u32) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", version);
    let reserve = saga.compensatable::<Reserve>(
        "reserve",
        |order, _| Ok(format!("reserve {order}")),
        |undo| format!("release {} knowing {:?} for {}", undo.request, undo.reply, undo.reason.reason),
    );
    saga.compensatable::<Charge>(
        "charge",
        move |_, replies| Ok(format!("charge {}", replies.get(reserve)?)),
        |undo| format!("refund {} knowing {:?}", undo.request, undo.reply),
    );
    saga.pivot::<Ship>("ship", |order, _| Ok(format!("ship {order}")));
    saga.retriable_local("complete", |order, _| Ok(local("Completed", order)));
    saga.on_compensated(|order, reason| Ok(local(&format!("Rejected {} {}", reason.step, reason.reason), order)));
    saga.build().unwrap()
}

/// Appends to the order's log, unless the order is closed.
pub fn local(what: &str, order: &str) -> LocalWork {
    let (what, id) = (what.to_owned(), AggregateId::new("order", order));
    LocalWork::new(vec![id.clone()], move |_| {
        if what.contains("refuse") {
            return Err(Refusal::precondition("CLOSED", "the order is closed"));
        }
        let beside = Decided { changes: vec![change(id, &what)], ..Decided::default() };
        Ok(libs::cqrs::Decision::reply(()).beside(beside))
    })
}

fn change(id: AggregateId, what: &str) -> Change {
    let events = vec![NewEvent { name: "Order", payload: what.to_owned().into() }];
    Change { aggregate: id, state: Some(what.to_owned().into()), version: 1, events }
}

pub struct World {
    pub folder: TempDir,
    pub participants: Participants,
    pub definition: Arc<Definition>,
}

impl World {
    pub fn new() -> Self {
        Self::with(place_order())
    }

    pub fn with(definition: Arc<Definition>) -> Self {
        let participants = Participants::new().answer::<Reserve>(|request| Ok(format!("price of {request}")));
        Self { folder: TempDir::new().unwrap(), participants, definition }
    }

    /// A process of the order service: opens the journal, takes up what is open.
    pub async fn open(&self) -> Process {
        self.open_with(vec![Arc::clone(&self.definition)], Options::default()).await
    }

    pub async fn open_with(&self, definitions: Vec<Arc<Definition>>, options: Options) -> Process {
        let journal = Journal::open(&self.folder.path().join("order.db"), TABLES).await.unwrap();
        Process::on(journal, definitions, self.participants.clone(), options)
    }

    /// Waits until calls have left as wanted.
    pub async fn called(&self, wanted: impl Fn(&[Call]) -> bool) {
        let calls = async {
            while !wanted(&self.participants.calls()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let called = tokio::time::timeout(PATIENCE, calls).await;
        assert!(called.is_ok(), "after {PATIENCE:?} they still aren't: {:?}", self.participants.calls());
    }
}

/// The time as tokio counts it, so that a paused clock is paused for sagas too.
pub fn tokio_clock() -> libs::saga::Clock {
    let start = tokio::time::Instant::now();
    Arc::new(move || 1_700_000_000_000_000 + i64::try_from(start.elapsed().as_micros()).unwrap())
}

pub struct Process {
    pub journal: Journal,
    pub coordinator: Coordinator,
}

impl Process {
    /// One that drives the sagas of a journal, and calls by this transport.
    pub fn on(
        journal: Journal,
        definitions: Vec<Arc<Definition>>,
        transport: impl Transport,
        options: Options,
    ) -> Self {
        let coordinator =
            Coordinator::with_clock(journal.clone(), definitions, transport, options, tokio_clock()).unwrap();
        Self { journal, coordinator }
    }

    /// Places an order as a command surface would: the decision starts the saga.
    pub async fn place(&self, order: &str) -> Result<(), Refusal> {
        self.try_place(order, order).await
    }

    pub async fn try_place(&self, saga_id: &str, order: &str) -> Result<(), Refusal> {
        self.try_place_at(saga_id, order, 0).await
    }

    /// The same, to begin then.
    pub async fn try_place_at(&self, saga_id: &str, order: &str, start_micros: i64) -> Result<(), Refusal> {
        let coordinator = self.coordinator.clone();
        let (saga_id, input) = (saga_id.to_owned(), order.to_owned());
        let refused = Arc::new(parking_lot::Mutex::new(None));
        let slot = Arc::clone(&refused);
        let decide = move |loaded: &Loaded<'_>| match coordinator.start_at(
            "place-order",
            &saga_id,
            &input,
            &Loaded::new(&[], None, loaded.now_micros().min(1_700_000_000_000_000)),
            start_micros,
        ) {
            Ok(decided) => decided,
            Err(refusal) => {
                *slot.lock() = Some(refusal);
                Decided { rejected: true, ..Decided::default() }
            }
        };
        let entry =
            Entry { request: None, aggregates: vec![], cause: Cause::default(), decide: Box::new(decide), size: 100 };
        let committed = self.journal.submit(entry).await.unwrap();
        match refused.lock().take() {
            Some(refusal) => Err(refusal),
            None => {
                assert_eq!(committed.outcome, Outcome::Done);
                Ok(())
            }
        }
    }

    /// Places an order and waits for its end.
    pub async fn run(&self, order: &str) -> Saga {
        self.place(order).await.unwrap();
        self.finished(order).await
    }

    /// Waits for a saga's end.
    pub async fn finished(&self, saga_id: &str) -> Saga {
        let ended = tokio::time::timeout(PATIENCE, self.coordinator.finished(saga_id)).await;
        ended.unwrap_or_else(|_| panic!("{saga_id} has not ended after {PATIENCE:?}")).unwrap()
    }

    /// Says of a step that it was done by hand, or not, as soon as no call of it is under way.
    pub async fn settle(&self, saga_id: &str, step: &str, op: Op, done: bool) -> Result<Saga, Refusal> {
        let settle = async {
            loop {
                match self.coordinator.skip(saga_id, step, op, done, "ann", "by hand").await {
                    Err(refusal) if refusal.reason == "STEP_UNDER_WAY" => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    answer => return answer,
                }
            }
        };
        tokio::time::timeout(PATIENCE, settle).await.expect("its call never ends")
    }

    /// As `kill -9` leaves it: the journal's last commit stays, all else is gone.
    pub async fn crash(self) {
        self.journal.close();
        self.journal.ended().await.unwrap();
    }

    /// What the order service itself knows of an order.
    pub async fn order(&self, order: &str) -> String {
        let stored = self.journal.aggregate(&AggregateId::new("order", order)).await.unwrap();
        String::from_utf8(stored.state.into()).unwrap()
    }

    /// Waits until a saga is as wanted, and answers it.
    pub async fn until(&self, saga_id: &str, wanted: impl Fn(&Saga) -> bool) -> Saga {
        let mut saga = Saga::default();
        let found = tokio::time::timeout(PATIENCE, self.follow(saga_id, &mut saga, wanted)).await;
        assert!(found.is_ok(), "after {PATIENCE:?} it still isn't as wanted: {saga:?}");
        saga
    }

    /// Folds a saga as it goes on, until it is as wanted.
    async fn follow(&self, saga_id: &str, saga: &mut Saga, wanted: impl Fn(&Saga) -> bool) {
        let mut head = self.journal.head();
        let mut position = 0;
        loop {
            head.borrow_and_update();
            for event in libs::journal::events_after(self.journal.reader(), position, 10_000).await.unwrap() {
                position = event.position;
                if event.kind == "saga" && event.id == saga_id {
                    fold(saga, SagaTransition::decode(event.payload).unwrap());
                    if wanted(saga) {
                        return;
                    }
                }
            }
            head.changed().await.unwrap();
        }
    }

    pub async fn until_phase(&self, saga_id: &str, phase: SagaPhase) -> Saga {
        self.until(saga_id, |saga| saga.phase() == phase).await
    }
}

/// Lets a process share its sagas with the others on its database.
pub fn shares(process: &Process) {
    tokio::spawn(process.coordinator.clone().share());
}

/// Waits until something holds.
pub async fn becomes(what: &str, holds: impl AsyncFn() -> bool) {
    let waits = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waits).await.is_ok(), "after {PATIENCE:?} it is still not {what}");
}
