//! Sagas that lock the same keys: every order of starts, commits, answers, wake-ups, cancels and crashes. No two of them are ever at
//! work under one key, and none waits for ever.
//!
//! The machine is the real one, and so are the decisions over the queues; the store and the mail between tasks are models.

use std::collections::{BTreeMap, HashSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use proto::saga::v1::{LockRecord, LockState, StepState};

use super::{
    Decide, Do,
    world::{NOW, bytes, moment, plain},
};
use crate::{
    journal::{Aggregate, AggregateId, Change, Loaded},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Definition,
        coordinator::locks::{self, Release},
        machine::{self, Attempt, Command, Due, Input, Local, Wish},
        record::{Record, is_final},
        reply::Ruling,
        simulation::is_at_work,
    },
};

const KEYS: [&str; 3] = ["a", "b", "c"];

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    /// A saga that ends keeps its locks.
    NoRelease,
    /// Nobody is told that a lock is free.
    NoWake,
    /// Who finds a lock held takes it all the same.
    NoQueue,
}

/// What a task does next of what it has begun.
#[derive(Clone)]
enum Pending {
    Tick,
    Refused(Local, Refusal),
}

#[derive(Clone, Default)]
struct One {
    /// As it is committed; None before its start.
    stored: Option<Record>,
    /// As the task has it that drives it.
    driven: Option<Record>,
    pending: Option<Pending>,
    woken: bool,
}

#[derive(Clone)]
struct World {
    sagas: Vec<One>,
    queues: Vec<(AggregateId, Aggregate)>,
    crashes: u8,
    cancels: u8,
}

impl World {
    fn key(&self) -> Vec<u8> {
        let mut key = vec![self.crashes, self.cancels];
        for one in &self.sagas {
            let pending = match &one.pending {
                None => 0,
                Some(Pending::Tick) => 1,
                Some(Pending::Refused(Local::Locks, _)) => 2,
                Some(Pending::Refused(..)) => 3,
            };
            key.extend([b'|', pending, u8::from(one.woken)]);
            key.extend(one.stored.as_ref().map(bytes).unwrap_or_default());
            key.push(one.driven.as_ref().map_or(2, |record| u8::from(record.queued)));
            key.extend(one.driven.as_ref().map(bytes).unwrap_or_default());
        }
        self.queues.iter().for_each(|(_, queue)| key.extend(&queue.state));
        key
    }

    fn queued(&self) -> BTreeMap<&str, Vec<String>> {
        let read = |state: &Bytes| LockRecord::decode(state.clone()).expect("a queue").saga_ids;
        self.queues.iter().map(|(name, queue)| (&*name.id, read(&queue.state))).collect()
    }

    fn commit(&mut self, changes: Vec<Change>) {
        for Change { aggregate, state, version, .. } in changes {
            let queue = self.queues.iter_mut().find(|(name, _)| *name == aggregate).expect("a lock");
            queue.1 = Aggregate { version, state: state.unwrap_or_default() };
        }
    }

    fn start(&mut self, definition: &Definition, at: usize, input: i64, sees: bool) {
        let mut record = definition.plan.new_record(&id(at), input.encode_to_vec(), 0, 0);
        record.saga.lock_keys = definition.lock_keys(record.kept.input.clone()).expect("they fit");
        let queues = self.queues.clone();
        let loaded = Loaded::new(if sees { &queues } else { &[] }, None, NOW);
        let taken = locks::at_start(&mut record, false, &loaded).expect("there is room");
        let asks = machine::asks_for_locks(&record);
        if !asks {
            machine::advance(definition, &mut record, Input::Tick, moment()).expect("nothing is refused");
        }
        self.commit(taken);
        let record = plain(record);
        let pending = asks.then_some(Pending::Tick);
        self.sagas[at] = One { stored: Some(record.clone()), driven: Some(record), pending, woken: false };
    }

    /// One turn of a saga's task: one transition, committed or refused.
    fn step(&mut self, definition: &Definition, at: usize, input: Input, mutant: Mutant) {
        let Some(mut record) = self.sagas[at].driven.take() else { return };
        self.sagas[at].pending = None;
        let moved = machine::advance(definition, &mut record, input, moment()).expect("nothing is refused");
        if !moved.changed {
            self.sagas[at].driven = Some(plain(record));
            return;
        }
        let queues = self.queues.clone();
        let loaded = Loaded::new(&queues, None, NOW);
        let local = moved.local.as_ref().map(|(local, _)| *local);
        let mut changes = Vec::new();
        if let Some((local, before)) = moved.local {
            match (locks::work(local, &record).decide)(&loaded) {
                Ok(decided) => changes = decided.changes,
                Err(_) if mutant == Mutant::NoQueue => {}
                Err(refusal) => {
                    self.sagas[at].driven = Some(plain(*before));
                    self.sagas[at].pending = Some(Pending::Refused(local, refusal));
                    return;
                }
            }
        }
        if let Some(release) = Release::of(&record).filter(|_| mutant != Mutant::NoRelease) {
            let (left, next) = release.leave(&loaded);
            changes.extend(left);
            for next in next.into_iter().filter(|_| mutant != Mutant::NoWake) {
                let one = self.sagas.iter_mut().enumerate().find(|(at, _)| id(*at) == next);
                one.into_iter().for_each(|(_, one)| one.woken = one.driven.is_some());
            }
        }
        self.commit(changes);
        let record = plain(record);
        self.sagas[at].stored = Some(record.clone());
        if is_final(record.saga.phase()) {
            self.sagas[at].woken = false;
            return;
        }
        self.sagas[at].driven = Some(record);
        // What the work held back may begin now.
        self.sagas[at].pending = local.map(|_| Pending::Tick);
    }

    /// What can happen by itself, and what somebody or something has to do.
    fn moves(&self, definition: &Definition, inputs: &[i64], mutant: Mutant) -> (Vec<World>, Vec<World>) {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (at, one) in self.sagas.iter().enumerate() {
            let step = |input: Input| {
                let mut after = self.clone();
                after.step(definition, at, input, mutant);
                after
            };
            match (&one.stored, &one.driven, &one.pending) {
                (None, ..) => {
                    for sees in [false, true] {
                        let mut after = self.clone();
                        after.start(definition, at, inputs[at], sees);
                        own.push(after);
                    }
                }
                (_, Some(_), Some(Pending::Tick)) => own.push(step(Input::Tick)),
                (_, Some(_), Some(Pending::Refused(local, refusal))) => {
                    own.push(step(Input::LocalRefused { local: *local, refusal: refusal.clone(), roll: 0.0 }));
                }
                (_, Some(record), None) => {
                    if one.woken {
                        let mut after = self.clone();
                        after.sagas[at].woken = false;
                        after.step(definition, at, Input::Woken, mutant);
                        own.push(after);
                    }
                    for due in machine::due(record, |_| false, NOW) {
                        own.push(step(answer(due, Ruling::Done)));
                        if due.op == Op::Action {
                            own.push(step(answer(due, Ruling::Rejected)));
                        }
                    }
                    if self.cancels > 0 && record.saga.steps[1].state() == StepState::Unspecified {
                        let (actor, reason) = ("ann".to_owned(), "why".to_owned());
                        let mut after = step(Input::Operator(Command { wish: Wish::Cancel, actor, reason }));
                        after.cancels -= 1;
                        others.push(after);
                    }
                }
                // Left by a crash: taken up again.
                (Some(stored), None, _) if !is_final(stored.saga.phase()) => {
                    let mut after = self.clone();
                    let mut record = stored.clone();
                    record.queued = false;
                    after.sagas[at].driven = Some(record);
                    after.sagas[at].pending = Some(Pending::Tick);
                    own.push(after);
                }
                _ => {}
            }
        }
        if self.crashes > 0 {
            let mut after = self.clone();
            after.crashes -= 1;
            for one in &mut after.sagas {
                (one.driven, one.pending, one.woken) = (None, None, false);
            }
            others.push(after);
        }
        (own, others)
    }

    fn check(&self) -> Result<(), String> {
        let queued = self.queued();
        let at_work: Vec<&Record> =
            self.sagas.iter().filter_map(|one| one.stored.as_ref()).filter(is_at_work).collect();
        for key in KEYS {
            let working: Vec<&str> = at_work
                .iter()
                .filter(|record| record.saga.lock_keys.iter().any(|locked| locked == key))
                .map(|record| record.saga.saga_id.as_str())
                .collect();
            if working.len() > 1 {
                return Err(format!("{} are at work under {key} at once", working.join(" and ")));
            }
        }
        for one in self.sagas.iter().filter_map(|one| one.stored.as_ref()) {
            let (saga_id, state) = (&one.saga.saga_id, one.kept.lock_state());
            for key in &one.saga.lock_keys {
                let place = queued[key.as_str()].iter().position(|queued| queued == saga_id);
                let right = match (is_final(one.saga.phase()), state) {
                    (true, _) | (false, LockState::Unspecified) => place.is_none(),
                    (false, LockState::Waiting) => place.is_some(),
                    (false, LockState::Held) => place == Some(0),
                };
                if !right {
                    return Err(format!("{saga_id} is {} of {key} and {place:?} in its queue", state.as_str_name()));
                }
            }
        }
        Ok(())
    }
}

fn id(at: usize) -> String {
    format!("s-{at}")
}

fn answer(Due { step, op }: Due, ruling: Ruling) -> Input {
    let refusal = Refusal::precondition("TEST", "as the test says");
    Input::Attempted(Attempt { step, op, ruling: Some(ruling), reply: Bytes::new(), refusal, roll: 0.0 })
}

/// Locks the keys whose bits its input has.
fn locking() -> Definition {
    let mut saga = Definition::builder::<i64>("locking", 1);
    let keys =
        |input: &i64| KEYS.iter().enumerate().filter(|(at, _)| input & (1 << at) != 0).map(|(_, key)| *key).collect();
    saga.lock::<&str>(keys);
    saga.compensatable::<Do>("reserve", |_, _| Ok(1), |_| -1);
    saga.pivot::<Decide>("ship", |_, _| Ok(2));
    super::owned(saga.build())
}

fn explore(inputs: &[i64], crashes: u8, cancels: u8, mutant: Mutant) -> Result<usize, String> {
    let definition = locking();
    let queues = locks::names(&KEYS.map(str::to_owned)).into_iter().map(|name| (name, Aggregate::default())).collect();
    let first = World { sagas: vec![One::default(); inputs.len()], queues, crashes, cancels };
    let mut seen = HashSet::from([first.key()]);
    let mut next = VecDeque::from([first]);
    while let Some(world) = next.pop_front() {
        world.check()?;
        let (own, others) = world.moves(&definition, inputs, mutant);
        if own.is_empty() {
            let open = |one: &&One| one.stored.as_ref().is_some_and(|stored| !is_final(stored.saga.phase()));
            if let Some(one) = world.sagas.iter().find(open) {
                let saga_id = one.stored.as_ref().map(|stored| stored.saga.saga_id.as_str()).unwrap_or_default();
                return Err(format!("{saga_id} waits for ever"));
            }
        }
        for after in own.into_iter().chain(others) {
            if seen.insert(after.key()) {
                next.push_back(after);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_two_sagas_are_at_work_under_one_key_and_none_waits_for_ever() {
    let mut worlds = 0;
    for (inputs, crashes, cancels) in
        [(&[0b01, 0b01][..], 1, 1), (&[0b11, 0b11], 1, 1), (&[0b011, 0b110, 0b101], 0, 0), (&[0b01, 0b11, 0b10], 0, 0)]
    {
        match explore(inputs, crashes, cancels, Mutant::None) {
            Ok(found) => {
                let locked: Vec<_> = inputs.iter().map(|keys| format!("{keys:03b}")).collect();
                let locked = locked.join(" and ");
                println!(
                    "{found:>8} worlds of sagas that lock {locked}: {crashes} crash, {cancels} cancel at the most"
                );
                worlds += found;
            }
            Err(why) => panic!("{inputs:?}: {why}"),
        }
    }
    println!("{worlds:>8} worlds of locks in all");
    assert!(worlds > 1_000, "only {worlds}: the exploration has lost its way");
}

#[test]
fn without_any_of_the_locks_rules_some_world_is_wrong() {
    for (mutant, found) in
        [(Mutant::NoRelease, "in its queue"), (Mutant::NoWake, "waits for ever"), (Mutant::NoQueue, "at once")]
    {
        let why = explore(&[0b01, 0b01], 0, 0, mutant).expect_err(&format!("{mutant:?} is found out"));
        assert!(why.contains(found), "{mutant:?}: {why}");
        println!("{:<16} {why}", format!("{mutant:?}"));
    }
}
