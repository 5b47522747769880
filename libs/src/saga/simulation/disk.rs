//! A host's database, and what must hold whenever something in it becomes visible.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use proto::saga::v1::SagaPhase;
use rand::{RngExt as _, rngs::StdRng};

use super::{
    answers::{forgotten, may_be_forgotten},
    check::phase_name,
    family,
    locks::Locks,
    world::World,
};
use crate::{
    journal::{
        Table,
        simulated::{self, Engine, Fate, Statement, Statements},
        sql::{Error, Record as Found, Value},
    },
    saga::record::{Record, is_final},
};

/// One database. It outlives the processes that use it.
pub(super) struct Disk {
    pub(super) name: &'static str,
    inner: Mutex<Inner>,
}

struct Inner {
    engine: Engine,
    /// Who wrote each transaction.
    writers: BTreeMap<u64, String>,
    /// The place of each among the transactions of all databases, by when it became visible.
    places: BTreeMap<u64, u64>,
    seen: Seen,
}

/// What is visible.
#[derive(Default)]
struct Seen {
    owners: BTreeMap<String, Vec<u8>>,
    sagas: BTreeMap<String, Record>,
    effects: Vec<Effect>,
    locks: Locks,
    /// When each saga was last told of, by the clock of whoever did.
    told: BTreeMap<String, i64>,
    /// How often a saga got another owner.
    takeovers: usize,
}

/// Something that a participant did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// Its place among those of all participants.
    pub(super) place: (u64, usize),
    /// The saga, the step and the operation, as in `o-1 charge action`.
    pub(super) what: String,
}

/// How long a disk takes to sync: a few milliseconds, or now and then long enough for something to happen meanwhile.
pub(super) fn sync_takes(chance: &mut StdRng) -> Duration {
    let millis = if chance.random_bool(0.3) { 20..300 } else { 1..20 };
    Duration::from_millis(chance.random_range(millis))
}

impl Disk {
    pub(super) fn new(name: &'static str, tables: &[&'static Table]) -> Self {
        let mut all = simulated::tables();
        all.extend(tables);
        let (writers, places) = (BTreeMap::new(), BTreeMap::new());
        let inner = Inner { engine: Engine::new(all), writers, places, seen: Seen::default() };
        Self { name, inner: Mutex::new(inner) }
    }

    /// Begins a transaction of a process.
    pub(super) fn begin(&self, writer: &str) -> u64 {
        let mut inner = self.inner.lock();
        let id = inner.engine.begin();
        inner.writers.insert(id, writer.to_owned());
        id
    }

    pub(super) fn roll_back(&self, id: u64) {
        self.inner.lock().engine.roll_back(id);
    }

    pub(super) fn write(&self, id: u64, statements: Statements) {
        self.inner.lock().engine.write(id, statements);
    }

    /// Makes a transaction durable, and then visible.
    pub(super) fn sync(&self, world: &World, id: u64) -> Result<(), Error> {
        self.inner.lock().reveal(world, self.name, |engine| engine.sync(id))
    }

    /// Makes a transaction visible that is not durable.
    pub(super) fn show(&self, world: &World, id: u64) -> Result<(), Error> {
        self.inner.lock().reveal(world, self.name, |engine| engine.show(id))
    }

    /// Makes durable what is visible.
    pub(super) fn flush(&self) {
        self.inner.lock().engine.flush();
    }

    /// The host loses its power.
    pub(super) fn crash(&self, world: &World, number: u64) {
        let mut chance = world.chance(self.name, number);
        let mut lost = 0;
        let left = |unsynced: usize| {
            let left = chance.random_range(0..=unsynced);
            lost = unsynced - left;
            left
        };
        let inner = &mut *self.inner.lock();
        match inner.engine.crash(left) {
            Ok(log) => {
                // The first of them were seen before, unless they were lost: then nobody remembers them.
                inner.seen = Seen::default();
                for (id, statements) in log {
                    inner.learn(world, id, &statements);
                }
            }
            Err(error) => world.broken(format!("{} can't be opened: {error}", self.name)),
        }
        if lost > 0 {
            world.count("unsynced writes lost");
            world.note(format_args!("{} lost {lost} transactions that were not synced", self.name));
        }
    }

    pub(super) fn fate(&self, id: u64) -> Fate {
        self.inner.lock().engine.fate(id)
    }

    pub(super) fn fetch(&self, now: i64, sql: &str, values: &[Value]) -> Result<Vec<Found>, Error> {
        self.inner.lock().engine.fetch(now, sql, values)
    }

    pub(super) fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Found>, Error> {
        self.inner.lock().engine.fetch_keys(table, keys)
    }

    /// The sagas as they are stored.
    pub(super) fn sagas(&self) -> BTreeMap<String, Record> {
        self.inner.lock().seen.sagas.clone()
    }

    /// One saga as it is stored.
    pub(super) fn saga(&self, saga_id: &str) -> Option<Record> {
        self.inner.lock().seen.sagas.get(saga_id).cloned()
    }

    /// When a saga ended, by the clock of whoever said so.
    pub(super) fn ended(&self, saga_id: &str) -> Option<i64> {
        let seen = &self.inner.lock().seen;
        let has_ended = seen.sagas.get(saga_id).is_some_and(|record| is_final(record.saga.phase()));
        seen.told.get(saga_id).filter(|_| has_ended).copied()
    }

    /// True once all sagas have ended.
    pub(super) fn is_settled(&self) -> bool {
        self.inner.lock().seen.sagas.values().all(|record| is_final(record.saga.phase()))
    }

    pub(super) fn effects(&self) -> Vec<Effect> {
        self.inner.lock().seen.effects.clone()
    }
}

impl Inner {
    fn reveal(
        &mut self,
        world: &World,
        name: &str,
        reveal: impl FnOnce(&mut Engine) -> Result<Vec<(u64, Statements)>, Error>,
    ) -> Result<(), Error> {
        let seen = reveal(&mut self.engine).inspect_err(|error| world.broken(format!("{name}: {error}")))?;
        for (id, statements) in seen {
            let said = self.learn(world, id, &statements);
            if !said.is_empty() {
                world.note(format_args!("{name} holds {id} of {}:{said}", self.writers[&id]));
            }
        }
        Ok(())
    }

    fn learn(&mut self, world: &World, id: u64, statements: &Statements) -> String {
        let is_new = !self.places.contains_key(&id);
        let place = *self.places.entry(id).or_insert_with(|| world.next_place());
        let (takeovers, waits) = (self.seen.takeovers, self.seen.locks.waits);
        let said = self.seen.learn(world, &self.writers[&id], place, statements);
        if is_new && self.seen.takeovers > takeovers {
            world.count("takeovers");
        }
        if is_new && self.seen.locks.waits > waits {
            world.count("waits for locks");
        }
        for key in statements.iter().filter(|_| is_new).filter_map(forgotten) {
            world.count("answers forgotten");
            may_be_forgotten(world, key);
        }
        said
    }
}

impl Seen {
    /// Takes in a transaction, and answers what it did in a few words.
    fn learn(&mut self, world: &World, writer: &str, place: u64, statements: &Statements) -> String {
        let mut said = String::new();
        for statement in statements {
            let (Statement::Insert(table, rows) | Statement::Upsert(table, rows)) = statement else { continue };
            for row in rows {
                match (table.name, row.as_slice()) {
                    ("aggregates", [Value::Text(kind), Value::Text(id), _, Value::Blob(state)])
                        if kind == "saga_owner" =>
                    {
                        said += &format!(" {id}→{}", String::from_utf8_lossy(state));
                        let before = self.owners.insert(id.clone().into_owned(), state.to_vec());
                        self.takeovers += usize::from(before.is_some());
                    }
                    ("aggregates", [Value::Text(kind), Value::Text(key), _, Value::Blob(state)])
                        if kind == "saga_lock" =>
                    {
                        self.locks.learn(key, state.clone());
                        said += &self.locks.said(key);
                    }
                    ("sagas", [Value::Text(id), _, Value::Blob(record)]) => match Record::decode(record.clone()) {
                        Ok(record) => said += &self.transition(world, writer, id, record),
                        Err(error) => world.broken(format!("{id}: {error}")),
                    },
                    ("events", [_, Value::Text(kind), .., Value::Blob(payload), _, _, _]) if kind == "ledger" => {
                        let what = payload.get(2..).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                        said += &format!(" {what}");
                        self.effects.push(Effect { place: (place, self.effects.len()), what });
                    }
                    ("events", [_, Value::Text(kind), Value::Text(id), .., Value::Int(micros)]) if kind == "saga" => {
                        self.told.insert(id.clone().into_owned(), *micros);
                    }
                    _ => {}
                }
            }
        }
        self.locks.check(world, &self.sagas);
        said
    }

    fn transition(&mut self, world: &World, writer: &str, id: &str, record: Record) -> String {
        let phase = |record: &Record| phase_name(record.saga.phase());
        let said = format!(" {id} v{} {}", record.saga.version, phase(&record));
        if self.owners.get(id).is_none_or(|owner| owner != writer.as_bytes()) {
            world.broken(format!("{id} was changed by a process that does not own it: {writer}"));
        }
        let version = self.sagas.get(id).map_or(0, |before| before.saga.version);
        if record.saga.version != version + 1 {
            world.broken(format!("{id} went from version {version} to {}", record.saga.version));
        }
        if let Some(before) = self.sagas.get(id) {
            if is_final(before.saga.phase()) {
                world.broken(format!("{id} was {} and changed", phase(before)));
            }
            if before.saga.phase() == SagaPhase::Compensating && record.saga.phase() == SagaPhase::Forward {
                world.broken(format!("{id} had turned back and goes forward"));
            }
        }
        family::moved(world, &record, &self.sagas);
        self.sagas.insert(id.to_owned(), record);
        said
    }
}
