//! Nine things that breakers get wrong, tried on ours and on those of other crates: `./just bench breaker_torture`.
#![expect(clippy::print_stdout, reason = "it prints a scoreboard")]

mod subjects;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{FutureExt as _, future::join_all, poll};
use subjects::{Answer, CRATES, Call, Crate, PATIENCE, REST, Subject};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// What one scenario showed: whether it is right, and a word.
type Score = (Option<bool>, String);

fn ready(result: Result<(), ()>) -> Call {
    Box::pin(std::future::ready(result))
}

fn hang() -> Call {
    Box::pin(std::future::pending())
}

async fn trip(subject: &Subject) {
    for _ in 0..50 {
        if subject(ready(Err(()))).await == Answer::Refused {
            return;
        }
    }
}

async fn rested(subject: &Subject) {
    trip(subject).await;
    sleep(REST * 2).await;
}

/// T1: failures needed to trip after 10,000 successes, in a window of 100 at 50 %.
async fn exact_window(of: &Crate) -> Score {
    let Some(window) = of.window else { return (None, "has none".into()) };
    let subject = window();
    for _ in 0..10_000 {
        subject(ready(Ok(()))).await;
    }
    for failures in 0..20_000 {
        if subject(ready(Err(()))).await == Answer::Refused {
            // Some notice a trip at the call that comes after it.
            return (Some((50..=51).contains(&failures)), format!("{failures}"));
        }
    }
    (Some(false), "never".into())
}

/// T2: of 64 callers at once, how many probe.
async fn bounded_probes(of: &Crate) -> Score {
    let subject = (of.quick)();
    rested(&subject).await;
    let started = Arc::new(AtomicUsize::new(0));
    let callers = (0..64).map(|_| {
        let started = Arc::clone(&started);
        let probe = async move {
            started.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        };
        subject(Box::pin(probe))
    });
    drop(timeout(REST / 3, join_all(callers)).await);
    let started = started.load(Ordering::SeqCst);
    (Some(started == 1), format!("{started}"))
}

/// T3: a success that left before the trip, coming back while the probe is out.
async fn stale_probe(of: &Crate) -> Score {
    let subject = (of.quick)();
    let (answer, early) = late_success(&subject).await;
    rested(&subject).await;
    let mut probe = subject(hang());
    let _ = poll!(&mut probe);
    let _ = answer.send(());
    early.await;
    let admitted = subject(ready(Ok(()))).await != Answer::Refused;
    (Some(!admitted), if admitted { "closes".into() } else { "ignored".into() })
}

/// T4: a success that left before the trip, coming back to an open circuit.
async fn stale_open(of: &Crate) -> Score {
    let subject = (of.quick)();
    let (answer, early) = late_success(&subject).await;
    trip(&subject).await;
    let _ = answer.send(());
    early.await;
    let admitted = subject(ready(Ok(()))).await != Answer::Refused;
    (Some(!admitted), if admitted { "closes".into() } else { "ignored".into() })
}

async fn late_success(subject: &Subject) -> (oneshot::Sender<()>, subjects::Reply) {
    let (answer, waits) = oneshot::channel();
    let mut early = subject(Box::pin(async move { waits.await.map_err(drop) }));
    let _ = poll!(&mut early);
    (answer, early)
}

/// T5: 50 calls that hang until their callers give up.
async fn hangs(of: &Crate) -> Score {
    let subject = (of.quick)();
    let callers = (0..50).map(|_| timeout(PATIENCE * 2, subject(hang())));
    drop(join_all(callers).await);
    let trips = subject(ready(Ok(()))).await == Answer::Refused;
    (Some(trips), if trips { "trips".into() } else { "never".into() })
}

/// T6: 50 callers that leave at once.
async fn cancellations(of: &Crate) -> Score {
    let subject = (of.quick)();
    for _ in 0..50 {
        let mut call = subject(hang());
        let _ = poll!(&mut call);
    }
    let trips = subject(ready(Ok(()))).await == Answer::Refused;
    (Some(!trips), if trips { "trips".into() } else { "stays".into() })
}

/// T7: a probe that is dropped.
async fn dropped_probe(of: &Crate) -> Score {
    let subject = (of.quick)();
    rested(&subject).await;
    {
        let mut probe = subject(hang());
        let _ = poll!(&mut probe);
    }
    let back = subject(ready(Ok(()))).await != Answer::Refused;
    (Some(back), if back { "place back".into() } else { "place lost".into() })
}

/// T8: a probe that hangs for ever.
async fn hung_probe(of: &Crate) -> Score {
    let subject = (of.quick)();
    rested(&subject).await;
    let mut probe = subject(hang());
    let _ = poll!(&mut probe);
    for _ in 0..10 {
        sleep(REST).await;
        if subject(ready(Ok(()))).await != Answer::Refused {
            return (Some(true), "goes on".into());
        }
    }
    (Some(false), "wedged".into())
}

/// T9: a probe that panics.
async fn panicking_probe(of: &Crate) -> Score {
    let subject = (of.quick)();
    rested(&subject).await;
    let panics = subject(Box::pin(async { std::panic::resume_unwind(Box::new(())) }));
    drop(AssertUnwindSafe(panics).catch_unwind().await);
    for _ in 0..10 {
        sleep(REST).await;
        if subject(ready(Ok(()))).await != Answer::Refused {
            return (Some(true), "goes on".into());
        }
    }
    (Some(false), "wedged".into())
}

#[tokio::main]
async fn main() {
    let mut table: Vec<(&str, Vec<Score>)> = [
        "T1 window of 100: failures to trip",
        "T2 probes of 64 callers",
        "T3 stale success, half-open",
        "T4 stale success, open",
        "T5 hung calls given up",
        "T6 callers leave early",
        "T7 dropped probe",
        "T8 hung probe",
        "T9 panicking probe",
    ]
    .map(|name| (name, Vec::new()))
    .into();
    for of in &CRATES {
        let scores = [
            exact_window(of).await,
            bounded_probes(of).await,
            stale_probe(of).await,
            stale_open(of).await,
            hangs(of).await,
            cancellations(of).await,
            dropped_probe(of).await,
            hung_probe(of).await,
            panicking_probe(of).await,
        ];
        for ((_, row), score) in table.iter_mut().zip(scores) {
            row.push(score);
        }
    }
    let names: Vec<&str> = CRATES.iter().map(|of| of.name).collect();
    println!("| | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for (name, row) in &table {
        let cells: Vec<String> = row
            .iter()
            .map(|(right, word)| match right {
                Some(true) => format!("{word} ✓"),
                Some(false) => format!("**{word} ✗**"),
                None => word.clone(),
            })
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
    let passed = (0..CRATES.len()).map(|at| {
        let asked: Vec<bool> = table.iter().filter_map(|(_, row)| row[at].0).collect();
        format!("{} of {}", asked.iter().filter(|right| **right).count(), asked.len())
    });
    println!("| right | {} |", passed.collect::<Vec<_>>().join(" | "));
    assert!(table.iter().all(|(_, row)| row[0].0 == Some(true)), "ours fails one");
}
