//! The end of a drawn saga, which there must be.

use proto::saga::v1::SagaPhase;

use super::world::{Fate, Refuses, World};
use crate::saga::{
    machine::{Input, Settled, Wish},
    record::is_final,
};

impl World<'_> {
    /// Nothing goes wrong any more, and an operator does what there is to do: the saga must come to an end.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        self.refuses = Refuses::Nothing;
        self.restart()?;
        self.ask(Wish::Resume)?;
        for round in 0..2 * self.participants.len() + 3 {
            self.go_on()?;
            if is_final(self.stored.saga.phase()) {
                while !self.late.is_empty() {
                    self.arrive_late(0)?;
                }
                return Ok(());
            }
            if self.stored.saga.phase() != SagaPhase::Stuck {
                return Err("nothing is to be done, and it has not ended".to_owned());
            }
            if round == 0 || self.stored.kept.ending_held {
                self.ask(Wish::Retry)?;
                continue;
            }
            let held = self.stored.kept.steps.iter().position(|step| step.held).ok_or("nothing is held")?;
            let version = self.stored.saga.version;
            self.ask(self.skip(held, Settled::Done))?;
            if self.stored.saga.version == version {
                return Err("what is held can't be skipped".to_owned());
            }
        }
        Err("no operator can end it".to_owned())
    }

    /// Answers every call, and waits for what comes by itself.
    fn go_on(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            if is_final(self.stored.saga.phase()) {
                return Ok(());
            }
            if !self.in_flight.is_empty() {
                self.answer(0, Fate::Accepted)?;
            } else if self.driven.queued {
                self.hear(Input::Woken)?;
            } else if self.driven.kept.awaits_parent {
                self.hear(Input::ParentEnded(SagaPhase::Completed))?;
            } else if let Some(at) = self.next_wake() {
                self.wait((at - self.now).max(1))?;
            } else {
                return Ok(());
            }
        }
        Err("it goes round and never ends".to_owned())
    }
}
