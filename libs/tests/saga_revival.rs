//! A parked saga that two ask about at once: one task goes on with it, from the newest record. On a file what is read of it is there at
//! once, so only on a server one can come between the other's reading and going on.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::FusedFuture as _, poll};
use libs::{
    journal::{Journal, events_after},
    saga::{Definition, Options, TABLES},
};
use proto::saga::v1::SagaPhase;
use saga_world::{PATIENCE, Process, Reserve, Ship, World};
use tokio::time::{sleep, timeout};

/// A saga that is parked at its second step while `broken` is true.
fn definition(broken: &Arc<AtomicBool>) -> Arc<Definition> {
    let broken = Arc::clone(broken);
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", move |order, _| {
        assert!(!broken.load(Ordering::SeqCst), "broken");
        Ok(order.clone())
    });
    saga.build().unwrap()
}

/// The saga's transitions, by version.
async fn versions(process: &Process) -> Vec<u64> {
    let events = events_after(process.journal.reader(), 0, 1_000).await.unwrap();
    events.iter().filter(|event| event.kind == "saga").map(|event| event.version).collect()
}

#[tokio::test]
async fn of_two_who_have_it_go_on_neither_undoes_what_the_other_has_done() {
    // The slow one stands still after so many of its steps, each of which is a reading or a writing, while the other one ends the saga.
    for steps in 0..10 {
        let broken = Arc::new(AtomicBool::new(true));
        let world = World::with(definition(&broken));
        let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
        let definitions = vec![Arc::clone(&world.definition)];
        let process = Process::on(journal, definitions, world.participants.clone(), Options::default());
        process.coordinator.recover().await.unwrap();
        process.place("tea").await.unwrap();
        let parked = timeout(PATIENCE, process.coordinator.finished("tea")).await.unwrap().unwrap_err();
        assert_eq!(parked.reason, "SAGA_PARKED");
        broken.store(false, Ordering::SeqCst);

        let slow = process.coordinator.retry("tea", "ann", "slow").fuse();
        let quick = async {
            // Refused where the slow one was not so slow.
            let _ = process.coordinator.retry("tea", "bob", "quick").await;
            process.finished("tea").await
        };
        let (mut slow, mut quick) = (pin!(slow), pin!(quick.fuse()));
        for _ in 0..steps {
            if !slow.is_terminated() {
                let _ = poll!(&mut slow);
            }
            sleep(Duration::from_millis(5)).await;
        }
        // The slow one may hold the saga's place: then it is waited for.
        let ended = match timeout(Duration::from_millis(100), &mut quick).await {
            Ok(saga) => saga,
            Err(_) => loop {
                futures::select! {
                    _ = slow => {}
                    saga = quick => break saga,
                }
            },
        };
        assert_eq!(ended.phase(), SagaPhase::Completed, "{steps}");
        if !slow.is_terminated() {
            let _ = slow.await;
        }
        // Whatever goes on with it has come to an end.
        timeout(PATIENCE, process.coordinator.drain(PATIENCE)).await.unwrap();
        let found = versions(&process).await;
        assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "{steps}: one transition after the other");
        assert_eq!(world.participants.done_for("tea"), ["reserve", "ship"], "{steps}");
    }
}
