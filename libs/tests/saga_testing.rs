//! The trials for one's own sagas: a sound saga comes through, parallel branches too, and an unsound one doesn't.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod saga_world;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use libs::{
    journal::{Cause, Entry, Loaded},
    refusal::Refusal,
    saga::{
        Definition, LocalWork,
        testing::{Participants, Rig, crash_every_point, fail_every_step, repeat_every_operation},
    },
};
use saga_world::{Charge, Release, Reserve, Ship};
use tempfile::TempDir;

/// Two reservations at once, then the pivot, then work of our own and a notice at once.
fn diamond() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("diamond", 1);
    let left = saga.compensatable::<Reserve>("left", |it, _| Ok(it.clone()), |undo| undo.input.clone());
    saga.compensatable::<Charge>("right", |it, _| Ok(it.clone()), |undo| undo.input.clone());
    saga.after(&[]);
    saga.pivot::<Ship>("ship", move |_, replies| replies.get(left));
    saga.after(&["left", "right"]);
    saga.retriable::<Release>("notify", |it, _| Ok(it.clone()));
    saga.retriable_local("finish", |_, _| Ok(LocalWork::nothing()));
    saga.after(&["ship"]);
    saga.build().unwrap()
}

fn rig(folder: &TempDir, participants: impl Fn() -> Participants + Send + Sync + 'static) -> Rig {
    Rig::new(folder.path(), diamond(), "it".to_owned(), participants)
}

#[tokio::test]
async fn a_sound_saga_comes_through_everything() {
    let folder = TempDir::new().unwrap();
    let rig = rig(&folder, Participants::new);
    assert_eq!(fail_every_step(&rig).await.unwrap().runs().len(), 4);
    assert!(repeat_every_operation(&rig).await.unwrap().runs().len() > 20);
    assert!(crash_every_point(&rig).await.unwrap().runs().len() > 12);
}

#[tokio::test]
async fn a_way_back_that_is_refused_is_found() {
    let folder = TempDir::new().unwrap();
    let refuses =
        || Participants::new().answer::<saga_world::Refund>(|_| Err(Refusal::precondition("SPENT", "nothing is left")));
    let rig = rig(&folder, refuses);
    let broken = fail_every_step(&rig).await.unwrap_err().to_string();
    assert!(broken.contains("should be SAGA_PHASE_COMPENSATED and is SAGA_PHASE_STUCK"), "{broken}");
    for broken in [crash_every_point(&rig).await, repeat_every_operation(&rig).await] {
        let broken = broken.unwrap_err().to_string();
        assert!(broken.contains("should be SAGA_PHASE_COMPENSATED and is SAGA_PHASE_STUCK"), "{broken}");
    }
}

/// What is disturbed is known by its saga's id: where that is new in each run, nothing would be, and all would look well.
#[tokio::test]
async fn sagas_that_are_begun_with_new_ids_are_not_taken_for_disturbed() {
    let folder = TempDir::new().unwrap();
    let begun = Arc::new(AtomicUsize::new(0));
    let rig = rig(&folder, Participants::new).begin_by(move |journal, coordinator| {
        let id = format!("it-{}", begun.fetch_add(1, Ordering::Relaxed));
        let saga_id = id.clone();
        let decide =
            move |loaded: &Loaded<'_>| coordinator.start("diamond", &saga_id, &"it".to_owned(), loaded).unwrap();
        let (cause, aggregates) = (Cause::default(), Vec::new());
        let entry = Entry { request: None, aggregates, cause, decide: Box::new(decide), size: 9 };
        async move {
            journal.submit(entry).await?;
            Ok(id)
        }
    });
    let broken = repeat_every_operation(&rig).await.unwrap_err().to_string();
    assert!(broken.contains("left action delivered twice: no such call was made"), "{broken}");
}

#[tokio::test]
async fn a_request_that_cannot_be_made_is_found() {
    let folder = TempDir::new().unwrap();
    let mut saga = Definition::builder::<String>("unsound", 1);
    saga.compensatable::<Reserve>("reserve", |it, _| Ok(it.clone()), |undo| undo.input.clone());
    saga.pivot::<Ship>("ship", |_, _| Err(Refusal::precondition("NO_ADDRESS", "there is none")));
    let rig = Rig::new(folder.path(), saga.build().unwrap(), "it".to_owned(), Participants::new);
    let broken = crash_every_point(&rig).await.unwrap_err().to_string();
    assert!(broken.contains("it should be SAGA_PHASE_COMPLETED and is SAGA_PHASE_COMPENSATED"), "{broken}");
    // It turns back as if it had been refused, and nobody was called who could have.
    let broken = fail_every_step(&rig).await.unwrap_err().to_string();
    assert!(broken.contains("ship refused: no such call was made"), "{broken}");
}

/// Bytes are the same on the wire as a string is.
#[tokio::test]
async fn an_input_that_the_saga_does_not_start_from_is_named() {
    let folder = TempDir::new().unwrap();
    let rig = Rig::new(folder.path(), diamond(), b"it".to_vec(), Participants::new);
    let broken = crash_every_point(&rig).await.unwrap_err().to_string();
    assert!(
        broken.contains("diamond starts from alloc::string::String, and was to start from alloc::vec::Vec<u8>"),
        "{broken}"
    );
}
