//! The answers of the steps that are done, as the functions of a definition see them that make a later step's request, or a compensation.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use prost::Message;
use proto::saga::v1::{Reason, Step, StepState};

use super::{Compensated, plan::Plan, record::Record};
use crate::refusal::Refusal;

/// Names a step of a definition, and knows what it answers.
pub struct Handle<R> {
    /// The definition's name and version.
    pub(super) of: (&'static str, u32),
    pub(super) step: usize,
    reply: PhantomData<fn() -> R>,
}

impl<R> Handle<R> {
    pub(super) const fn new(of: (&'static str, u32), step: usize) -> Self {
        Self { of, step, reply: PhantomData }
    }
}

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Handle<R> {}

impl<R> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of {} version {}", self.step, self.of.0, self.of.1)
    }
}

/// The replies of the steps that are done.
#[derive(Clone, Copy, Debug)]
pub struct Replies<'a> {
    pub(super) record: &'a Record,
    plan: &'a Plan,
    /// The step that asks. None where it may ask for any: what is asked once all are done, and an undoing, which is told what there is.
    asking: Option<usize>,
}

impl<'a> Replies<'a> {
    pub(super) const fn of(plan: &'a Plan, record: &'a Record) -> Self {
        Self { record, plan, asking: None }
    }

    pub(super) const fn before(plan: &'a Plan, record: &'a Record, step: usize) -> Self {
        Self { record, plan, asking: Some(step) }
    }

    /// A step's reply.
    ///
    /// # Errors
    /// When the step doesn't come before the one that asks, is one of another definition, or has no reply because an operator skipped it.
    pub fn get<R: Message + Default>(&self, handle: Handle<R>) -> Result<R, Refusal> {
        let Plan { name, version, steps, .. } = self.plan;
        let Some(step) = steps.get(handle.step).filter(|_| handle.of == (*name, *version)) else {
            let message =
                format!("{name} version {version} asks for a reply of {} version {}", handle.of.0, handle.of.1);
            return Err(Refusal::precondition("REPLY_OF_ANOTHER_SAGA", message));
        };
        // One that is beside it may be done by then: now and again, and not always.
        if let Some(asking) = self.asking.filter(|asking| step.descendants & (1 << asking) == 0) {
            let message = format!("{} asks for the reply of {}: name it by after()", steps[asking].name, step.name);
            return Err(Refusal::precondition("REPLY_NOT_BEFORE", message));
        }
        if !has_reply(&self.record.saga.steps[handle.step]) {
            return Err(Refusal::precondition("REPLY_MISSING", format!("{} has no reply", step.name)));
        }
        R::decode(self.record.kept.steps[handle.step].reply.clone()).map_err(|error| unreadable(step.name, &error))
    }
}

/// A step that is done has a reply, and keeps it while it is undone. One that an operator skipped has none.
fn has_reply(step: &Step) -> bool {
    match step.state() {
        StepState::Done => true,
        StepState::Compensating | StepState::Compensated => step.action_duration.is_some(),
        _ => false,
    }
}

fn unreadable(step: &str, error: &prost::DecodeError) -> Refusal {
    Refusal::precondition("REPLY_UNREADABLE", format!("the reply of {step} can't be read: {error}"))
}

/// What a compensation is made from.
#[derive(Debug)]
pub struct Undo<'a, I, O: Compensated> {
    /// What the saga was started with.
    pub input: &'a I,
    /// The request that the action was called with.
    pub request: O::Request,
    /// What the action answered; None if it is not known whether it took effect.
    pub reply: Option<O::Reply>,
    /// The replies of other steps: surely those of the steps before it, unless an operator skipped them.
    pub replies: Replies<'a>,
    /// Why the saga turned back.
    pub reason: Reason,
}

impl<'a, I, O: Compensated> Undo<'a, I, O> {
    pub(super) fn new(input: &'a I, replies: Replies<'a>, step: usize) -> Result<Self, Refusal> {
        let record = replies.record;
        let (kept, shown) = (&record.kept.steps[step], &record.saga.steps[step]);
        let decode = |bytes: &Bytes| O::Request::decode(bytes.clone());
        let request = decode(&kept.request).map_err(|error| unreadable(&shown.name, &error))?;
        let reply = has_reply(shown).then(|| O::Reply::decode(kept.reply.clone()));
        let reply = reply.transpose().map_err(|error| unreadable(&shown.name, &error))?;
        Ok(Self { input, request, reply, replies, reason: record.why_back() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::saga::{Definition, operation::operations};

    operations! { Do undone by Do; }

    /// A saga in which everything is done, and each step has answered its number.
    fn done(definition: &Definition) -> Record {
        let mut record = definition.plan.new_record("s", Vec::new(), 1, 0);
        for step in 0..definition.plan.steps.len() {
            record.step_mut(step).set_state(StepState::Done);
            record.kept.steps[step].reply = (step as i64).encode_to_vec().into();
        }
        record
    }

    fn asked(definition: &Definition, step: usize, record: &Record) -> Result<i64, Refusal> {
        definition.request(step, record).map(|request| i64::decode(request).expect("a number"))
    }

    /// a beside b, then c after b, then d after c.
    fn built(make: impl FnOnce(&mut crate::saga::Builder<i64>, [Handle<i64>; 2])) -> Arc<Definition> {
        let mut saga = Definition::builder::<i64>("tea", 1);
        let a = saga.check::<Do>("a", |_, _| Ok(7));
        let b = saga.check::<Do>("b", |_, _| Ok(7));
        saga.after(&[]);
        make(&mut saga, [a, b]);
        saga.build().expect("legal")
    }

    #[test]
    fn a_reply_is_that_of_a_step_before_near_or_far() {
        let definition = built(|saga, [_, b]| {
            let c = saga.check::<Do>("c", move |_, replies| replies.get(b));
            saga.check::<Do>("d", move |_, replies| Ok(replies.get(b)? + replies.get(c)?));
        });
        let record = done(&definition);
        assert_eq!([2, 3].map(|step| asked(&definition, step, &record).expect("a request")), [1, 1 + 2]);
    }

    #[test]
    fn a_reply_of_a_step_beside_is_refused_though_it_is_there() {
        let definition = built(|saga, [a, _]| {
            saga.check::<Do>("c", move |_, replies| replies.get(a));
        });
        let refusal = asked(&definition, 2, &done(&definition)).expect_err("a is beside it");
        assert_eq!(refusal.reason, "REPLY_NOT_BEFORE");
        assert_eq!(refusal.message, "c asks for the reply of a: name it by after()");
    }

    #[test]
    fn a_reply_of_another_definition_is_refused() {
        let mut coffee = Definition::builder::<i64>("coffee", 2);
        let ground = coffee.check::<Do>("grind", |_, _| Ok(7));
        let definition = built(|saga, _| {
            saga.check::<Do>("c", move |_, replies| replies.get(ground));
        });
        let refusal = asked(&definition, 2, &done(&definition)).expect_err("it is of another saga");
        assert_eq!(refusal.reason, "REPLY_OF_ANOTHER_SAGA");
        assert_eq!(refusal.message, "tea version 1 asks for a reply of coffee version 2");
        // Nor is one of another making of the same that has more steps.
        let mut far = None;
        drop(built(|saga, _| far = (0..3).map(|at| saga.check::<Do>(["c", "d", "e"][at], |_, _| Ok(7))).last()));
        let far = far.expect("a handle");
        let definition = built(|saga, _| {
            saga.check::<Do>("c", move |_, replies| replies.get(far));
        });
        let refusal = asked(&definition, 2, &done(&definition)).expect_err("there is no such step");
        assert_eq!(refusal.reason, "REPLY_OF_ANOTHER_SAGA");
    }

    #[test]
    fn an_undoing_is_told_what_there_is() {
        let definition = built(|saga, [a, _]| {
            saga.compensatable::<Do>("c", |_, _| Ok(7), move |undo| undo.replies.get(a).unwrap_or(-1) + 10);
        });
        let mut record = done(&definition);
        let undoing =
            |record: &Record| i64::decode(definition.compensation(2, record).expect("bytes")).expect("a number");
        assert_eq!(undoing(&record), 10);
        record.step_mut(0).set_state(StepState::Started);
        assert_eq!(undoing(&record), 9);
    }
}
