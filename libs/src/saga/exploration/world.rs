//! One world, and all that can happen in it next.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use bytes::Bytes;
use prost::Message as _;
use proto::saga::v1::StepKind;

use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Definition,
        machine::{self, Attempt, Command, Due, Input, Moment, Wish},
        record::{Record, is_final},
        reply::Ruling,
    },
};

/// Long after any wait is over: time is not what is explored here.
pub(super) const NOW: i64 = 1_000_000_000_000;
/// How many processes there are.
const PROCESSES: usize = 2;

/// A rule that is left out of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    None,
    /// The store takes a transition from anybody.
    NoFence,
    /// A compensation that comes first leaves no mark for its action.
    NoTombstone,
    /// A call leaves by what is in memory, committed or not.
    ActBeforeCommit,
    /// A participant answers what a crash then makes undone.
    AckBeforeCommit,
    /// What is called again is not what was called before.
    RebuiltOnRetry,
    /// A lost answer is taken for a refusal.
    LostIsRefused,
    /// The turning back is kept in memory until the next commit.
    AbortNotDurable,
    /// A participant decides what it has decided before.
    DecidedTwice,
}

/// How often what can go wrong may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) takeovers: u8,
    pub(super) crashes: u8,
    pub(super) losses: u8,
    pub(super) repeats: u8,
    pub(super) cancels: u8,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { takeovers, crashes, losses, repeats, cancels } = self;
        write!(
            f,
            "{takeovers} takeover, {crashes} crash, {losses} loss, {repeats} repeat, {cancels} cancel at the most"
        )
    }
}

/// A participant's memory of one operation, and how often it took effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Cell {
    pub(super) known: Known,
    pub(super) effects: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Known {
    #[default]
    Nothing,
    Done,
    Rejected,
    Tombstone,
}

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Request { process: usize, life: u8, step: usize, undo: bool },
    Reply { process: usize, life: u8, step: usize, undo: bool, says: Says },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Says {
    Done,
    Rejected,
    Cancelled,
    Conflict,
    /// The answer was lost on its way.
    Nothing,
}

/// A process that drives the saga, or believes that it does.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) record: Record,
    in_flight: Vec<(usize, bool)>,
}

#[derive(Clone)]
pub(super) struct World {
    /// The saga as it is committed.
    pub(super) stored: Record,
    pub(super) owner: usize,
    pub(super) processes: [Option<Process>; PROCESSES],
    lives: [u8; PROCESSES],
    /// Actions and compensations, a pair a step.
    pub(super) participants: Vec<[Cell; 2]>,
    messages: Vec<Message>,
    budget: Budget,
    mutant: Mutant,
    /// Who made the last commit, if the last move made one.
    pub(super) committed_by: Option<usize>,
    /// The call that the last move sent, if it sent one.
    pub(super) sent: Option<Due>,
}

impl World {
    pub(super) fn first(definition: &Definition, budget: Budget, mutant: Mutant) -> Self {
        let mut record = definition.plan.new_record("saga", Vec::new(), 0, 0);
        let begun = machine::advance(definition, &mut record, Input::Tick, moment()).expect("nothing is refused");
        assert!(begun.changed && begun.local.is_none(), "it begins with a call");
        let record = plain(record);
        let first = Process { record: record.clone(), in_flight: Vec::new() };
        Self {
            stored: record,
            owner: 0,
            processes: [Some(first), None],
            lives: [0; PROCESSES],
            participants: vec![[Cell::default(); 2]; definition.plan.steps.len()],
            messages: Vec::new(),
            budget,
            mutant,
            committed_by: None,
            sent: None,
        }
    }

    /// What makes two worlds the same.
    pub(super) fn key(&self) -> u128 {
        // Encoding is most of the work: once for both halves.
        let stored = bytes(&self.stored);
        let processes = self.processes.each_ref().map(|process| {
            let running = process.as_ref()?;
            Some((bytes(&running.record), &running.in_flight))
        });
        let hash = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            (seed, &stored, &processes).hash(&mut hasher);
            (self.owner, &self.lives, &self.participants, &self.messages, self.budget).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        hash(0) << 64 | hash(1)
    }

    /// Everything that can happen next, and what it leads to.
    pub(super) fn moves(&self, definition: &Definition) -> Vec<(String, World)> {
        let mut moves = Vec::new();
        for process in 0..PROCESSES {
            self.calls(process, &mut moves);
            self.accidents(definition, process, &mut moves);
        }
        for at in 0..self.messages.len() {
            if at > 0 && self.messages[at] == self.messages[at - 1] {
                continue;
            }
            match self.messages[at] {
                Message::Request { .. } => self.arrivals(definition, at, &mut moves),
                Message::Reply { .. } => self.answers(definition, at, &mut moves),
            }
        }
        moves
    }

    /// A call leaves.
    fn calls(&self, process: usize, moves: &mut Vec<(String, World)>) {
        let Some(running) = &self.processes[process] else { return };
        let in_flight = |due: Due| running.in_flight.contains(&(due.step, due.op == Op::Compensation));
        for due in machine::due(&running.record, in_flight, NOW) {
            let mut after = self.quiet();
            let (step, undo) = (due.step, due.op == Op::Compensation);
            if let Some(running) = &mut after.processes[process] {
                machine::leaves(&mut running.record, due);
                running.record = plain(std::mem::take(&mut running.record));
                running.in_flight.push((step, undo));
                running.in_flight.sort_unstable();
            }
            after.send(Message::Request { process, life: self.lives[process], step, undo });
            after.sent = Some(due);
            moves.push((format!("{process} calls {due:?}"), after));
        }
    }

    /// A process crashes, takes the saga over, or is asked to cancel it.
    fn accidents(&self, definition: &Definition, process: usize, moves: &mut Vec<(String, World)>) {
        let runs = self.processes[process].is_some();
        if runs && self.budget.crashes > 0 {
            let mut after = self.quiet();
            after.budget.crashes -= 1;
            after.processes[process] = None;
            after.lives[process] += 1;
            moves.push((format!("{process} crashes"), after));
        }
        // A crashed owner's saga is always taken up in the end; from a running one it is taken so often.
        let orphaned = self.processes[self.owner].is_none();
        let other = process != self.owner && !runs && self.budget.takeovers > 0;
        if !is_final(self.stored.saga.phase()) && (orphaned && !runs || other) {
            let mut after = self.quiet();
            after.budget.takeovers -= u8::from(!orphaned);
            after.owner = process;
            let mut record = after.stored.clone();
            record.call_at_once(NOW);
            after.processes[process] = Some(Process { record: plain(record), in_flight: Vec::new() });
            after.step(definition, process, Input::Tick);
            moves.push((format!("{process} takes over"), after));
        }
        if runs && self.budget.cancels > 0 {
            let mut after = self.quiet();
            after.budget.cancels -= 1;
            let command = Command { wish: Wish::Cancel, actor: "ada".to_owned(), reason: "why".to_owned() };
            after.step(definition, process, Input::Operator(command));
            moves.push((format!("{process} is asked to cancel"), after));
        }
    }

    /// A request arrives, once or twice, or never.
    fn arrivals(&self, definition: &Definition, at: usize, moves: &mut Vec<(String, World)>) {
        let Message::Request { process, life, step, undo } = self.messages[at] else { return };
        let name = definition.plan.steps[step].name;
        let may_refuse = !undo && definition.plan.steps[step].kind != StepKind::Retriable;
        for keeps in [false, true] {
            if keeps && self.budget.repeats == 0 {
                continue;
            }
            for refuses in [false, true] {
                if refuses && !may_refuse {
                    continue;
                }
                let mut after = self.quiet();
                if keeps {
                    after.budget.repeats -= 1;
                } else {
                    after.messages.remove(at);
                }
                let (says, decided) = after.participate(step, undo, refuses);
                if refuses && !decided {
                    continue;
                }
                if after.processes[process].is_some() && after.lives[process] == life {
                    after.send(Message::Reply { process, life, step, undo, says });
                }
                moves.push((format!("{name} undo={undo} arrives (again={keeps}): {says:?}"), after));
            }
        }
        if self.budget.losses > 0 {
            let mut after = self.quiet();
            after.budget.losses -= 1;
            after.messages.remove(at);
            after.send(Message::Reply { process, life, step, undo, says: Says::Nothing });
            moves.push((format!("{name} undo={undo} is lost"), after));
        }
    }

    /// The barrier, and behind it the decision. Answers what it says, and whether it decided just now.
    fn participate(&mut self, step: usize, undo: bool, refuses: bool) -> (Says, bool) {
        let mutant = self.mutant;
        let [action, compensation] = &mut self.participants[step];
        let known = if undo { compensation.known } else { action.known };
        let again = mutant == Mutant::DecidedTwice && known == Known::Done;
        match known {
            Known::Done if mutant == Mutant::RebuiltOnRetry => return (Says::Conflict, false),
            Known::Done if !again => return (Says::Done, false),
            Known::Rejected => return (Says::Rejected, false),
            Known::Tombstone => return (Says::Cancelled, false),
            Known::Done | Known::Nothing => {}
        }
        if !undo {
            if refuses {
                action.known = Known::Rejected;
                return (Says::Rejected, true);
            }
            if mutant != Mutant::AckBeforeCommit {
                action.known = Known::Done;
                action.effects += 1;
            }
            return (Says::Done, true);
        }
        match action.known {
            Known::Done => compensation.effects += 1,
            Known::Nothing if mutant != Mutant::NoTombstone => action.known = Known::Tombstone,
            Known::Nothing | Known::Rejected | Known::Tombstone => {}
        }
        compensation.known = Known::Done;
        (Says::Done, true)
    }

    /// An answer is heard, or lost.
    fn answers(&self, definition: &Definition, at: usize, moves: &mut Vec<(String, World)>) {
        let Message::Reply { process, life, step, undo, says } = self.messages[at] else { return };
        let name = definition.plan.steps[step].name;
        let mut heard = self.quiet();
        heard.messages.remove(at);
        if self.processes[process].is_none() || self.lives[process] != life {
            return moves.push((format!("nobody hears of {name}"), heard));
        }
        if self.budget.losses > 0 && says != Says::Nothing {
            let mut lost = heard.clone();
            lost.budget.losses -= 1;
            lost.hear(definition, process, step, undo, Says::Nothing);
            moves.push((format!("the answer of {name} undo={undo} is lost"), lost));
        }
        heard.hear(definition, process, step, undo, says);
        moves.push((format!("{process} hears of {name} undo={undo}: {says:?}"), heard));
    }

    fn hear(&mut self, definition: &Definition, process: usize, step: usize, undo: bool, says: Says) {
        if let Some(running) = &mut self.processes[process] {
            running.in_flight.retain(|call| *call != (step, undo));
        }
        let ruling = match says {
            Says::Done => Ruling::Done,
            Says::Rejected => Ruling::Rejected,
            Says::Cancelled => Ruling::Cancelled,
            Says::Conflict => Ruling::Conflict,
            Says::Nothing if self.mutant == Mutant::LostIsRefused && !undo => Ruling::Rejected,
            Says::Nothing => Ruling::Retry,
        };
        let op = if undo { Op::Compensation } else { Op::Action };
        let refusal = Refusal::precondition("TEST", "as the test says");
        let reply = Bytes::from_static(&[8, 1]);
        let attempt = Attempt { step, op, ruling: Some(ruling), reply, refusal, roll: 0.0 };
        self.step(definition, process, Input::Attempted(attempt));
    }

    /// Takes the saga on in one process, as its driver does: what the machine makes of it is committed, unless somebody else owns it.
    fn step(&mut self, definition: &Definition, process: usize, mut input: Input) {
        loop {
            let Some(running) = &mut self.processes[process] else { return };
            let Ok(moved) = machine::advance(definition, &mut running.record, input, moment()) else { return };
            running.record.call_at_once(NOW);
            running.record = plain(std::mem::take(&mut running.record));
            if !moved.changed {
                return;
            }
            let record = running.record.clone();
            let turned = record.saga.phase() == proto::saga::v1::SagaPhase::Compensating
                && self.stored.saga.phase() == proto::saga::v1::SagaPhase::Forward;
            let kept_back = match self.mutant {
                Mutant::AbortNotDurable => turned,
                Mutant::ActBeforeCommit => true,
                _ => false,
            };
            if self.owner != process && self.mutant != Mutant::NoFence {
                // Its transition is refused, and it lets go.
                self.processes[process] = None;
                self.lives[process] += 1;
                return;
            }
            if !kept_back {
                self.stored = record.clone();
                self.committed_by = Some(process);
            }
            if is_final(record.saga.phase()) {
                self.processes[process] = None;
                self.lives[process] += 1;
                return;
            }
            match moved.local {
                // Work of our own is committed with the transition that asks for it.
                Some(_) => input = Input::Tick,
                None => return,
            }
        }
    }

    /// True if the owner has nothing to call and nothing to wait for.
    pub(super) fn is_idle(&self) -> bool {
        let Some(owner) = &self.processes[self.owner] else { return false };
        owner.in_flight.is_empty() && machine::due(&owner.record, |_| false, NOW).is_empty()
    }

    fn send(&mut self, message: Message) {
        self.messages.push(message);
        self.messages.sort_unstable();
    }

    /// The same world, with nothing said of the last move.
    fn quiet(&self) -> Self {
        Self { committed_by: None, sent: None, ..self.clone() }
    }
}

pub(super) const fn moment() -> Moment {
    Moment::at(NOW)
}

/// A record without what only people read, and without counts: two that differ in no more are the same.
pub(super) fn plain(mut record: Record) -> Record {
    record.saga.history.clear();
    (record.saga.version, record.saga.update_time, record.fresh) = (0, None, 0);
    for step in &mut record.saga.steps {
        (step.attempts, step.compensation_attempts) = (0, 0);
        (step.action_duration, step.compensation_duration, step.next_attempt_time) = (None, None, None);
        step.last_error.clear();
    }
    for step in &mut record.kept.steps {
        (step.started_micros, step.compensation_started_micros) = (0, 0);
    }
    record.saved();
    record
}

pub(super) fn bytes(record: &Record) -> Vec<u8> {
    let mut bytes = record.saga.encode_to_vec();
    bytes.extend(record.kept.encode_to_vec());
    bytes
}
