//! One saga with its process and its participants, and what may happen to them.

use std::time::Duration;

use bytes::Bytes;
use proto::saga::v1::{Saga, SagaPhase, StepState};

use super::{
    participant::{Call, Participant},
    rules::{Transition, truth},
    shape::Shape,
};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Definition,
        exploration::world::Known,
        machine::{self, Attempt, Command, Due, Input, Local, Moment, Settled, Wish},
        record::{Record, is_final},
        reply::Ruling,
    },
};

pub(super) const SECOND: i64 = 1_000_000;
/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Accepted,
    Refused,
    RequestLost,
    AnswerLost,
    /// It is given up, and arrives later.
    Late,
    Twice,
    Pending,
    /// Somebody on the way doesn't let it through.
    Forbidden,
    /// A breaker holds it back.
    NotSent,
    /// The participant knows the operation by another request.
    Conflict,
    /// It arrives, and a code that the step's author trusts comes back without a verdict.
    Trusted,
}

/// Which of our own work is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refuses {
    Nothing,
    Locks,
    All,
    /// All of it, for a while.
    ForNow,
}

impl Refuses {
    fn is_meant(self, local: Local) -> bool {
        match self {
            Self::Nothing => false,
            Self::Locks => local == Local::Locks,
            Self::All | Self::ForNow => true,
        }
    }
}

pub(super) struct World<'a> {
    pub(super) definition: &'a Definition,
    pub(super) now: i64,
    draining: bool,
    /// As it is committed.
    pub(super) stored: Record,
    bytes: Bytes,
    /// As the events tell it.
    shown: Saga,
    pub(super) driven: Record,
    pub(super) in_flight: Vec<Call>,
    /// Calls whose answers nobody waits for.
    pub(super) late: Vec<Call>,
    pub(super) participants: Vec<Participant>,
    pub(super) refuses: Refuses,
}

impl<'a> World<'a> {
    pub(super) fn first(shape: &Shape, definition: &'a Definition) -> Result<Self, String> {
        let start = if shape.later { 20 * SECOND } else { 0 };
        let mut record = definition.plan.new_record("saga", Vec::new(), SECOND, start);
        record.kept.bound = shape.bound;
        record.saga.lock_keys = definition.lock_keys(Bytes::new()).map_err(|refusal| refusal.message)?;
        let mut world = Self {
            definition,
            now: SECOND,
            draining: false,
            stored: record.clone(),
            bytes: Bytes::new(),
            shown: Saga::default(),
            driven: record,
            in_flight: Vec::new(),
            late: Vec::new(),
            participants: vec![Participant::default(); definition.plan.steps.len()],
            refuses: Refuses::Nothing,
        };
        machine::renew(&mut world.driven, world.now);
        world.commit()?;
        world.hear(Input::Tick)?;
        Ok(world)
    }

    pub(super) fn wait(&mut self, micros: i64) -> Result<(), String> {
        self.now += micros;
        self.hear(Input::Tick)
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// The process ends as `kill -9` ends it, and another one takes the saga up.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.draining = false;
        self.late.append(&mut self.in_flight);
        self.driven = Record::decode(self.bytes.clone()).map_err(|error| error.to_string())?;
        machine::taken_up(&self.definition.plan, &mut self.driven, self.now);
        if is_final(self.driven.saga.phase()) { Ok(()) } else { self.hear(Input::Tick) }
    }

    /// An operator asks for something, and is refused or obeyed.
    pub(super) fn ask(&mut self, wish: Wish) -> Result<(), String> {
        let Wish::Skip { step, op, settled } = &wish else { return self.is_obeyed(wish).map(drop) };
        let at = self.definition.plan.steps.iter().position(|known| known.name == step).ok_or("no such step")?;
        // What may be on its way yet is undone: that makes good an operator who is wrong.
        let state = self.driven.saga.steps[at].state();
        let undone = self.definition.plan.steps[at].can_abort()
            && (*op, *settled, state) == (Op::Action, Settled::Rejected, StepState::Started)
            && !self.driven.kept.steps[at].held;
        let was = self.participants[at].is_settled;
        self.participants[at].is_settled |= !undone;
        if !self.is_obeyed(wish)? {
            self.participants[at].is_settled = was;
        }
        Ok(())
    }

    /// The wish to skip one of the operations that are open.
    pub(super) fn skipping(&self, which: usize, settled: Settled) -> Wish {
        let is_open = |step: &usize| {
            let state = self.stored.saga.steps[*step].state();
            self.stored.kept.steps[*step].held || matches!(state, StepState::Started | StepState::Compensating)
        };
        let open: Vec<usize> = (0..self.participants.len()).filter(is_open).collect();
        let step = if open.is_empty() { 0 } else { open[which % open.len()] };
        self.skip(step, settled)
    }

    pub(super) fn skip(&self, step: usize, settled: Settled) -> Wish {
        let (state, kept) = (self.stored.saga.steps[step].state(), &self.stored.kept);
        let is_back = state == StepState::Compensating || kept.stuck_from() == SagaPhase::Compensating;
        let op = if is_back { Op::Compensation } else { Op::Action };
        Wish::Skip { step: self.definition.plan.steps[step].name.to_owned(), op, settled }
    }

    fn arrive(&mut self, call: &Call, refuses: bool) -> Result<Ruling, String> {
        let step = call.due.step;
        self.participants[step].arrive(&self.definition.plan.steps[step], call, refuses, self.now)
    }

    fn is_obeyed(&mut self, wish: Wish) -> Result<bool, String> {
        let version = self.stored.saga.version;
        self.hear(Input::Operator(Command { wish, actor: "ann".to_owned(), reason: "why".to_owned() }))?;
        Ok(self.stored.saga.version > version)
    }

    /// A call in flight comes to an end.
    pub(super) fn answer(&mut self, which: usize, fate: Fate) -> Result<(), String> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let call = self.in_flight.remove(which % self.in_flight.len());
        let Due { step, op } = call.due;
        let options = &self.definition.plan.steps[step].options;
        let trusts = op == Op::Action && !options.trusted.is_empty();
        let ruling = match fate {
            Fate::Accepted => Some(self.arrive(&call, false)?),
            // Without a barrier nobody says so in a way that counts.
            Fate::Refused if !options.plain => Some(self.arrive(&call, true)?),
            Fate::Twice => {
                self.arrive(&call, false)?;
                Some(self.arrive(&call, false)?)
            }
            Fate::AnswerLost => self.arrive(&call, false).map(|_| Some(Ruling::Retry))?,
            Fate::Trusted if trusts => self.arrive(&call, false).map(|_| Some(Ruling::GiveUp))?,
            Fate::Pending if !options.plain => Some(Ruling::Pending),
            Fate::Conflict if !options.plain => Some(Ruling::Conflict),
            Fate::Late => {
                self.late.push(call);
                Some(Ruling::Retry)
            }
            Fate::Forbidden => Some(Ruling::RetrySlowly),
            Fate::NotSent => None,
            Fate::RequestLost | Fate::Refused | Fate::Trusted | Fate::Pending | Fate::Conflict => Some(Ruling::Retry),
        };
        let (reply, refusal) = (Bytes::from_static(&[8, 1]), Refusal::precondition("TEST", "as the test says"));
        self.hear(Input::Attempted(Attempt { step, op, ruling, reply, refusal, roll: 0.5 }))
    }

    /// A call arrives that nobody waits for any more.
    pub(super) fn arrive_late(&mut self, which: usize) -> Result<(), String> {
        if self.late.is_empty() {
            return Ok(());
        }
        let call = self.late.remove(which % self.late.len());
        self.arrive(&call, false)?;
        truth(self)
    }

    /// Somebody undoes a step that was never done: another process, long ago, or by hand.
    pub(super) fn undo_by_hand(&mut self, step: usize) {
        let step = step % self.participants.len();
        let options = &self.definition.plan.steps[step].options;
        let action = &mut self.participants[step].cells[0];
        if action.known == Known::Nothing && !options.plain {
            action.known = Known::Tombstone;
        }
    }

    /// Takes the saga on as its driver does: what the machine makes of it is committed, then what is due leaves.
    pub(super) fn hear(&mut self, mut input: Input) -> Result<(), String> {
        loop {
            let before = self.driven.clone();
            let moment = Moment { draining: self.draining, ..Moment::at(self.now) };
            let Ok(moved) = machine::advance(self.definition, &mut self.driven, input, moment) else {
                if self.driven == before {
                    return Ok(());
                }
                return Err("what was refused changed the saga".to_owned());
            };
            if is_final(before.saga.phase()) && moved.changed {
                return Err("a saga that has ended changed".to_owned());
            }
            if !moved.changed {
                break;
            }
            match moved.local {
                Some((local, before)) if self.refuses.is_meant(local) => {
                    self.driven = *before;
                    let refusal = Refusal::precondition("TEST", "refused by the test");
                    let retry_after = matches!(self.refuses, Refuses::ForNow).then_some(Duration::from_secs(1));
                    let refusal = Refusal { retry_after, ..refusal };
                    input = Input::LocalRefused { local, refusal, roll: 0.0 };
                }
                local => {
                    self.commit()?;
                    if local.is_none() || is_final(self.driven.saga.phase()) {
                        break;
                    }
                    input = Input::Tick;
                }
            }
        }
        if !self.draining {
            self.call_due()?;
        }
        truth(self)
    }

    fn commit(&mut self) -> Result<(), String> {
        let (told, stored) = self.driven.encode();
        let transition = Transition { before: &self.stored, after: &self.driven, stored: stored.clone(), told };
        self.stored = transition.check(&self.definition.plan.steps, &mut self.shown)?;
        self.bytes = stored;
        self.driven.saved();
        Ok(())
    }

    fn call_due(&mut self) -> Result<(), String> {
        let in_flight: Vec<Due> = self.in_flight.iter().map(|call| call.due).collect();
        for due in machine::due(&self.driven, |due| in_flight.contains(&due), self.now) {
            let Due { step, op } = due;
            machine::leaves(&mut self.driven, due);
            let (begun, kept) = (self.stored.saga.steps[step].state(), &self.stored.kept.steps[step]);
            let (expected, request) = match op {
                Op::Action => (StepState::Started, &kept.request),
                Op::Compensation => (StepState::Compensating, &kept.compensation_request),
            };
            if begun != expected {
                return Err(format!("{due:?} left before the log said so"));
            }
            if op == Op::Compensation && kept.compensation_not_before_micros > self.now {
                return Err(format!("{due:?} left while its action may yet come"));
            }
            self.in_flight.push(Call { due, request: request.clone(), left: self.now });
        }
        Ok(())
    }

    pub(super) fn next_wake(&self) -> Option<i64> {
        let in_flight = |due: Due| self.in_flight.iter().any(|call| call.due == due);
        machine::next_wake(&self.definition.plan, &self.driven, in_flight)
    }

    /// True if nobody will ever look at the saga again, although nobody holds it.
    pub(super) fn is_forgotten(&self) -> bool {
        let held = self.driven.saga.paused || self.driven.saga.phase() == SagaPhase::Stuck || self.draining;
        let told = self.driven.queued || self.driven.kept.awaits_parent;
        !held && !told && self.in_flight.is_empty() && self.next_wake().is_none()
    }
}
