//! Stored answers that are let go of: clients' by their age, sagas' when their coordinator says so. And what comes after that.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libs::{
    cqrs::{Answers, Barrier, CommandSide, Decision, Method, Walked},
    journal::{Forgotten, Journal},
    refusal::{Refusal, Violations},
    rpc::verdict::{Op, SagaCall, Verdict},
};
use proto::saga::v1::{EndedStep, ForgetStepsRequest, barrier_service_server::BarrierService as _};
use tempfile::TempDir;
use tonic::{Code, Request, Status, metadata::MetadataMap};

const HOUR: i64 = 3_600_000_000;
const RESERVE: Method = Method { name: "test.v1.Test/Reserve", compensates: false };
const RELEASE: Method = Method { name: "test.v1.Test/Release", compensates: true };

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// A service, and how often it has decided something.
struct World {
    journal: Journal,
    side: CommandSide,
    decided: Arc<AtomicUsize>,
    _folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap();
        let side = CommandSide::new("test", journal.clone());
        Self { journal, side, decided: Arc::default(), _folder: folder }
    }

    /// Has a command decided, or answered again, and says what was answered.
    async fn ask(
        &self,
        method: &Method,
        metadata: &MetadataMap,
        id: &str,
    ) -> Result<(String, Option<Verdict>), Status> {
        let accepted = self.side.accept(method, metadata, &"tea".to_owned(), id, Violations::default()).await?;
        let decided = Arc::clone(&self.decided);
        let decide = move |_: &libs::cqrs::State<'_>| {
            Ok(Decision::reply(format!("answer {}", decided.fetch_add(1, Ordering::SeqCst) + 1)))
        };
        let reply = self.side.submit(accepted, Vec::new(), decide).await?;
        let verdict = Verdict::from_metadata(reply.metadata());
        Ok((reply.into_inner(), verdict))
    }

    async fn client(&self, id: &str) -> String {
        self.ask(&RESERVE, &MetadataMap::new(), id).await.unwrap().0
    }

    async fn saga(&self, saga_id: &str, step: &str, op: Op) -> (String, Option<Verdict>) {
        self.saga_until(saga_id, step, op, 0).await.unwrap()
    }

    async fn saga_until(
        &self,
        saga_id: &str,
        step: &str,
        op: Op,
        expires_micros: i64,
    ) -> Result<(String, Option<Verdict>), Status> {
        let (saga_id, saga_type, step) = (saga_id.to_owned(), "test".to_owned(), step.to_owned());
        let call = SagaCall {
            saga_id,
            saga_type,
            step,
            op,
            attempt: 1,
            round: 1,
            deadline_micros: 0,
            expires_micros,
            request: None,
        };
        let mut metadata = MetadataMap::new();
        call.write_to(&mut metadata);
        self.ask(if op == Op::Action { &RESERVE } else { &RELEASE }, &metadata, "").await
    }

    fn answers(&self) -> Answers {
        Answers::new(self.journal.clone(), Duration::from_secs(3600))
    }

    async fn forget(&self, steps: &[(&str, &str)]) -> Result<(), Status> {
        let step = |(saga_id, step): &(&str, &str)| EndedStep { saga_id: (*saga_id).into(), step: (*step).into() };
        let request = ForgetStepsRequest { steps: steps.iter().map(step).collect() };
        Barrier::new("test", self.journal.clone()).forget_steps(Request::new(request)).await.map(drop)
    }
}

#[tokio::test]
async fn a_repetition_gets_the_stored_answer_until_that_is_as_old_as_answers_are_kept() {
    let world = World::new().await;
    assert_eq!(world.client("old").await, "answer 1");
    let between = now();
    assert_eq!(world.client("young").await, "answer 2");
    let walked = world.answers().forget_before(between).await.unwrap();
    assert_eq!(walked, Walked { forgotten: 1, clients: 1, sagas: 0 });
    assert_eq!(world.journal.stats().forgotten, 1);
    assert_eq!(world.client("young").await, "answer 2", "within the time");
    assert_eq!(world.client("old").await, "answer 3", "decided anew");
}

#[tokio::test]
async fn a_walk_goes_through_all_that_is_stored_and_leaves_what_sagas_may_ask_for() {
    let world = World::new().await;
    world.saga("s", "reserve", Op::Action).await;
    // More than it looks at a time, on both sides of the saga's.
    for at in 0..1_100 {
        let key = |method: &str| format!("{method}.v1.Test/Do/{at}");
        for method in ["alpha", "zeta"] {
            let request = libs::journal::RequestKey {
                key: key(method),
                hash: [1; 32],
                other_hash: None,
                role: libs::journal::Role::Action,
            };
            let decide = Box::new(|_: &libs::journal::Loaded<'_>| libs::journal::Decided::default());
            let (request, aggregates, cause) = (Some(request), Vec::new(), libs::journal::Cause::default());
            let entry = libs::journal::Entry { request, aggregates, cause, decide, size: 10 };
            let journal = world.journal.clone();
            tokio::spawn(async move { journal.submit(entry).await.unwrap() });
        }
    }
    let stored = async {
        while world.journal.stats().entries < 2_201 {
            tokio::task::yield_now().await;
        }
    };
    let stored = tokio::time::timeout(Duration::from_secs(60), stored).await;
    assert!(stored.is_ok(), "only {} of 2201 entries are stored after a minute", world.journal.stats().entries);
    let all = world.answers().forget_before(now() + HOUR).await.unwrap();
    assert_eq!(all, Walked { forgotten: 2_200, clients: 0, sagas: 1 });
    assert_eq!(world.journal.stats().forgotten, 2_200);
    let again = world.answers().forget_before(now() + HOUR).await.unwrap();
    assert_eq!(again, Walked { forgotten: 0, clients: 0, sagas: 1 });
    assert_eq!(world.saga("s", "reserve", Op::Action).await.1, Some(Verdict::Replayed));
}

#[tokio::test]
async fn who_is_slow_to_forget_takes_no_answer_away_that_was_given_since() {
    let world = World::new().await;
    world.client("id").await;
    let (keys, stored_before_micros) = (vec![format!("{}/id", RESERVE.name)], now());
    let slow = Forgotten { keys, stored_before_micros };
    world.journal.forget(slow.clone()).await.unwrap();
    assert_eq!(world.client("id").await, "answer 2");
    world.journal.forget(slow).await.unwrap();
    assert_eq!(world.client("id").await, "answer 2");
}

#[tokio::test]
async fn a_journal_that_is_closed_ends_the_walks() {
    let world = World::new().await;
    world.client("id").await;
    world.journal.close();
    world.journal.ended().await.unwrap();
    Answers::new(world.journal.clone(), Duration::from_micros(1)).run().await.unwrap();
}

#[tokio::test]
async fn the_steps_that_are_named_are_forgotten_and_no_others() {
    let world = World::new().await;
    let all = [("a", "b"), ("a/b", "action"), ("a/b", "c"), ("a", "bc"), ("A", "b")];
    for (saga_id, step) in all {
        world.saga(saga_id, step, Op::Action).await;
        world.saga(saga_id, step, Op::Compensation).await;
    }
    world.forget(&[("a", "b"), ("unknown", "b")]).await.unwrap();
    world.forget(&[("a", "b")]).await.unwrap();
    assert_eq!(world.journal.stats().forgotten, 2, "the action and its compensation");
    for (saga_id, step) in &all[1..] {
        assert_eq!(world.saga(saga_id, step, Op::Action).await.1, Some(Verdict::Replayed), "{saga_id} {step}");
        assert_eq!(world.saga(saga_id, step, Op::Compensation).await.1, Some(Verdict::Replayed), "{saga_id} {step}");
    }
    let many: Vec<String> = (0..1_000).map(|at| format!("many-{at}")).collect();
    for saga_id in &many[..300] {
        world.saga(saga_id, "reserve", Op::Action).await;
    }
    world.forget(&many.iter().map(|saga_id| (&**saga_id, "reserve")).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(world.journal.stats().forgotten, 302, "in more than one batch");
}

#[tokio::test]
async fn a_wish_to_forget_that_is_wrong_is_refused_whole() {
    let world = World::new().await;
    world.saga("s", "reserve", Op::Action).await;
    let long = "x".repeat(129);
    // That of "s", "a/b" would be that of "s/a", "b".
    let wrong = [("s", "reserve"), ("", "reserve"), ("s", &long), ("s s", "reserve"), ("s", "a/b")];
    let refused = world.forget(&wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let fields: Vec<String> = Refusal::from_status(&refused).violations.into_iter().map(|wrong| wrong.field).collect();
    assert_eq!(fields, ["steps[1].saga_id", "steps[2].step", "steps[3].saga_id", "steps[4].step"]);
    for steps in [0, 1_001] {
        let refused = world.forget(&vec![("s", "reserve"); steps]).await.unwrap_err();
        assert_eq!(Refusal::from_status(&refused).violations[0].field, "steps");
    }
    assert_eq!(world.saga("s", "reserve", Op::Action).await.1, Some(Verdict::Replayed));
}

#[tokio::test]
async fn a_call_that_is_too_old_begins_nothing_and_is_no_refusal() {
    let world = World::new().await;
    let old = world.saga_until("s", "reserve", Op::Action, now() - 1).await.unwrap_err();
    assert_eq!((old.code(), &*Refusal::from_status(&old).reason), (Code::Aborted, "SAGA_CALL_EXPIRED"));
    assert_eq!(Verdict::from_metadata(old.metadata()), None, "it proves nothing: the saga may go on");
    assert_eq!(world.decided.load(Ordering::SeqCst), 0);
    // Nor is it kept: whoever still drives the saga calls again.
    let again = world.saga_until("s", "reserve", Op::Action, now() + HOUR).await.unwrap();
    assert_eq!(again, ("answer 1".to_owned(), Some(Verdict::Applied)));
    // What is known is answered at any age.
    let known = world.saga_until("s", "reserve", Op::Action, now() - 1).await.unwrap();
    assert_eq!(known, ("answer 1".to_owned(), Some(Verdict::Replayed)));
}

#[tokio::test]
async fn a_compensation_of_what_is_forgotten_undoes_nothing_and_is_not_kept() {
    let world = World::new().await;
    world.saga("s", "reserve", Op::Action).await;
    world.forget(&[("s", "reserve")]).await.unwrap();
    let old = world.saga_until("s", "reserve", Op::Compensation, now() - 1).await.unwrap_err();
    assert_eq!((old.code(), &*Refusal::from_status(&old).reason), (Code::Aborted, "SAGA_CALL_EXPIRED"));
    assert_eq!(Verdict::from_metadata(old.metadata()), None, "it proves nothing: the saga may go on");
    let walked = world.answers().forget_before(now()).await.unwrap();
    assert_eq!(walked, Walked::default(), "nobody would ever have a tombstone forgotten");
    // Whoever still drives the saga calls again, and has what comes late stopped.
    world.saga_until("s", "reserve", Op::Compensation, now() + HOUR).await.unwrap();
    let late = world.saga_until("s", "reserve", Op::Action, now() + HOUR).await.unwrap_err();
    assert_eq!(Verdict::from_metadata(late.metadata()), Some(Verdict::Cancelled));
    assert_eq!(world.decided.load(Ordering::SeqCst), 1);
}
