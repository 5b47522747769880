//! Processes that share the sagas of a world, on the database that the tests have.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::{sync::Arc, time::Duration};

use libs::{
    journal::Journal,
    saga::{
        Options, TABLES,
        testing::{Fault, Participants},
    },
};

use crate::{
    database,
    saga_world::{Process, World},
};

/// One more process on the world's database, with room for so many sagas.
pub async fn process(world: &World, most_live: usize) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let options = Options { most_live, ..Options::default() };
    let process = Process::on(journal, vec![Arc::clone(&world.definition)], world.participants.clone(), options);
    process.coordinator.recover().await.unwrap();
    process
}

/// Leaves all that a process drives as it is, and says that it is gone.
pub async fn leaves(process: Process) {
    process.coordinator.drain(Duration::from_millis(50)).await;
    process.coordinator.leave().await;
    process.crash().await;
}

/// No charge is answered but those of these orders.
pub fn only(participants: &Participants, charged: &'static [&'static str]) {
    participants.on_call(move |call| {
        let is_lost = call.step == "charge" && !charged.contains(&&*call.saga_id);
        if is_lost { Fault::LoseRequest } else { Fault::None }
    });
}
