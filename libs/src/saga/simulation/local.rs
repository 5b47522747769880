//! A participant's database, on a disk of its own.

use std::{fmt, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::{
    disk::{Disk, sync_takes},
    mutant::Mutant,
    world::World,
};
use crate::journal::{
    Table,
    simulated::{self, Begun, Database, Fate, Keys, Statement, Statements, Turn},
    sql::{Error, Record, Value},
};

/// A participant's database.
pub(super) struct Local {
    world: Arc<World>,
    host: &'static str,
    boots: u64,
    chance: Arc<Mutex<StdRng>>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.host).finish()
    }
}

impl Local {
    pub(super) fn new(world: Arc<World>, host: &'static str, boots: u64) -> Self {
        let chance = Arc::new(Mutex::new(world.chance(host, boots)));
        Self { world, host, boots, chance }
    }

    fn disk(&self) -> &Disk {
        self.world.participant(self.host)
    }

    fn begun(&self, requests: &[Vec<Value>], aggregates: &[Vec<Value>]) -> Result<Begun, Error> {
        let disk = self.disk();
        let head = disk.fetch(0, "SELECT COALESCE(MAX(position), 0) FROM events", &[])?[0].int(0)?;
        let requests = disk.fetch_keys(simulated::requests(), requests)?;
        let aggregates = disk.fetch_keys(simulated::aggregates(), aggregates)?;
        let id = disk.begin(&format!("{}/{}", self.host, self.boots));
        let (world, chance) = (Arc::clone(&self.world), Arc::clone(&self.chance));
        Ok(Begun { head, id, requests, aggregates, turn: Box::new(LocalTurn { world, host: self.host, id, chance }) })
    }
}

impl Database for Local {
    fn execute(&self, _: &str, _: &[Value]) -> BoxFuture<'static, Result<(), Error>> {
        // A participant is alone: it needs no member's row.
        Box::pin(async { Err(Error::Closed) })
    }

    fn fetch(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        futures::future::ready(self.disk().fetch(self.now_micros(), sql, values)).boxed()
    }

    fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        futures::future::ready(self.disk().fetch_keys(table, keys)).boxed()
    }

    fn begin(&self, requests: Keys, aggregates: Keys) -> BoxFuture<'static, Result<Begun, Error>> {
        futures::future::ready(self.begun(&requests, &aggregates)).boxed()
    }

    fn fate(&self, id: u64) -> BoxFuture<'static, Result<Fate, Error>> {
        futures::future::ready(Ok(self.disk().fate(id))).boxed()
    }

    fn new_name(&self) -> String {
        format!("{}/{}", self.host, self.boots)
    }

    fn now_micros(&self) -> i64 {
        self.world.clock(self.host)()
    }
}

struct LocalTurn {
    world: Arc<World>,
    host: &'static str,
    id: u64,
    chance: Arc<Mutex<StdRng>>,
}

impl Turn for LocalTurn {
    fn commit(self: Box<Self>, statements: Statements) -> BoxFuture<'static, Result<(), Error>> {
        let Self { world, host, id, chance } = *self;
        let pause = sync_takes(&mut chance.lock());
        Box::pin(async move {
            let disk = world.participant(host);
            disk.write(id, forgetful(statements));
            if Mutant::AckBeforeCommit.is_left_out() {
                disk.show(&world, id)?;
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    sleep(pause * 10).await;
                    world.participant(host).flush();
                });
                return Ok(());
            }
            sleep(pause).await;
            disk.sync(&world, id)
        })
    }
}

/// Leaves out what a mutant doesn't remember of requests.
fn forgetful(mut statements: Statements) -> Statements {
    const TOMBSTONE: Value = Value::Int(3);
    for statement in &mut statements {
        if let Statement::Insert(table, rows) = statement
            && table.name == "requests"
        {
            rows.retain(|row| match row[2] {
                TOMBSTONE => !Mutant::NoTombstone.is_left_out(),
                _ => !Mutant::DecidedTwice.is_left_out(),
            });
        }
    }
    statements
}
