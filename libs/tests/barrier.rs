//! The barrier of a command side: what a saga's call comes to that is new, known, late, or malformed.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libs::{
    cqrs::{CommandSide, Decision, Method, State},
    journal::Journal,
    refusal::{Refusal, Violations},
    rpc::{
        principal::Principal,
        verdict::{Op, SagaCall, Verdict},
    },
};
use prost::Message;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::{Status, metadata::MetadataMap};

const METHODS: [Method; 2] = [
    Method { name: "test.v1.Test/Reserve", compensates: false },
    Method { name: "test.v1.Test/Release", compensates: true },
];

fn micros_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_micros()).unwrap() + seconds * 1_000_000
}

fn call(saga_id: &str, op: Op, deadline_micros: i64) -> SagaCall {
    let (saga_id, saga_type, step) = (saga_id.to_owned(), "test".to_owned(), "reserve".to_owned());
    SagaCall { saga_id, saga_type, step, op, attempt: 1, round: 1, deadline_micros, expires_micros: 0, request: None }
}

async fn side(folder: &TempDir) -> CommandSide {
    CommandSide::new("test", Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap())
}

/// Has a call decided, and answers its verdict; of an error also the reason.
async fn ask(side: &CommandSide, call: SagaCall) -> Result<Verdict, (Verdict, String)> {
    checked(side, call, Violations::default()).await
}

/// As [`ask`], of a request with which so much is wrong.
async fn checked(side: &CommandSide, call: SagaCall, wrong: Violations) -> Result<Verdict, (Verdict, String)> {
    submitted(side, call, wrong, None, || Ok(())).await
}

/// As [`checked`], of a request that is refused for this before it is decided, or where it is.
async fn submitted(
    side: &CommandSide,
    call: SagaCall,
    wrong: Violations,
    beside: Option<Refusal>,
    decide: impl FnOnce() -> Result<(), Refusal> + Send + 'static,
) -> Result<Verdict, (Verdict, String)> {
    let mut metadata = MetadataMap::new();
    call.write_to(&mut metadata);
    let method = &METHODS[usize::from(call.op == Op::Compensation)];
    let told = |status: Status| {
        (Verdict::from_metadata(status.metadata()).unwrap(), Refusal::from_status(&status).reason.into_owned())
    };
    let mut accepted = side.accept(method, &metadata, &"tea".to_owned(), "", wrong).await.map_err(told)?;
    if let Some(refusal) = beside {
        accepted.refuse(refusal);
    }
    let decide = |_: &State<'_>| decide().map(|()| Decision::reply("done".to_owned()));
    let answered = side.submit(accepted, Vec::new(), decide).await;
    answered.map(|reply| Verdict::from_metadata(reply.metadata()).unwrap()).map_err(told)
}

#[tokio::test]
async fn an_action_that_comes_after_its_sagas_deadline_never_begins() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let late = (Verdict::Rejected, "SAGA_DEADLINE_PASSED".to_owned());
    assert_eq!(ask(&side, call("late", Op::Action, micros_from_now(-1))).await, Err(late.clone()));
    // What was refused stays so, even for a clock that goes back.
    assert_eq!(ask(&side, call("late", Op::Action, micros_from_now(60))).await, Err(late));
    assert_eq!(ask(&side, call("late", Op::Compensation, micros_from_now(-1))).await, Ok(Verdict::Applied));
}

#[tokio::test]
async fn what_was_done_in_time_is_answered_and_undone_at_any_time() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    assert_eq!(ask(&side, call("soon", Op::Action, micros_from_now(60))).await, Ok(Verdict::Applied));
    assert_eq!(ask(&side, call("soon", Op::Action, micros_from_now(-1))).await, Ok(Verdict::Replayed));
    assert_eq!(ask(&side, call("soon", Op::Compensation, micros_from_now(-1))).await, Ok(Verdict::Applied));
    // Without a deadline nothing is late.
    assert_eq!(ask(&side, call("ever", Op::Action, 0)).await, Ok(Verdict::Applied));
}

#[tokio::test]
async fn an_action_that_comes_after_its_compensation_is_cancelled() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    assert_eq!(ask(&side, call("gone", Op::Compensation, 0)).await, Ok(Verdict::Applied));
    let cancelled = (Verdict::Cancelled, "ACTION_CANCELLED".to_owned());
    assert_eq!(ask(&side, call("gone", Op::Action, 0)).await, Err(cancelled));
    assert_eq!(ask(&side, call("gone", Op::Compensation, 0)).await, Ok(Verdict::Replayed));
}

/// What is wrong with a request since the service has another version.
fn wrong() -> Violations {
    let mut violations = Violations::default();
    violations.add("sku", "must not be tea any more");
    violations
}

#[tokio::test]
async fn what_is_wrong_by_now_is_answered_as_when_it_was_right_and_undone_all_the_same() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    assert_eq!(ask(&side, call("old", Op::Action, 0)).await, Ok(Verdict::Applied));
    assert_eq!(checked(&side, call("old", Op::Action, 0), wrong()).await, Ok(Verdict::Replayed));
    // Nothing came before it, and nothing will.
    assert_eq!(checked(&side, call("new", Op::Compensation, 0), wrong()).await, Ok(Verdict::Applied));
    let cancelled = (Verdict::Cancelled, "ACTION_CANCELLED".to_owned());
    assert_eq!(ask(&side, call("new", Op::Action, 0)).await, Err(cancelled));
    let refused = (Verdict::Rejected, "INVALID_REQUEST".to_owned());
    assert_eq!(checked(&side, call("never", Op::Action, 0), wrong()).await, Err(refused.clone()));
    assert_eq!(ask(&side, call("never", Op::Action, 0)).await, Err(refused), "it was kept");
}

#[tokio::test]
async fn what_a_client_asks_again_is_answered_as_when_it_was_right_and_else_refused_and_not_kept() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap();
    let side = CommandSide::new("test", journal.clone());
    let ask = async |sku: &str, id: &str, wrong| {
        let told = |status: Status| Refusal::from_status(&status).reason.into_owned();
        let accepted = side.accept(&METHODS[0], &MetadataMap::new(), &sku.to_owned(), id, wrong).await.map_err(told)?;
        let answered = side.submit(accepted, Vec::new(), |_| Ok(Decision::reply("done".to_owned()))).await;
        answered.map(tonic::Response::into_inner).map_err(told)
    };
    let (done, invalid) = (Ok("done".to_owned()), Err("INVALID_REQUEST".to_owned()));
    assert_eq!(ask("tea", "old", Violations::default()).await, done);
    assert_eq!(ask("tea", "old", wrong()).await, done);
    assert_eq!(ask("coffee", "old", wrong()).await, Err("REQUEST_ID_REUSED".to_owned()));
    let commits = journal.stats().commits;
    for id in ["new", "", "not visible", &"x".repeat(129)] {
        assert_eq!(ask("tea", id, wrong()).await, invalid, "{id}");
    }
    assert_eq!(journal.stats().commits, commits, "nothing was kept");
    assert_eq!(ask("coffee", "new", Violations::default()).await, done, "mended");
}

#[tokio::test]
async fn of_two_who_ask_under_one_id_each_has_an_answer_of_its_own_where_it_is_known_who_asks() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let ask = async |sku: &str, id: &str, who: Option<&str>| {
        let asked = async {
            let wrong = Violations::default();
            let accepted = side.accept(&METHODS[0], &MetadataMap::new(), &sku.to_owned(), id, wrong).await?;
            let answer = format!("for {}", who.unwrap_or("anybody"));
            side.submit(accepted, Vec::new(), move |_| Ok(Decision::reply(answer))).await
        };
        let answered = match who.and_then(Principal::new) {
            Some(principal) => principal.scope(asked).await,
            None => asked.await,
        };
        let told = |status: Status| Refusal::from_status(&status).reason.into_owned();
        answered.map(tonic::Response::into_inner).map_err(told)
    };
    for who in [Some("ada"), Some("bob"), None] {
        let answer = Ok(format!("for {}", who.unwrap_or("anybody")));
        assert_eq!(ask("tea", "1", who).await, answer);
        assert_eq!(ask("tea", "1", who).await, answer, "again");
        assert_eq!(ask("coffee", "1", who).await, Err("REQUEST_ID_REUSED".to_owned()));
    }
    // Nor does anybody come to another one's answer by an id.
    for id in ["ada/1", "@ada/1", "@bob/1"] {
        assert_eq!(ask("tea", id, None).await, Ok("for anybody".to_owned()), "{id}");
    }
}

/// A request, as the version of today knows it.
#[derive(Clone, PartialEq, Message)]
struct Today {
    #[prost(string, tag = "1")]
    sku: String,
}

/// The same with a field more.
#[derive(Clone, PartialEq, Message)]
struct Tomorrow {
    #[prost(string, tag = "1")]
    sku: String,
    #[prost(string, tag = "9")]
    note: String,
}

/// Has a call decided by the version that knows its request as a `Q`. It says what its request's hash is, or it is of before that was said.
async fn arrives<Q: Message + Default>(side: &CommandSide, id: &str, sent: &Tomorrow, says: bool) -> Option<Verdict> {
    let mut metadata = MetadataMap::new();
    call(id, Op::Action, 0).write_to(&mut metadata);
    let bytes = sent.encode_to_vec();
    if says {
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        metadata.insert("saga-request", hash.parse().unwrap());
    }
    let request = Q::decode(&*bytes).unwrap();
    let accepted = side.accept(&METHODS[0], &metadata, &request, "", Violations::default()).await.unwrap();
    let answered = side.submit(accepted, Vec::new(), |_| Ok(Decision::reply("done".to_owned()))).await;
    Verdict::from_metadata(match &answered {
        Ok(reply) => reply.metadata(),
        Err(status) => status.metadata(),
    })
}

#[tokio::test]
async fn a_call_that_is_repeated_to_a_version_that_knows_more_of_its_request_or_less_is_the_same_call() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let sent = Tomorrow { sku: "tea".to_owned(), note: "green".to_owned() };
    assert_eq!(arrives::<Today>(&side, "sooner", &sent, true).await, Some(Verdict::Applied));
    assert_eq!(arrives::<Tomorrow>(&side, "sooner", &sent, true).await, Some(Verdict::Replayed));
    assert_eq!(arrives::<Tomorrow>(&side, "later", &sent, true).await, Some(Verdict::Applied));
    assert_eq!(arrives::<Today>(&side, "later", &sent, true).await, Some(Verdict::Replayed));
    let other = Tomorrow { note: "black".to_owned(), ..sent };
    for id in ["sooner", "later"] {
        assert_eq!(arrives::<Tomorrow>(&side, id, &other, true).await, Some(Verdict::Conflict), "{id}");
    }
}

#[tokio::test]
async fn a_call_is_the_same_whether_it_says_what_its_requests_hash_is_or_is_of_before() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let sent = Tomorrow { sku: "tea".to_owned(), note: "green".to_owned() };
    let other = Tomorrow { note: "black".to_owned(), ..sent.clone() };
    for says in [false, true] {
        let id = format!("says-{says}");
        assert_eq!(arrives::<Tomorrow>(&side, &id, &sent, says).await, Some(Verdict::Applied), "{id}");
        assert_eq!(arrives::<Tomorrow>(&side, &id, &sent, !says).await, Some(Verdict::Replayed), "{id}");
        for says in [false, true] {
            assert_eq!(arrives::<Tomorrow>(&side, &id, &other, says).await, Some(Verdict::Conflict), "{id}");
        }
    }
}

#[tokio::test]
async fn what_names_no_aggregates_any_more_is_answered_as_before_and_refused_for_good() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let beside = |id| {
        let too_many = Refusal::invalid("lock_keys", "must be at most 16");
        submitted(&side, call(id, Op::Action, 0), Violations::default(), Some(too_many), || Ok(()))
    };
    assert_eq!(ask(&side, call("old", Op::Action, 0)).await, Ok(Verdict::Applied));
    assert_eq!(beside("old").await, Ok(Verdict::Replayed));
    let refused = (Verdict::Rejected, "INVALID_REQUEST".to_owned());
    assert_eq!(beside("new").await, Err(refused.clone()));
    assert_eq!(ask(&side, call("new", Op::Action, 0)).await, Err(refused), "it was kept");
}

#[tokio::test]
async fn what_waits_for_something_else_is_pending_until_it_is_decided_or_cancelled() {
    let folder = TempDir::new().unwrap();
    let side = side(&folder).await;
    let pending = |id| {
        let waits = || Err(Refusal::pending("NOT_APPROVED", "nobody has approved it yet", Duration::from_secs(5)));
        submitted(&side, call(id, Op::Action, 0), Violations::default(), None, waits)
    };
    let not_yet = Err((Verdict::Pending, "NOT_APPROVED".to_owned()));
    for _ in 0..2 {
        assert_eq!(pending("approved").await, not_yet);
        assert_eq!(pending("withdrawn").await, not_yet);
    }
    assert_eq!(ask(&side, call("approved", Op::Action, 0)).await, Ok(Verdict::Applied));
    assert_eq!(pending("approved").await, Ok(Verdict::Replayed));
    assert_eq!(ask(&side, call("withdrawn", Op::Compensation, 0)).await, Ok(Verdict::Applied));
    let cancelled = (Verdict::Cancelled, "ACTION_CANCELLED".to_owned());
    assert_eq!(pending("withdrawn").await, Err(cancelled), "it did nothing and never will");
}
