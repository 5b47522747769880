//! What becomes of a batch whose commit goes wrong on the server, at the very moment: the link is cut, the backend is ended, the server
//! turns it down. Runs where `TEST_POSTGRES` names one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod link;
mod schema;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use libs::journal::{AggregateId, Entry, Journal, Location, Outcome, SubmitError};
use lines::Lines;
use link::Cut;
use schema::{PATIENCE, Schema, When, change, claim, note, noted};
use sqlx::{Connection as _, Executor as _};
use tokio::time::timeout;

/// The id was given to another transaction since, and that one is committed.
const GIVEN_AGAIN: &str = "SELECT 'committed'||left($1,0) ";
/// The transaction waits for the server's disk, or for a standby.
const IN_PROGRESS: &str = "SELECT 'in progress'||left($1,0)";
/// It is a standby that is asked.
const IN_RECOVERY: &str = "SELECT 'in recovery'||left($1,0)";
/// No transaction has the id yet.
const UNHEARD_OF: &str = "SELECT pg_xact_status('999999')";

/// A journal that reaches its schema by a link.
async fn linked(schema: &Schema) -> (Journal, Arc<Mutex<Cut>>) {
    let (location, cut) = link::to(schema).await;
    (Journal::open(location, &[]).await.unwrap(), cut)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_a_commit_without_an_answer_is_found_out() {
    let Some(schema) = Schema::new() else { return };
    let (journal, cut) = linked(&schema).await;
    let mut keys = Vec::new();
    for at in 0..40 {
        for way in [Cut::After, Cut::Before] {
            let key = format!("{way:?} {at}");
            *cut.lock().unwrap() = way;
            assert_eq!(
                journal.submit(note(&key)).await.unwrap().outcome,
                Outcome::Done,
                "it was committed, then or again"
            );
            assert_eq!(*cut.lock().unwrap(), Cut::Never, "the link was cut");
            assert_eq!(journal.submit(note(&key)).await.unwrap().outcome, Outcome::Replayed);
            keys.push(key);
        }
    }
    assert_eq!(noted(&journal).await, keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_without_a_word_holds_nobody_for_ever() {
    let Some(schema) = Schema::new() else { return };
    let falls_silent = async |from: &'static str| {
        let (journal, cut) = linked(&schema).await;
        journal.submit(note(&format!("before {from}"))).await.unwrap();
        *cut.lock().unwrap() = Cut::Silent(from);
        let answer = timeout(2 * PATIENCE, journal.submit(note(from))).await.expect("an answer");
        assert_eq!(*cut.lock().unwrap(), Cut::Never, "it fell silent");
        assert_eq!(answer.unwrap().outcome, Outcome::Done, "once more, by another link: {from}");
        assert_eq!(journal.submit(note(from)).await.unwrap().outcome, Outcome::Replayed);
    };
    tokio::join!(falls_silent("BEGIN"), falls_silent("UNION ALL"), falls_silent("INSERT INTO"), falls_silent("COMMIT"));
}

/// Has a commit lost of which the server says for so long that it is in progress, once it is asked, and answers what came of it.
async fn slow(schema: &Schema, time: Duration) -> Result<Outcome, SubmitError> {
    let (journal, cut) = linked(schema).await;
    *cut.lock().unwrap() = Cut::Lost(IN_PROGRESS);
    let submitted = tokio::spawn(async move { journal.submit(note("slow")).await });
    let asked = async {
        while !matches!(*cut.lock().unwrap(), Cut::Asked(_)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("it is asked");
    tokio::time::sleep(time).await;
    assert!(!submitted.is_finished());
    *cut.lock().unwrap() = Cut::Never;
    // The session has the other question prepared.
    let asks = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = $1 AND starts_with(query, $2)";
    let asks = sqlx::query(asks).bind(format!("trellis {}", schema.name)).bind(IN_PROGRESS);
    asks.execute(&mut schema.connect().await).await.unwrap();
    timeout(PATIENCE, submitted).await.expect("an answer").unwrap().map(|committed| committed.outcome)
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_commit_that_takes_long_is_asked_after_for_as_long_as_there_is_an_answer() {
    let (Some(schema), Some(other)) = (Schema::new(), Schema::new()) else { return };
    let (lines, _keeping) = Lines::keep();
    // For longer than a server may say nothing at all; and until what it was decided on may have come and gone and come again.
    let ended = tokio::join!(slow(&schema, Duration::from_secs(33)), slow(&other, Duration::from_secs(46)));
    assert_eq!(ended, (Ok(Outcome::Done), Err(SubmitError::Unavailable)), "lost, and made once more while it is young");
    assert_eq!(other.open().await.submit(note("slow")).await.unwrap().outcome, Outcome::Done, "nothing was written");
    // Of each, and not by each answer.
    let told = lines.that_say("is still in progress");
    assert!(told.len() == 2 && told[0] != told[1], "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_nobody_promotes_is_not_asked_for_ever() {
    let Some(schema) = Schema::new() else { return };
    let (journal, cut) = linked(&schema).await;
    journal.submit(note("before")).await.unwrap();
    *cut.lock().unwrap() = Cut::Lost(IN_RECOVERY);
    let answer = timeout(PATIENCE, journal.submit(note("stranded"))).await.expect("an answer");
    assert_eq!(answer, Err(SubmitError::Closed));
    let ended = journal.ended().await.expect_err("a restart reads what stands").to_string();
    assert!(ended.contains("a standby") && !ended.contains("never written"), "{ended}");
    // Another may be promoted that has not come so far, and who begins with that can't know.
    let sql = format!("SELECT time FROM {}.events WHERE position = 1", schema.name);
    let time =
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut schema.connect().await).await.unwrap();
    assert!(ended.contains(&format!("the log has event 1 of time {time} ")) && !ended.contains("is safe"), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_turn_for_too_long_leaves_nothing_waiting_at_the_server() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let mut other = schema.connect().await;
    let turn = format!("SELECT pg_advisory_lock(hashtextextended('trellis/{}/journal', 0))", schema.name);
    other.execute(sqlx::AssertSqlSafe(turn)).await.unwrap();
    let submitted = tokio::spawn(async move { journal.submit(note("patient")).await });
    tokio::time::sleep(Duration::from_secs(18)).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND (classid, objid) IN
        (SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid())";
    let one_waits = async {
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut other).await.unwrap() != 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), one_waits).await.expect("the one that waits now, and none that was given up");
    other.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.unwrap().outcome, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_in_a_turn_is_as_new_as_the_turn_whatever_the_server_is_set_to() {
    let Some(schema) = Schema::new() else { return };
    let url = format!("{}?options[default_transaction_isolation]=serializable", schema.url);
    let location = Location::Postgres { url, schema: schema.name.clone() };
    let journal = Journal::open(location, &[]).await.unwrap();
    let set = journal.reader().fetch("SELECT current_setting('transaction_isolation')", Vec::new()).await.unwrap();
    assert_eq!(set[0].text(0).unwrap(), "read committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_crashed_server_knows_nothing_of_or_takes_for_another_is_made_once_more() {
    let Some(schema) = Schema::new() else { return };
    for (key, instead) in [("given again", GIVEN_AGAIN), ("unheard of", UNHEARD_OF)] {
        // Whoever has asked on a connection asks the same there again.
        let (journal, cut) = linked(&schema).await;
        *cut.lock().unwrap() = Cut::Lost(instead);
        let asked = timeout(PATIENCE, journal.submit(note(key))).await.expect("it is found out");
        assert_eq!((asked.unwrap().outcome, *cut.lock().unwrap()), (Outcome::Done, Cut::Never), "{key}");
        assert_eq!(journal.submit(note(key)).await.unwrap().outcome, Outcome::Replayed, "{key}");
        assert_eq!(noted(&journal).await.last().map(String::as_str), Some(key));
        journal.close();
        journal.ended().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_ended_about_its_commit_loses_nothing_and_doubles_nothing() {
    let Some(schema) = Schema::new() else { return };
    let (journal, cut) = linked(&schema).await;
    let mut keys = Vec::new();
    // Before its answer or after it, as it happens: the server may end it no sooner than the commit is made. One that surely ends in it
    // ends itself there, in `a_batch_that_the_server_turns_down_for_a_moment_is_committed_once_more`.
    for at in 0..100 {
        let key = format!("note {at}");
        *cut.lock().unwrap() = Cut::Ended(Duration::from_millis(at % 3));
        let two = format!("with it {at}");
        let (one, other) = tokio::join!(journal.submit(note(&key)), journal.submit(note(&two)));
        assert_eq!((one.unwrap().outcome, other.unwrap().outcome), (Outcome::Done, Outcome::Done), "{key}");
        let was_ended = std::mem::replace(&mut *cut.lock().unwrap(), Cut::Never);
        assert_eq!(was_ended, Cut::HasEnded, "{key}: its commit went by, and there was such a backend");
        keys.extend([key, two]);
    }
    let mut noted = noted(&journal).await;
    noted.sort();
    keys.sort();
    assert_eq!(noted, keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_server_turns_down_for_a_moment_is_committed_once_more() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let mut keys = 0;
    for when in [When::Written, When::Committed] {
        for what in [
            "RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'",
            "RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'",
            "PERFORM pg_terminate_backend(pg_backend_pid())",
        ] {
            for times in [1, 2] {
                schema.trouble(when, times, what).await;
                // Those that wait while the first is tried are a batch, and fare alike.
                let submitted = (keys..keys + 30).map(|at| journal.submit(note(&format!("note {at}"))));
                for ended in futures::future::join_all(submitted).await {
                    assert_eq!(ended.map(|ended| ended.outcome), Ok(Outcome::Done), "{when:?} {what}");
                }
                keys += 30;
            }
        }
    }
    let mut noted = noted(&journal).await;
    assert_eq!(noted.len(), keys);
    noted.sort();
    noted.dedup();
    assert_eq!(noted.len(), keys, "some took effect twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_server_turns_down_for_good_is_not_written_and_the_next_one_is() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    // No decision writes a row of its own here: whatever the journal's tables are refused for, nobody who asks is to blame.
    for (when, times, what) in [
        (When::Written, 1, "RAISE EXCEPTION 'no' USING ERRCODE = '23514'"),
        (When::Committed, 1, "RAISE EXCEPTION 'no' USING ERRCODE = '23514'"),
        (When::Written, 1, "RAISE EXCEPTION 'no'"),
        (When::Written, 1, "RAISE EXCEPTION 'too long' USING ERRCODE = '22001'"),
        (When::Written, 1, "RAISE EXCEPTION 'no right' USING ERRCODE = '42501'"),
        (When::Written, 1, "RAISE EXCEPTION 'no room' USING ERRCODE = '53100'"),
        (When::Written, 3, "RAISE EXCEPTION 'again' USING ERRCODE = '40001'"),
        (When::Committed, 3, "PERFORM pg_terminate_backend(pg_backend_pid())"),
    ] {
        schema.trouble(when, times, what).await;
        let before = noted(&journal).await;
        let key = format!("note {}", before.len());
        assert_eq!(journal.submit(note(&key)).await, Err(SubmitError::Unavailable), "{what}");
        assert_eq!(noted(&journal).await, before, "{what}");
        assert_eq!(journal.submit(note(&key)).await.unwrap().outcome, Outcome::Done, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_not_committed_once_more_when_somebody_came_between() {
    let Some(schema) = Schema::new() else { return };
    let (one, two) = (schema.open().await, schema.open().await);
    // The first has the turn until the second waits for it, and loses it then.
    let lost = format!("{}; RAISE EXCEPTION 'in the way' USING ERRCODE = '40001'", schema.waits_for_another());
    schema.trouble(When::Changed, 1, &lost).await;
    let (one_ended, two_ended) = timeout(PATIENCE, async {
        let first = tokio::spawn({
            let one = one.clone();
            async move { one.submit(claim("one")).await }
        });
        while schema.written().await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let second = two.submit(claim("two")).await;
        (first.await.unwrap(), second)
    })
    .await
    .unwrap();
    assert_eq!(two_ended.unwrap().outcome, Outcome::Done);
    assert_eq!(one_ended, Err(SubmitError::Unavailable), "what it had decided on was gone");
    assert_eq!(one.submit(claim("one")).await.unwrap().outcome, Outcome::Rejected);
    assert_eq!(one.aggregate(&AggregateId::new("owner", "something")).await.unwrap().state, "two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_loses_a_deadlock_is_committed_once_more() {
    let Some(schema) = Schema::new() else { return };
    // The batch is the one to give way: it looks for a deadlock once, by when there must be one, and the other one never.
    let url = format!("{}?options[deadlock_timeout]=5s", schema.url);
    let journal = Journal::open(Location::Postgres { url, schema: schema.name.clone() }, &[]).await.unwrap();
    assert_eq!(journal.submit(note("first")).await.unwrap().outcome, Outcome::Done);
    let mut other = schema.connect().await;
    other.execute("SET deadlock_timeout = '1h'").await.unwrap();
    // What it does counts for nothing.
    other.execute("SET session_replication_role = replica").await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("UPDATE aggregates SET state = state WHERE id = 'first'").await.unwrap();

    schema.trouble(When::Begun, 0, "NULL").await;
    let batch = tokio::spawn({
        let journal = journal.clone();
        async move { journal.submit(Entry { request: note("second").request, ..change("first") }).await }
    });
    // The batch has the request's key (what a statement is named for, the server does first) and waits for the aggregate. Now the other one
    // wants the key.
    schema.until_the_journal_waits().await;
    let request = "INSERT INTO requests SELECT 'second', hash, outcome, reply, time FROM requests WHERE key = 'first'";
    transaction.execute(request).await.unwrap();
    transaction.rollback().await.unwrap();

    let ended = timeout(PATIENCE, batch).await.unwrap().unwrap().unwrap();
    assert_eq!(
        (ended.outcome, schema.written().await),
        (Outcome::Done, 2),
        "it was written twice, and the first time in vain"
    );
    assert_eq!(noted(&journal).await, ["first", "first"]);
}
