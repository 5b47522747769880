//! What earlier steps answered, as later steps and compensations see it.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use prost::Message;
use proto::saga::v1::{Reason, Step, StepState};

use super::{Compensated, record::Record};
use crate::refusal::Refusal;

/// Names a step of a definition, and knows what it answers.
pub struct Handle<R> {
    pub(super) step: usize,
    reply: PhantomData<fn() -> R>,
}

impl<R> Handle<R> {
    pub(super) const fn new(step: usize) -> Self {
        Self { step, reply: PhantomData }
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
        write!(f, "step {}", self.step)
    }
}

/// The replies of the steps that are done.
#[derive(Clone, Copy, Debug)]
pub struct Replies<'a>(&'a Record);

impl<'a> Replies<'a> {
    pub(super) const fn of(record: &'a Record) -> Self {
        Self(record)
    }

    /// A step's reply.
    ///
    /// # Errors
    /// When the step is not done: only a step that comes before the asking one surely is.
    pub fn get<R: Message + Default>(&self, handle: Handle<R>) -> Result<R, Refusal> {
        let (step, shown) = (self.0.kept.steps.get(handle.step), self.0.saga.steps.get(handle.step));
        let Some((kept, shown)) = step.zip(shown) else { return Err(Refusal::internal()) };
        if !has_reply(shown) {
            let message = format!("{} has no reply: name it by after()", shown.name);
            return Err(Refusal::precondition("REPLY_MISSING", message));
        }
        R::decode(kept.reply.clone()).map_err(|error| unreadable(&shown.name, &error))
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
    /// The replies of other steps.
    pub replies: Replies<'a>,
    /// Why the saga turned back.
    pub reason: Reason,
}

impl<'a, I, O: Compensated> Undo<'a, I, O> {
    pub(super) fn new(input: &'a I, record: &'a Record, step: usize) -> Result<Self, Refusal> {
        let (kept, shown) = (&record.kept.steps[step], &record.saga.steps[step]);
        let decode = |bytes: &Bytes| O::Request::decode(bytes.clone());
        let request = decode(&kept.request).map_err(|error| unreadable(&shown.name, &error))?;
        let reply = has_reply(shown).then(|| O::Reply::decode(kept.reply.clone()));
        let reply = reply.transpose().map_err(|error| unreadable(&shown.name, &error))?;
        Ok(Self {
            input,
            request,
            reply,
            replies: Replies::of(record),
            reason: record.saga.reason.clone().unwrap_or_default(),
        })
    }
}
